"""torch.compile changes nothing but speed."""

import pytest
import torch
from conftest import FORMS, bundled_examples, small_model

from dataset_scripts.collator import collate
from modeling_pcbridge.losses import LossSettings
from pcbridge.training.compilation import compiled


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_compiled_steps_equal_plain_ones(form):
    """Sizes change from batch to batch, so this also sees that no shape is compiled in."""
    settings = LossSettings(force_weight=1.0)
    model = small_model(**form)
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
        # Not closer: the sinusoids of the time step are float32 even here, and the compiler has its own.
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-8


def test_a_torch_too_old_to_compile_gradients_trains_without(monkeypatch, caplog):
    monkeypatch.delattr(torch._dynamo.config, "trace_autograd_ops")
    model = small_model()
    with compiled(model):
        assert "denoise" not in vars(model)
    assert "cannot compile torch.autograd.grad" in caplog.text
