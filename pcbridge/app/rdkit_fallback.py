"""What is done where the model draws no sound structure: RDKit's structures, refined by the model."""

import torch
from rdkit import Chem

from dataset_scripts.rdkit_structures import etkdg_conformers, mmff_minima
from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor, StructureOutput
from modeling_pcbridge.molecular_graph import conformer_from_positions

ORIGIN = "RDKit ETKDGv3 + MMFF94, refined by the model"
_REFINEMENT_STEPS = 20


def refined_rdkit_structures(
    model: PCBridgeModel,
    processor: PCBridgeProcessor,
    mol: Chem.Mol,
    num_structures: int,
    seed: int,
    timeout: float,
    relaxation_steps: int = 0,
) -> StructureOutput | None:
    """ETKDGv3 conformers, or the conformer of `mol` where it has one, relaxed by MMFF94 and refined by mean shift.

    Args:
        mol: N atoms, explicit hydrogens.
        num_structures: S; those of one conformer would be the same, so then there is one.
        seed: of the conformers.
        timeout: seconds for the conformers.
        relaxation_steps: after the refinement, see `PCBridgeModel.predict_structure`.

    Returns:
        As `predict_structure`, S rows of one sample; None where RDKit finds no conformer in time.
    """
    if mol.GetNumConformers():
        starts = mol.GetConformer().GetPositions()[None]
    else:
        conformers = etkdg_conformers(mol, num_structures, seed, timeout)
        if conformers is None:
            return None
        starts = conformers
    minima = mmff_minima(mol, starts)
    molecules = []
    for start in starts if minima is None else minima:
        molecule = Chem.Mol(mol)
        molecule.RemoveAllConformers()
        molecule.AddConformer(conformer_from_positions(start))
        molecules.append(molecule)
    inputs = {key: tensor.to(model.device) for key, tensor in processor(molecules).items()}
    with torch.no_grad():
        return model.predict_structure(
            **inputs,
            method="mean_shift",
            num_inference_steps=_REFINEMENT_STEPS,
            relaxation_steps=relaxation_steps,
        )
