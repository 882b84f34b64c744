"""Taking the features of chosen atoms out of a batch."""

import torch
from torch import Tensor


def atoms_of(values: Tensor, atoms: Tensor) -> Tensor:
    """`values` (B, N, C) of the atoms (B, ...), whose indices are within each molecule: (B, ..., C)."""
    rows = torch.arange(len(values), device=values.device) * values.shape[1]
    flat = (atoms.flatten(1) + rows[:, None]).flatten()
    # On CPUs rows are taken, and added back, much faster than single numbers by `gather`.
    return values.flatten(0, 1).index_select(0, flat).unflatten(0, atoms.shape)
