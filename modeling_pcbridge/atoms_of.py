"""Taking the features of chosen atoms out of a batch, and adding to them."""

import torch
from torch import Tensor


def atoms_of(values: Tensor, atoms: Tensor) -> Tensor:
    """`values` (B, N, C) of the atoms (B, ...), whose indices are within each molecule: (B, ..., C)."""
    # On CPUs rows are taken, and added back, much faster than single numbers by `gather`.
    return values.flatten(0, 1).index_select(0, _rows(atoms, values.shape[1])).unflatten(0, atoms.shape)


def add_to_atoms(values: Tensor, atoms: Tensor, num_atoms: int) -> Tensor:
    """The transpose of `atoms_of`: sums (B, N, C) of `values` (B, ..., C) over those of each of the N atoms."""
    sums = values.new_zeros(len(values) * num_atoms, values.shape[-1])
    sums.index_add_(0, _rows(atoms, num_atoms), values.flatten(0, -2))
    return sums.unflatten(0, (-1, num_atoms))


def _rows(atoms: Tensor, num_atoms: int) -> Tensor:
    """Where atoms (B, ...) are when the atoms of the whole batch are counted."""
    first = torch.arange(len(atoms), device=atoms.device) * num_atoms
    return (atoms.flatten(1) + first[:, None]).flatten()
