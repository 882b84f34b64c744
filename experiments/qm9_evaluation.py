"""The QM9 benchmark of one checkpoint: structures from the graph, refinement of cheap structures, energies.

Every row is a dict of metrics by molecule (`pcbridge.evaluation.evaluate.structure_record`), so that rows are compared
on the molecules they share.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from tqdm.auto import tqdm

from experiments.qm9_molecules import STARTS, CheapStructures
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.graph_batch import pad_graphs
from modeling_pcbridge.rdkit_structures import etkdg_conformers
from pcbridge.evaluation.batches import energies_and_forces, moved
from pcbridge.evaluation.evaluate import structure_record
from pcbridge.evaluation.metrics import distances_to_others
from pcbridge.evaluation.references import ReferenceMolecule, graphs_for, mmff_structures

# Structures of a batch, and the steps of each reverse process.
_BATCH = 200
NUM_INFERENCE_STEPS = 20
MEAN_SHIFT_STEPS = 10
# Chosen, with the model's refinement_timestep, on validation molecules; more are no better.
REFINEMENT_STEPS = 40
# By molecule id, metric -> value.
Records = dict[str, dict[str, float]]

ONE_EVALUATION, DDIM = "PCBridge, one evaluation", "PCBridge, DDIM"
ETKDG_SAMPLES, MMFF_SAMPLES = "ETKDGv3", "ETKDGv3 + MMFF94"
MMFF_REFINED = f"{MMFF_SAMPLES}, refined by PCBridge"


def central(row: str) -> str:
    """The name of the row that takes the most central sample of another."""
    return f"{row}, most central sample"


def from_graph(
    model: PCBridgeModel, references: list[ReferenceMolecule], num_samples: int, seed: int
) -> tuple[dict[str, Records], dict[str, np.ndarray]]:
    """Structures from the graph alone, against DFT.

    Returns:
        Records of `ONE_EVALUATION`, of `DDIM`, RDKit's samples and these refined (means over `num_samples`), and of two
        ways to choose one sample: `central`, closest to the others by D-MAE, and by the model's own lowest E. Molecules
        that RDKit cannot do are missing in its rows. And the most central `DDIM` structures by molecule.
    """
    generator = torch.Generator().manual_seed(seed)
    rdkit = {
        ETKDG_SAMPLES: lambda r: etkdg_conformers(r.mol, num_samples, seed),
        MMFF_SAMPLES: mmff_structures(num_samples, seed),
    }
    records: dict[str, Records] = defaultdict(dict)
    structures: dict[str, np.ndarray] = {}
    for reference in tqdm(references, desc="from the graph", unit="molecule"):
        [own] = graphs_for(model, [reference])
        graph = pad_graphs([own])
        single = model.predict_structure(**graph, method="denoising", generator=generator).positions[0]
        drawn = model.predict_structure(
            **graph,
            num_samples=num_samples,
            num_inference_steps=NUM_INFERENCE_STEPS,
            mean_shift_steps=MEAN_SHIFT_STEPS,
            generator=generator,
        ).positions[0]
        samples = {DDIM: drawn.double().numpy()}
        samples |= {row: found for row, make in rdkit.items() if (found := make(reference)) is not None}
        if MMFF_SAMPLES in samples:
            conformers = list(samples[MMFF_SAMPLES])
            samples[MMFF_REFINED] = np.array(refine(model, [reference] * len(conformers), conformers))
        name = reference.example.molecule_id
        records[ONE_EVALUATION][name] = structure_record(reference, single.double().numpy())
        for row, candidates in samples.items():
            repeated = pad_graphs([own] * len(candidates))
            energies = model.predict_energy(**repeated, positions=torch.tensor(candidates, dtype=drawn.dtype)).energy
            chosen = {
                row: candidates,
                central(row): candidates[[most_central(candidates)]],
                f"{row}, lowest E of PCBridge": candidates[[int(energies.argmin())]],
            }
            for title, found in chosen.items():
                records[title][name] = structure_record(reference, found)
        structures[name] = samples[DDIM][most_central(samples[DDIM])]
    return dict(records), structures


def most_central(samples: np.ndarray) -> int:
    """Which of (S, N, 3) structures has the least mean D-MAE to the others."""
    return int(distances_to_others(samples).argmin())


def refinement(
    model: PCBridgeModel, references: list[ReferenceMolecule], starts: list[CheapStructures]
) -> tuple[dict[str, Records], dict[str, dict[str, np.ndarray]]]:
    """Every kind of start before and after `predict_structure(method="mean_shift")`, against DFT.

    Returns:
        Records by "METHOD, KIND" and "METHOD, KIND, refined"; and the refined structures, by start and molecule.
    """
    records: dict[str, Records] = {}
    structures: dict[str, dict[str, np.ndarray]] = {}
    for key in STARTS:
        pairs = [(r, s.positions[key]) for r, s in zip(references, starts, strict=True) if key in s.positions]
        kept, positions = [reference for reference, _ in pairs], [start for _, start in pairs]
        refined = refine(model, kept, positions)
        title = ", ".join(key)
        records[title] = _records(kept, positions)
        records[f"{title}, refined"] = _records(kept, refined)
        structures[title] = {r.example.molecule_id: x for r, x in zip(kept, refined, strict=True)}
    return records, structures


def refine(model: PCBridgeModel, references: list[ReferenceMolecule], starts: list[np.ndarray]) -> list[np.ndarray]:
    """`starts` (N, 3) of each molecule refined by the model."""
    shift = partial(model.mean_shift, num_steps=REFINEMENT_STEPS)
    return moved(model, graphs_for(model, references), starts, _BATCH, shift)


def at_minima(model: PCBridgeModel, references: list[ReferenceMolecule]) -> dict[str, float]:
    """E and its gradient at the DFT structures; labels at the model's level of theory.

    Returns:
        `energy_mae`, eV, and `force_left`, eV/angstrom: the root mean square of a force component, which DFT has zero.
    """
    graphs = graphs_for(model, references)
    energies, forces = energies_and_forces(model, graphs, [reference.positions for reference in references], _BATCH)
    errors = np.abs(energies - [reference.example.energy for reference in references])
    squares = np.square(np.concatenate(forces))
    return {"energy_mae": float(errors.mean()), "force_left": float(squares.mean()) ** 0.5}


def summary(records: Records, statistic: Callable[[np.ndarray], float] = np.mean) -> dict[str, float]:
    """`statistic` of every metric over the molecules that have it."""
    keys = next(iter(records.values()))
    columns = {key: np.array([record[key] for record in records.values()], dtype=np.float64) for key in keys}
    return {key: float(statistic(x[~np.isnan(x)])) for key, x in columns.items() if not np.isnan(x).all()}


def _records(references: list[ReferenceMolecule], structures: list[np.ndarray]) -> Records:
    return {
        reference.example.molecule_id: structure_record(reference, positions[None])
        for reference, positions in zip(references, structures, strict=True)
    }
