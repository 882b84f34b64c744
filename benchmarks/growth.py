"""How time and memory grow with the molecule: `python -m benchmarks.growth` writes benchmarks/results/growth.*.

n-alkanes of 50 to 1,001 atoms, stretched, one at a time, one thread, the preset mini with a cutoff for structures too:
with all pairs at every size, as before there were lists of neighbours, and as it is, which chooses by size. Both
forms run in turn, in processes of their own for each case, small molecules first, as the peak of a process never falls.
Seconds are of the processor, the fewest of some runs, as others may use the machine. Memory is the peak of the process
above that of methane, in processes that give every freed array back to the system: by default the C library keeps
holes between arrays, up to three times as much.
"""

import json
import multiprocessing
import os
import resource
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest.mock import patch

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from rdkit import Chem

from benchmarks.__main__ import ALLOCATOR
from modeling_pcbridge import LossSettings, PCBridgeConfig, PCBridgeModel, pair_layout
from modeling_pcbridge.diffusion import centred_noise
from modeling_pcbridge.graph_batch import GraphBatch, pad_graphs, pad_positions
from modeling_pcbridge.molecular_graph import graph_from_mol

CASES = {
    "energy_and_forces": "energy and forces",
    "train_step": "training step on energies and forces",
    "denoising": "denoising of a structure, t = 30",
    "denoising_noise": "denoising of noise, t = 1000",
}
FORMS = {"before": "all pairs", "after": "as it is"}
CARBONS = (16, 33, 66, 133, 266, 333)
_CUTOFF = 5.0
# What the processes are started with.
_ENVIRONMENTS = {"seconds": ALLOCATOR, "memory_mb": {"MALLOC_MMAP_THRESHOLD_": "32768"}}
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


class Subject:
    """What a process measures: one case in one form."""

    def __init__(self, case: str, form: str):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        if form == "before":
            pair_layout.FEWEST_ATOMS_FOR_LISTS = 10**9
        self.case = case
        self.model = PCBridgeModel(PCBridgeConfig.from_preset("mini", structure_cutoff=_CUTOFF))
        _run(case, self.model, 1)
        self.baseline = _peak_mb()

    def seconds(self, num_carbons: int) -> float:
        """The fewest of some runs."""
        return _run(self.case, self.model, num_carbons)

    def memory_mb(self, num_carbons: int) -> float:
        """The peak above that of methane."""
        _run(self.case, self.model, num_carbons, longest=0)
        return _peak_mb() - self.baseline


_subject: Subject  # of this process


def _start(case: str, form: str) -> None:
    global _subject
    _subject = Subject(case, form)


def _measure(what: str, num_carbons: int) -> float:
    return getattr(_subject, what)(num_carbons)


def _run(case: str, model: PCBridgeModel, num_carbons: int, longest: float = 2.0) -> float:
    """The fewest processor seconds of at least two runs, of up to forty in `longest` seconds."""
    mol, structure = stretched_alkane(num_carbons)
    inputs = pad_graphs([graph_from_mol(mol)])
    positions = pad_positions([structure])
    graph = GraphBatch(**inputs)
    labels = {"energy": torch.zeros(1, dtype=torch.float64), "forces": torch.zeros_like(positions)}
    timesteps = torch.tensor([model.config.num_train_timesteps if case == "denoising_noise" else 30])
    noisy = model.diffusion.add_noise(positions, centred_noise(graph.atom_mask, positions.dtype), timesteps)

    def run() -> None:
        if case == "energy_and_forces":
            model.energy_and_forces(graph, positions)
        elif case == "train_step":
            model.zero_grad()
            model(**inputs, positions=positions, **labels, loss_settings=LossSettings()).loss.backward()
        else:
            with torch.no_grad():
                model.denoise(graph, noisy, timesteps)

    run()
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 40 and sum(seconds) < longest):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB on Linux


def find(records: list[dict], case: str, form: str, what: str) -> list[tuple[int, float]]:
    """(atoms, seconds or MB), by size."""
    return [(r["atoms"], r[what]) for r in records if (r["case"], r["form"]) == (case, form)]


def exponent(points: list[tuple[int, float]]) -> float:
    """Slope of the logarithms up to 800 atoms."""
    logarithms = np.log([point for point in points if point[0] <= _LARGEST_FITTED])
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
    figure, axes = plt.subplots(1, len(CASES), figsize=(14, 3.6), sharey=True)
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
    for case in CASES:
        found: dict[tuple, dict[str, float]] = defaultdict(dict)
        for what, environment in _ENVIRONMENTS.items():
            with patch.dict(os.environ, environment):
                processes = {form: ProcessPoolExecutor(1, context, _start, (case, form)) for form in FORMS}
                for num_carbons in CARBONS:
                    for form, process in processes.items():
                        found[form, 3 * num_carbons + 2][what] = process.submit(_measure, what, num_carbons).result()
                for process in processes.values():
                    process.shutdown()
        records += [{"case": case, "form": form, "atoms": atoms, **f} for (form, atoms), f in found.items()]
        print(*records[-len(found) :], sep="\n", flush=True)
    folder = Path(__file__).parent / "results"
    (folder / "growth.json").write_text(json.dumps(records, indent=1) + "\n")
    (folder / "growth.md").write_text("\n".join(table(records)))
    plot(records, folder / "growth.png")


if __name__ == "__main__":
    main()
