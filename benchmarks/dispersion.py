"""What D3(BJ) dispersion costs beside E: `python -m benchmarks.dispersion` writes benchmarks/results/dispersion.md.

Energy and forces by checkpoints/drug_like with and without it, one thread, in turn, the fewest seconds of the processor
of some runs: n-alkanes of 20 to 800 atoms, small ones in batches. Needs the extra `dispersion`.
"""

import time
from pathlib import Path

import torch

from benchmarks.growth import stretched_alkane
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.graph_batch import GraphBatch, pad_graphs, pad_positions
from modeling_pcbridge.molecular_graph import graph_from_mol

RESULTS = Path(__file__).parent / "results" / "dispersion.md"
CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "drug_like"
_CASES = [(6, 16), (14, 16), (33, 4), (66, 1), (133, 1), (266, 1)]  # carbons, batch
_RUNS = 5


def seconds(model: PCBridgeModel, graph: GraphBatch, positions: torch.Tensor) -> float:
    """Of the processor, for energies and forces of a batch."""
    start = time.process_time()
    model.energy_and_forces(graph, positions)
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    models = {name: PCBridgeModel.from_pretrained(CHECKPOINT, dispersion=name).eval() for name in (None, "d3bj")}
    lines = [
        "# What D3(BJ) costs",
        "",
        "Energies and forces by `checkpoints/drug_like`, seconds of one core per molecule, the fewest of "
        f"{_RUNS} runs in turn. Written by `python -m benchmarks.dispersion`.",
        "",
        "| atoms | batch | E | E with D3(BJ) | ratio |",
        "|---|---|---|---|---|",
    ]
    for carbons, batch in _CASES:
        mol, structure = stretched_alkane(carbons)
        graph = GraphBatch(**pad_graphs([graph_from_mol(mol)] * batch))
        positions = pad_positions([structure] * batch)
        runs = [{name: seconds(model, graph, positions) for name, model in models.items()} for _ in range(_RUNS + 1)]
        plain, with_d3 = (min(run[name] for run in runs[1:]) / batch for name in models)  # the first reads tables
        lines.append(f"| {len(structure)} | {batch} | {plain:.4f} | {with_d3:.4f} | {with_d3 / plain:.2f} |")
        print(lines[-1])
    RESULTS.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
