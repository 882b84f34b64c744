"""torch.compile changes nothing but speed."""

import pytest
import torch
from conftest import FORMS, bundled_examples, small_model

from dataset_scripts.collator import collate
from modeling_pcbridge.losses import LossSettings
from pcbridge.training.compilation import compiled

FUNCTIONS = ("interaction_energy", "interaction_energy_and_gradient", "denoise")
EVERY_LOSS = LossSettings(optimality_weight=0.1, score_weight=1.0, distillation_weight=0.1, relaxation_steps=2)


@pytest.mark.parametrize("settings", [LossSettings(), LossSettings(force_weight=0.0), EVERY_LOSS])
def test_all_of_the_network_runs_compiled(settings, monkeypatch):
    """Every loss reaches the encoder, which all the work is in, through a compiled function only."""
    inside, calls = [], []

    def compile_nothing(function, **_):
        def wrapped(*arguments, **options):
            inside.append(function)
            result = function(*arguments, **options)
            inside.pop()
            return result

        return wrapped

    model = small_model()
    model.encoder.register_forward_pre_hook(lambda *_: calls.append(bool(inside)))
    batch = collate(bundled_examples("pm6", "train", 4, only_labelled=True))
    monkeypatch.setattr(torch, "compile", compile_nothing)
    with compiled(model):
        model(**batch, loss_settings=settings)
    assert calls and all(calls)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form, settings",
    [
        *((form, EVERY_LOSS) for form in FORMS.values()),
        ({"structure_cutoff": 3.0}, LossSettings().only(denoising_weight=1.0)),
        ({}, LossSettings(force_weight=0.0)),
    ],
    ids=[*FORMS, "structures within a cutoff", "energies without forces"],
)
def test_compiled_steps_equal_plain_ones(form, settings):
    """Sizes change from batch to batch, so this also sees that no shape is compiled in."""
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
    assert not set(FUNCTIONS) & set(vars(model))
    for one, other in zip(result, expected, strict=True):
        # Not closer: the sinusoids of the time step are float32 even here, and the compiler has its own.
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-8


def test_a_torch_too_old_to_compile_gradients_trains_without(monkeypatch, caplog):
    monkeypatch.delattr(torch._dynamo.config, "trace_autograd_ops")
    model = small_model()
    with compiled(model):
        assert not set(FUNCTIONS) & set(vars(model))
    assert "cannot compile torch.autograd.grad" in caplog.text
