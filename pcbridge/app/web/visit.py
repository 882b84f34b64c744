"""One molecule for the page: its conformers as `pcbridge predict` makes them, turned for the eye, within limits."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from modeling_pcbridge.beyond_training import atoms_beyond_training
from modeling_pcbridge.constants import KCAL_PER_MOL_TO_EV
from modeling_pcbridge.errors import CalculationError, InputError
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles, unmarked_stereo, with_conformers
from modeling_pcbridge.sampling import default_relaxation_steps

from ..molecule_files import Molecule, Prediction, sdf_of
from ..predict_records import load_pipeline, predict
from ..prediction_settings import PredictionSettings
from .about_model import about_model
from .alignment import best_alignment, principal_frame
from .references import Reference, canonical_smiles, load_references

# What one visitor may ask of the machine. Hydrogens count as atoms.
MAX_SMILES_LENGTH = 500
MAX_ATOMS = 150
MAX_CONFORMERS = 20
MAX_SECONDS = 60.0
RDKIT_SECONDS = 20.0  # of these, for RDKit's conformers; what is found in time is refined

# Takes one event, a dictionary for JSON. What it raises ends the prediction.
Emit = Callable[[dict], None]


class Predictor:
    """A checkpoint and the references, ready to answer.

    Args:
        model_path: a folder or Hub name for `from_pretrained`.
    """

    def __init__(self, model_path: str):
        self.pipeline = load_pipeline(model_path)
        name = Path(model_path).resolve().name if Path(model_path).is_dir() else model_path
        self.about = about_model(name, self.pipeline.model.config)
        self.references = load_references()

    def read(self, smiles: str) -> Chem.Mol:
        """The molecule of a SMILES string, with explicit hydrogens.

        Raises:
            ValueError: it is too long, too large, or not one that the processor takes; the message is for the visitor.
        """
        if len(smiles) > MAX_SMILES_LENGTH:
            raise InputError(f"the SMILES has {len(smiles)} characters; this page takes up to {MAX_SMILES_LENGTH}")
        mol = mol_from_smiles(smiles)
        if mol.GetNumAtoms() > MAX_ATOMS:
            raise InputError(
                f"the molecule has {mol.GetNumAtoms()} atoms, hydrogens included; this page takes up to {MAX_ATOMS}"
            )
        try:
            self.pipeline.processor(mol)
        except ValueError as error:  # its cause does not number the molecule, which is the only one here
            raise InputError(str(error.__cause__ or error)) from error
        return mol

    def predict(self, mol: Chem.Mol, num_conformers: int, emit: Emit) -> None:
        """Emits "molecule", then "progress" for each step of the refinement, then the "result".

        The result has the distinct conformers, lowest energy first, all laid over that one, which has its longest axis
        along x and its shortest along z. Lengths are in angstrom, total energies in eV, relative ones in kcal/mol,
        forces in eV/angstrom; the frames of a conformer lead from RDKit's structure to the refined one.

        Raises:
            TimeoutError: it took more than `MAX_SECONDS`.
            CalculationError: no structure is sound.
        """
        start = time.monotonic()
        smiles = canonical_smiles(mol)
        reference = self.references.get(smiles)
        emit(self._describe(mol, smiles, reference))
        config = self.pipeline.model.config
        num_steps = config.num_mean_shift_steps + min(default_relaxation_steps("mean_shift", config), 1)
        frames = np.zeros((num_conformers, num_steps + 1, mol.GetNumAtoms(), 3))

        def go_on(step: int) -> None:
            if time.monotonic() > start + MAX_SECONDS:
                raise TimeoutError(f"the prediction took more than {MAX_SECONDS:.0f} seconds; ask for fewer conformers")
            emit({"type": "progress", "step": step, "num_steps": num_steps})

        def on_step(rows: torch.Tensor, step: int, positions: torch.Tensor) -> None:
            frames[rows, step] = positions.cpu()
            go_on(step)

        def on_step_from_noise(rows: torch.Tensor, step: int, positions: torch.Tensor) -> None:
            go_on(num_steps)  # after the refinement, which gave nothing

        settings = PredictionSettings(num_conformers=num_conformers, timeout=RDKIT_SECONDS)
        record = Molecule(place="", name=smiles, text=smiles, mol=mol)
        [(found, failures)] = predict(self.pipeline, [record], settings, num_conformers, on_step, on_step_from_noise)
        if not found:
            raise CalculationError(failures[0].error)
        lowest = with_conformers(mol, principal_frame(found[0].positions))
        reference_energy = None if reference is None else self._energy(reference.mol)
        conformers = []
        for prediction in found:
            distances = np.abs(frames[:, -1] - prediction.positions).max((1, 2))
            # What was drawn from noise, because no conformer of RDKit is sound, has no frames of its own.
            of_noise = np.repeat(prediction.positions[None], num_steps + 1, axis=0)
            of_prediction = frames[distances.argmin()] if distances.min() < 1e-3 else of_noise
            _, motion = best_alignment(with_conformers(mol, prediction.positions), lowest)
            conformers.append(_shown(prediction, of_prediction, motion, reference, reference_energy))
        emit({"type": "result", "conformers": conformers, "seconds": time.monotonic() - start})

    def _describe(self, mol: Chem.Mol, smiles: str, reference: Reference | None) -> dict:
        """What the page needs to draw the molecule and to name it."""
        kekulized = Chem.Mol(mol)
        Chem.Kekulize(kekulized, clearAromaticFlags=True)
        model, processor = self.pipeline.model, self.pipeline.processor
        [beyond] = model.beyond_training(**processor(mol))
        if beyond is None:
            notes = ["This model does not know what molecules it has learned from."]
        else:
            notes = [f"Take the prediction as an extrapolation: {phrase}." for phrase in beyond]
        if model.config.has_learned_forces is False:
            notes.append("This model has learned no forces; take those that are shown for none.")
        if unmarked := unmarked_stereo(mol):
            notes.append(f"It has no stereo mark at {', '.join(unmarked)}: of several isomers one is shown.")
        return {
            "type": "molecule",
            "smiles": smiles,
            "formula": CalcMolFormula(mol),
            "symbols": [atom.GetSymbol() for atom in mol.GetAtoms()],
            "bonds": [
                [bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), bond.GetBondTypeAsDouble()]
                for bond in kekulized.GetBonds()
            ],
            "beyond": atoms_beyond_training(model.config, graph_from_mol(mol, model.config.resonance_invariant)),
            "notes": notes,
            "level_of_theory": model.config.energy_level_of_theory,
            "reference_level_of_theory": None if reference is None else reference.level_of_theory,
        }

    def _energy(self, mol: Chem.Mol) -> float:
        """The model's own energy at the structure of a molecule, eV."""
        graph = self.pipeline.processor(mol)
        return self.pipeline.model.predict_energy(**graph.to(self.pipeline.device)).energy.item()


def _shown(
    prediction: Prediction,
    frames: np.ndarray,
    motion: np.ndarray,
    reference: Reference | None,
    reference_energy: float | None,
) -> dict:
    """A conformer of an ensemble for JSON, moved by the (4, 4) `motion`; frames (K, N, 3) end in its structure."""
    rotation, shift = motion[:3, :3], motion[:3, 3]
    frames = frames @ rotation.T + shift
    moved = replace(
        prediction, positions=prediction.positions @ rotation.T + shift, forces=prediction.forces @ rotation.T
    )
    first, last = (with_conformers(prediction.molecule.mol, frames[k]) for k in (0, -1))
    assert prediction.relative_energy is not None  # of an ensemble
    shown = {
        "energy": prediction.energy,
        "relative_energy": prediction.relative_energy / KCAL_PER_MOL_TO_EV,
        "boltzmann_weight": prediction.boltzmann_weight,
        "forces": moved.forces.round(4).tolist(),
        "frames": frames.round(4).tolist(),
        "moved": best_alignment(first, last)[0],
        "sdf": sdf_of(moved),
        "reference": None,
    }
    if reference is not None and reference_energy is not None:
        energy_above = (prediction.energy - reference_energy) / KCAL_PER_MOL_TO_EV
        shown["reference"] = reference.over(last) | {"energy_above": energy_above}
    return shown
