"""The structure decoder's shortcuts against the plain formulas."""

import torch
from conftest import random_positions, small_model

from modeling_pcbridge.diffusion import centre
from modeling_pcbridge.graph_batch import GRAPH_KEYS, GraphBatch
from modeling_pcbridge.pair_layout import AllPairs
from modeling_pcbridge.structure_decoder import StructureLayer


def test_direction_messages_against_the_sum_over_pairs():
    batch, heads, atoms, size = 2, 3, 5, 4
    weights = torch.randn(batch, heads, atoms, atoms, dtype=torch.float64)
    positions = torch.randn(batch, atoms, 3, dtype=torch.float64)
    values = torch.randn(batch, heads, atoms, size, dtype=torch.float64)
    expected = torch.zeros(3, batch, atoms, heads, size, dtype=torch.float64)
    for i in range(atoms):
        for j in range(atoms):
            difference = (positions[:, i] - positions[:, j]).mT  # (3, B)
            message = weights[:, :, i, j, None] * values[:, :, j]  # (B, H, d)
            expected[:, :, i] += difference[:, :, None, None] * message
    layout = AllPairs.of(atoms, weights.device)
    result = StructureLayer._direction_messages(layout, weights, positions, values)
    torch.testing.assert_close(result, expected.flatten(-2), rtol=0, atol=1e-12)


def test_direction_messages_keep_full_precision_under_autocast():
    weights, positions = torch.rand(1, 2, 6, 6), 3 * torch.randn(1, 6, 3)
    values = torch.randn(1, 2, 6, 4)
    layout = AllPairs.of(6, weights.device)
    expected = StructureLayer._direction_messages(layout, weights, positions, values)
    with torch.autocast("cpu", torch.bfloat16):
        result = StructureLayer._direction_messages(layout, weights, positions, values)
    assert torch.equal(result, expected)


def test_vectors_and_displacements_stay_bounded_far_from_the_data(graph):
    """With weights ten times too large an unbounded decoder multiplies vectors to 1e9 and more."""
    model = small_model(num_structure_layers=4)
    with torch.no_grad():
        for name, parameter in model.structure_decoder.named_parameters():
            if "vector" in name or "direction" in name or "displacement" in name:
                parameter.mul_(10)
    batch = GraphBatch(**{key: graph[key] for key in GRAPH_KEYS})
    positions = centre(random_positions(graph), batch.atom_mask).requires_grad_()
    timesteps = torch.full((len(positions),), 1)
    moved = model.denoise(batch, positions, timesteps) - positions
    noise = (1 - model.diffusion.alphas_cumprod[1]).sqrt().item()  # c_out at so small a noise
    assert 2 * noise < moved.norm(dim=-1).max() < 7 * noise
    (gradient,) = torch.autograd.grad(moved.square().sum(), positions)
    assert gradient.isfinite().all()
