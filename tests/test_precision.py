"""What each precision costs: energies of -10,000 eV whose differences matter at a hundredth."""

import pytest
import torch
from test_training import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import collate, example_from_row
from modeling_pcbridge import LossSettings, PCBridgeModel
from modeling_pcbridge.graph_batch import GRAPH_KEYS

CHECKPOINT = ROOT / "checkpoints" / "consistency"


@pytest.fixture(scope="module")
def inputs() -> dict:
    rows = [row for row in load_bundled("pm6", "validation") if row["energy"] is not None][::4]
    batch = collate([example_from_row(row, ["B3LYP/6-31G*"]) for row in rows])
    return {key: batch[key] for key in (*GRAPH_KEYS, "positions")}


def errors(inputs: dict, dtype: torch.dtype, autocast: torch.dtype | None = None) -> tuple[float, float]:
    """Largest error of energy (eV) and of a force component (eV/angstrom) against float64."""
    exact = PCBridgeModel.from_pretrained(CHECKPOINT).double().eval()
    expected = exact.predict_energy(**{**inputs, "positions": inputs["positions"].double()})
    model = PCBridgeModel.from_pretrained(CHECKPOINT).to(dtype).eval()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        got = model.predict_energy(**inputs)
    assert got.energy.dtype == torch.float64
    assert got.energy.min() < -9000
    energy = (got.energy - expected.energy).abs().max().item()
    return energy, (got.forces - expected.forces).abs().max().item()


def test_float32_keeps_what_the_labels_hold(inputs):
    energy, force = errors(inputs, torch.float32)
    assert energy < 5e-5 and force < 2e-4


def test_weights_in_bf16_cost_about_what_the_model_is_wrong(inputs):
    """At most .07 eV and .16 eV/angstrom when this was written, beside mean errors of the model of .1 and .06."""
    energy, force = errors(inputs, torch.bfloat16)
    assert 1e-3 < energy < 0.3 and 1e-3 < force < 0.5


def test_bf16_autocast_costs_less_since_distances_stay_in_float32(inputs):
    """At most .02 eV and .07 eV/angstrom when this was written; .10 and .16 with rounded distances."""
    energy, force = errors(inputs, torch.float32, torch.bfloat16)
    assert 1e-3 < energy < 0.06 and 1e-3 < force < 0.12


def test_fp16_is_closer_and_needs_no_loss_scaling(inputs):
    """At most .004 eV and .005 eV/angstrom when this was written; gradients neither overflow nor vanish."""
    energy, force = errors(inputs, torch.float32, torch.float16)
    assert 1e-4 < energy < 0.012 and 1e-4 < force < 0.02
    rows = [row for row in load_bundled("pm6_displaced", "train") if row["energy"] is not None][:4]
    batch = collate([example_from_row(row, ["B3LYP/6-31G*"]) for row in rows])
    model = PCBridgeModel.from_pretrained(CHECKPOINT).train()

    def gradient(dtype: torch.dtype | None, scale: float = 1.0) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(**batch, loss_settings=LossSettings(force_weight=1.0, denoising_weight=0.0)).loss
        (scale * loss).backward()
        return torch.cat([p.grad.flatten() / scale for p in model.parameters() if p.grad is not None])

    exact, half = gradient(None), gradient(torch.float16)
    assert (half - exact).norm() < 0.5 * (gradient(torch.bfloat16) - exact).norm()
    for scale in (2.0**-8, 2.0**8):
        assert (gradient(torch.float16, scale) - half).norm() < 0.01 * half.norm()


def test_labels_keep_the_digits_that_float32_has_not(inputs):
    """A tenth of a meV of labels of -10,000 eV, where neighbouring float32 numbers are 1 meV apart."""
    model = PCBridgeModel.from_pretrained(CHECKPOINT).eval()
    label = model.predict_energy(**inputs).energy + 1e-4
    loss = model(**inputs, energy=label, loss_settings=LossSettings().only(energy_weight=1.0)).energy_loss
    assert loss.item() == pytest.approx(1e-4, rel=0.1)


class _TF32(TorchDispatchMode):
    """Matrix products of a GPU with TF32: what they multiply is rounded to 10 bits behind the leading one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            args = tuple(map(self._rounded, args))
        elif func in (torch.ops.aten.addmm.default, torch.ops.aten.baddbmm.default):
            args = (args[0], *map(self._rounded, args[1:]))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _rounded(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        return ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_tf32_costs_a_few_mev(inputs):
    """At most .003 eV and .005 eV/angstrom when this was written: a seventh of what bf16 by autocast costs.

    It does not help to spare the energy decoder: most comes from the layers before it.
    """
    with _TF32():
        energy, force = errors(inputs, torch.float32)
    assert 1e-4 < energy < 0.01 and 1e-4 < force < 0.015
