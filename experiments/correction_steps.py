"""How far should a minimum of GFN2-xTB be moved towards B3LYP/6-31G*? Steps of `PCBridgeModel.correct_structure`.

    python -m experiments.correction_steps flexisol_validation.parquet

The file is that of `experiments.outside`. Quasi-Newton steps along F_own(R) - F_other(R_0) and the minimum that they
lead to are compared with the r2SCAN-3c minima of the file and with the B3LYP/6-31G* minima of
`experiments.same_level`. Table: experiments/results/correction_steps.md.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset_scripts.schema import GFN2_XTB
from experiments import outside, same_level
from experiments.outside import BATCH_SIZE, MAX_EVALUATIONS, METRICS, Molecule, mean_cells, measured, taken_by
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
    sets = {"r2SCAN-3c": outside.read(arguments.file), "B3LYP/6-31G*": same_level.read()}
    of_sets = [rows(model, molecules) for molecules in sets.values()]
    sizes = " and ".join(f"{len(molecules)} {name} minima" for name, molecules in sets.items())
    lines = [
        "# Steps from GFN2-xTB to B3LYP/6-31G*",
        "",
        f"GFN2-xTB minima after so many quasi-Newton steps: errors against {sizes}, means over molecules; model: "
        f"`{arguments.checkpoint}`. Written by `python -m experiments.correction_steps`.",
        "",
        "| | " + " | ".join(title for title, _ in _METRICS.values()) + " |",
        "|---" * (len(_METRICS) + 1) + "|",
    ]
    for name in of_sets[0]:
        cells = [" / ".join(both) for both in zip(*(of[name] for of in of_sets), strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join([*lines, ""])
    outside.RESULTS.with_name("correction_steps.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
