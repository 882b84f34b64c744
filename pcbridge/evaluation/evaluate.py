"""Evaluation of structures, energies and forces on a split: the metrics of the paper and symmetry-aware ones.

`evaluate_model` and `evaluate_reference` give the same record for a model and for a classical method, so that they
stand in one table.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from accelerate.utils import send_to_device
from tqdm.auto import tqdm

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import Example, collate, example_from_row
from modeling_pcbridge.graph_batch import GRAPH_KEYS, GraphBatch, pad_graphs, pad_positions
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.molecular_graph import stereo_is_right
from pcbridge.evaluation.config import EvaluationConfig
from pcbridge.evaluation.metrics import (
    bond_angle_error,
    bond_length_error,
    distance_errors,
    heavy_atom_rmsd,
    kabsch_rmsd,
    one_three_distance_error,
    torsion_error,
)
from pcbridge.evaluation.references import ReferenceMolecule, load_references, pm6_structures

# A sample covers the reference when it is closer than this, angstrom (QM9; the paper has 1.25 for PCQM4Mv2).
COVERAGE_RMSD = 0.9
# "refine" starts from the PM6 structures.
SAMPLING_METHODS = ("ddim", "denoising", "refine")
# Rows of the result tables: each method, mean shift of the PM6 structures and of the "ddim" samples, the best of the
# samples by the model's own energy, and what relaxing on that energy gives at inference, with which a multi-task model
# could do without the consistency losses.
PREDICTION_NAMES = (
    *SAMPLING_METHODS,
    "mean_shift",
    "ddim_mean_shift",
    "lowest_energy",
    "lowest_energy_mean_shift",
    "refine_relaxed",
    "lowest_energy_relaxed",
)
RELAXATION_STEPS = 4
# From PM6 structures, and after "ddim".
_MEAN_SHIFT_STEPS = {"mean_shift": 20, "ddim_mean_shift": 10}
# For each molecule its samples (S, N, 3) and the model's energies of them (S,), eV.
Predictions = list[tuple[np.ndarray, np.ndarray]]


def structure_record(reference: ReferenceMolecule, samples: np.ndarray) -> dict[str, float]:
    """All structure metrics of one molecule: `samples` (S, N, 3) against its reference, means over samples."""
    graph, target = reference.example.graph, reference.positions
    rmsd = kabsch_rmsd(samples, target)
    heavy = heavy_atom_rmsd(reference.mol, samples, target)
    d_mae, d_rmse = distance_errors(samples, target)
    return {
        "rmsd_mean": rmsd.mean(),
        "rmsd_min": rmsd.min(),
        "coverage": (rmsd < COVERAGE_RMSD).mean(),
        "heavy_rmsd_mean": heavy.mean(),
        "heavy_rmsd_min": heavy.min(),
        "d_mae": d_mae.mean(),
        "d_rmse": d_rmse.mean(),
        "bond_length_error": bond_length_error(graph, samples, target).mean(),
        "one_three_error": one_three_distance_error(graph, samples, target).mean(),
        "bond_angle_error": bond_angle_error(graph, samples, target).mean(),
        "torsion_error": torsion_error(graph, samples, target).mean(),
        # Only molecules with marks count.
        "stereo_right": stereo_is_right(graph, samples).mean() if graph.has_stereo else np.nan,
    }


def mean_over_molecules(records: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """Mean of every metric over the molecules that have it, with the median of the heavy-atom RMSD beside."""
    summary: dict[str, float | None] = {}
    for key in records[0]:
        values = np.array([record[key] for record in records], dtype=np.float64)
        values = values[~np.isnan(values)]
        summary[key] = float(values.mean()) if len(values) else None
    if "heavy_rmsd_mean" in summary:
        summary["heavy_rmsd_median"] = float(np.median([record["heavy_rmsd_mean"] for record in records]))
    return summary


@torch.no_grad()
def evaluate_model(model: PCBridgeModel, evaluation: EvaluationConfig, seed: int) -> dict[str, dict]:
    """All metrics of a model on a split of the bundled data.

    Returns:
        For each of `PREDICTION_NAMES` the structure metrics and EGap, means over molecules; for "energy" the errors
        on PM6 and displaced structures; under "per_molecule" the metrics of each molecule and what the plots need.
    """
    model.eval()
    references, pm6 = load_references(evaluation), pm6_structures(evaluation)
    starts = [pm6(reference) for reference in references]
    reference_energies = _model_energies(model, [r.example for r in references], evaluation.batch_size)
    predictions = {method: _predict(model, references, starts, method, evaluation, seed) for method in SAMPLING_METHODS}
    moved = partial(_moved, model, references, batch_size=evaluation.batch_size)
    relax = partial(model.relax, num_steps=RELAXATION_STEPS)
    shift, shift_sample = (
        partial(model.mean_shift, num_steps=_MEAN_SHIFT_STEPS[name]) for name in ("mean_shift", "ddim_mean_shift")
    )
    ddim, refined = ([samples for samples, _ in predictions[name]] for name in ("ddim", "refine"))
    predictions["mean_shift"] = moved(starts, shift)
    predictions["ddim_mean_shift"] = moved(ddim, shift_sample)
    predictions["lowest_energy"] = _lowest_energy(predictions["ddim"])
    predictions["lowest_energy_mean_shift"] = _lowest_energy(predictions["ddim_mean_shift"])
    predictions["refine_relaxed"] = moved(refined, relax)
    predictions["lowest_energy_relaxed"] = _lowest_energy(moved(ddim, relax))
    results: dict[str, dict] = {"per_molecule": {"molecule_id": [r.example.molecule_id for r in references]}}
    results["per_molecule"]["reference_energy"] = reference_energies
    for method, predicted in predictions.items():
        records = []
        for reference, start, reference_energy, (samples, energies) in zip(
            references, starts, reference_energies, predicted, strict=True
        ):
            above = float((energies - reference_energy).mean())
            others = {
                "energy_above_reference": above,
                "energy_gap": above / abs(reference_energy),
                "pm6_rmsd_mean": kabsch_rmsd(samples, start[0]).mean(),
            }
            records.append(structure_record(reference, samples) | others)
        results[method] = mean_over_molecules(records)
        results["per_molecule"][method] = {key: [float(record[key]) for record in records] for key in records[0]} | {
            "first_energy": [float(energies[0]) for _, energies in predicted],
            "first_sample": [samples[0].tolist() for samples, _ in predicted],
        }
    results["energy"] = evaluate_energy(model, evaluation)
    return results


def _predict(
    model: PCBridgeModel,
    references: list[ReferenceMolecule],
    starts: list[np.ndarray],
    method: str,
    evaluation: EvaluationConfig,
    seed: int,
) -> Predictions:
    """The samples of a method; `starts` (1, N, 3) a molecule are the structures that "refine" starts from."""
    generator = torch.Generator().manual_seed(seed)
    # Refined structures differ by hundredths of an angstrom; one of them is enough.
    num_samples = 1 if method == "refine" else evaluation.num_samples
    chunk = max(evaluation.batch_size // num_samples, 1)
    predictions: Predictions = []
    for start in tqdm(range(0, len(references), chunk), desc=f"evaluate {method}"):
        batch = references[start : start + chunk]
        graphs = pad_graphs([reference.example.graph for reference in batch])
        start_positions = pad_positions([structures[0] for structures in starts[start : start + chunk]])
        graphs, start_positions = send_to_device((graphs, start_positions), model.device)
        positions = model.predict_structure(
            **graphs,
            positions=start_positions,
            method=method,
            num_inference_steps=evaluation.num_inference_steps,
            num_samples=num_samples,
            eta=evaluation.eta,
            generator=generator,
        ).positions
        repeated = {key: values.repeat_interleave(num_samples, 0) for key, values in graphs.items()}
        predictions += _with_energies(model, batch, repeated, positions.flatten(0, 1))
    return predictions


def _moved(
    model: PCBridgeModel,
    references: list[ReferenceMolecule],
    structures: list[np.ndarray],
    move: Callable[[GraphBatch, torch.Tensor], torch.Tensor],
    batch_size: int,
) -> Predictions:
    """Every sample after `move`, such as `model.relax`; `structures` holds (S, N, 3) a molecule."""
    chunk = max(batch_size // len(structures[0]), 1)
    predictions: Predictions = []
    for start in range(0, len(references), chunk):
        batch, samples = references[start : start + chunk], structures[start : start + chunk]
        graphs = pad_graphs([r.example.graph for r, of_one in zip(batch, samples, strict=True) for _ in of_one])
        positions = pad_positions([x for of_one in samples for x in of_one])
        graphs, positions = send_to_device((graphs, positions), model.device)
        predictions += _with_energies(model, batch, graphs, move(GraphBatch(**graphs), positions))
    return predictions


def _with_energies(
    model: PCBridgeModel, batch: list[ReferenceMolecule], graphs: dict[str, torch.Tensor], positions: torch.Tensor
) -> Predictions:
    """Padded `positions` (molecules * samples, N, 3) by molecule, without padding, beside their energies."""
    energies, _ = model.energy_and_forces(GraphBatch(**graphs), positions)
    energies = energies.unflatten(0, (len(batch), -1)).cpu().numpy()
    samples = positions.unflatten(0, (len(batch), -1)).cpu().double().numpy()
    return [
        (samples[row, :, : reference.example.graph.num_atoms], energies[row]) for row, reference in enumerate(batch)
    ]


def _lowest_energy(predictions: Predictions) -> Predictions:
    best = [int(energies.argmin()) for _, energies in predictions]
    return [(samples[[i]], energies[[i]]) for i, (samples, energies) in zip(best, predictions, strict=True)]


def evaluate_energy(model: PCBridgeModel, evaluation: EvaluationConfig) -> dict[str, float | None]:
    """Mean absolute errors of energy (eV) and force components (eV/angstrom) over all labelled rows of the split.

    None where it has none at the model's level of theory.
    """
    summary: dict[str, float | None] = {}
    for name in ("pm6", "pm6_displaced"):
        rows = load_bundled(name, evaluation.split)
        examples = [example_from_row(row, model.config.energy_level_of_theory) for row in rows]
        examples = [example for example in examples if example.energy is not None and example.forces is not None]
        energy_errors: list[float] = []
        force_errors: list[float] = []
        for start in range(0, len(examples), evaluation.batch_size):
            batch = collate(examples[start : start + evaluation.batch_size])
            inputs = send_to_device({key: batch[key] for key in (*GRAPH_KEYS, "positions")}, model.device)
            positions = inputs.pop("positions")
            energy, forces = model.energy_and_forces(GraphBatch(**inputs), positions)
            energy_errors += (energy.cpu() - batch["energy"]).abs().tolist()
            errors = (forces.cpu() - batch["forces"]).abs()[batch["atom_mask"]]
            force_errors += errors.flatten().tolist()
        summary[f"{name}_energy_mae"] = float(np.mean(energy_errors)) if examples else None
        summary[f"{name}_force_mae"] = float(np.mean(force_errors)) if examples else None
        summary[f"{name}_num_structures"] = len(examples)
    return summary


def _model_energies(model: PCBridgeModel, examples: Sequence[Example], batch_size: int) -> list[float]:
    energies: list[float] = []
    for start in range(0, len(examples), batch_size):
        chunk = examples[start : start + batch_size]
        graphs = pad_graphs([example.graph for example in chunk])
        positions = pad_positions([example.positions for example in chunk])
        graphs, positions = send_to_device((graphs, positions), model.device)
        energy, _ = model.energy_and_forces(GraphBatch(**graphs), positions)
        energies += energy.tolist()
    return energies


def evaluate_reference(
    structures: Callable[[ReferenceMolecule], np.ndarray | None], evaluation: EvaluationConfig
) -> dict:
    """The structure metrics of a classical method: `structures` gives (S, N, 3), or None where it fails."""
    records, names, failures = [], [], 0
    for reference in load_references(evaluation):
        samples = structures(reference)
        if samples is None:
            failures += 1
        else:
            names.append(reference.example.molecule_id)
            records.append(structure_record(reference, samples))
    per_molecule = {key: [float(record[key]) for record in records] for key in records[0]}
    return mean_over_molecules(records) | {
        "failures": failures,
        "per_molecule": {"molecule_id": names, **per_molecule},
    }
