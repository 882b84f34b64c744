"""From an RDKit molecule to the molecular graph G of the method, as compact integer arrays.

The graph holds what the model is conditioned on: elements, formal charges, bonds and shortest-path
distances, and the stereo marks (tetrahedral centres, double bonds). Hydrogens are always explicit atoms.
"""

from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from .errors import InputError
from .resonance import average_forms

# Codes of `pair_types`: how two atoms are related in the graph. Bonds are told apart by order, other pairs by
# the number of bonds on the shortest path between them.
PAIR_PADDING, PAIR_SELF = 0, 1
PAIR_BONDS = {
    Chem.BondType.SINGLE: 2,
    Chem.BondType.DOUBLE: 3,
    Chem.BondType.TRIPLE: 4,
    Chem.BondType.AROMATIC: 5,
}
_DOUBLE_BOND = PAIR_BONDS[Chem.BondType.DOUBLE]
PAIR_PATH_OF_2 = 6  # then one code a path length: 7 is a path of 3 bonds, and so on
MAX_PATH_LENGTH = 9  # longer paths share the last code
NUM_PAIR_TYPES = PAIR_PATH_OF_2 + MAX_PATH_LENGTH - 1
_BOND_ORDERS = np.zeros(NUM_PAIR_TYPES)  # by code, 0 of what is no bond
_BOND_ORDERS[list(PAIR_BONDS.values())] = (1.0, 2.0, 3.0, 1.5)

# Codes of `stereo_pair_types`: two substituents on opposite ends of a stereo double bond.
STEREO_CIS, STEREO_TRANS = 1, 2  # 0 for all other pairs
NUM_STEREO_PAIR_TYPES = 3

_CIS_TAGS = (Chem.BondStereo.STEREOZ, Chem.BondStereo.STEREOCIS)
_TRANS_TAGS = (Chem.BondStereo.STEREOE, Chem.BondStereo.STEREOTRANS)
# Those of atoms with other surroundings than a tetrahedron.
_OTHER_STEREO_TAGS = (
    Chem.ChiralType.CHI_SQUAREPLANAR,
    Chem.ChiralType.CHI_TRIGONALBIPYRAMIDAL,
    Chem.ChiralType.CHI_OCTAHEDRAL,
)
_AXIS_TAGS = (Chem.BondStereo.STEREOATROPCW, Chem.BondStereo.STEREOATROPCCW)


@dataclass(frozen=True)
class MolecularGraph:
    """The graph of one molecule of N atoms, in the atom order of the molecule it was made from.

    Attributes:
        atomic_numbers: (N,) uint8.
        formal_charges: (N,) int8, in elementary charges, or in 1 / `CHARGE_UNITS` of one where `resonance_invariant`.
        pair_types: (N, N) uint8, symmetric; bond order or shortest-path length (codes above).
        stereo_pair_types: (N, N) uint8, symmetric; cis or trans across a stereo double bond (codes above).
        stereo_quadruples: (M, 4) int16; for each mark of a tetrahedral centre its four neighbours (or three, and it),
            for each of an atropisomer's axis b-c a neighbour of either end too, as (a, b, c, d) ordered so that the
            signed volume det(b - a, c - a, d - a) of the right structure is positive.
        torsion_quadruples: (K, 4) int16; the atoms (i, j, k, l) of each torsion, once, see `_torsion_quadruples`.
    """

    atomic_numbers: np.ndarray
    formal_charges: np.ndarray
    pair_types: np.ndarray
    stereo_pair_types: np.ndarray
    stereo_quadruples: np.ndarray
    torsion_quadruples: np.ndarray

    @property
    def num_atoms(self) -> int:
        return len(self.atomic_numbers)

    @property
    def bonded(self) -> np.ndarray:
        """(N, N) bool, symmetric: whether there is a bond."""
        return is_bond(self.pair_types)

    @property
    def has_stereo(self) -> bool:
        return len(self.stereo_quadruples) > 0 or bool(self.stereo_pair_types.any())

    def marked_bond(self, i: int, j: int) -> tuple[int, int]:
        """The bond from a neighbour of `i` to one of `j`, two atoms with a mark across it."""
        bonded = self.bonded
        between = np.argwhere(bonded & np.outer(bonded[i], bonded[j])).tolist()
        # Between resonance forms it may be no double bond any more, so any other one has to do.
        a, b = min(between, key=lambda ends: self.pair_types[tuple(ends)] != _DOUBLE_BOND)
        return a, b


def is_bond(pair_types):
    """Which of the codes in an array or a tensor are of bonds; bool of the same shape."""
    return (pair_types >= min(PAIR_BONDS.values())) & (pair_types <= max(PAIR_BONDS.values()))


def graph_from_mol(mol: Chem.Mol, resonance_invariant: bool = False) -> MolecularGraph:
    """The graph of a molecule whose hydrogens are explicit; the atom order is kept.

    Args:
        mol: sanitised.
        resonance_invariant: describe all resonance forms of the molecule, whichever was drawn (see `resonance`),
            instead of the one that was drawn, with RDKit's aromatic bonds.

    Raises:
        ValueError: no atoms, implicit hydrogens, several fragments, radicals, query or unusual bonds.
    """
    num_atoms = mol.GetNumAtoms()
    if num_atoms == 0:
        raise InputError("the molecule has no atoms")
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 0:
            raise InputError("the molecule has a dummy atom ('*')")
        if (tag := atom.GetChiralTag()) in _OTHER_STEREO_TAGS:
            raise InputError(f"a stereo mark of {atom.GetSymbol()}{atom.GetIdx()} is not supported ({tag})")
        if atom.HasQuery():
            raise InputError("the molecule is a query (SMARTS); make it from SMILES")
        if atom.GetTotalNumHs() > 0:
            raise InputError("hydrogens are implicit; call rdkit.Chem.AddHs first")
        if atom.GetNumRadicalElectrons() > 0:
            raise InputError("the molecule is a radical; only closed-shell molecules are supported")
    path_lengths = Chem.GetDistanceMatrix(mol, force=True)
    if path_lengths.max() >= num_atoms:
        raise InputError("the molecule is disconnected (several fragments)")

    pair_types = PAIR_PATH_OF_2 - 2 + np.clip(path_lengths, 2, MAX_PATH_LENGTH).astype(np.uint8)
    np.fill_diagonal(pair_types, PAIR_SELF)
    formal_charges, bonds = charges_and_bonds(mol, resonance_invariant)
    for (i, j), bond_type in bonds.items():
        pair_types[i, j] = pair_types[j, i] = PAIR_BONDS[bond_type]

    atomic_numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.uint8)
    return MolecularGraph(
        atomic_numbers=atomic_numbers,
        formal_charges=formal_charges,
        pair_types=pair_types,
        stereo_pair_types=stereo_pair_types(mol),
        stereo_quadruples=stereo_quadruples(mol),
        torsion_quadruples=_torsion_quadruples(mol, sp_atoms(atomic_numbers, pair_types)),
    )


def charges_and_bonds(
    mol: Chem.Mol, resonance_invariant: bool = False
) -> tuple[np.ndarray, dict[tuple[int, int], Chem.BondType]]:
    """Formal charges (N,) int8 and the types of bonds (i, j) as `graph_from_mol` has them.

    Raises:
        ValueError: query or unusual bonds.
    """
    bonds = {(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()): bond.GetBondType() for bond in mol.GetBonds()}
    if unsupported := sorted(str(bond_type) for bond_type in set(bonds.values()) - set(PAIR_BONDS)):
        raise InputError(f"bond type {unsupported[0]} is not supported")
    if resonance_invariant:
        return average_forms(mol)
    return np.array([atom.GetFormalCharge() for atom in mol.GetAtoms()], dtype=np.int8), bonds


def stereo_pair_types(mol: Chem.Mol) -> np.ndarray:
    """(N, N), of the marked double bonds of a molecule, see `MolecularGraph`."""
    types = np.zeros((mol.GetNumAtoms(), mol.GetNumAtoms()), dtype=np.uint8)
    for bond in mol.GetBonds():
        if bond.GetStereo() not in _CIS_TAGS + _TRANS_TAGS:
            continue
        begin, end = bond.GetBeginAtom(), bond.GetEndAtom()
        marked_begin, marked_end = bond.GetStereoAtoms()
        marked_are_cis = bond.GetStereo() in _CIS_TAGS
        for i in (a.GetIdx() for a in begin.GetNeighbors() if a.GetIdx() != end.GetIdx()):
            for j in (a.GetIdx() for a in end.GetNeighbors() if a.GetIdx() != begin.GetIdx()):
                # Moving to the other substituent of one end swaps cis and trans.
                is_cis = marked_are_cis ^ (i != marked_begin) ^ (j != marked_end)
                types[i, j] = types[j, i] = STEREO_CIS if is_cis else STEREO_TRANS
    return types


def stereo_quadruples(mol: Chem.Mol) -> np.ndarray:
    """(M, 4), of the marked tetrahedral centres and axes of a molecule, see `MolecularGraph`."""
    quadruples = []
    for bond in mol.GetBonds():
        if bond.GetStereo() in _AXIS_TAGS:
            # Clockwise is a positive torsion of the neighbours of lowest number, which is a positive volume.
            j, k = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            i, end = (min(_neighbours_but(mol, *ends)) for ends in ((j, k), (k, j)))
            is_clockwise = bond.GetStereo() == Chem.BondStereo.STEREOATROPCW
            quadruples.append([i, j, k, end] if is_clockwise else [end, j, k, i])
    for atom in mol.GetAtoms():
        tag = atom.GetChiralTag()
        if tag not in (Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW):
            continue
        if atom.GetDegree() < 3:  # RDKit takes two-coordinate P and S for centres
            continue
        corners = [bond.GetOtherAtomIdx(atom.GetIdx()) for bond in atom.GetBonds()]
        if len(corners) == 3:  # a lone pair is the fourth neighbour; the centre lies on its side
            corners.append(atom.GetIdx())
        # Seen from the first neighbour the others run counter-clockwise for CCW, which is a negative volume.
        if tag == Chem.ChiralType.CHI_TETRAHEDRAL_CCW:
            corners[2], corners[3] = corners[3], corners[2]
        quadruples.append(corners)
    return np.array(quadruples, dtype=np.int16).reshape(-1, 4)


def _neighbours_but(mol: Chem.Mol, atom: int, left_out: int) -> list[int]:
    return [other.GetIdx() for other in mol.GetAtomWithIdx(atom).GetNeighbors() if other.GetIdx() != left_out]


def _torsion_quadruples(mol: Chem.Mol, is_sp: np.ndarray) -> np.ndarray:
    """(K, 4) atoms i, j, k, l of each torsion: i on j and l on k, turned against each other about the axis j-k.

    An axis is a bond, or a row of sp atoms with the atom at either end, as in allenes, ketenimines and alkynes: their
    bonds are in line, so that no angle is defined about one of them alone.
    """
    neighbours = [[other.GetIdx() for other in atom.GetNeighbors()] for atom in mol.GetAtoms()]
    quadruples = []
    for j in np.flatnonzero(~is_sp).tolist():
        for first in neighbours[j]:
            before, k = j, first
            while is_sp[k]:
                before, k = k, sum(neighbours[k]) - before  # the other of its two neighbours
            if j < k:  # each axis is found from both ends
                on_j = [atom for atom in neighbours[j] if atom not in (first, k)]
                on_k = [atom for atom in neighbours[k] if atom not in (before, j)]
                quadruples += [(i, j, k, end) for i in on_j for end in on_k if i != end]
    return np.array(quadruples, dtype=np.int16).reshape(-1, 4)


def sp_atoms(atomic_numbers: np.ndarray, pair_types: np.ndarray) -> np.ndarray:
    """(N,) bool, whether the two bonds of an atom are in line: of C, or N+, with two neighbours and no lone pair.

    Args:
        atomic_numbers: (N,).
        pair_types: (N, N), of one resonance form or of all.
    """
    has_two = is_bond(pair_types).sum(-1) == 2
    return np.isin(atomic_numbers, (6, 7)) & has_two & (_BOND_ORDERS[pair_types].sum(-1) > 3)


def signed_volumes(positions: np.ndarray, quadruples: np.ndarray) -> np.ndarray:
    """det(b - a, c - a, d - a) of each quadruple; positive where the stereo mark is obeyed.

    Args:
        positions: (..., N, 3), angstrom.
        quadruples: (M, 4) atom indices.

    Returns:
        (..., M), cubic angstrom.
    """
    a, b, c, d = (positions[..., quadruples[:, k], :] for k in range(4))
    return np.einsum("...i,...i->...", np.cross(b - a, c - a), d - a)


def stereo_is_right(graph: MolecularGraph, positions: np.ndarray) -> np.ndarray:
    """Whether every stereo mark of the graph is obeyed by (S, N, 3) positions, (S,) bool; True without marks."""
    right = np.all(signed_volumes(positions, graph.stereo_quadruples) > 0, axis=-1)
    for i, j in np.argwhere(np.triu(graph.stereo_pair_types)):
        a, b = graph.marked_bond(i, j)
        axis = positions[:, b] - positions[:, a]
        normal_i = np.cross(positions[:, i] - positions[:, a], axis)
        normal_j = np.cross(positions[:, j] - positions[:, b], axis)
        is_cis = (normal_i * normal_j).sum(-1) > 0
        right &= is_cis == (graph.stereo_pair_types[i, j] == STEREO_CIS)
    return right
