"""What can E make of minima of a cheap level, that a structure decoder would then learn from? From which, and how far?

    python -m experiments.outside_references flexisol_validation.parquet   # the PM6 minima
    python -m experiments.correction_steps flexisol_validation.parquet

The file is that of `experiments.outside`. Minima of GFN2-xTB after quasi-Newton steps along F_own(R) - F_other(R_0)
(`PCBridgeModel.correct_structure`), and the minimum that these lead to, are compared with the r2SCAN-3c minima of the
file and with the B3LYP/6-31G* minima of `experiments.same_level`; minima of any level after steps along F_own(R), with
the former. Tables: experiments/results/correction_steps.md.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset_scripts.schema import GFN2_XTB
from experiments import same_level
from experiments.figures import bar_plot
from experiments.outside import BATCH_SIZE, MAX_EVALUATIONS, RESULTS, cheap_minima, read, taken_by
from experiments.outside_references import pm6_minima
from experiments.provenance import written_by
from experiments.structure_errors import METRICS, Molecule, mean_cells, measured
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.diffusion import centre
from modeling_pcbridge.graph_batch import GraphBatch
from modeling_pcbridge.relaxation import relax
from pcbridge.evaluation.batches import moved

_STEPS = (1, 2, 3, 4, 6, 10)
_MAX_FORCE = 0.02  # eV/angstrom
_METRICS = {key: METRICS[key] for key in ("bonds", "bonds_centred", "one_three", "angles", "torsions")}


def converged(model: PCBridgeModel, graph: GraphBatch, positions: Tensor) -> Tensor:
    """The minimum that the steps lead to, of E_own(R) + F_other(R_0) . (R - R_0), of one molecule."""
    start = centre(positions, graph.atom_mask)
    _, error = model.detached_energy_and_forces(graph, start, GFN2_XTB)

    def potential(graph: GraphBatch, positions: Tensor) -> tuple[Tensor, Tensor]:
        energy, forces = model.detached_energy_and_forces(graph, positions)
        return energy + (error * (positions - start)).sum((1, 2)), forces - error

    return relax(potential, graph, start, _MAX_FORCE, MAX_EVALUATIONS).positions


def table(rows: dict[str, list[str]]) -> list[str]:
    """A Markdown table of these cells."""
    lines = ["| | " + " | ".join(title for title, _ in _METRICS.values()) + " |", "|---" * (len(_METRICS) + 1) + "|"]
    return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())]


def of_cheap_levels(model: PCBridgeModel, molecules: Sequence[Molecule]) -> dict[str, list[str]]:
    """The cells of minima of each cheap level, as they are and after steps on E."""
    taken, graphs = taken_by(model, molecules)
    found = {}
    for level, minima in {**cheap_minima(taken), "PM6": pm6_minima(taken)}.items():
        some = [place for place, minimum in enumerate(minima) if minimum is not None]
        of_some, graphs_of = [taken[place] for place in some], [graphs[place] for place in some]
        starts = [minimum for minimum in minima if minimum is not None]
        ways: dict[str, Callable[..., Tensor]] = {
            f"{n} steps": partial(model.quasi_newton_steps, num_steps=n) for n in (2, 3)
        }
        ways["to the minimum"] = lambda graph, positions: (
            model.relax_structure(positions, max_evaluations=MAX_EVALUATIONS, **graph.inputs).positions
        )
        structures = {level: starts}
        for name, way in ways.items():
            structures[f"{level}, {name}"] = moved(model, graphs_of, starts, BATCH_SIZE, way)
        for name, of_way in structures.items():
            found[name] = mean_cells(measured(of_some, of_way, None)["records"].values(), _METRICS)
    return found


def rows(model: PCBridgeModel, molecules: Sequence[Molecule]) -> dict[str, list[str]]:
    """The cells of each way to correct."""
    taken, graphs = taken_by(model, molecules)
    starts = [molecule.gfn2 for molecule in taken if molecule.gfn2 is not None]
    ways = {str(n): partial(model.correct, level_of_theory=GFN2_XTB, num_steps=n) for n in _STEPS}
    structures: dict[str, list[np.ndarray]] = {GFN2_XTB: starts}
    structures |= {name: moved(model, graphs, starts, BATCH_SIZE, way) for name, way in ways.items()}
    structures["to the minimum"] = moved(model, graphs, starts, 1, partial(converged, model))
    return {
        name: mean_cells(measured(taken, of_way, None)["records"].values(), _METRICS)
        for name, of_way in structures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--checkpoint", default="checkpoints/drug_like")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = PCBridgeModel.from_pretrained(arguments.checkpoint).eval()
    outside, at_same_level = read(arguments.file), same_level.read()
    corrected = [rows(model, molecules) for molecules in (outside, at_same_level)]
    cheap = of_cheap_levels(model, outside)
    both = {
        name: [" / ".join(cells) for cells in zip(*(of_set[name] for of_set in corrected), strict=True)]
        for name in corrected[0]
    }
    text = "\n".join(
        [
            "# Steps from a cheap level to B3LYP/6-31G*",
            "",
            "GFN2-xTB minima after so many quasi-Newton steps by the difference of two heads: errors against "
            f"{len(outside)} r2SCAN-3c minima and {len(at_same_level)} B3LYP/6-31G* minima, means over molecules; "
            f"model: `{arguments.checkpoint}`. {written_by('correction_steps', arguments.checkpoint)}",
            "",
            *table(both),
            "",
            "## From any level, without a head for it",
            "",
            "Minima after so many steps on E, against r2SCAN-3c.",
            "",
            *table(cheap),
            "",
        ]
    )
    RESULTS.with_name("correction_steps.md").write_text(text)
    print(text)
    sets = ("r2SCAN-3c", "B3LYP/6-31G*")
    by_set = {s: {n: float(cells[0]) for n, cells in of.items()} for s, of in zip(sets, corrected, strict=True)}
    by_level: dict[str, dict[str, float]] = defaultdict(dict)
    for name, cells in cheap.items():
        level, _, way = name.partition(", ")
        by_level[level][way or "as it is"] = float(cells[0])
    panels = {"bonds, angstrom; difference of heads": by_set, "bonds, angstrom; steps on E": by_level}
    bar_plot(RESULTS.with_name("correction_steps.png"), panels)


if __name__ == "__main__":
    main()
