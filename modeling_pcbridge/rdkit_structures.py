"""Structures by RDKit: ETKDGv3 conformers and MMFF94 minima."""

import time

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from .errors import CalculationError
from .molecular_graph import conformer_from_positions

_MAX_MMFF_STEPS = 2000
_MAX_SEED = 2**20  # times the number of the conformer it is a C integer in RDKit


def etkdg_conformers(mol: Chem.Mol, num_conformers: int, seed: int, timeout: float | None = None) -> np.ndarray | None:
    """Conformers (S, N, 3) in angstrom of a molecule with explicit hydrogens; None where ETKDGv3 finds none.

    With a `timeout` in seconds the conformers that are found in time.

    Raises:
        KeyboardInterrupt: as usual, which RDKit alone would keep to itself.
    """
    mol = Chem.Mol(mol)
    deadline = np.inf if timeout is None else time.monotonic() + timeout
    conformers = []
    # One at a time, by the seeds of RDKit's own loop, which at a timeout drops all conformers that it has found.
    for number in range(1, num_conformers + 1):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            break
        conformer = _etkdg_conformer(mol, (seed + 1) * number, remaining)
        if conformer is not None:
            conformers.append(conformer)
    return np.array(conformers) if conformers else None


def _etkdg_conformer(mol: Chem.Mol, seed: int, timeout: float) -> np.ndarray | None:
    """One (N, 3); it replaces those of `mol`."""
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed  # type: ignore[assignment]  # RDKit's stub is wrong
    if np.isfinite(timeout):
        parameters.timeout = max(1, round(timeout))  # type: ignore[assignment]
    parameters.trackFailures = True  # type: ignore[assignment]
    start = time.monotonic()
    if rdDistGeom.EmbedMolecule(mol, parameters) < 0:
        in_time = not np.isfinite(timeout) or time.monotonic() - start < parameters.timeout
        if in_time and _was_interrupted(mol, parameters):
            raise KeyboardInterrupt
        return None
    return mol.GetConformer().GetPositions()


def _was_interrupted(mol: Chem.Mol, parameters: rdDistGeom.EmbedParameters) -> bool:
    """Whether an embedding that gave nothing was ended by Ctrl-C, which RDKit takes for itself and does not report.

    Other embeddings end after as many failures as tries, or cannot begin, and then no other one can.
    """
    tries = parameters.maxIterations or 10 * mol.GetNumAtoms()  # RDKit's default
    if sum(parameters.GetFailureCounts()) >= tries:
        return False
    parameters.maxIterations = 1  # type: ignore[assignment]
    return bool(rdDistGeom.EmbedMultipleConfs(mol, 1, parameters)) or sum(parameters.GetFailureCounts()) > 0


def mmff_minima(mol: Chem.Mol, starts: np.ndarray) -> np.ndarray | None:
    """The MMFF94 minima (S, N, 3) below (S, N, 3) structures; None where MMFF94 lacks parameters."""
    if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        return None
    mol = Chem.Mol(mol)
    mol.RemoveAllConformers()
    for start in starts:
        mol.AddConformer(conformer_from_positions(start), assignId=True)
    rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, maxIters=_MAX_MMFF_STEPS)
    return np.array([conformer.GetPositions() for conformer in mol.GetConformers()])


def mmff_minimum(mol: Chem.Mol) -> tuple[np.ndarray, None]:
    """The MMFF94 minimum (N, 3), angstrom, below the structure of `mol`; its energy is no total energy, so none.

    Raises:
        CalculationError: MMFF94 lacks parameters.
    """
    minima = mmff_minima(mol, mol.GetConformer().GetPositions()[None])
    if minima is None:
        raise CalculationError("MMFF94 has no parameters for this molecule")
    return minima[0], None


def rdkit_structures(mol: Chem.Mol, num_structures: int, timeout: float, seed: int = 0) -> list[Chem.Mol]:
    """MMFF94 minima of ETKDGv3 conformers, or of the conformer of `mol` if it has one, which is then the only one.

    Args:
        mol: explicit hydrogens.
        num_structures: how many, at most.
        timeout: seconds for the conformers.
        seed: of the conformers.

    Returns:
        Copies of `mol` with a conformer each; none where RDKit finds no conformer in time.
    """
    if mol.GetNumConformers():
        starts = mol.GetConformer().GetPositions()[None]
    else:
        conformers = etkdg_conformers(mol, num_structures, seed % _MAX_SEED, timeout)
        if conformers is None:
            return []
        starts = conformers
    minima = mmff_minima(mol, starts)
    structures = []
    for positions in starts if minima is None else minima:
        structure = Chem.Mol(mol)
        structure.RemoveAllConformers()
        structure.AddConformer(conformer_from_positions(positions))
        structures.append(structure)
    return structures
