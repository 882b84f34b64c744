"""Structures by RDKit: ETKDGv3 conformers and MMFF94 minima."""

import math
import time

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from .errors import CalculationError
from .molecular_graph import signed_volumes, stereo_quadruples
from .rdkit_molecules import unmarked_stereo, with_conformers

_MAX_MMFF_STEPS = 2000
_MAX_SEED = 2**20  # times the number of the conformer it is a C integer in RDKit


def etkdg_conformers(mol: Chem.Mol, num_conformers: int, seed: int, timeout: float | None = None) -> np.ndarray | None:
    """Conformers (S, N, 3) in angstrom of a molecule with explicit hydrogens; None where ETKDGv3 finds none.

    With a `timeout` in seconds the conformers that are found in time.

    Raises:
        KeyboardInterrupt: as usual, which RDKit alone would keep to itself; what comes while it looks for patterns, a
            small part of its time, is lost.
    """
    mol = Chem.Mol(mol)
    parameters = rdDistGeom.ETKDGv3()
    parameters.trackFailures = True  # type: ignore[assignment]  # RDKit's stubs are wrong
    deadline = None if timeout is None else time.monotonic() + timeout
    found: list[np.ndarray] = []
    # One by one, because RDKit's own timeout leaves none of several; the seeds are those that it gives to several.
    for number in range(1, num_conformers + 1):
        parameters.randomSeed = (seed + 1) * number  # type: ignore[assignment]
        # Of long chains, lipids for instance, RDKit finds none but from random coordinates.
        for parameters.useRandomCoords in (False, True):  # type: ignore[assignment]
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return np.array(found) if found else None
                parameters.timeout = math.ceil(left)  # type: ignore[assignment]
            if rdDistGeom.EmbedMolecule(mol, parameters) >= 0:
                found.append(mol.GetConformer().GetPositions())
                break
            if (deadline is None or time.monotonic() < deadline) and _was_interrupted(mol, parameters):
                raise KeyboardInterrupt
    return np.array(found) if found else None


def _was_interrupted(mol: Chem.Mol, parameters: rdDistGeom.EmbedParameters) -> bool:
    """Whether an embedding that gave nothing was ended by Ctrl-C, which RDKit takes for itself and does not report.

    Other embeddings end after as many failures as tries, or cannot begin, and then no other one can.
    """
    if sum(parameters.GetFailureCounts()) >= 10 * mol.GetNumAtoms():  # RDKit's number of tries
        return False
    once = rdDistGeom.ETKDGv3()
    once.maxIterations = 1  # type: ignore[assignment]
    once.trackFailures = True  # type: ignore[assignment]
    return rdDistGeom.EmbedMolecule(Chem.Mol(mol), once) >= 0 or sum(once.GetFailureCounts()) > 0


def mmff_minima(mol: Chem.Mol, starts: np.ndarray) -> np.ndarray | None:
    """The MMFF94 minima (S, N, 3) below (S, N, 3) structures, or near; None where MMFF94 lacks parameters.

    Raises:
        CalculationError: MMFF94 cannot begin at a structure, such as one whose atoms coincide.
    """
    found = _mmff_optimised(mol, starts)
    return None if found is None else found[0]


def _mmff_optimised(mol: Chem.Mol, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """As `mmff_minima`, and whether each minimum was reached, (S,) bool."""
    if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        return None
    mol = with_conformers(mol, *starts)
    try:
        ends = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, maxIters=_MAX_MMFF_STEPS)
    except RuntimeError as error:  # RDKit's line search, where atoms coincide
        raise CalculationError("MMFF94 cannot begin at this structure; do atoms coincide?") from error
    minima = np.array([conformer.GetPositions() for conformer in mol.GetConformers()])
    return minima, np.array([not_reached == 0 for not_reached, _ in ends])


def mmff_minimum(mol: Chem.Mol) -> tuple[np.ndarray, None]:
    """The MMFF94 minimum (N, 3), angstrom, below the structure of `mol`; its energy is no total energy, so none.

    Raises:
        CalculationError: MMFF94 lacks parameters, or no minimum was found.
    """
    found = _mmff_optimised(mol, mol.GetConformer().GetPositions()[None])
    if found is None:
        raise CalculationError("MMFF94 has no parameters for this molecule")
    minima, is_reached = found
    if not is_reached[0]:
        raise CalculationError(f"no MMFF94 minimum in {_MAX_MMFF_STEPS} steps")
    return minima[0], None


def rdkit_structures(mol: Chem.Mol, num_structures: int, timeout: float, seed: int = 0) -> list[Chem.Mol]:
    """MMFF94 minima of ETKDGv3 conformers, or of the conformer of `mol` if it has one, which is then the only one.

    Where MMFF94 has no parameters (boron, iodine(V)), the conformers themselves. All are of one stereoisomer: where
    `mol` lacks marks, they have, and carry, those of the first conformer.

    Args:
        mol: explicit hydrogens.
        num_structures: how many, at most.
        timeout: seconds for the conformers.
        seed: of the conformers.

    Returns:
        Copies of `mol` with a conformer each; none where RDKit finds no conformer in time.

    Raises:
        CalculationError: MMFF94 cannot begin at the conformer of `mol`.
    """
    if mol.GetNumConformers():
        starts = mol.GetConformer().GetPositions()[None]
    else:
        begun, seed = time.monotonic(), seed % _MAX_SEED
        is_unmarked = bool(unmarked_stereo(mol))
        found = etkdg_conformers(mol, 1 if is_unmarked else num_structures, seed, timeout)
        if found is None:
            return []
        if is_unmarked:
            minimum = mmff_minima(mol, found)  # an unmarked N is embedded nearly flat
            found = found if minimum is None else minimum
            mol = _with_marks_of(mol, found[0])
            left = timeout - (time.monotonic() - begun)
            more = etkdg_conformers(mol, num_structures - 1, seed + 1, left)
            found = found if more is None else np.concatenate([found, more])
        starts = found
    minima = mmff_minima(mol, starts)
    return [with_conformers(mol, positions) for positions in (starts if minima is None else minima)]


def _with_marks_of(mol: Chem.Mol, positions: np.ndarray) -> Chem.Mol:
    """A copy of `mol`, without conformers, whose missing stereo marks are those of (N, 3) `positions`."""
    marked = with_conformers(mol, positions)
    for bond in marked.GetBonds():
        if bond.GetStereo() == Chem.BondStereo.STEREOANY:  # drawn crossed: a mark that says there is none
            bond.SetStereo(Chem.BondStereo.STEREONONE)
            bond.SetBondDir(Chem.BondDir.NONE)
    Chem.AssignStereochemistryFrom3D(marked, replaceExistingTags=False)
    # RDKit perceives no handedness of phosphines and aziridines.
    for stereo in Chem.FindPotentialStereo(marked):
        if stereo.type == Chem.StereoType.Atom_Tetrahedral and stereo.specified != Chem.StereoSpecified.Specified:
            centre = marked.GetAtomWithIdx(stereo.centeredOn)
            before = {frozenset(corners) for corners in stereo_quadruples(marked).tolist()}
            centre.SetChiralTag(Chem.ChiralType.CHI_TETRAHEDRAL_CCW)
            new = [corners for corners in stereo_quadruples(marked).tolist() if frozenset(corners) not in before]
            if new and signed_volumes(positions, np.array(new)).item() < 0:
                centre.SetChiralTag(Chem.ChiralType.CHI_TETRAHEDRAL_CW)
    marked.RemoveAllConformers()
    Chem.AssignStereochemistry(marked, cleanIt=True, force=True)  # RDKit marks some atoms that are no centres
    return marked
