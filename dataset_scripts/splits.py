"""Which split a molecule belongs to."""

import hashlib

from rdkit import Chem

SPLITS = ("train", "validation", "test")
VALIDATION_PERCENT = 10
TEST_PERCENT = 10


def constitution_of(mol: Chem.Mol) -> str:
    """SMILES without stereo marks and explicit hydrogens, the same for all stereoisomers."""
    mol = Chem.Mol(mol)
    Chem.RemoveStereochemistry(mol)
    return Chem.MolToSmiles(Chem.RemoveAllHs(mol))


def split_of(constitution: str) -> str:
    """The split of a molecule, from a hash of its SMILES without stereo marks.

    Stereoisomers share a constitution, so they never fall into different splits; neither do the same molecules of
    different sources.
    """
    bucket = int.from_bytes(hashlib.sha256(constitution.encode()).digest()[:8], "big") % 100
    if bucket < TEST_PERCENT:
        return "test"
    if bucket < TEST_PERCENT + VALIDATION_PERCENT:
        return "validation"
    return "train"
