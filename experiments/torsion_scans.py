"""Torsion scans of small molecules: one bond of the GFN2-xTB minimum is turned, everything else stays as it is.

Energies along a scan are compared with GFN2-xTB's at the same geometries (extra `xtb`), each above the scan's start.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from dataset_scripts.labelling import starting_structure
from dataset_scripts.quantum_chemistry import gfn2_energy_and_forces, gfn2_minimum
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import with_structure

# SMILES, a SMARTS of the torsion i, j, k, l, and how far it is turned, degrees.
_SCANS = {
    "ethene": ("C=C", "[H]C=C[H]", 60),
    "Z-2-butene": (r"C/C=C\C", "CC=CC", 60),
    "allene": ("C=C=C", "[H]C=C=C[H]", 60),
    "ketenimine": ("C=C=N", "[H]C=C=N[H]", 60),
    "butane": ("CCCC", "CCCC", 180),
    "butadiene": ("C=CC=C", "C=CC=C", 180),
    "acrolein": ("C=CC=O", "C=CC=O", 180),
    "biphenyl": ("c1ccccc1-c1ccccc1", "cc-cc", 180),
    "styrene": ("C=Cc1ccccc1", "C=Ccc", 180),
    "anisole": ("COc1ccccc1", "COcc", 180),
    "formamide": ("NC=O", "[H]NC=O", 90),
    "N-methylformamide": ("CNC=O", "CNC=O", 90),
    "acetamide": ("CC(N)=O", "[H]NC=O", 90),
    "urea": ("NC(N)=O", "[H]NC=O", 90),
    "methyl acetate": ("COC(C)=O", "COC=O", 180),
    "acetic acid": ("CC(=O)O", "[H]OC=O", 180),
    "acetaldoxime": (r"C/C=N/O", "[H]ON=C", 180),
    "methanesulfonamide": ("CS(N)(=O)=O", "[H]NSC", 180),
    "dimethyl disulfide": ("CSSC", "CSSC", 180),
    "hydrogen peroxide": ("OO", "[H]OO[H]", 180),
    "hydrazine": ("NN", "[H]NN[H]", 180),
}
_STEP = 15  # degrees
# Above this atoms are pushed into each other, which is not what a scan is about.
_MAX_ENERGY = 3.0  # eV


@dataclass(frozen=True)
class Scan:
    """Geometries of one molecule, and their energies by GFN2-xTB.

    Attributes:
        mol: with the minimum as its conformer.
        angles: (S,) degrees, from 0.
        positions: (S, N, 3), angstrom.
        energies: (S,) eV above the first.
    """

    name: str
    mol: Chem.Mol
    angles: np.ndarray
    positions: np.ndarray
    energies: np.ndarray


def scanned_smiles() -> set[str]:
    """Canonical SMILES of the molecules, which are to be left out of training."""
    return {Chem.CanonSmiles(smiles, useChiral=0) for smiles, _, _ in _SCANS.values()}


def make_scans() -> list[Scan]:
    """All of them, in seconds."""
    scans = []
    for name, (smiles, smarts, last) in _SCANS.items():
        mol = starting_structure({"smiles": smiles})
        elements = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        minimum, _ = gfn2_minimum(elements, mol.GetConformer().GetPositions(), 0)
        torsion = mol.GetSubstructMatch(Chem.MolFromSmarts(smarts))
        angles = np.arange(0, last + 1, _STEP)
        positions = np.stack([turned(mol, minimum, torsion[0], torsion[1], torsion[-2], angle) for angle in angles])
        energies = np.array([gfn2_energy_and_forces(elements, x, 0)[0] for x in positions])
        energies -= energies[0]
        low = energies < _MAX_ENERGY
        scans.append(Scan(name, with_structure(mol, minimum), angles[low], positions[low], energies[low]))
    return scans


def turned(mol: Chem.Mol, positions: np.ndarray, i: int, j: int, k: int, angle: float) -> np.ndarray:
    """(N, 3) `positions` with the atoms on the side of `i` turned by `angle` degrees about the axis from j to k."""
    neighbours = [[other.GetIdx() for other in atom.GetNeighbors()] for atom in mol.GetAtoms()]
    path = Chem.GetShortestPath(mol, j, k)
    side, reached = [], [other for other in neighbours[j] if other != path[1]]
    while reached:
        atom = reached.pop()
        side.append(atom)
        reached += [other for other in neighbours[atom] if other != j and other not in side and other not in reached]
    axis = positions[k] - positions[j]
    axis = axis / np.linalg.norm(axis)
    arms = positions[side] - positions[j]
    along = (arms @ axis)[:, None] * axis
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    moved = positions.copy()
    moved[side] = positions[j] + along + cos * (arms - along) + sin * np.cross(axis, arms)
    return moved


def scan_errors(scans: list[Scan], energies_of: Callable) -> dict[str, dict]:
    """What a model makes of each scan: energies above the start, eV, and their mean absolute error.

    Args:
        scans: from `make_scans`.
        energies_of: (graph, positions (S, N, 3)) -> (S,) eV.
    """
    results = {}
    for scan in scans:
        energies = energies_of(graph_from_mol(scan.mol), scan.positions)
        energies = energies - energies[0]
        results[scan.name] = {
            "angles": scan.angles.tolist(),
            "gfn2": scan.energies.round(4).tolist(),
            "model": energies.round(4).tolist(),
            "mae": float(np.abs(energies - scan.energies)[1:].mean()),
        }
    return results
