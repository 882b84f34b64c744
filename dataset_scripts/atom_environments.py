"""The environments of atoms: what lies up to some bonds around them, as RDKit's Morgan fingerprints have it."""

from collections.abc import Sequence
from functools import lru_cache

from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator


def atom_environments(mol: Chem.Mol, radii: Sequence[int]) -> dict[int, list[int]]:
    """By radius, a hash of the environment of each heavy atom of a molecule with implicit hydrogens."""
    output = rdFingerprintGenerator.AdditionalOutput()
    output.AllocateAtomToBits()
    _morgan(max(radii)).GetSparseCountFingerprint(mol, additionalOutput=output)
    hashes = output.GetAtomToBits()  # of each atom, by radius; a lone atom has no more than radius 0
    return {radius: [of_atom[min(radius, len(of_atom) - 1)] for of_atom in hashes] for radius in radii}


@lru_cache
def _morgan(radius: int):
    invariants = rdFingerprintGenerator.GetMorganAtomInvGen(includeRingMembership=False)
    return rdFingerprintGenerator.GetMorganGenerator(
        radius=radius, includeRedundantEnvironments=True, atomInvariantsGenerator=invariants
    )
