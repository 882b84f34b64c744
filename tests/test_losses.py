"""Each loss against its equation on cases worked out by hand."""

import math

import pytest
import torch

from modeling_pcbridge import LossSettings
from modeling_pcbridge.losses import (
    align,
    attach_gradient,
    denoised_point_consistency_loss,
    denoising_loss,
    energy_loss,
    force_loss,
    force_norm_loss,
    kabsch_rotation,
    optimality_consistency_loss,
    reduce_mean,
    score_consistency_loss,
)


def vectors(*rows) -> torch.Tensor:
    """One molecule: (1, N, 3) float64."""
    return torch.tensor([rows], dtype=torch.float64)


def test_energy_loss_is_the_absolute_error():
    assert energy_loss(torch.tensor([1.0, -2.0]), torch.tensor([0.25, 1.0])).tolist() == [0.75, 3.0]


def test_denoising_loss():
    # abar = .8: abar / (1 - abar) = 4; squared distance 1 + 4 = 5.
    weight = torch.tensor([0.8 / 0.2], dtype=torch.float64)
    loss = denoising_loss(vectors([1, 0, 0], [0, 2, 0]), vectors([0, 0, 0], [0, 0, 0]), weight)
    assert loss.item() == pytest.approx(20.0)


def test_force_loss_squared_and_norm():
    predicted, label = vectors([3, 0, 4], [0, 0, 0]), vectors([0, 0, 0], [0, 2, 0])
    assert force_loss(predicted, label).item() == 29.0
    mask = torch.tensor([[True, True]])
    assert force_norm_loss(predicted, label, mask).item() == pytest.approx(7.0, abs=1e-3)
    assert force_norm_loss(predicted, label, torch.tensor([[True, False]])).item() == pytest.approx(5.0, abs=1e-3)


def test_score_consistency_loss():
    # score + grad E / kT with grad E = -F: (1 - .2/.1)^2 + (0 - (-.1)/.1)^2 = 1 + 1
    loss = score_consistency_loss(vectors([1, 0, 0]), vectors([0.2, -0.1, 0]), kT=0.1)
    assert loss.item() == pytest.approx(2.0)


def test_score_consistency_vanishes_for_the_boltzmann_score():
    forces = torch.randn(2, 4, 3, dtype=torch.float64)
    assert score_consistency_loss(forces / 0.1, forces, kT=0.1).abs().max() < 1e-20


def test_optimality_hinge_and_its_gradient():
    """E = x^2 for one atom: the gap between x = 2 and x + eta, worked out."""
    x = torch.tensor([[[2.0, 0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    for eta, loss, gradient in ((-0.5, 4 - 2.25, 2 * 2 - 2 * 1.5), (0.5, 0.0, 0.0)):
        there = x.detach() + torch.tensor([eta, 0.0, 0.0], dtype=torch.float64)
        value = optimality_consistency_loss(
            x, x.detach().square().sum((-1, -2)), -2 * x.detach(), there.square().sum((-1, -2)), -2 * there
        )
        (got,) = torch.autograd.grad(value.sum(), x)
        assert value.item() == pytest.approx(loss)
        assert got[0, 0].tolist() == pytest.approx([gradient, 0.0, 0.0])


def test_data_precision_bounds_the_weight_at_small_noise():
    positions, off = torch.zeros(3, 1, 3), torch.tensor([0.0, 0.3, 0.4]).expand(3, 1, 3)
    noise_to_signal = torch.tensor([1e-6, 0.01, 1.0])
    plain = denoising_loss(off, positions, 1 / noise_to_signal)
    assert plain.tolist() == pytest.approx([0.25e6, 25.0, 0.25])
    bounded = denoising_loss(off, positions, 1 / noise_to_signal, precision=0.1)
    assert bounded.tolist() == pytest.approx([0.25 / 0.010001, 12.5, 0.25 / 1.01])


def test_denoised_point_form_pulls_to_the_minimum():
    """E = k/2 (x - m)^2 with k = 40, m = 1; step .02: the fixed point beside ||S - R||^2 is between R and m."""
    k, minimum, start, step = 40.0, 1.0, 0.0, 0.02
    s = torch.tensor([[[0.4, 0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    force = torch.tensor([[[-k * (0.4 - minimum), 0.0, 0.0]]], dtype=torch.float64)
    weight = torch.tensor([3.0], dtype=torch.float64)
    loss = denoised_point_consistency_loss(s, force, weight, step)
    (gradient,) = torch.autograd.grad(loss.sum(), s)
    assert loss.item() == pytest.approx(3.0 * (0.02 * 24.0) ** 2)
    assert gradient[0, 0, 0].item() == pytest.approx(-2 * 3.0 * 0.02 * 24.0)  # 2 w step grad E
    at_minimum = denoised_point_consistency_loss(s, torch.zeros_like(force), weight, step)
    assert at_minimum.item() == 0.0
    # Beside the denoising term there is no gradient where S - R = step F(S).
    fixed = vectors([(start + k * step * minimum) / (1 + k * step), 0, 0]).requires_grad_()
    both = denoising_loss(fixed, vectors([start, 0, 0]), weight) + denoised_point_consistency_loss(
        fixed, -k * (fixed.detach() - vectors([minimum, 0, 0])), weight, step
    )
    (gradient,) = torch.autograd.grad(both.sum(), fixed)
    assert gradient.abs().max() < 1e-12


def test_attach_gradient_keeps_values_and_sets_derivatives():
    inputs = torch.zeros(2, 1, 3, requires_grad=True)
    values = torch.tensor([1.5, -2.5])
    attached = attach_gradient(values, inputs, torch.full((2, 1, 3), 7.0))
    assert attached.tolist() == values.tolist()
    attached.sum().backward()
    assert (inputs.grad == 7.0).all()


def test_reduce_mean_over_labels_only():
    losses = torch.tensor([1.0, 100.0, 3.0])
    mask = torch.tensor([True, False, True])
    assert reduce_mean(losses, mask).item() == 2.0
    assert reduce_mean(losses, mask, count=torch.tensor(8.0)).item() == 0.5
    assert reduce_mean(losses, torch.zeros(3, dtype=torch.bool)).item() == 0.0
    nan = reduce_mean(torch.tensor([1.0, math.nan]), torch.tensor([True, False]))
    assert nan.item() == 1.0


def test_align_undoes_a_rotation_and_refuses_reflections():
    positions = torch.randn(3, 6, 3, dtype=torch.float64)
    positions -= positions.mean(1, keepdim=True)
    mask = torch.ones(3, 6, dtype=torch.bool)
    angle = 0.7
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(align(positions @ turn.T, positions, mask), positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a target, so autocast must not round it
        aligned = align((positions @ turn.T).float(), positions.float(), mask)
    torch.testing.assert_close(aligned, positions.float(), atol=1e-5, rtol=0)
    mirrored = positions * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    assert (align(mirrored, positions, mask) - positions).square().sum((-1, -2)).min() > 0.1


@pytest.mark.parametrize("shape", ["bulky", "mirrored", "planar", "linear", "single atom"])
def test_kabsch_rotation_is_as_good_as_that_of_a_singular_value_decomposition(shape):
    generator = torch.Generator().manual_seed(0)
    positions, reference = torch.randn(2, 40, 7, 3, generator=generator, dtype=torch.float64)
    positions = positions * torch.tensor({"planar": [1, 1, 0], "linear": [1, 0, 0]}.get(shape, [1, 1, 1]))
    if shape == "mirrored":
        reference = -positions
    mask = torch.arange(7) < (1 if shape == "single atom" else 6)
    positions, reference = (mask[:, None] * (x - x[:, mask].mean(1, keepdim=True)) for x in (positions, reference))
    rotation = kabsch_rotation(positions, reference, mask.expand(40, 7))
    left, _, right_t = torch.linalg.svd(reference.mT @ positions)
    left = left * torch.stack([torch.ones(40), torch.ones(40), torch.det(left @ right_t).round()], -1)[:, None]
    expected = left @ right_t
    costs = [(positions @ q.mT - reference).square().sum((-1, -2)) for q in (rotation, expected)]
    torch.testing.assert_close(*costs)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(40, 3, 3))
    torch.testing.assert_close(torch.det(rotation), torch.ones(40, dtype=torch.float64))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kT": 0.0},
        {"sigma_max": -1.0},
        {"score_form": "x"},
        {"score_form": "relaxed"},
        {"distillation_weight": -1.0},
        {"force_form": "x"},
        {"score_timesteps": (9, 5)},
        {"force_weight": -1.0},
        {"data_precision": -0.1},
    ],
)
def test_settings_refuse_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossSettings(**wrong)


def test_time_steps_of_a_loss_in_use_must_be_those_of_the_model():
    settings = LossSettings(score_weight=1.0, score_timesteps=(5, 300))
    settings.check_timesteps(300)
    with pytest.raises(ValueError, match="score_timesteps end at 300, but the model has 299 time steps"):
        settings.check_timesteps(299)
    LossSettings(score_timesteps=(5, 300)).check_timesteps(299)
