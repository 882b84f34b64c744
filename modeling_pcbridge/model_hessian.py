"""A model Hessian of a molecule and the quasi-Newton step it gives, as geometry optimisers use to start.

Every bond and every pair of atoms two bonds apart is a spring, an atom with three neighbours is held at its height over
their plane, and every atom where it is by a weak spring: the simplest of the force-constant models of Schlegel
(1984) and Lindh et al. (1995). It need not be exact. A step has the same zeros as the force, so it points at the same
minima, but stiff and soft modes get there at about the same rate. What must not be is a mode of the molecule more than
twice as stiff: a step would make its error larger.
"""

from functools import cache

import torch
from rdkit import Chem
from rdkit.Chem import BondType
from torch import Tensor

from .molecular_graph import PAIR_BONDS, PAIR_PATH_OF_2, is_bond

# By pair type, eV / square angstrom. C-C and C-H have 30, O-H 48, C=C 60, C=O 75, C#N 115. A spring less than half as
# stiff as the bond would make the steps grow. Bending by 1-3 distances has about 8. `ATOM_STIFFNESS` bounds how far
# torsions move, where a force model that learned from few labels is least sure; the last two are chosen for the fewest
# evaluations of `relaxation`, which hardly depend on them.
STIFFNESS = {
    PAIR_BONDS[BondType.SINGLE]: 40.0,
    PAIR_BONDS[BondType.AROMATIC]: 60.0,
    PAIR_BONDS[BondType.DOUBLE]: 70.0,
    PAIR_BONDS[BondType.TRIPLE]: 110.0,
    PAIR_PATH_OF_2: 8.0,
    PAIR_PATH_OF_2 + 1: 1.0,  # a path of 3 bonds, for torsions
}
# Longer bonds than C-C are softer by the cube of the sum of covalent radii: C-Cl has 21, S-S and C-Br 17, C-I 14.
_CARBON_BOND = 1.52  # angstrom
ATOM_STIFFNESS = 4.0
# Of the height of an atom over the plane of its three neighbours. Without it rings and carbonyl groups are up to seven
# times stiffer against puckering than the model.
OUT_OF_PLANE_STIFFNESS = 15.0
# No atom moves further than this, angstrom; far from any label a force means little more than its direction.
TRUST_RADIUS = 0.2


def quasi_newton_step(positions: Tensor, forces: Tensor, pair_types: Tensor, atomic_numbers: Tensor) -> Tensor:
    """The displacement H^-1 F towards the minimum, (B, N, 3), angstrom; zero on padding, detached.

    A molecule whose step takes an atom further than `TRUST_RADIUS` has its step scaled down to that.

    Args:
        positions: (B, N, 3), angstrom.
        forces: (B, N, 3), eV/angstrom, zero on padding.
        pair_types: (B, N, N), see `molecular_graph`.
        atomic_numbers: (B, N), 0 on padding.
    """
    return cut_to_radius(precondition(positions, forces, pair_types, atomic_numbers), TRUST_RADIUS)


def precondition(positions: Tensor, forces: Tensor, pair_types: Tensor, atomic_numbers: Tensor) -> Tensor:
    """H^-1 F, (B, N, 3), angstrom, of any length; arguments as in `quasi_newton_step`."""
    with torch.no_grad(), torch.autocast(positions.device.type, enabled=False):
        forces = forces.to(positions.dtype)
        # H is positive definite by construction, so nothing has to be checked, which would wait for the device.
        factor, _ = torch.linalg.cholesky_ex(model_hessian(positions, pair_types, atomic_numbers))
        return torch.cholesky_solve(forces.flatten(1).unsqueeze(-1), factor).reshape_as(forces)


def cut_to_radius(step: Tensor, radius: Tensor | float) -> Tensor:
    """`step` (B, N, 3), scaled down in each molecule where it takes an atom further than `radius`, (B,) or a number."""
    longest = step.norm(dim=-1).amax(-1)
    return step * (radius / longest.clamp(min=radius)).nan_to_num(0.0)[:, None, None]


def model_hessian(positions: Tensor, pair_types: Tensor, atomic_numbers: Tensor) -> Tensor:
    """(B, 3N, 3N), eV / square angstrom: k u u^T between every two joined atoms, u the unit vector between them."""
    stiffness = spring_stiffness(pair_types, atomic_numbers).to(positions.dtype)
    vectors = positions.unsqueeze(2) - positions.unsqueeze(1)
    units = vectors * (vectors.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
    blocks = stiffness[..., None, None] * units.unsqueeze(-1) * units.unsqueeze(-2)  # (B, N, N, 3, 3)
    on_atoms = blocks.sum(2) + ATOM_STIFFNESS * torch.eye(3, device=positions.device)
    hessian = torch.diag_embed(on_atoms.movedim(1, -1)).movedim((1, 2), (3, 4)) - blocks
    out_of_plane = _out_of_plane_directions(positions, pair_types)
    return hessian.transpose(2, 3).flatten(3, 4).flatten(1, 2) + OUT_OF_PLANE_STIFFNESS * out_of_plane.mT @ out_of_plane


def _out_of_plane_directions(positions: Tensor, pair_types: Tensor) -> Tensor:
    """(B, N, 3N): how the height of each atom over the plane of its three neighbours changes; zero without three."""
    if positions.shape[1] < 4:
        return positions.new_zeros(*positions.shape[:2], 3 * positions.shape[1])
    bonded = is_bond(pair_types).to(positions.dtype)
    has_three = bonded.sum(-1) == 3
    neighbours = bonded.topk(3).indices  # (B, N, 3)
    corners = positions.gather(1, neighbours.flatten(1)[..., None].expand(-1, -1, 3)).unflatten(1, neighbours.shape[1:])
    edges = corners[:, :, 1:] - corners[:, :, :1]
    normals = torch.linalg.cross(edges[:, :, 0], edges[:, :, 1])
    normals = normals * (normals.square().sum(-1, keepdim=True) + 1e-6).rsqrt() * has_three[..., None]
    shares = torch.eye(bonded.shape[-1], dtype=positions.dtype, device=positions.device) - bonded / 3
    return (shares[..., None] * normals[:, :, None]).flatten(2)


def spring_stiffness(pair_types: Tensor, atomic_numbers: Tensor) -> Tensor:
    """(B, N, N), eV / square angstrom, of the springs between atoms; zero where there is none."""
    stiffness = torch.stack([k * (pair_types == pair_type) for pair_type, k in STIFFNESS.items()]).sum(0)
    radii = _covalent_radii(pair_types.device)[atomic_numbers]
    lengths = radii.unsqueeze(-1) + radii.unsqueeze(-2)
    bonded = is_bond(pair_types)
    return stiffness * torch.where(bonded, (_CARBON_BOND / lengths.clamp(min=_CARBON_BOND)) ** 3, 1.0)


@cache
def _covalent_radii(device: torch.device) -> Tensor:
    """(119,), angstrom, by atomic number; on the device for good, so that no step has to copy them there."""
    table = Chem.GetPeriodicTable()
    return torch.tensor([0.0, *(table.GetRcovalent(z) for z in range(1, 119))], device=device)
