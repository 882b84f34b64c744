"""One update: its noise and precision, its bad molecules, and one loss after another."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import bundled_examples, small_model
from test_training import small_config

from modeling_pcbridge import LossSettings, PCBridgeModel
from pcbridge.training import data
from pcbridge.training.bad_numbers import drop_gradients_unless, find_bad_molecules
from pcbridge.training.stage import float32_products
from pcbridge.training.update import LOSSES, RECORD_NAMES, Place, noise_generator, run_update, training_loss


def test_gradients_are_kept_bit_for_bit_or_dropped():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = torch.nn.Linear(3, 2).to(dtype)
        for good in (True, False):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
                parameter.grad.flatten()[:2] = torch.tensor([torch.nan, -torch.inf])
            before = [parameter.grad.clone() for parameter in model.parameters()]
            drop_gradients_unless(torch.tensor(good), model)
            for parameter, gradient in zip(model.parameters(), before, strict=True):
                expected = gradient if good else torch.zeros_like(gradient)
                torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_bad_molecules_are_found_under_the_noise_and_precision_of_training(tmp_path, monkeypatch, precision):
    """The denoiser breaks where a molecule is thrown far by its noise, as a network in training may."""
    config = small_config(tmp_path)
    losses = LossSettings().only(denoising_weight=1.0)
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator, "autocast", lambda: torch.autocast("cpu", precision, enabled=bool(precision)))
    examples = bundled_examples("pm6", "train", 16, only_labelled=True)
    [(batch, ids)] = data.collate_in_parts(examples, None)
    model, seen = small_model(dtype=torch.float32), []

    def fragile(self, graph, noisy_positions, timesteps, *arguments, **options):
        assert torch.is_autocast_enabled("cpu") == bool(precision)
        seen.append(noisy_positions)
        thrown = noisy_positions.norm(dim=-1).amax(-1)
        return torch.where(thrown[:, None, None] > thrown.sort().values[-3], torch.nan, noisy_positions)

    monkeypatch.setattr(PCBridgeModel, "denoise", fragile)

    def loss(batch: dict) -> torch.Tensor:
        generator = noise_generator(config, accelerator, *Place(step=7, micro_batch=1, part=0))
        return training_loss(model, batch, losses, generator, accelerator).loss

    assert loss(batch).isnan()
    thrown = seen[0].norm(dim=-1).amax(-1).argsort()[-2:].tolist()
    assert find_bad_molecules(loss, batch, ids) == [ids[row] for row in sorted(thrown)]
    assert len(seen) < 1 + 2 * 2 * 5  # 16 rows are halved four times for each


def test_noise_of_the_cpu_wherever_training_is(tmp_path):
    accelerator = SimpleNamespace(device=torch.device("meta"))
    config = small_config(tmp_path, noise_device="cpu")
    assert noise_generator(config, accelerator, 1, 2).device.type == "cpu"
    # The same place, the same noise.
    draws = [
        torch.rand(3, generator=noise_generator(config, accelerator, *place)) for place in ((1, 2), (1, 2), (2, 1))
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_tf32_is_for_gpus_and_ends_with_the_stage(tmp_path):
    config = small_config(tmp_path)
    seen = []
    for device, tf32 in (("cuda", True), ("cuda", False), ("cpu", True)):
        with float32_products(replace(config, tf32=tf32), torch.device(device)):
            seen.append(torch.get_float32_matmul_precision())
        assert torch.get_float32_matmul_precision() == "highest"
    assert seen == ["high", "highest", "highest"]


class Kept:
    """A tensor that autograd keeps for a backward pass; `live` counts the bytes of all, `peak` the most at one time."""

    live = peak = 0

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor.detach()
        Kept.live += tensor.nbytes
        Kept.peak = max(Kept.peak, Kept.live)

    def __del__(self):
        Kept.live -= self.tensor.nbytes


@contextmanager
def peak_of_kept_tensors() -> Iterator[list[int]]:
    """The peak, in bytes, is in the list afterwards."""
    Kept.live, Kept.peak, found = 0, 0, []
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        yield found
    found.append(Kept.peak)


def test_losses_one_after_another_have_the_gradient_of_all_and_a_lower_peak(tmp_path):
    [(batch, ids)] = data.collate_in_parts(bundled_examples("pm6", "train", 6, only_labelled=True), None)
    losses = LossSettings(optimality_weight=0.1, score_weight=0.1, distillation_weight=1.0, relaxation_steps=1)
    config = small_config(tmp_path, max_grad_norm=1e9)
    stage, accelerator = replace(config.stage1, losses=losses), Accelerator(cpu=True)
    model = small_model()
    with peak_of_kept_tensors() as at_once:
        generator = noise_generator(config, accelerator, 5, 0, 0)
        output = training_loss(model, batch, losses, generator, accelerator)
        output.loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with peak_of_kept_tensors() as in_turn:
        values = run_update(model, [[(batch, ids)]], 5, stage, config, accelerator, [])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)
    record = dict(zip(RECORD_NAMES, values.record.tolist(), strict=True))
    for name in LOSSES:
        assert record[name] == pytest.approx(getattr(output, name).item(), rel=1e-5), name
    assert in_turn[0] < 0.6 * at_once[0]


def test_losses_in_turn_are_those_in_use():
    losses = LossSettings(denoising_weight=0.0, force_weight=0.5, score_weight=2.0, kT=0.2)
    assert losses.in_turn() == [losses.only(energy_weight=1.0, force_weight=0.5), losses.only(score_weight=2.0)]
    assert LossSettings().only(force_weight=1.0).in_turn() == [LossSettings().only(force_weight=1.0)]
