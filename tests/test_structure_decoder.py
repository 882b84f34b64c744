"""The structure decoder's shortcuts against the plain formulas."""

import torch

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
    result = StructureLayer._direction_messages(weights, positions, values)
    torch.testing.assert_close(result, expected.flatten(-2), rtol=0, atol=1e-12)


def test_direction_messages_keep_full_precision_under_autocast():
    weights, positions = torch.rand(1, 2, 6, 6), 3 * torch.randn(1, 6, 3)
    values = torch.randn(1, 2, 6, 4)
    expected = StructureLayer._direction_messages(weights, positions, values)
    with torch.autocast("cpu", torch.bfloat16):
        result = StructureLayer._direction_messages(weights, positions, values)
    assert torch.equal(result, expected)
