"""What RDKit perceives of a structure alone, beside what its molecule says: bonds and stereo."""

from rdkit import Chem
from rdkit.Chem import rdDetermineBonds


def has_perceived_bonds(mol: Chem.Mol) -> bool:
    """Whether RDKit finds from elements and distances the very bonds of a molecule with one conformer."""
    bare = Chem.RWMol()
    for atom in mol.GetAtoms():
        bare.AddAtom(Chem.Atom(atom.GetAtomicNum()))
    bare.AddConformer(mol.GetConformer())
    rdDetermineBonds.DetermineConnectivity(bare)
    return _pairs(bare) == _pairs(mol)


def _pairs(mol: Chem.Mol) -> set[frozenset[int]]:
    return {frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) for bond in mol.GetBonds()}


def has_perceived_stereo(mol: Chem.Mol) -> bool:
    """Whether every stereo mark of a molecule, of atoms and of double bonds, is what RDKit finds in its conformer.

    What has no mark may be anything.
    """
    marked, perceived = Chem.Mol(mol), Chem.Mol(mol)
    Chem.AssignStereochemistry(marked, cleanIt=True, force=True)
    Chem.AssignStereochemistryFrom3D(perceived, replaceExistingTags=True)
    return all(
        before.GetChiralTag() in (Chem.ChiralType.CHI_UNSPECIFIED, after.GetChiralTag())
        for before, after in zip(marked.GetAtoms(), perceived.GetAtoms(), strict=True)
    ) and all(
        before.GetStereo() in (Chem.BondStereo.STEREONONE, Chem.BondStereo.STEREOANY, after.GetStereo())
        for before, after in zip(marked.GetBonds(), perceived.GetBonds(), strict=True)
    )
