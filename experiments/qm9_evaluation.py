"""The QM9 benchmark of one checkpoint: structures from the graph, refinement of cheap structures, energies.

Every row is a dict of metrics by molecule (`modeling_pcbridge.evaluation.structure_record`), so that rows are compared
on the molecules they share.
"""

from collections.abc import Callable

import numpy as np
import torch
from tqdm.auto import tqdm

from experiments.qm9_molecules import ETKDG, FROM_GRAPH, MMFF, STARTS, CheapStructures
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.evaluation import ReferenceMolecule, structure_record
from modeling_pcbridge.graph_batch import pad_graphs, pad_positions
from modeling_pcbridge.structure_metrics import distance_errors

# Structures of a batch, and the steps of each reverse process.
_BATCH = 200
NUM_INFERENCE_STEPS = 20
# By molecule id, metric -> value.
Records = dict[str, dict[str, float]]

ONE_EVALUATION, DDIM = "PCBridge, one evaluation", "PCBridge, DDIM"
CONSENSUS, LOWEST_ENERGY = "PCBridge, DDIM, most central sample", "PCBridge, DDIM, lowest energy"


def from_graph(
    model: PCBridgeModel, references: list[ReferenceMolecule], num_samples: int, seed: int
) -> tuple[dict[str, Records], dict[str, np.ndarray]]:
    """Structures of the model from the graph alone, against DFT.

    Returns:
        Records of `ONE_EVALUATION` and `DDIM` (mean over samples), and of two ways to choose one of the DDIM samples:
        `CONSENSUS`, which is closest to the others by D-MAE, and `LOWEST_ENERGY`, by the model's own E; and the
        `CONSENSUS` structures by molecule.
    """
    generator = torch.Generator().manual_seed(seed)
    records: dict[str, Records] = {name: {} for name in (ONE_EVALUATION, DDIM, CONSENSUS, LOWEST_ENERGY)}
    central: dict[str, np.ndarray] = {}
    for batch in _batches(references, _BATCH // num_samples, "from the graph"):
        graphs = pad_graphs([reference.example.graph for reference in batch])
        single = model.predict_structure(**graphs, method="denoising", generator=generator).positions
        samples = model.predict_structure(
            **graphs, num_samples=num_samples, num_inference_steps=NUM_INFERENCE_STEPS, generator=generator
        ).positions
        repeated = {key: values.repeat_interleave(num_samples, 0) for key, values in graphs.items()}
        energies = model.predict_energy(**repeated, positions=samples.flatten(0, 1)).energy.unflatten(
            0, (len(batch), -1)
        )
        for row, reference in enumerate(batch):
            name, num_atoms = reference.example.molecule_id, reference.example.graph.num_atoms
            drawn = samples[row, :, :num_atoms].double().numpy()
            chosen = {
                ONE_EVALUATION: single[row, :, :num_atoms].double().numpy(),
                DDIM: drawn,
                CONSENSUS: drawn[[most_central(drawn)]],
                LOWEST_ENERGY: drawn[[int(energies[row].argmin())]],
            }
            central[name] = chosen[CONSENSUS][0]
            for method, structures in chosen.items():
                records[method][name] = structure_record(reference, structures)
    return records, central


def most_central(samples: np.ndarray) -> int:
    """Which of (S, N, 3) structures has the least mean D-MAE to the others: the safest guess at one more draw."""
    return int(np.argmin([distance_errors(samples, sample)[0].mean() for sample in samples]))


def of_cheap_structures(references: list[ReferenceMolecule], starts: list[CheapStructures]) -> dict[str, Records]:
    """ETKDGv3 and ETKDGv3 + MMFF94 from the graph, against DFT; molecules that RDKit cannot do are missing."""
    titles = {(ETKDG, FROM_GRAPH): "ETKDGv3", (MMFF, FROM_GRAPH): "ETKDGv3 + MMFF94"}
    return {title: _records(references, [s.positions.get(key) for s in starts]) for key, title in titles.items()}


def refinement(
    model: PCBridgeModel, references: list[ReferenceMolecule], starts: list[CheapStructures], seed: int
) -> tuple[dict[str, Records], dict[str, dict[str, np.ndarray]]]:
    """Every kind of start before and after `predict_structure(method="refine")`, against DFT.

    Returns:
        Records by "METHOD, KIND" and "METHOD, KIND, refined"; and the refined structures, by start and molecule.
    """
    records: dict[str, Records] = {}
    structures: dict[str, dict[str, np.ndarray]] = {}
    for key in STARTS:
        pairs = [(r, s.positions[key]) for r, s in zip(references, starts, strict=True) if key in s.positions]
        kept, positions = [reference for reference, _ in pairs], [start for _, start in pairs]
        refined = refine(model, kept, positions, seed)
        title = ", ".join(key)
        records[title] = _records(kept, positions)
        records[f"{title}, refined"] = _records(kept, refined)
        structures[title] = {r.example.molecule_id: x for r, x in zip(kept, refined, strict=True)}
    return records, structures


def refine(
    model: PCBridgeModel, references: list[ReferenceMolecule], starts: list[np.ndarray], seed: int
) -> list[np.ndarray]:
    """`starts` (N, 3) of each molecule refined by the model."""
    generator = torch.Generator().manual_seed(seed)
    refined = []
    for batch in _batches(list(zip(references, starts, strict=True)), _BATCH, "refine"):
        graphs = pad_graphs([reference.example.graph for reference, _ in batch])
        positions = pad_positions([start for _, start in batch])
        found = model.predict_structure(
            **graphs,
            positions=positions,
            method="refine",
            num_inference_steps=NUM_INFERENCE_STEPS,
            generator=generator,
        ).positions[:, 0]
        refined += [x[: len(start)].double().numpy() for x, (_, start) in zip(found, batch, strict=True)]
    return refined


def energy_errors(model: PCBridgeModel, references: list[ReferenceMolecule]) -> np.ndarray:
    """Absolute errors of E at the DFT structures, eV; labels at the model's level of theory."""
    errors = []
    for batch in _batches(references, _BATCH, "energies"):
        graphs = pad_graphs([reference.example.graph for reference in batch])
        positions = pad_positions([reference.positions for reference in batch])
        predicted = model.predict_energy(**graphs, positions=positions).energy.numpy()
        errors += np.abs(predicted - [reference.example.energy for reference in batch]).tolist()
    return np.array(errors)


def summary(records: Records, statistic: Callable[[np.ndarray], float] = np.mean) -> dict[str, float]:
    """`statistic` of every metric over the molecules that have it."""
    keys = next(iter(records.values()))
    columns = {key: np.array([record[key] for record in records.values()], dtype=np.float64) for key in keys}
    return {key: float(statistic(x[~np.isnan(x)])) for key, x in columns.items() if not np.isnan(x).all()}


def _records(references: list[ReferenceMolecule], structures: list[np.ndarray | None]) -> Records:
    return {
        reference.example.molecule_id: structure_record(reference, positions[None])
        for reference, positions in zip(references, structures, strict=True)
        if positions is not None
    }


def _batches(items: list, size: int, title: str):
    for start in tqdm(range(0, len(items), size), desc=title):
        yield items[start : start + size]
