"""What more DFT labels of fragments are worth, and what cheap labels beside them: errors of E by number of labels.

    python -m experiments.learning_curve              # an hour of one core for each seed
    python -m experiments.learning_curve --report     # only the table, of what is there

E alone is trained on B3LYP/6-31G* labels of 100, 300, 1,000 and all structures of the bundled `fragments`, in random
order, with and without GFN2-xTB labels of fragments (`data/fragments_gfn2_more`, by experiments/README.md), for a head
of their own or for one that E at B3LYP/6-31G* adds a difference to. All runs have as many updates. Errors are of unseen
fragments and of `large_labelled`, molecules of 12 to 20 heavy atoms. What is finished is not done again. Runs are in
outputs/learning_curve/, table and plot in experiments/results/.
"""

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dataset_scripts.bundled import load_bundled, parquet_path
from dataset_scripts.collator import example_from_row
from dataset_scripts.schema import B3LYP_6_31GD, GFN2_XTB
from experiments.extensive import DATA, RESULTS, ROOT, settings_of, train_new
from pcbridge.evaluation.batches import energies_and_forces
from pcbridge.training.config import SourceConfig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_COUNTS = [100, 300, 1000, None]  # labels; None: all
# How each is called in tables, and the fields of the model's config.
WAYS = {
    "alone": ("B3LYP/6-31G* alone", {"energy_levels_of_theory": [B3LYP_6_31GD]}),
    "heads": (
        "with GFN2-xTB, heads apart",
        {"energy_levels_of_theory": [B3LYP_6_31GD, GFN2_XTB], "level_differences": False},
    ),
    "differences": (
        "with GFN2-xTB, differences",
        {"energy_levels_of_theory": [B3LYP_6_31GD, GFN2_XTB], "level_differences": True},
    ),
}
_TESTS = {
    "unseen fragments": [("fragments", "validation"), ("fragments", "test")],
    "large": [("large_labelled", "test")],
}
_TARGETS = {"unseen fragments": 0.05, "large": 0.08}  # eV/angstrom
_EVALUATION_BATCH = 16
_GFN2_LABELS = DATA / "fragments_gfn2_more"


def write_labels(count: int | None, seed: int, folder: Path) -> int:
    """At least `count` labels of random molecules, all for None, as a source in `folder`; returns their number."""
    rows = pq.read_table(parquet_path("fragments", "train"))
    names = rows["molecule_id"].to_pylist()
    places = defaultdict(list)
    for place, name in enumerate(names):
        places[name].append(place)
    molecules = sorted(places)
    random.Random(seed).shuffle(molecules)
    chosen: list[int] = []
    for molecule in molecules:
        if count is None or len(chosen) < count:
            chosen += places[molecule]
    path = folder / "train" / "labels.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows.take(pa.array(sorted(chosen))), path)
    return len(chosen)


def run(count: int | None, way: str, updates: int, seed: int, output: Path) -> dict:
    """Train with so many labels and evaluate: errors of energies (eV) and force components (eV/angstrom)."""
    labels = output / "labels"
    number = write_labels(count, seed, labels)
    sources, model_fields = [SourceConfig(str(labels), structures=False)], WAYS[way][1]
    cheap = 0
    if GFN2_XTB in model_fields["energy_levels_of_theory"]:
        sources.append(SourceConfig(str(_GFN2_LABELS), weight=3, structures=False))
        cheap = sum(pq.read_metadata(path).num_rows for path in (_GFN2_LABELS / "train").glob("*.parquet"))
    model = train_new(settings_of(sources, model_fields, updates, seed, output))
    errors = {}
    for title, parts in _TESTS.items():
        examples = [
            example_from_row(row, [B3LYP_6_31GD], resonance_invariant=True)
            for name, split in parts
            for row in load_bundled(name, split)
            if row["forces"]  # computed ones
        ]
        graphs, structures = [e.graph for e in examples], [e.positions for e in examples]
        energies, forces = energies_and_forces(model, graphs, structures, _EVALUATION_BATCH)
        of_forces = [np.abs(force - e.forces).mean() for force, e in zip(forces, examples, strict=True)]
        errors[title] = {
            "structures": len(examples),
            "energy_mae": float(
                np.mean([abs(energy - e.energy) for energy, e in zip(energies, examples, strict=True)])
            ),
            "force_mae": float(np.mean(of_forces)),
            "force_median": float(np.median(of_forces)),
        }
    return {"labels": number, "gfn2_labels": cheap, "way": way, "updates": updates, "seed": seed, "errors": errors}


def report(results: list[dict]) -> str:
    """A Markdown table of the means over seeds."""
    first = results[0]["errors"]
    text = [
        "# What more DFT labels are worth",
        "",
        f"E alone, {results[0]['updates']} updates by batches of 32, against B3LYP/6-31G*: mean and standard deviation "
        f"over seeds of errors of {first['unseen fragments']['structures']} structures of unseen fragments (up to 9 "
        f"heavy atoms) and {first['large']['structures']} minima of 12 to 20 heavy atoms; eV per molecule, "
        "eV/angstrom. With GFN2-xTB a quarter of each batch is at B3LYP/6-31G*, the rest of "
        f"{max(r['gfn2_labels'] for r in results):,} labels. Written by `python -m experiments.learning_curve`.",
        "",
        "| training labels | B3LYP/6-31G* labels | seeds | forces, fragments | median | forces, large "
        "| energies, fragments | energies, large |",
        "|---" * 8 + "|",
    ]
    columns = [("unseen fragments", "force_mae"), ("unseen fragments", "force_median"), ("large", "force_mae")]
    columns += [("unseen fragments", "energy_mae"), ("large", "energy_mae")]
    for (way, labels), runs in _groups(results).items():
        cells = [_shown([r["errors"][title][key] for r in runs]) for title, key in columns]
        text.append(f"| {WAYS[way][0]} | {labels:,} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join([*text, ""])


def _groups(results: list[dict]) -> dict[tuple[str, int], list[dict]]:
    """Runs of one kind, by `WAYS` and by the mean number of labels."""
    groups = defaultdict(list)
    for result in results:
        groups[result["way"], result["asked"]].append(result)
    named = {(way, round(np.mean([r["labels"] for r in runs]))): runs for (way, _), runs in groups.items()}
    return dict(sorted(named.items(), key=lambda group: (list(WAYS).index(group[0][0]), group[0][1])))


def _shown(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def plot(results: list[dict], path: Path) -> None:
    """Force errors by number of labels, one line for each way to train."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    groups = _groups(results)
    for axis, (title, target) in zip(axes, _TARGETS.items(), strict=True):
        for way, (name, _) in WAYS.items():
            lines = {n: [r["errors"][title]["force_mae"] for r in runs] for (w, n), runs in groups.items() if w == way}
            if not lines:
                continue
            spread = [np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in lines.values()]
            axis.errorbar(list(lines), [np.mean(values) for values in lines.values()], spread, marker="o", label=name)
        axis.axhline(target, color="grey", linestyle=":", label="wanted")
        axis.set(xscale="log", ylim=(0, None), xlabel="B3LYP/6-31G* labels", ylabel="force MAE, eV/angstrom")
        axis.set_title("unseen fragments" if title != "large" else "12 to 20 heavy atoms")
    axes[0].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "learning_curve")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "learning_curve", help="table and plot, without ending"
    )
    parser.add_argument("--report", action="store_true", help="compute nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    if not arguments.report:
        for seed in arguments.seeds:
            for count in _COUNTS[::-1]:
                for way in arguments.ways:
                    path = arguments.runs / f"{way}_{count or 'all'}_{seed}.json"
                    if not path.exists():
                        result = run(count, way, arguments.updates, seed, path.with_suffix(""))
                        path.write_text(json.dumps({"asked": count or 0, **result}, indent=1) + "\n")
    results = [json.loads(path.read_text()) for path in sorted(arguments.runs.glob("*.json"))]
    text = report(results)
    arguments.output.with_suffix(".md").write_text(text)
    arguments.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, arguments.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
