"""DFT structures of drug-like molecules from elsewhere: models beside force fields and GFN2-xTB.

    python -m experiments.outside flexisol_validation.parquet --checkpoints checkpoints/drug_like [MORE ...]

The file holds DFT minima with the columns `name`, `mapped_smiles`, `positions`, and `mmff` and `gfn2`, the minima of
these methods below the DFT structure (angstrom; null where there is none). Each model refines the MMFF94 minima by mean
shift and then by two steps on its own energy, relaxes the structures of mean shift on that energy, and, with a head for
GFN2-xTB, corrects the GFN2-xTB minima. Tables, a plot and all numbers of each molecule go to `--output` (default:
experiments/results/outside.*), beside what is there of other checkpoints.
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from experiments.outside_report import write_report
from experiments.provenance import weights_of
from experiments.structure_errors import Molecule, measured
from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.graph_batch import GraphBatch
from modeling_pcbridge.molecular_graph import MolecularGraph, graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from pcbridge.evaluation.batches import moved

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "outside"
GFN2 = "GFN2-xTB"
MEAN_SHIFT_STEPS = 5  # evaluations of the model per structure
REFINEMENT_STEPS = 2  # on E
SHIFTED = f"mean shift {MEAN_SHIFT_STEPS}"
REFINED = f"{SHIFTED}, two steps on E"  # as `predict_structure` does it by default
RELAXED = "mean shift, relaxed on E"
MAX_EVALUATIONS = 100  # of E, in a relaxation
BATCH_SIZE = 8


def read(path: Path) -> list[Molecule]:
    """The molecules of a file as the module says."""

    def array(value: list | None) -> np.ndarray | None:
        return None if value is None else np.array(value)

    molecules = []
    for row in pq.read_table(path).to_pylist():
        mol = mol_from_smiles(row["mapped_smiles"])
        molecules.append(
            Molecule(
                row["name"],
                mol,
                graph_from_mol(mol),
                np.array(row["positions"]),
                array(row["mmff"]),
                array(row["gfn2"]),
            )
        )
    return molecules


def taken_by(model: PCBridgeModel, molecules: Sequence[Molecule]) -> tuple[list[Molecule], list[MolecularGraph]]:
    """The molecules with elements and charges that the model takes and both cheap minima, by size, and their graphs."""
    processor = PCBridgeProcessor.of_config(model.config)
    taken = []
    for molecule in molecules:
        if molecule.mmff is None or molecule.gfn2 is None:
            continue
        try:
            processor(molecule.mol)
        except InputError:
            continue
        taken.append(molecule)
    taken.sort(key=lambda molecule: molecule.graph.num_atoms)
    return taken, [graph_from_mol(molecule.mol, model.config.resonance_invariant) for molecule in taken]


def mean_shifted(model: PCBridgeModel, graphs: Sequence[MolecularGraph], starts: list[np.ndarray]) -> list[np.ndarray]:
    """The structures (N, 3), angstrom, after `MEAN_SHIFT_STEPS` evaluations."""
    return moved(model, graphs, starts, BATCH_SIZE, partial(model.mean_shift, num_steps=MEAN_SHIFT_STEPS))


def of_model(model: PCBridgeModel, molecules: Sequence[Molecule]) -> dict[str, dict]:
    """Errors of each method of the model, see `structures_of`."""
    taken, graphs = taken_by(model, molecules)
    found = structures_of(model, taken, graphs)
    return {name: measured(taken, structures, seconds) for name, (structures, seconds) in found.items()}


def structures_of(
    model: PCBridgeModel, molecules: Sequence[Molecule], graphs: Sequence[MolecularGraph]
) -> dict[str, tuple[list[np.ndarray], float]]:
    """Structures (N, 3), angstrom, of all molecules by each method, and the seconds that it took.

    Those of `structures_from_mmff94`; GFN2-xTB minima corrected and relaxed, where the model has their level.
    """

    def corrected(graph: GraphBatch, positions: torch.Tensor) -> torch.Tensor:
        return model.correct_structure(positions, GFN2, **graph.inputs)

    found = structures_from_mmff94(model, molecules, graphs)
    if GFN2 in model.config.energy_levels_of_theory[1:]:
        for name, move in (("GFN2-xTB corrected", corrected), ("GFN2-xTB relaxed on E", partial(relaxed, model))):
            start = time.perf_counter()
            after = moved(model, graphs, [m.gfn2 for m in molecules], BATCH_SIZE, move)
            found[name] = (after, time.perf_counter() - start)
    return found


def structures_from_mmff94(
    model: PCBridgeModel, molecules: Sequence[Molecule], graphs: Sequence[MolecularGraph]
) -> dict[str, tuple[list[np.ndarray], float]]:
    """As `structures_of`: mean shift from the MMFF94 minima, then two steps or relaxation on E."""
    start = time.perf_counter()
    shifted = mean_shifted(model, graphs, [m.mmff for m in molecules])
    found = {SHIFTED: (shifted, time.perf_counter() - start)}
    stepped = moved(model, graphs, shifted, BATCH_SIZE, partial(model.quasi_newton_steps, num_steps=REFINEMENT_STEPS))
    found[REFINED] = (stepped, time.perf_counter() - start)
    after = moved(model, graphs, shifted, BATCH_SIZE, partial(relaxed, model))
    found[RELAXED] = (after, time.perf_counter() - start)
    return found


def relaxed(
    model: PCBridgeModel, graph: GraphBatch, positions: torch.Tensor, level_of_theory: str | None = None
) -> torch.Tensor:
    """Structures (B, N, 3), angstrom, after relaxation on E, whatever its forces were learned from."""
    return model.relax_structure(
        positions,
        max_evaluations=MAX_EVALUATIONS,
        level_of_theory=level_of_theory,
        allow_unlearned_forces=True,
        **graph.inputs,
    ).positions


def cheap_minima(molecules: Sequence[Molecule]) -> dict[str, list[np.ndarray | None]]:
    """Those of the file, (N, 3), angstrom, by their level."""
    return {"MMFF94": [m.mmff for m in molecules], GFN2: [m.gfn2 for m in molecules]}


def evaluate(molecules: Sequence[Molecule], checkpoints: Sequence[str]) -> dict[str, dict]:
    """What was measured of the cheap minima and of all methods of each checkpoint, by name."""
    results = {name: measured(molecules, found, None) for name, found in cheap_minima(molecules).items()}
    for checkpoint in checkpoints:
        model = PCBridgeModel.from_pretrained(checkpoint).eval()
        for method, result in of_model(model, molecules).items():
            name = f"{'/'.join(Path(checkpoint).parts[-2:])}, {method}"
            results[name] = result | {"weights": weights_of(checkpoint)}
    return results


def write_beside(results: dict[str, dict], molecules: Sequence[Molecule], file: str, output: Path) -> None:
    """`write_report` of these results and of those at `output` that they do not replace, if of the same molecules."""
    written = output.with_suffix(".json")
    stored = json.loads(written.read_text()) if written.exists() else {}
    if stored.get("MMFF94", {}).get("records") != results["MMFF94"]["records"]:
        stored = {}
    title = "Outside DFT structures of drug-like molecules"
    introduction = f"{len(molecules)} molecules of {file}, by `python -m experiments.outside`."
    timed = {name: result for name, result in results.items() if result["seconds"] is not None or name not in stored}
    write_report(stored | timed, molecules, title, introduction, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--checkpoints", nargs="+", default=["checkpoints/drug_like"], help="folders or hub names")
    parser.add_argument("--output", type=Path, default=RESULTS, help="without an ending")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    molecules = read(arguments.file)
    write_beside(evaluate(molecules, arguments.checkpoints), molecules, arguments.file.name, arguments.output)


if __name__ == "__main__":
    main()
