"""The energy decoder: total electronic energies from invariant node features, one head per level of theory (Eq. 6)."""

import torch
from torch import Tensor, nn

from .float64_buffers import Float64Buffers
from .out_of_plane_energy import OutOfPlaneEnergy
from .pair_features import NUM_ELEMENTS
from .torsion_energy import TorsionEnergy


class ReferenceEnergies(Float64Buffers):
    """Per-element reference energies of each level of theory in eV, fitted to the training labels by least squares.

    They carry thousands of eV, so they are added in float64; the network learns only the remaining few eV.

    Attributes:
        energies: (levels * NUM_ELEMENTS,), the elements of one level after those of the other; 0 where unknown.
    """

    energies: Tensor

    def __init__(self, num_levels: int):
        super().__init__()
        self.register_buffer("energies", torch.zeros(num_levels * NUM_ELEMENTS, dtype=torch.float64))

    @property
    def by_level(self) -> Tensor:
        """(levels, NUM_ELEMENTS), a view to read and write by level and atomic number."""
        return self.energies.view(-1, NUM_ELEMENTS)

    def forward(self, atomic_numbers: Tensor, levels: Tensor | None = None) -> Tensor:
        """Sum over the atoms (B, N) of each molecule, (B,) float64; padding (atomic number 0) counts zero.

        Args:
            atomic_numbers: (B, N).
            levels: (B,) which level of each molecule; None for the first.
        """
        if levels is not None:
            atomic_numbers = atomic_numbers + levels.unsqueeze(-1) * NUM_ELEMENTS
        return self.energies[atomic_numbers].sum(-1)


class LevelHeads(nn.Module):
    """An MLP of its own per level of theory, (..., C) -> one number: linear, GELU, linear.

    The layers of all heads lie side by side in two linear maps, so that they are as many operations as one head.
    """

    def __init__(self, hidden_size: int, num_levels: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.up = nn.Linear(hidden_size, num_levels * hidden_size)
        self.activation = nn.GELU(approximate="tanh")
        self.down = nn.Linear(hidden_size, num_levels)

    def forward(self, features: Tensor, heads: Tensor) -> Tensor:
        """(B, N) from (B, N, C): the sum of the heads of each molecule, which are 1 in `heads` (B or 1, levels)."""
        hidden = self.activation(self.up(features)).unflatten(-1, (-1, self.hidden_size))  # (B, N, levels, C)
        outputs = (hidden * self.down.weight).sum(-1) + self.down.bias
        return (outputs * heads.unsqueeze(1)).sum(-1)


class EnergyDecoder(nn.Module):
    """Atomic contributions by an MLP and terms of torsions and bends, summed, on top of the reference energies."""

    def __init__(self, config):
        super().__init__()
        self.num_levels = len(config.energy_levels_of_theory)
        self.level_differences = config.level_differences
        self.mlp = LevelHeads(config.hidden_size, self.num_levels)
        self.torsions = TorsionEnergy(config) if config.torsion_terms else None
        self.out_of_plane = OutOfPlaneEnergy(config) if config.out_of_plane_terms else None
        self.reference_energies = ReferenceEnergies(self.num_levels)

    def forward(self, graph, node_features: Tensor, positions: Tensor, levels: Tensor | None = None) -> Tensor:
        """Interaction energy, without reference energies: (B,), eV, at least float32.

        Args:
            graph: the molecular graphs.
            node_features: (B, N, C) from the encoder.
            positions: (B, N, 3), angstrom, those that the encoder saw.
            levels: (B,) int64, the level of theory of each molecule as its place in
                `config.energy_levels_of_theory`; None for the first, the model's own.
        """
        with torch.autocast(node_features.device.type, enabled=False):
            # bfloat16 has three digits; the readout and the sum over atoms stay in the weights' own precision.
            node_features = node_features.to(self.mlp.up.weight.dtype)
            heads = self.heads_of(levels, node_features)
            contributions = self.mlp(node_features, heads).to(positions.dtype)
            energy = (contributions * graph.atom_mask).sum(-1)
            for terms in (self.torsions, self.out_of_plane):
                if terms is not None:
                    energy = energy + terms(graph, node_features, positions, heads)
            return energy

    def heads_of(self, levels: Tensor | None, like: Tensor) -> Tensor:
        """(B, levels), or (1, levels) for None: 1 for the heads whose sum is E at the level of each molecule.

        By `config.level_differences` E at the last level is part of every other, whose own head learns what is left.
        """
        places = torch.arange(self.num_levels, device=like.device)
        is_used = places == (0 if levels is None else levels.unsqueeze(-1))
        if self.level_differences:
            is_used = is_used | (places == self.num_levels - 1)
        return is_used.to(like.dtype).view(-1, self.num_levels)
