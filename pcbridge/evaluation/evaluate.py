"""Evaluation of structures, energies and forces on a split: the metrics of the paper and symmetry-aware ones.

`evaluate_model` and `evaluate_reference` give the same record for a model and for a classical method, so that they
stand in one table.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial

import numpy as np
import torch
from tqdm.auto import tqdm

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import example_from_row
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.molecular_graph import MolecularGraph, stereo_is_right
from modeling_pcbridge.sampling import SamplingMethod
from pcbridge.evaluation.batches import energies_and_forces, moved, padded_batches, refined, unpadded
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
from pcbridge.evaluation.references import ReferenceMolecule, graphs_for, load_references, pm6_structures

# A sample covers the reference when it is closer than this, angstrom (QM9; the paper has 1.25 for PCQM4Mv2).
COVERAGE_RMSD = 0.9
# "refine" starts from the PM6 structures.
SAMPLING_METHODS: tuple[SamplingMethod, ...] = ("ddim", "denoising", "refine")
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
_MEAN_SHIFT_STEPS_OF_DDIM = 10  # after it; of PM6 structures as many as the model's config says
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
    references, pm6 = load_references(evaluation, model.config.supported_elements), pm6_structures(evaluation)
    graphs = graphs_for(model, references)
    starts = [pm6(reference) for reference in references]
    size = evaluation.batch_size
    reference_energies, _ = energies_and_forces(model, graphs, [r.positions for r in references], size)
    structures: dict[str, list[np.ndarray]] = {
        method: _sampled(model, graphs, starts, method, evaluation, seed) for method in SAMPLING_METHODS
    }

    def all_moved(samples: list[np.ndarray], move: Callable) -> list[np.ndarray]:
        return _by_molecule(samples, moved(model, *_flat(graphs, samples), size, move))

    relax = partial(model.quasi_newton_steps, num_steps=RELAXATION_STEPS)
    structures["mean_shift"] = all_moved(starts, partial(refined, model))
    sharpen = partial(model.mean_shift, num_steps=_MEAN_SHIFT_STEPS_OF_DDIM)
    structures["ddim_mean_shift"] = all_moved(structures["ddim"], sharpen)
    structures["refine_relaxed"] = all_moved(structures["refine"], relax)
    relaxed = all_moved(structures["ddim"], relax)

    def with_energies(samples: list[np.ndarray]) -> Predictions:
        energies, _ = energies_and_forces(model, *_flat(graphs, samples), size)
        return list(zip(samples, _by_molecule(samples, energies), strict=True))

    predictions = {name: with_energies(samples) for name, samples in structures.items()}
    predictions["lowest_energy"] = _lowest_energy(predictions["ddim"])
    predictions["lowest_energy_mean_shift"] = _lowest_energy(predictions["ddim_mean_shift"])
    predictions["lowest_energy_relaxed"] = _lowest_energy(with_energies(relaxed))
    results: dict[str, dict] = {"per_molecule": {"molecule_id": [r.example.molecule_id for r in references]}}
    results["per_molecule"]["reference_energy"] = reference_energies.tolist()
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


def _sampled(
    model: PCBridgeModel,
    graphs: list[MolecularGraph],
    starts: list[np.ndarray],
    method: SamplingMethod,
    evaluation: EvaluationConfig,
    seed: int,
) -> list[np.ndarray]:
    """The samples (S, N, 3) of each molecule by a method; `starts` (1, N, 3) are where "refine" begins."""
    generator = torch.Generator().manual_seed(seed)
    # Refined structures differ by hundredths of an angstrom; one of them is enough.
    num_samples = 1 if method == "refine" else evaluation.num_samples
    samples: list[np.ndarray] = []
    batches = padded_batches(
        model, graphs, [start[0] for start in starts], max(evaluation.batch_size // num_samples, 1)
    )
    for graph, positions in tqdm(batches, desc=f"evaluate {method}"):
        drawn = model.predict_structure(
            **graph.inputs,
            positions=positions,
            method=method,
            num_inference_steps=evaluation.num_inference_steps,
            num_samples=num_samples,
            eta=evaluation.eta,
            generator=generator,
        ).positions
        repeated = unpadded(graph.repeat(num_samples), drawn.flatten(0, 1))
        samples += [np.stack(repeated[first : first + num_samples]) for first in range(0, len(repeated), num_samples)]
    return samples


def _flat(graphs: list[MolecularGraph], structures: list[np.ndarray]) -> tuple[list[MolecularGraph], list[np.ndarray]]:
    """All samples (S, N, 3) of all molecules one after another, each beside its graph."""
    pairs = [(graph, sample) for graph, samples in zip(graphs, structures, strict=True) for sample in samples]
    return [graph for graph, _ in pairs], [sample for _, sample in pairs]


def _by_molecule(structures: list[np.ndarray], values: Sequence | np.ndarray) -> list[np.ndarray]:
    """What was computed for `_flat` samples, gathered by molecule again: (S, ...) each."""
    ends = np.cumsum([len(samples) for samples in structures])
    starts = [0, *ends[:-1]]
    return [np.stack(list(values[start:end])) for start, end in zip(starts, ends, strict=True)]


def _lowest_energy(predictions: Predictions) -> Predictions:
    best = [int(energies.argmin()) for _, energies in predictions]
    return [(samples[[i]], energies[[i]]) for i, (samples, energies) in zip(best, predictions, strict=True)]


def evaluate_energy(model: PCBridgeModel, evaluation: EvaluationConfig) -> dict[str, float | None]:
    """Mean absolute errors of energy (eV) and force components (eV/angstrom) over all labelled rows of the split.

    Of elements that the model has learned; None where there are none at its level of theory.
    """
    level = model.config.energy_levels_of_theory[0]  # labels are without dispersion
    elements = set(model.config.supported_elements)
    summary: dict[str, float | None] = {}
    for name in ("pm6", "pm6_displaced"):
        rows = load_bundled(name, evaluation.split)
        rows = rows.filter(elements.issuperset, input_columns="atomic_numbers")
        examples = [example_from_row(row, [level], model.config.resonance_invariant) for row in rows]
        examples = [example for example in examples if example.energy is not None and example.forces is not None]
        energies, forces = energies_and_forces(
            model, [e.graph for e in examples], [e.positions for e in examples], evaluation.batch_size, level
        )
        energy_errors = [abs(energy - e.energy) for energy, e in zip(energies, examples, strict=True)]
        force_errors = [np.abs(force - e.forces).ravel() for force, e in zip(forces, examples, strict=True)]
        summary[f"{name}_energy_mae"] = float(np.mean(energy_errors)) if examples else None
        summary[f"{name}_force_mae"] = float(np.concatenate(force_errors).mean()) if examples else None
        summary[f"{name}_num_structures"] = len(examples)
    return summary


def evaluate_reference(
    structures: Callable[[ReferenceMolecule], np.ndarray | None],
    evaluation: EvaluationConfig,
    elements: Collection[int] | None = None,
) -> dict:
    """The structure metrics of a classical method: `structures` gives (S, N, 3), or None where it fails."""
    records, names, failures = [], [], 0
    for reference in load_references(evaluation, elements):
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
