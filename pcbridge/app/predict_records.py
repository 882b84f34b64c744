"""Predicting many molecules, of which some may be bad."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from rdkit import Chem

from modeling_pcbridge import PCBridgeModel, PCBridgePipeline, PCBridgeProcessor
from modeling_pcbridge.sampling import METHODS_FROM_POSITIONS
from pcbridge.evaluation.metrics import distances_to_others

from .molecule_files import Failure, Molecule, Prediction, Record
from .rdkit_fallback import ORIGIN, refined_rdkit_structures

_SEED = 0  # of RDKit's conformers


def load_pipeline(model: str, device: str | None = None) -> PCBridgePipeline:
    """The pipeline of a checkpoint folder or hub name, on a GPU where there is one.

    Raises:
        OSError, ValueError: there is no sound checkpoint.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return PCBridgePipeline(
        PCBridgeModel.from_pretrained(model), processor=PCBridgeProcessor.from_pretrained(model), device=device
    )


def predict(
    pipeline: PCBridgePipeline,
    records: list[Record],
    molecules_at_once: int,
    rank_by: str | None,
    timeout: float,
    level_of_theory: str | None = None,
    **options,
) -> Iterator[tuple[list[Prediction], list[Failure]]]:
    """Predictions and failures, a batch of molecules at a time, in the order of `records`.

    Only sound structures are predictions (see `StructureChecks`). What the model cannot draw soundly is replaced by
    RDKit's structures, refined; a molecule that lacks structures all the same is among the failures too.

    Args:
        records: molecules, or failures already.
        rank_by: "energy", lowest first; "centrality", closest to the other structures first, which on QM9 is the
            better guess at the one that is asked for; None, as they come.
        timeout: seconds that RDKit has for the structures of a molecule.
        level_of_theory: of energies and forces; by default the model's first.
        options: of `PCBridgeModel.predict_structure`.

    Yields:
        All predictions of some molecules, and the failures of the batch.
    """
    level_of_theory = level_of_theory or pipeline.model.config.energy_level_of_theory
    from_positions = options.get("method") in METHODS_FROM_POSITIONS
    for first in range(0, len(records), molecules_at_once):
        batch = [_checked(record, pipeline, from_positions) for record in records[first : first + molecules_at_once]]
        molecules = [record for record in batch if isinstance(record, Molecule)]
        failures = [record for record in batch if isinstance(record, Failure)]
        results = _results(pipeline, molecules, level_of_theory=level_of_theory, **options)
        predictions: list[Prediction] = []
        for molecule, result in zip(molecules, results, strict=True):
            structures, failure = _sound_structures(pipeline, molecule, result, timeout, level_of_theory, options)
            predictions += _ranked(structures, rank_by)
            failures += failure
        yield predictions, failures


def _results(pipeline: PCBridgePipeline, molecules: list[Molecule], **options) -> list[dict]:
    return pipeline([m.mol for m in molecules], batch_size=len(molecules), **options) if molecules else []


def _checked(record: Record, pipeline: PCBridgePipeline, from_positions: bool) -> Record:
    """The record, without the structure of the file if it is not to be started from; or its failure."""
    if not isinstance(record, Molecule):
        return record
    mol = Chem.Mol(record.mol)
    if not from_positions:
        mol.RemoveAllConformers()
    elif mol.GetNumConformers() == 0:
        return record.failed("the method starts from a 3D structure, and there is none")
    try:
        pipeline.processor(mol)
    except ValueError as error:
        return record.failed(str(error.__cause__ or error))  # without the number within the batch
    return replace(record, mol=mol)


def _sound_structures(
    pipeline: PCBridgePipeline, molecule: Molecule, result: dict, timeout: float, level_of_theory: str, options: dict
) -> tuple[list[Prediction], list[Failure]]:
    """The sound structures of a molecule, and a failure if there are fewer than were asked for."""
    faults = [_with_energy_fault(*pair) for pair in zip(result["faults"], result["energy"], strict=True)]
    method = options.get("method", "ddim")

    def prediction(positions, energy, forces, origin: str) -> Prediction:
        return Prediction(
            molecule, 0, positions, float(energy), forces, origin, level_of_theory=f"PCBridge of {level_of_theory}"
        )

    found = [
        prediction(result["positions"][k], result["energy"][k], result["forces"][k], f"PCBridge, {method}")
        for k, of_sample in enumerate(faults)
        if not of_sample
    ]
    broken = [of_sample for of_sample in faults if of_sample]
    if not broken:
        return found, []
    model, processor = pipeline.model, pipeline.processor
    output = refined_rdkit_structures(
        model, processor, molecule.mol, len(broken), _SEED, timeout, options.get("relaxation_steps", 0)
    )
    reason = f"the model: {broken[0][0]}"
    if output is None:
        reason += "; RDKit: no conformer"
    else:
        copies = {key: tensor.to(model.device) for key, tensor in processor([molecule.mol] * len(output.faults)).items()}
        copies["positions"] = output.positions[:, 0]
        energies = model.predict_energy(**copies, level_of_theory=level_of_theory)
        for row, (of_sample,) in enumerate(output.faults):
            of_sample = _with_energy_fault(of_sample, energies.energy[row].item())
            if of_sample:
                reason = f"the model: {broken[0][0]}; {ORIGIN}: {of_sample[0]}"
            else:
                arrays = (output.positions[row, 0], energies.energy[row], energies.forces[row])
                found.append(prediction(*(tensor.cpu().numpy() for tensor in arrays), ORIGIN))
    if len(found) == len(faults):
        return found, []
    missing = len(faults) - len(found)
    said = "no sound structure" if not found else f"{missing} of {len(faults)} structures are left out"
    return found, [molecule.failed(f"{said}: {reason}")]


def _with_energy_fault(faults: list[str], energy: float) -> list[str]:
    return faults if np.isfinite(energy) else [*faults, "the predicted energy is not finite"]


def _ranked(predictions: list[Prediction], rank_by: str | None) -> list[Prediction]:
    order = np.arange(len(predictions))
    if rank_by == "energy":
        order = np.argsort([prediction.energy for prediction in predictions], kind="stable")
    elif rank_by == "centrality" and predictions:
        order = np.argsort(distances_to_others(np.array([p.positions for p in predictions])), kind="stable")
    return [replace(predictions[k], sample=rank) for rank, k in enumerate(order)]
