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
    level_of_theory: str | None = None,
    **options,
) -> Iterator[tuple[list[Prediction], list[Failure]]]:
    """Predictions and failures, a batch of molecules at a time, in the order of `records`.

    Args:
        records: molecules, or failures already.
        rank_by: "energy", lowest first; "centrality", closest to the other structures first, which on QM9 is the
            better guess at the one that is asked for; None, as they come. Structures that violate a stereo mark are
            last with either.
        level_of_theory: of energies and forces; by default the model's first.
        options: of `PCBridgeModel.predict_structure`.

    Yields:
        All predictions of some molecules, and the failures of the other molecules of the batch.
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
            if np.isfinite(result["energy"]).all():
                predictions += _samples(molecule, result, rank_by, level_of_theory)
            else:
                failures.append(molecule.failed("the predicted energy is not finite"))
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


def _samples(molecule: Molecule, result: dict, rank_by: str | None, level_of_theory: str) -> list[Prediction]:
    order = np.arange(len(result["energy"]))
    if rank_by is not None:
        key = result["energy"] if rank_by == "energy" else distances_to_others(result["positions"])
        order = np.lexsort((key, ~result["stereo_right"]))
    return [
        Prediction(
            molecule=molecule,
            sample=rank,
            positions=result["positions"][k],
            energy=float(result["energy"][k]),
            forces=result["forces"][k],
            stereo_right=bool(result["stereo_right"][k]),
            level_of_theory=f"PCBridge of {level_of_theory}",
        )
        for rank, k in enumerate(order)
    ]
