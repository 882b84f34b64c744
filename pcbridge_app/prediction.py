"""Predicting many molecules, of which some may be bad."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from rdkit import Chem

from modeling_pcbridge import PCBridgeModel, PCBridgePipeline, PCBridgeProcessor
from modeling_pcbridge.sampling import METHODS_FROM_POSITIONS

from .molecule_files import Prediction, Record


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
    pipeline: PCBridgePipeline, records: list[Record], molecules_at_once: int, rank_by_energy: bool, **options
) -> Iterator[tuple[list[Prediction], list[Record]]]:
    """Predictions and failures, a batch of molecules at a time, in the order of `records`.

    Args:
        records: molecules, or failures already.
        rank_by_energy: lowest energy first, after it structures that violate a stereo mark.
        options: of `PCBridgeModel.predict_structure`.

    Yields:
        All predictions of some molecules, and the records of the other molecules of the batch, each with its `error`.
    """
    from_positions = options.get("method") in METHODS_FROM_POSITIONS
    for first in range(0, len(records), molecules_at_once):
        batch = [_checked(record, pipeline, from_positions) for record in records[first : first + molecules_at_once]]
        good = [record for record in batch if record.error is None]
        failures = [record for record in batch if record.error is not None]
        results = pipeline([record.mol for record in good], batch_size=len(good), **options) if good else []
        predictions = []
        for record, result in zip(good, results, strict=True):
            if np.isfinite(result["energy"]).all():
                predictions += _samples(record, result, rank_by_energy, pipeline.model.config.energy_level_of_theory)
            else:
                failures.append(replace(record, error="the predicted energy is not finite"))
        yield predictions, failures


def _checked(record: Record, pipeline: PCBridgePipeline, from_positions: bool) -> Record:
    """The record, without the structure of the file if it is not to be started from; or with an error."""
    if record.mol is None:
        return record
    mol = Chem.Mol(record.mol)
    if not from_positions:
        mol.RemoveAllConformers()
    elif mol.GetNumConformers() == 0:
        return replace(record, error="the method starts from a 3D structure, and there is none")
    try:
        pipeline.processor(mol)
    except ValueError as error:
        return replace(record, error=str(error.__cause__ or error))  # without the number within the batch
    return replace(record, mol=mol)


def _samples(record: Record, result: dict, rank_by_energy: bool, level_of_theory: str) -> list[Prediction]:
    order = np.arange(len(result["energy"]))
    if rank_by_energy:
        order = np.lexsort((result["energy"], ~result["stereo_right"]))
    return [
        Prediction(
            record=record,
            sample=rank,
            positions=result["positions"][k],
            energy=float(result["energy"][k]),
            forces=result["forces"][k],
            stereo_right=bool(result["stereo_right"][k]),
            level_of_theory=f"PCBridge of {level_of_theory}",
        )
        for rank, k in enumerate(order)
    ]
