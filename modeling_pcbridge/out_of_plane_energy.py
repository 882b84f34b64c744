"""Terms of the energy for bending flat and pyramidal atoms, which distances between atoms hardly show."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .atoms_of import atoms_of
from .molecular_graph import is_bond

# Inside the squares of lengths (square angstrom): keeps directions smooth where two atoms coincide.
_LENGTH_EPS = 1e-6
_NUM_NEIGHBOURS, _NUM_POWERS = 3, 2


class OutOfPlaneEnergy(nn.Module):
    """The sum over the atoms with three neighbours of w_1 v^2 + w_2 v^4, with learned w.

    v is the volume spanned by the directions of the three bonds: 0 where they lie in a plane, .77 in ammonia. Its
    square has no sign, as a molecule and its mirror image have one energy, and no order of the neighbours; two terms
    make the two minima of an atom that inverts. w is linear in the features of the atom.
    """

    def __init__(self, config):
        super().__init__()
        self.weights = nn.Linear(config.hidden_size, len(config.energy_levels_of_theory) * _NUM_POWERS)
        # As of torsions, an untrained model should not be ruled by them.
        self.weights.initializer_scale = 0.1  # type: ignore[assignment]

    def forward(self, graph, node_features: Tensor, positions: Tensor, heads: Tensor) -> Tensor:
        """(B,) in eV, in the precision of the positions; arguments as of `TorsionEnergy`."""
        bonded = is_bond(graph.pair_types)
        has_three = bonded.sum(-1) == _NUM_NEIGHBOURS
        found = bonded.half().topk(min(_NUM_NEIGHBOURS, bonded.shape[-1])).indices
        neighbours = pad(found, (0, _NUM_NEIGHBOURS - found.shape[-1]))  # (B, N, 3), also where N < 3

        squares = squared_volumes(atoms_of(positions, neighbours) - positions.unsqueeze(2))
        weights = self.weights(node_features).unflatten(-1, (-1, _NUM_POWERS))  # (B, N, levels, 2)
        weights = (weights * heads[:, None, :, None]).sum(2).to(positions.dtype)
        terms = (weights * torch.stack([squares, squares.square()], -1)).sum(-1)
        return (terms * has_three).sum(-1)


def squared_volumes(bonds: Tensor) -> Tensor:
    """The squared volume, 0 to 1, spanned by the directions of three `bonds` (..., 3, 3); (...)."""
    directions = bonds * (bonds.square().sum(-1, keepdim=True) + _LENGTH_EPS).rsqrt()
    one, two, three = directions.unbind(-2)
    return (torch.linalg.cross(one, two) * three).sum(-1).square()
