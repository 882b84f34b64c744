"""How time and memory grow with the molecule: `python -m benchmarks.growth` writes benchmarks/results/growth.*.

n-alkanes of 50 to 1,001 atoms, stretched, one at a time, one thread, the preset mini with a cutoff for structures too:
with all pairs at every size, as before there were lists of neighbours, and as it is, which chooses by size. Each
measurement has a process of its own, since a process keeps the memory it once took.
"""

import json
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from rdkit import Chem

from modeling_pcbridge import LossSettings, PCBridgeConfig, PCBridgeModel, pair_layout
from modeling_pcbridge.graph_batch import GraphBatch, pad_graphs, pad_positions
from modeling_pcbridge.molecular_graph import graph_from_mol

CASES = {
    "energy_and_forces": "energy and forces",
    "train_step": "training step (energy, forces, denoising)",
    "denoising": "one denoising",
}
FORMS = {"before": "all pairs", "after": "as it is"}
CARBONS = (16, 33, 66, 133, 266, 333)
_CUTOFF = 5.0
# The exponents are of 50 to 800 atoms.
_LARGEST_FITTED = 800


def stretched_alkane(num_carbons: int) -> tuple[Chem.Mol, np.ndarray]:
    """CnH2n+2 with explicit hydrogens, and its all-trans structure (N, 3) by textbook lengths and angles, angstrom."""
    mol = Chem.AddHs(Chem.MolFromSmiles("C" * num_carbons))
    positions = np.zeros((mol.GetNumAtoms(), 3))
    for carbon in range(num_carbons):
        side = (-1) ** carbon
        positions[carbon] = 1.27 * carbon, 0.42 * side, 0
        outward = -1 if carbon == 0 else 1
        directions = [(0, 0.63 * side, 0.89), (0, 0.63 * side, -0.89), (0.9 * outward, -0.4 * side, 0)]
        hydrogens = [a.GetIdx() for a in mol.GetAtomWithIdx(carbon).GetNeighbors() if a.GetAtomicNum() == 1]
        for hydrogen, direction in zip(hydrogens, directions, strict=False):
            positions[hydrogen] = positions[carbon] + 1.1 * np.array(direction)
    return mol, positions


def measure_one(case: str, form: str, num_carbons: int) -> dict:
    """The fastest of some runs, s, and the peak of memory above that of the smallest alkane, MB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = PCBridgeModel(PCBridgeConfig.from_preset("mini", structure_cutoff=_CUTOFF))
    if form == "before":
        pair_layout.FEWEST_ATOMS_FOR_LISTS = 10**9
    _run(case, model, 1)
    baseline = _peak_mb()
    seconds = _run(case, model, num_carbons)
    return {
        "case": case,
        "form": form,
        "atoms": 3 * num_carbons + 2,
        "seconds": seconds,
        "memory_mb": _peak_mb() - baseline,
    }


def _run(case: str, model: PCBridgeModel, num_carbons: int) -> float:
    mol, structure = stretched_alkane(num_carbons)
    inputs = pad_graphs([graph_from_mol(mol)])
    positions = pad_positions([structure])
    graph = GraphBatch(**inputs)
    labels = {
        "energy": torch.zeros(1, dtype=torch.float64),
        "forces": torch.zeros_like(positions),
        "is_equilibrium": torch.ones(1, dtype=torch.bool),
    }

    def run() -> None:
        if case == "energy_and_forces":
            model.energy_and_forces(graph, positions)
        elif case == "denoising":
            with torch.no_grad():
                model.denoise(graph, positions, torch.tensor([model.config.refinement_timestep]))
        else:
            model.zero_grad()
            model(**inputs, positions=positions, **labels, loss_settings=LossSettings()).loss.backward()

    run()
    seconds: list[float] = []
    while len(seconds) < 3 or (len(seconds) < 40 and sum(seconds) < 2):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB on Linux


def find(records: list[dict], case: str, form: str, what: str) -> list[tuple[int, float]]:
    """(atoms, seconds or MB), by size."""
    return [(r["atoms"], r[what]) for r in records if (r["case"], r["form"]) == (case, form)]


def exponent(points: list[tuple[int, float]]) -> float:
    """Slope of the logarithms up to 800 atoms."""
    logarithms = np.log([(atoms, max(value, 0.1)) for atoms, value in points if atoms <= _LARGEST_FITTED])
    return float(np.polyfit(*logarithms.T, 1)[0])


def table(records: list[dict]) -> list[str]:
    """Lines of growth.md."""
    lines = ["# Growth with the molecule", "", *__doc__.splitlines()[2:], ""]
    for case, name in CASES.items():
        lines += [f"## {name[0].upper()}{name[1:]}", ""]
        lines += [
            "| atoms | all pairs, s | as it is, s | ratio | all pairs, MB | as it is, MB |",
            "|---|---|---|---|---|---|",
        ]
        columns = [[find(records, case, form, what) for form in FORMS] for what in ("seconds", "memory_mb")]
        for (atoms, before), (_, after), (_, before_mb), (_, after_mb) in zip(*columns[0], *columns[1], strict=True):
            times = f"{before:.4f} | {after:.4f} | {before / after:.2f}"
            lines.append(f"| {atoms:,} | {times} | {before_mb:,.0f} | {after_mb:,.0f} |")
        before, after, before_mb, after_mb = (exponent(points) for column in columns for points in column)
        lines += [f"| exponent, 50 to 800 | {before:.2f} | {after:.2f} | | {before_mb:.2f} | {after_mb:.2f} |", ""]
    return [*lines, "![Time against molecule size](growth.png)", ""]


def plot(records: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(1, len(CASES), figsize=(12, 3.6), sharey=True)
    for axis, (case, name) in zip(axes, CASES.items(), strict=True):
        for form, label in FORMS.items():
            points = find(records, case, form, "seconds")
            axis.loglog(*zip(*points, strict=True), "o-", label=f"{label} (exponent {exponent(points):.2f})")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("atoms")
        axis.legend(fontsize=8)
    axes[0].set_ylabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    records = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        for num_carbons in CARBONS:
            for case in CASES:
                for form in FORMS:
                    records.append(processes.submit(measure_one, case, form, num_carbons).result())
                    print(records[-1], flush=True)
    folder = Path(__file__).parent / "results"
    (folder / "growth.json").write_text(json.dumps(records, indent=1) + "\n")
    (folder / "growth.md").write_text("\n".join(table(records)))
    plot(records, folder / "growth.png")


if __name__ == "__main__":
    main()
