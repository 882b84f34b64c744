"""The energy decoder: total electronic energy from invariant node features (Eq. 6)."""

import torch
from torch import Tensor, nn

from .attention import FeedForward
from .float64_buffers import Float64Buffers
from .pair_features import NUM_ELEMENTS
from .torsion_energy import TorsionEnergy


class ReferenceEnergies(Float64Buffers):
    """Per-element reference energies in eV, fitted to the training labels by least squares.

    They carry thousands of eV, so they are added in float64; the network learns only the remaining few eV.
    """

    energies: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("energies", torch.zeros(NUM_ELEMENTS, dtype=torch.float64))

    def forward(self, atomic_numbers: Tensor) -> Tensor:
        """Sum over the atoms (B, N) of each molecule, (B,) float64; padding (atomic number 0) counts zero."""
        return self.energies[atomic_numbers].sum(-1)


class EnergyDecoder(nn.Module):
    """Atomic contributions by an MLP and terms of torsions, summed, on top of the reference energies."""

    def __init__(self, config):
        super().__init__()
        self.mlp = FeedForward(config.hidden_size, config.hidden_size, 1)
        self.torsions = TorsionEnergy(config) if config.torsion_terms else None
        self.reference_energies = ReferenceEnergies()

    def forward(self, graph, node_features: Tensor, positions: Tensor) -> Tensor:
        """Interaction energy, without reference energies: (B,), eV, at least float32.

        Args:
            graph: the molecular graphs.
            node_features: (B, N, C) from the encoder.
            positions: (B, N, 3), angstrom, those that the encoder saw.
        """
        with torch.autocast(node_features.device.type, enabled=False):
            # bfloat16 has three digits; the readout and the sum over atoms stay in the weights' own precision.
            node_features = node_features.to(self.mlp.up.weight.dtype)
            contributions = self.mlp(node_features).squeeze(-1).to(positions.dtype)
            energy = (contributions * graph.atom_mask).sum(-1)
            if self.torsions is not None:
                energy = energy + self.torsions(graph, node_features, positions)
            return energy
