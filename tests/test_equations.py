"""Eqs. 7, 10 and 11 recomputed from the model's energy and denoiser, with the random numbers drawn here once more."""

import math

import numpy as np
import pytest
import torch
from conftest import bundled_examples, small_model

from dataset_scripts.collator import collate
from modeling_pcbridge import LossSettings, PCBridgeModel
from modeling_pcbridge.graph_batch import GRAPH_KEYS, GraphBatch

LENGTH_UNIT = 1.5


@pytest.fixture(scope="module")
def model() -> PCBridgeModel:
    return small_model(length_unit=LENGTH_UNIT)


@pytest.fixture(scope="module")
def structures(batch) -> tuple[GraphBatch, torch.Tensor]:
    """The eight rows that train the structure decoder; in float64, where the model centres in float32."""
    rows = batch["is_equilibrium"]
    graph = GraphBatch(**{key: batch[key][rows] for key in GRAPH_KEYS})
    return graph, centred(batch["positions"][rows].double(), graph.atom_mask)


def loss(model: PCBridgeModel, batch: dict, settings: LossSettings) -> float:
    return model(**batch, loss_settings=settings, generator=torch.Generator().manual_seed(0)).loss.item()


def centred(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[..., None].double()
    return (vectors - (vectors * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)) * weights


def draw_noise(graph: GraphBatch, random: torch.Generator) -> torch.Tensor:
    shape = (*graph.atom_mask.shape, 3)
    return centred(torch.randn(shape, generator=random, dtype=torch.float64), graph.atom_mask)


def noised(model: PCBridgeModel, graph: GraphBatch, positions: torch.Tensor, tau: torch.Tensor, random):
    """R_tau, and abar_tau as (8, 1, 1)."""
    abar = model.diffusion.alphas_cumprod[tau][:, None, None]
    return abar.sqrt() * positions + (1 - abar).sqrt() * LENGTH_UNIT * draw_noise(graph, random), abar


def turned_onto(positions: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Kabsch's algorithm as textbooks have it."""
    turned = []
    for x, y in zip(positions.numpy(), reference.numpy(), strict=True):
        left, _, right = np.linalg.svd(x.T @ y)
        sign = np.sign(np.linalg.det(left @ right))
        turned.append(x @ left @ np.diag([1, 1, sign]) @ right)
    return torch.from_numpy(np.array(turned))


@torch.no_grad()
@pytest.mark.parametrize("exponent, align", [(1.0, False), (2.0, False), (1.0, True)])
def test_multi_task_loss_against_equation_7(model, batch, structures, exponent, align):
    settings = LossSettings(
        energy_weight=0.5, denoising_weight=0.01, force_weight=0.0, denoising_exponent=exponent, align_targets=align
    )
    energy = model.predict_energy(**{key: batch[key] for key in (*GRAPH_KEYS, "positions")}).energy
    errors = (energy - batch["energy"]).abs()[batch["has_energy"]]
    graph, positions = structures
    random = torch.Generator().manual_seed(0)
    tau = 1 + (1000 * torch.rand(8, generator=random) ** exponent).long()
    noisy, abar = noised(model, graph, positions, tau, random)
    target = turned_onto(positions, noisy) if align else positions
    squares = (model.denoise(graph, noisy, tau) - target).square().sum((1, 2))
    denoising = (abar / (1 - abar)).squeeze() / LENGTH_UNIT**2 * squares
    expected = 0.5 * errors.mean() + 0.01 * denoising.mean()
    assert loss(model, batch, settings) == pytest.approx(expected.item(), rel=1e-6)


@torch.no_grad()
def test_optimality_consistency_against_equation_10(model, batch, structures):
    settings = LossSettings(sigma_max=2.0).only(optimality_weight=1.0)
    graph, _ = structures
    random = torch.Generator().manual_seed(0)
    tau = 400 + (301 * torch.rand(8, generator=random)).long()
    predicted = model.denoise(graph, LENGTH_UNIT * draw_noise(graph, random), tau)
    variance = 2.0**2 * (1 - torch.rand(8, generator=random))  # in (0, sigma_max^2]
    eta = variance.sqrt()[:, None, None] * draw_noise(graph, random)
    gap = model.energy_and_forces(graph, predicted)[0] - model.energy_and_forces(graph, predicted + eta)[0]
    assert (gap > 0).any() and (gap < 0).any()
    assert loss(model, batch, settings) == pytest.approx(gap.clamp(min=0).mean().item(), rel=1e-6)


@torch.no_grad()
def test_score_consistency_against_equation_11(model, batch, structures):
    graph, positions = structures
    random = torch.Generator().manual_seed(0)
    tau = 5 + (296 * torch.rand(8, generator=random)).long()
    noisy, abar = noised(model, graph, positions, tau, random)
    _, forces = model.energy_and_forces(graph, noisy)
    score = (abar.sqrt() * model.denoise(graph, noisy, tau) - noisy) / ((1 - abar) * LENGTH_UNIT**2)
    expected = (score - forces / 0.1).square().sum((1, 2)).mean().item()
    assert loss(model, batch, LossSettings().only(score_weight=1.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "settings, times",
    [
        (LossSettings().only(denoising_weight=1.0), [1, 251, 501, 751, 1000]),
        (LossSettings(denoising_exponent=2.0).only(denoising_weight=1.0), [1, 63, 251, 563, 1000]),
        (LossSettings().only(optimality_weight=1.0), [400, 475, 550, 625, 700]),
        (LossSettings().only(score_weight=1.0), [5, 79, 153, 227, 300]),
    ],
    ids=["Eq. 7", "Eq. 7 with small noise more often", "Eq. 10", "Eq. 11"],
)
def test_time_steps_from_the_first_to_the_last(model, monkeypatch, settings, times):
    """Of random numbers 0, 1/4, 1/2, 3/4 and the last below 1."""
    seen = []
    denoise = PCBridgeModel.denoise

    def recorded(self, graph, noisy_positions, timesteps, *arguments, **options):
        seen.append(timesteps)
        return denoise(self, graph, noisy_positions, timesteps, *arguments, **options)

    monkeypatch.setattr(PCBridgeModel, "denoise", recorded)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([0.0, 0.25, 0.5, 0.75, math.nextafter(1, 0)]))
    model(**collate(bundled_examples("pm6", "train", 5)), loss_settings=settings)
    assert [timesteps.tolist() for timesteps in seen] == [times]
