"""Errors of predicted structures against a reference, one molecule at a time. Lengths in angstrom, NumPy arrays."""

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdMolAlign

from modeling_pcbridge.molecular_graph import PAIR_PATH_OF_2, MolecularGraph
from modeling_pcbridge.rdkit_molecules import with_conformers


def kabsch_align(positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Each of (S, N, 3) `positions` translated and rotated, never reflected, onto `reference` (N, 3)."""
    centroid = reference.mean(0)
    moved = positions - positions.mean(-2, keepdims=True)
    left, _, right_t = np.linalg.svd(np.einsum("ni,snj->sij", reference - centroid, moved))
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right_t))[:, None]
    return np.einsum("sij,snj->sni", left @ right_t, moved) + centroid


def kabsch_rmsd(positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Root mean square deviation over all atoms after alignment, (S,); equivalent atoms are told apart by label."""
    difference = kabsch_align(positions, reference) - reference
    return np.sqrt(np.square(difference).sum(-1).mean(-1))


def heavy_atom_rmsd(
    mol: Chem.Mol, positions: np.ndarray, reference: np.ndarray, max_matches: int = 1_000_000
) -> np.ndarray:
    """Smallest RMSD over heavy atoms under the graph's symmetries, (S,): RDKit's GetBestRMS (C-RMSD).

    Args:
        mol: the molecule with explicit hydrogens, atoms in the order of the arrays.
        positions: (S, N, 3).
        reference: (N, 3).
        max_matches: how many permutations of equivalent atoms are tried, at most.
    """

    def heavy(conformers: np.ndarray) -> Chem.Mol:
        return Chem.RemoveAllHs(with_conformers(mol, *conformers), sanitize=False)

    probe, target = heavy(positions), heavy(reference[None])
    if probe.GetNumAtoms() == 0:  # H2
        return np.zeros(len(positions))
    return np.array([rdMolAlign.GetBestRMS(probe, target, i, 0, maxMatches=max_matches) for i in range(len(positions))])


def distance_errors(positions: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """D-MAE and D-RMSE over all entries of the distance matrix, the zero diagonal counted; (S,) each."""

    def distances(x: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x[..., :, None, :] - x[..., None, :, :], axis=-1)

    difference = distances(positions) - distances(reference)
    return np.abs(difference).mean((-1, -2)), np.sqrt(np.square(difference).mean((-1, -2)))


def distances_to_others(samples: np.ndarray) -> np.ndarray:
    """Mean D-MAE of each of (S, N, 3) structures to all of them, (S,): least for the safest guess at one more draw."""
    return np.array([distance_errors(samples, sample)[0].mean() for sample in samples])


def bond_length_error(graph: MolecularGraph, positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean absolute error over bonds, (S,); NaN without bonds."""
    bonds = np.argwhere(np.triu(graph.bonded))
    return _pair_error(bonds, positions, reference)


def one_three_distance_error(graph: MolecularGraph, positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean absolute error over pairs two bonds apart, (S,); NaN without such pairs."""
    return _pair_error(np.argwhere(np.triu(graph.pair_types == PAIR_PATH_OF_2)), positions, reference)


def _pair_error(pairs: np.ndarray, positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    if len(pairs) == 0:
        return np.full(len(positions), np.nan)

    def lengths(x: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x[..., pairs[:, 0], :] - x[..., pairs[:, 1], :], axis=-1)

    return np.abs(lengths(positions) - lengths(reference)).mean(-1)


def bond_angle_error(graph: MolecularGraph, positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean absolute error of the angles between bonds at one atom, degrees, (S,); NaN without angles."""
    bonded = graph.bonded
    triples = [
        (i, centre, j)
        for centre in range(graph.num_atoms)
        for i in np.flatnonzero(bonded[centre])
        for j in np.flatnonzero(bonded[centre])
        if i < j
    ]
    if not triples:
        return np.full(len(positions), np.nan)
    i, centre, j = np.array(triples).T

    def angles(x: np.ndarray) -> np.ndarray:
        u, v = x[..., i, :] - x[..., centre, :], x[..., j, :] - x[..., centre, :]
        cosine = (u * v).sum(-1) / (np.linalg.norm(u, axis=-1) * np.linalg.norm(v, axis=-1)).clip(1e-8)
        return np.degrees(np.arccos(cosine.clip(-1, 1)))

    return np.abs(angles(positions) - angles(reference)).mean(-1)


def torsion_error(graph: MolecularGraph, positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean absolute error, the short way round, of the torsions of four bonded heavy atoms, degrees, (S,).

    Hydrogens are left out because equivalent ones have no order, and torsions of which three atoms lie nearly on a line
    in the reference because they are undefined. NaN without torsions.
    """
    bonded = graph.bonded
    heavy = graph.atomic_numbers > 1
    bonded &= heavy[:, None] & heavy
    quadruples = [
        (i, j, k, m)
        for j, k in np.argwhere(np.triu(bonded))
        for i in np.flatnonzero(bonded[j])
        for m in np.flatnonzero(bonded[k])
        if i != k and m != j and i != m
    ]
    if not quadruples:
        return np.full(len(positions), np.nan)
    i, j, k, m = np.array(quadruples).T

    def normals(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        axis = x[..., k, :] - x[..., j, :]
        first = np.cross(x[..., i, :] - x[..., j, :], axis)
        return first, np.cross(x[..., m, :] - x[..., k, :], axis), axis

    def torsions(x: np.ndarray) -> np.ndarray:
        first, second, axis = normals(x)
        length = np.linalg.norm(axis, axis=-1)
        sine = (np.cross(first, second) * axis).sum(-1) / length.clip(1e-8)
        return np.degrees(np.arctan2(sine, (first * second).sum(-1)))

    first, second, _ = normals(reference)
    # Below .2 square angstrom the three atoms are within about ten degrees of a line.
    defined = np.minimum(np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)) > 0.2
    if not defined.any():
        return np.full(len(positions), np.nan)
    difference = (torsions(positions) - torsions(reference) + 180) % 360 - 180
    return np.abs(difference[:, defined]).mean(-1)
