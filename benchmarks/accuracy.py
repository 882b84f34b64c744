"""Accuracy at equal cost: PCBridge's E and its peers, trained on the same labels for the same processor time.

    python -m benchmarks.accuracy data/fragments_gfn2 data/drug_like_gfn2 --minutes 10

Labels are GFN2-xTB energies and forces of neutral molecules (docs/training.md makes both folders): random fragments of
up to 9 heavy atoms to learn from, unseen fragments and drug-like molecules to test on. All programs have the same loss,
that of configs/drug_like.yaml, a learning rate that falls linearly with the time used, and batches that are made before
the clock starts. Peers have the optimiser, learning rate and batch size of their own examples, AIMNet2 smaller batches.
Table and plot go to benchmarks/results/accuracy.*.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow.parquet as pq

from benchmarks.__main__ import ALLOCATOR, environment, processor_name
from dataset_scripts.schema import GFN2_XTB

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_ROOT = Path(__file__).parents[1]
_RESULTS = Path(__file__).parent / "results"
# Subject, its options, and how tables call it.
PROGRAMS = {
    "pcbridge": ("pcbridge", ["drug_like"], "PCBridge, E of the drug_like preset"),
    "schnetpack": ("schnetpack", [], "PaiNN (SchNetPack)"),
    "torchmd_net": ("torchmd_net", [], "Equivariant Transformer (TorchMD-NET)"),
    "tensornet": ("torchmd_net", ["tensornet"], "TensorNet (TorchMD-NET)"),
    "mace": ("mace", [], "MACE"),
    "aimnet2": ("aimnet2", [], "AIMNet2"),
}
_TESTS = ("unseen fragments", "drug-like")
_NUM_TRAINING, _NUM_TEST = 9600, {"unseen fragments": 1000, "drug-like": 400}


def read_rows(folder: Path, splits: tuple[str, ...], count: int, seed: int = 0) -> list[dict]:
    """Random labelled rows of neutral molecules."""
    rows = [
        row
        for split in splits
        for path in sorted((folder / split).glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
        if row["energy_level_of_theory"] == GFN2_XTB and row["forces"] is not None and row["total_charge"] == 0
    ]
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[place] for place in order[:count].tolist()]


def write_molecules(parts: dict[str, list[dict]], path: Path) -> None:
    """All molecules in one file, which needs NumPy only; energies less those of the elements, by least squares."""
    elements = sorted({z for rows in parts.values() for row in rows for z in row["atomic_numbers"]})
    counts = {
        name: np.array([[row["atomic_numbers"].count(z) for z in elements] for row in rows], dtype=float)
        for name, rows in parts.items()
    }
    energies = {name: np.array([row["energy"] for row in rows]) for name, rows in parts.items()}
    of_elements = np.linalg.lstsq(counts["training"], energies["training"], rcond=None)[0]
    rows = [row for some in parts.values() for row in some]
    np.savez_compressed(
        path,
        parts=np.repeat(list(parts), [len(some) for some in parts.values()]),
        mapped_smiles=np.array([row["mapped_smiles"] for row in rows]),
        sizes=np.array([len(row["atomic_numbers"]) for row in rows]),
        atomic_numbers=np.concatenate([row["atomic_numbers"] for row in rows]),
        positions=np.concatenate([row["positions"] for row in rows]).astype(np.float32),
        forces=np.concatenate([row["forces"] for row in rows]).astype(np.float32),
        energies=np.concatenate([energies[name] - counts[name] @ of_elements for name in parts]),
    )


def report(results: dict[str, dict], minutes: float) -> str:
    """A Markdown table."""
    lines = [
        "# Accuracy at equal cost",
        "",
        f"Trained for {minutes:g} minutes of one core on {_NUM_TRAINING:,} GFN2-xTB labels of neutral fragments; mean "
        "absolute errors of force components, eV/angstrom, and of energies, eV per molecule. Speed is of energies and "
        f"forces, one core, batches of 32. One seed. {processor_name()}. Written by `python -m benchmarks.accuracy`.",
        "",
        "| | updates | molecules seen | "
        + " | ".join(f"forces, {name} | energies, {name} | molecules/s, {name}" for name in _TESTS)
        + " |",
        "|---" * (3 + 3 * len(_TESTS)) + "|",
    ]
    for name, result in results.items():
        cells = [f"{result['updates']:,}", f"{result['molecules']:,}"]
        for test in _TESTS:
            errors = result["errors"][test]
            cells += [
                f"{errors['force_mae']:.3f}",
                f"{errors['energy_mae']:.2f}",
                f"{errors['molecules_per_second']:.0f}",
            ]
        lines.append(f"| {PROGRAMS[name][2]} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def plot(results: dict[str, dict], path: Path) -> None:
    """Force errors against speed."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for axis, test in zip(axes, _TESTS, strict=True):
        for name, result in results.items():
            errors = result["errors"][test]
            axis.plot(errors["molecules_per_second"], errors["force_mae"], "o", label=PROGRAMS[name][2])
        axis.set(xscale="log", xlim=(1, 3000), ylim=(0, None), xlabel="molecules/s", ylabel="force MAE, eV/angstrom")
        axis.set_title(test)
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fragments", type=Path)
    parser.add_argument("drug_like", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0, help="processor time of each training")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), metavar="NAME")
    parser.add_argument("--output", type=Path, default=_RESULTS / "accuracy", help="without an ending")
    arguments = parser.parse_args()
    path = arguments.output.with_suffix(".npz")
    parts = {
        "training": read_rows(arguments.fragments, ("train",), _NUM_TRAINING),
        "unseen fragments": read_rows(arguments.fragments, ("test",), _NUM_TEST["unseen fragments"]),
        "drug-like": read_rows(arguments.drug_like, ("validation", "test"), _NUM_TEST["drug-like"]),
    }
    write_molecules(parts, path)
    saved = arguments.output.with_suffix(".json")
    results = json.loads(saved.read_text())["results"] if saved.exists() else {}
    for name in arguments.programs:
        subject, options, _ = PROGRAMS[name]
        python = sys.executable if subject == "pcbridge" else environment(subject)
        command = [python, "-m", "benchmarks.trainer", str(path), str(60 * arguments.minutes), subject, *options]
        environ = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=_ROOT, env=environ, stdout=subprocess.PIPE, check=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        saved.write_text(json.dumps({"minutes": arguments.minutes, "results": results}, indent=1) + "\n")
    path.unlink()
    results = {name: results[name] for name in PROGRAMS if name in results}
    text = report(results, arguments.minutes)
    arguments.output.with_suffix(".md").write_text(text)
    plot(results, arguments.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
