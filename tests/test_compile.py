"""torch.compile changes nothing but speed."""

import pytest
import torch
from conftest import bundled_examples, small_model

from dataset_scripts.collator import collate
from modeling_pcbridge.losses import LossSettings
from modeling_pcbridge.training_loop import compiled


@pytest.mark.slow
def test_compiled_steps_equal_plain_ones():
    """Sizes change from batch to batch, so this also sees that no shape is compiled in."""
    settings = LossSettings(force_weight=1.0, score_weight=0.1, score_form="denoised", optimality_weight=0.1)
    model = small_model()
    examples = bundled_examples("pm6", "train", 40, only_labelled=True)
    batches = [collate(examples[:8]), collate(examples[32:])]
    assert batches[0]["positions"].shape != batches[1]["positions"].shape

    def gradients() -> list[torch.Tensor]:
        results = []
        for batch in batches:
            model.zero_grad()
            model(**batch, loss_settings=settings, generator=torch.Generator().manual_seed(0)).loss.backward()
            results += [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        return results

    expected = gradients()
    with compiled(model):
        result = gradients()
    assert "denoise" not in vars(model)
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
