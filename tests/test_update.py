"""One update: its noise and precision, its bad molecules, and what DDP has to know of its gradients."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import bundled_examples, small_model
from test_training import small_config

from modeling_pcbridge import LossSettings, PCBridgeModel
from modeling_pcbridge.losses import LOSS_NAMES
from pcbridge.training import data
from pcbridge.training.bad_numbers import drop_gradients_unless, find_bad_molecules
from pcbridge.training.stage import float32_products, leaves_out_parameters
from pcbridge.training.update import Place, noise_generator, training_loss


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
    stage = replace(config.stage1, losses=LossSettings().only(denoising_weight=1.0))
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
    place = Place(step=7, micro_batch=1, part=0)
    output = training_loss(model, batch, place, stage, config, accelerator)
    assert output.loss.isnan()
    thrown = seen[0].norm(dim=-1).amax(-1).argsort()[-2:].tolist()

    def loss(batch: dict) -> torch.Tensor:
        return training_loss(model, batch, place, stage, config, accelerator).loss

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


def test_ddp_is_told_of_parameters_that_are_left_out():
    """Which is so where a parameter has no gradient; DDP would raise, or wait for it for ever."""
    [(batch, _)] = data.collate_in_parts(bundled_examples("pm6", "train", 3, only_labelled=True), None)
    model = small_model(num_hidden_layers=1, num_structure_layers=1)
    for weights in itertools.product([0.0, 1.0], repeat=len(LOSS_NAMES)):
        losses = LossSettings(**dict(zip(LOSS_NAMES, weights, strict=True)), relaxation_steps=1)
        model.zero_grad()
        loss = model(**batch, loss_settings=losses).loss
        if loss.requires_grad:
            loss.backward()
            left_out = any(parameter.grad is None for parameter in model.parameters())
            assert leaves_out_parameters(losses) == left_out, losses
