"""How structures of one molecule are turned for the eye."""

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdMolAlign

# More permutations of equivalent atoms would take seconds; the picture is then turned a little less well.
_MAX_MATCHES = 1000


def principal_frame(positions: np.ndarray) -> np.ndarray:
    """(N, 3) centred `positions`, rotated so that their spread is largest along x and smallest along z."""
    _, _, axes = np.linalg.svd(positions)
    axes[2] *= np.sign(np.linalg.det(axes))
    return positions @ axes.T


def best_alignment(probe: Chem.Mol, target: Chem.Mol) -> tuple[float, np.ndarray]:
    """RMSD, angstrom, and the (4, 4) motion of `probe` onto `target`, the best under the graph's symmetries.

    Over heavy atoms, or over all where fewer than three are heavy, which do not fix a rotation.
    """
    if probe.GetNumHeavyAtoms() >= 3:
        probe, target = Chem.RemoveAllHs(probe, sanitize=False), Chem.RemoveAllHs(target, sanitize=False)
    rmsd, transform, _ = rdMolAlign.GetBestAlignmentTransform(probe, target, maxMatches=_MAX_MATCHES)
    return rmsd, np.array(transform)
