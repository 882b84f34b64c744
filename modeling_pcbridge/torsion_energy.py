"""Terms of the energy for turning about bonds, which distances between atoms hardly show."""

import torch
from torch import Tensor, nn

from .atoms_of import atoms_of
from .molecular_graph import NUM_PAIR_TYPES

# Inside the squares of lengths (square angstrom): keeps directions smooth where two atoms coincide.
_LENGTH_EPS = 1e-6
_NUM_HARMONICS = 3
# A molecule has five times as many torsions as atoms, so what is computed for each is kept narrow.
_RANK = 32


class TorsionEnergy(nn.Module):
    """The sum over the torsions i-j-k-l of the graph of w_n cos(n phi), n = 1..3, made smooth, with learned w.

    w_n is a linear map of g(i, j) * g(l, k), where g(i, j) = P h_j + Q h_i + b_jk sees the features h of an atom
    of the axis and of one on it, and how the two atoms of the axis are joined. So the order in which a torsion is
    written does not matter, and the wide maps are made once per atom, not once per torsion.
    """

    def __init__(self, config):
        super().__init__()
        self.axis = nn.Linear(config.hidden_size, _RANK)
        self.end = nn.Linear(config.hidden_size, _RANK, bias=False)
        self.axis_type = nn.Embedding(NUM_PAIR_TYPES, _RANK)
        self.weights = nn.Linear(_RANK, len(config.energy_levels_of_theory) * _NUM_HARMONICS)
        # A molecule has so many torsions that an untrained model would be ruled by them.
        self.weights.initializer_scale = 0.1  # type: ignore[assignment]

    def forward(self, graph, node_features: Tensor, positions: Tensor, heads: Tensor) -> Tensor:
        """(B,) in eV, in the precision of the positions.

        Args:
            graph: the molecular graphs.
            node_features: (B, N, C) from the encoder.
            positions: (B, N, 3), angstrom.
            heads: (B or 1, levels), 1 for the levels of theory whose w add up, see `EnergyDecoder.heads_of`.
        """
        quadruples = graph.torsion_quadruples
        is_real = quadruples[..., 0] >= 0
        # (B, 4, K)
        atoms = quadruples.clamp(min=0).transpose(1, 2)
        _, j, k, _ = atoms.unbind(1)
        axis_types = graph.pair_types.flatten(1).gather(1, j * graph.pair_types.shape[-1] + k).long()

        ends = atoms_of(self.end(node_features), atoms[:, ::3])  # (B, 2, K, C), of i and l
        axes = atoms_of(self.axis(node_features), atoms[:, 1:3])  # of j and k
        one, other = (axes + ends).unbind(1)
        shared = self.axis_type(axis_types)
        # (B, K, levels, 3) -> (B, K, 3)
        weights = self.weights((one + shared) * (other + shared)).unflatten(-1, (-1, _NUM_HARMONICS))
        weights = (weights * heads[:, None, :, None]).sum(2).to(positions.dtype)
        terms = (weights * smooth_cosines(atoms_of(positions, atoms))).sum(-1)
        return (terms * is_real).sum(-1)


def smooth_cosines(corners: Tensor) -> Tensor:
    """(s cos phi, s^2 cos 2 phi, s^3 cos 3 phi) of the dihedral angles phi of (B, 4, K, 3) positions; (B, K, 3).

    s = sin(i-j-k) sin(j-k-l) is zero where three atoms are in line and phi jumps, so that these, which are polynomials
    in the directions of the three bonds, are smooth everywhere.
    """
    bonds = corners[:, 1:] - corners[:, :-1]
    bonds = bonds * (bonds.square().sum(-1, keepdim=True) + _LENGTH_EPS).rsqrt()
    one, other = torch.linalg.cross(bonds[:, :-1], bonds[:, 1:]).unbind(1)
    cos = (one * other).sum(-1)
    squared = one.square().sum(-1) * other.square().sum(-1)
    # cos(2 phi) = 2 cos^2 - 1, cos(3 phi) = 4 cos^3 - 3 cos, each times its power of s
    return torch.stack([cos, 2 * cos.square() - squared, (4 * cos.square() - 3 * squared) * cos], dim=-1)
