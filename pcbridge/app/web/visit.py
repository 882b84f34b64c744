"""One molecule for the page: its structures with their denoising, energies, forces and reference, within limits."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import rdMolAlign
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import mol_from_row
from dataset_scripts.sdf import sdf_record
from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.beyond_training import beyond_as_text
from modeling_pcbridge.errors import CalculationError, InputError
from modeling_pcbridge.molecular_graph import conformer_from_positions, mol_from_smiles
from modeling_pcbridge.rdkit_structures import rdkit_structures

from ..predict_records import ORIGIN, REFINEMENT

# What one visitor may ask of the machine. Hydrogens count as atoms.
MAX_SMILES_LENGTH = 300
MAX_ATOMS = 60
MAX_SAMPLES = 10
MAX_SECONDS = 60.0
RDKIT_SECONDS = 5.0  # for its structures, where the model has no sound ones

NUM_INFERENCE_STEPS = 20
MEAN_SHIFT_STEPS = 10  # into the last frame

# Takes one event, a dictionary for JSON. What it raises ends the prediction.
Emit = Callable[[dict], None]


@dataclass(frozen=True)
class Reference:
    """A DFT equilibrium structure of the bundled test split: the molecule with its conformer, and its level."""

    mol: Chem.Mol
    level_of_theory: str


class Predictor:
    """A checkpoint and the references, ready to answer.

    Args:
        model_path: a folder or Hub name for `from_pretrained`.
    """

    def __init__(self, model_path: str):
        self.processor = PCBridgeProcessor.from_pretrained(model_path)
        self.model = PCBridgeModel.from_pretrained(model_path).eval()
        self.references = {
            _canonical(Chem.MolFromSmiles(row["smiles"])): Reference(mol_from_row(row), row["energy_level_of_theory"])
            for row in load_bundled("dft_equilibrium", "test")
        }

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
            self.processor(mol)
        except ValueError as error:  # its cause does not number the molecule, which is the only one here
            raise InputError(str(error.__cause__ or error)) from error
        return mol

    def predict(self, mol: Chem.Mol, num_samples: int, emit: Emit) -> None:
        """Emits "molecule", then a "step" of the first sample for each step of its denoising, then the "result".

        Lengths are in angstrom, energies in eV, forces in eV/angstrom. The samples of the result come lowest energy
        first, all rotated onto that one, which has its longest axis along x and its shortest along z. Only sound
        structures are samples: what the model cannot draw soundly is refined from RDKit's structures.

        Raises:
            TimeoutError: it took more than `MAX_SECONDS`.
            CalculationError: no structure is sound.
        """
        emit(self._describe(mol))
        frames, origins = self._sound_samples(mol, num_samples, emit)
        energies, forces = self._energies_and_forces(mol, frames[:, -1])
        reference = self.references.get(_canonical(mol))
        reference_energy = None if reference is None else self._reference_energy(reference)
        order = np.argsort(energies)
        lowest = _with_positions(mol, _principal_frame(frames[order[0], -1]))
        samples = []
        for row in order:
            _, transform = _best_alignment(_with_positions(mol, frames[row, -1]), lowest)
            rotation = transform[:3, :3]
            rotated = frames[row] @ rotation.T
            predicted = _with_positions(mol, rotated[-1])
            sample = {
                "energy": energies[row],
                "relative_energy": energies[row] - energies.min(),
                "forces": _rounded(forces[row] @ rotation.T),
                "frames": _rounded(rotated),
                "origin": origins[row],
                "sdf": self._sdf(predicted, energies[row], energies.min()),
                "reference": None,
            }
            if reference is not None:
                sample["reference"] = _compare(reference, predicted)
                sample["reference"]["energy_above"] = energies[row] - reference_energy
            samples.append(sample)
        emit({"type": "result", "samples": samples})

    def _sound_samples(self, mol: Chem.Mol, num_samples: int, emit: Emit) -> tuple[np.ndarray, list[str]]:
        """The denoising of each sound sample, (S, NUM_INFERENCE_STEPS + 1, N, 3), and what each comes from.

        The frames of RDKit's structures are all the same one.
        """
        frames, faults = self._sample(mol, num_samples, emit)
        is_sound = [not of_sample for of_sample in faults]
        broken = [of_sample[0] for of_sample in faults if of_sample]
        origins = [""] * sum(is_sound)
        frames = frames[is_sound]
        if starts := rdkit_structures(mol, len(broken), RDKIT_SECONDS) if broken else []:
            output = self.model.predict_structure(**self.processor(starts), **REFINEMENT)
            refined = output.positions[output.is_sound].double().numpy()
            frames = np.concatenate([frames, np.repeat(refined[:, None], frames.shape[1], axis=1)])
            origins += [ORIGIN] * len(refined)
        if not origins:
            raise CalculationError(f"no sound structure came out: {broken[0]}")
        return frames, origins

    def _sample(self, mol: Chem.Mol, num_samples: int, emit: Emit) -> tuple[np.ndarray, list[list[str]]]:
        """The denoising of each sample, (S, NUM_INFERENCE_STEPS + 1, N, 3), and what is wrong with its last frame."""
        deadline = time.monotonic() + MAX_SECONDS
        frames = np.zeros((num_samples, NUM_INFERENCE_STEPS + 1, mol.GetNumAtoms(), 3))

        def on_step(rows: torch.Tensor, step: int, positions: torch.Tensor) -> None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the prediction took more than {MAX_SECONDS:.0f} seconds; ask for fewer samples")
            frames[rows, step] = positions
            emit({"type": "step", "step": step, "positions": _rounded(frames[0, step])})

        output = self.model.predict_structure(
            **self.processor(mol),
            num_inference_steps=NUM_INFERENCE_STEPS,
            num_samples=num_samples,
            mean_shift_steps=MEAN_SHIFT_STEPS,
            on_step=on_step,
        )
        frames[:, -1] = output.positions[0]
        return frames, output.faults[0]

    def _describe(self, mol: Chem.Mol) -> dict:
        """What the page needs to draw the molecule and to name it."""
        kekulized = Chem.Mol(mol)
        Chem.Kekulize(kekulized, clearAromaticFlags=True)
        beyond = self._beyond_training(mol)
        if beyond is None:
            notes = ["This model does not know what molecules it has learned from."]
        else:
            notes = [f"Take the prediction as an extrapolation: {phrase}." for phrase in beyond]
        if self.model.config.has_learned_forces is False:
            notes.append("This model has learned no forces; take those that are shown for none.")
        reference = self.references.get(_canonical(mol))
        return {
            "type": "molecule",
            "smiles": _canonical(mol),
            "formula": CalcMolFormula(mol),
            "symbols": [atom.GetSymbol() for atom in mol.GetAtoms()],
            "bonds": [
                [bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), bond.GetBondTypeAsDouble()]
                for bond in kekulized.GetBonds()
            ],
            "num_steps": NUM_INFERENCE_STEPS,
            "notes": notes,
            "level_of_theory": self.model.config.energy_level_of_theory,
            "reference_level_of_theory": None if reference is None else reference.level_of_theory,
        }

    def _beyond_training(self, mol: Chem.Mol) -> list[str] | None:
        [beyond] = self.model.beyond_training(**self.processor(mol))
        return beyond

    def _energies_and_forces(self, mol: Chem.Mol, structures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies (S,), eV, and forces (S, N, 3), eV/angstrom, of structures (S, N, 3) of one molecule."""
        output = self.model.predict_energy(**self.processor([_with_positions(mol, s) for s in structures]))
        return output.energy.numpy(), output.forces.double().numpy()

    def _reference_energy(self, reference: Reference) -> float:
        """The model's own energy at the reference structure, eV."""
        energies, _ = self._energies_and_forces(reference.mol, reference.mol.GetConformer().GetPositions()[None])
        return float(energies[0])

    def _sdf(self, mol: Chem.Mol, energy: float, lowest: float) -> str:
        """One SDF record of a structure, with the energy as properties."""
        properties = {
            "energy_eV": f"{energy:.6f}",
            "energy_above_lowest_sample_eV": f"{energy - lowest:.6f}",
            "energy_level_of_theory": f"{self.model.config.energy_level_of_theory}, predicted by PCBridge",
            "beyond_training": beyond_as_text(self._beyond_training(mol)),
        }
        return sdf_record(mol, _canonical(mol), properties)


def _canonical(mol: Chem.Mol) -> str:
    return Chem.MolToSmiles(Chem.RemoveHs(mol))


def _with_positions(mol: Chem.Mol, positions: np.ndarray) -> Chem.Mol:
    mol = Chem.Mol(mol)
    mol.RemoveAllConformers()
    mol.AddConformer(conformer_from_positions(positions))
    return mol


def _principal_frame(positions: np.ndarray) -> np.ndarray:
    """(N, 3) centred `positions`, rotated so that their spread is largest along x and smallest along z."""
    _, _, axes = np.linalg.svd(positions)
    axes[2] *= np.sign(np.linalg.det(axes))
    return positions @ axes.T


def _best_alignment(probe: Chem.Mol, target: Chem.Mol) -> tuple[float, np.ndarray]:
    """RMSD, angstrom, and the (4, 4) motion of `probe` onto `target`, the best under the graph's symmetries.

    Over heavy atoms, or over all where fewer than three are heavy, which do not fix a rotation.
    """
    if probe.GetNumHeavyAtoms() >= 3:
        probe, target = Chem.RemoveAllHs(probe, sanitize=False), Chem.RemoveAllHs(target, sanitize=False)
    rmsd, transform, _ = rdMolAlign.GetBestAlignmentTransform(probe, target)
    return rmsd, np.array(transform)


def _compare(reference: Reference, predicted: Chem.Mol) -> dict:
    """The reference laid over a predicted structure, in the predicted one's frame, with its own elements and bonds."""
    rmsd, transform = _best_alignment(reference.mol, predicted)
    positions = reference.mol.GetConformer().GetPositions() @ transform[:3, :3].T + transform[:3, 3]
    return {
        "symbols": [atom.GetSymbol() for atom in reference.mol.GetAtoms()],
        "bonds": [[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), 1] for bond in reference.mol.GetBonds()],
        "positions": _rounded(positions),
        "rmsd": rmsd,
        "rmsd_atoms": "heavy atoms" if predicted.GetNumHeavyAtoms() >= 3 else "all atoms",
    }


def _rounded(values: np.ndarray) -> list:
    return values.round(4).tolist()
