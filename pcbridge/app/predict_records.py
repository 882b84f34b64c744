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
from .rdkit_fallback import ORIGIN, REFINEMENT, rdkit_structures

# Besides the methods of the model: RDKit's conformers, refined.
CONFORMERS = "conformers"


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
        options: of `PCBridgeModel.predict_structure`; method `CONFORMERS` refines RDKit's conformers.

    Yields:
        All predictions of some molecules, and the failures of the batch.
    """
    level_of_theory = level_of_theory or pipeline.model.config.energy_level_of_theory
    from_positions = options.get("method") in METHODS_FROM_POSITIONS
    from_rdkit = options.get("method") == CONFORMERS
    for first in range(0, len(records), molecules_at_once):
        batch = [_checked(record, pipeline, from_positions) for record in records[first : first + molecules_at_once]]
        molecules = [record for record in batch if isinstance(record, Molecule)]
        failures = [record for record in batch if isinstance(record, Failure)]
        results: list[dict | None] = [None] * len(molecules)
        if not from_rdkit:
            results[:] = _results(pipeline, molecules, level_of_theory=level_of_theory, **options)
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
    pipeline: PCBridgePipeline,
    molecule: Molecule,
    result: dict | None,
    timeout: float,
    level_of_theory: str,
    options: dict,
) -> tuple[list[Prediction], list[Failure]]:
    """The sound structures of a molecule, and a failure if there are fewer than were asked for.

    Those of `result` where the model has drawn some, and as many refined ones of RDKit as are missing.
    """
    num_asked = options.get("num_samples", 1)
    found: list[Prediction] = []
    reasons: list[str] = []
    if result is not None:
        origin = f"PCBridge, {options.get('method', 'ddim')}"
        found, broken = _sorted_out(molecule, result, origin, level_of_theory)
        reasons += [f"{origin}: {fault}" for fault in broken[:1]]
    if len(found) == num_asked:
        return found, []
    num_missing = num_asked - len(found)
    starts = [replace(molecule, mol=mol) for mol in rdkit_structures(molecule.mol, num_missing, timeout)]
    if not starts:
        reasons.append("RDKit: no conformer")
    broken_refined: list[str] = []
    relaxation = {key: options[key] for key in ("relaxation_steps", "allow_unlearned_forces") if key in options}
    refinement = REFINEMENT | relaxation
    for refined in _results(pipeline, starts, level_of_theory=level_of_theory, **refinement):
        more, still_broken = _sorted_out(molecule, refined, ORIGIN, level_of_theory)
        found += more
        broken_refined += still_broken
    reasons += [f"{ORIGIN}: {fault}" for fault in broken_refined[:1]]
    missing = num_asked - len(found)
    if not missing:
        return found, []
    if not reasons:
        reasons.append(f"RDKit: {len(starts)} conformers")
    said = f"{missing} of {num_asked} structures are left out" if found else "no sound structure"
    return found, [molecule.failed(f"{said} ({'; '.join(reasons)})")]


def _sorted_out(
    molecule: Molecule, result: dict, origin: str, level_of_theory: str
) -> tuple[list[Prediction], list[str]]:
    """The sound structures of a result of the pipeline, and what is wrong with each of the others."""
    found, broken = [], []
    for k, faults in enumerate(result["faults"]):
        energy = float(result["energy"][k])
        if faults or not np.isfinite(energy):
            broken.append(faults[0] if faults else "the predicted energy is not finite")
            continue
        found.append(
            Prediction(
                molecule=molecule,
                sample=k,
                positions=result["positions"][k],
                energy=energy,
                forces=result["forces"][k],
                origin=origin,
                level_of_theory=f"PCBridge of {level_of_theory}",
                beyond_training=result["beyond_training"],
            )
        )
    return found, broken


def _ranked(predictions: list[Prediction], rank_by: str | None) -> list[Prediction]:
    order = np.arange(len(predictions))
    if rank_by == "energy":
        order = np.argsort([prediction.energy for prediction in predictions], kind="stable")
    elif rank_by == "centrality" and predictions:
        order = np.argsort(distances_to_others(np.array([p.positions for p in predictions])), kind="stable")
    return [replace(predictions[k], sample=rank) for rank, k in enumerate(order)]
