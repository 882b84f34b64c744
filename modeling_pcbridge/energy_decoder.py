"""The energy decoder: total electronic energy from invariant node features (Eq. 6)."""

import torch
from torch import Tensor, nn

from .attention import FeedForward
from .float64_buffers import Float64Buffers
from .pair_features import NUM_ELEMENTS


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
    """Atomic contributions by an MLP, summed, on top of the reference energies."""

    def __init__(self, config):
        super().__init__()
        self.mlp = FeedForward(config.hidden_size, config.hidden_size, 1)
        self.reference_energies = ReferenceEnergies()

    def forward(self, node_features: Tensor, atom_mask: Tensor) -> Tensor:
        """Interaction energy, without reference energies: (B,), eV, at least float32."""
        with torch.autocast(node_features.device.type, enabled=False):
            # bfloat16 has three digits; the readout and the sum over atoms stay in the weights' own precision.
            contributions = self.mlp(node_features.to(self.mlp.up.weight.dtype)).squeeze(-1)
            contributions = contributions.to(torch.promote_types(contributions.dtype, torch.float32))
            return (contributions * atom_mask).sum(-1)
