"""RDKit's conformers for the model to refine: as a method, and where the model draws no sound structure."""

from rdkit import Chem

from dataset_scripts.rdkit_structures import etkdg_conformers, mmff_minima
from modeling_pcbridge.molecular_graph import conformer_from_positions

ORIGIN = "RDKit ETKDGv3 + MMFF94, refined by PCBridge"
# Options of `PCBridgeModel.predict_structure` that refine them, in as many steps as its config says.
REFINEMENT = {"method": "mean_shift"}
_SEED = 0


def rdkit_structures(mol: Chem.Mol, num_structures: int, timeout: float) -> list[Chem.Mol]:
    """MMFF94 minima of ETKDGv3 conformers, or of the conformer of `mol` if it has one, which is then the only one.

    Args:
        mol: explicit hydrogens.
        num_structures: how many, at most.
        timeout: seconds for the conformers.

    Returns:
        Copies of `mol` with a conformer each; none where RDKit finds no conformer in time.
    """
    if mol.GetNumConformers():
        starts = mol.GetConformer().GetPositions()[None]
    else:
        conformers = etkdg_conformers(mol, num_structures, _SEED, timeout)
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
