"""What DFT labels of fragments are worth, and cheap labels beside them: errors of E, and of structures relaxed on it.

    python -m experiments.learning_curve              # two hours of one core for each seed
    python -m experiments.learning_curve --report     # only the tables, of what is there

E alone is trained on B3LYP/6-31G* labels of 100, 300, 1,000 and all structures of the bundled `fragments`, in random
order, with and without GFN2-xTB labels of fragments (`data/fragments_gfn2_more`, by experiments/README.md), for a head
of their own or for one that E at B3LYP/6-31G* adds a difference to; then with all labels of smaller fragments, and with
attention over all atoms. All runs have as many updates. Errors are of unseen fragments, of `large_labelled`, molecules
of 12 to 20 heavy atoms, and of those of their B3LYP/6-31G* minima that `experiments.same_level` compares, after
relaxation on E from the MMFF94 minima. What is finished is not done again. Runs are in outputs/learning_curve/, tables
and plot in experiments/results/.
"""

import argparse
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dataset_scripts.bundled import load_bundled, parquet_path
from dataset_scripts.collator import example_from_row
from dataset_scripts.fragments import MAX_HEAVY_ATOMS
from dataset_scripts.schema import B3LYP_6_31GD, GFN2_XTB
from experiments import same_level
from experiments.extensive import DATA, RESULTS, ROOT, settings_of, train_new
from experiments.figures import plt, save_figure
from experiments.outside import MAX_EVALUATIONS, taken_by
from experiments.structure_errors import measured
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.graph_batch import GraphBatch
from pcbridge.evaluation.batches import energies_and_forces, moved
from pcbridge.training.config import SourceConfig

_COUNTS = [100, 300, 1000, None]  # labels; None: all
_BOTH = [B3LYP_6_31GD, GFN2_XTB]
_DIFFERENCES = {"energy_levels_of_theory": _BOTH, "level_differences": True}


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        title: in tables.
        fields: of the model's config that differ from the preset.
        largest: heavy atoms of the B3LYP/6-31G* labels.
        one_each: one label of each molecule in place of up to four, of other geometries.
        is_curve: whether it is trained with each of `_COUNTS`, or with all labels only.
    """

    title: str
    fields: dict
    largest: int = MAX_HEAVY_ATOMS
    one_each: bool = False
    is_curve: bool = False


ARMS = {
    "alone": Arm("B3LYP/6-31G* alone", {"energy_levels_of_theory": [B3LYP_6_31GD]}, is_curve=True),
    "heads": Arm(
        "with GFN2-xTB, heads apart", {"energy_levels_of_theory": _BOTH, "level_differences": False}, is_curve=True
    ),
    "differences": Arm("with GFN2-xTB, differences", _DIFFERENCES, is_curve=True),
    "up_to_5": Arm("the same, labels of up to 5 heavy atoms", _DIFFERENCES, 5),
    "up_to_7": Arm("the same, labels of up to 7 heavy atoms", _DIFFERENCES, 7),
    "one_each": Arm("the same, one label of each molecule", _DIFFERENCES, one_each=True),
    "all_atoms": Arm("the same, attention over all atoms", _DIFFERENCES | {"attention_cutoff": None}),
}
_TESTS = {
    "unseen fragments": [("fragments", "validation"), ("fragments", "test")],
    "large": [("large_labelled", "test")],
}
_EVALUATION_BATCH = 16
_GFN2_LABELS = DATA / "fragments_gfn2_more"


def write_labels(count: int | None, arm: Arm, seed: int, folder: Path) -> int:
    """At least `count` labels of random molecules, all for None, as a source in `folder`; returns their number."""
    rows = pq.read_table(parquet_path("fragments", "train"))
    names, elements = (rows[column].to_pylist() for column in ("molecule_id", "atomic_numbers"))
    places = defaultdict(list)
    for place, name in enumerate(names):
        if sum(number > 1 for number in elements[place]) <= arm.largest:
            places[name].append(place)
    molecules = sorted(places)
    generator = random.Random(seed)
    generator.shuffle(molecules)
    chosen: list[int] = []
    for molecule in molecules:
        if count is None or len(chosen) < count:
            chosen += [generator.choice(places[molecule])] if arm.one_each else places[molecule]
    path = folder / "train" / "labels.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows.take(pa.array(sorted(chosen))), path)
    return len(chosen)


def run(name: str, count: int | None, updates: int, seed: int, output: Path) -> dict:
    """Train an arm with so many labels, and evaluate."""
    arm, labels = ARMS[name], output / "labels"
    number = write_labels(count, arm, seed, labels)
    sources, cheap = [SourceConfig(str(labels), structures=False)], 0
    if GFN2_XTB in arm.fields["energy_levels_of_theory"]:
        sources.append(SourceConfig(str(_GFN2_LABELS), weight=3, structures=False))
        cheap = sum(pq.read_metadata(path).num_rows for path in (_GFN2_LABELS / "train").glob("*.parquet"))
    model = train_new(settings_of(sources, arm.fields, updates, seed, output))
    result = {
        "arm": name,
        "asked": count or 0,
        "labels": number,
        "gfn2_labels": cheap,
        "updates": updates,
        "seed": seed,
    }
    return result | {"errors": label_errors(model), "relaxed": relaxed_errors(model)}


def label_errors(model: PCBridgeModel) -> dict[str, dict]:
    """Absolute errors of energies (eV) and of force components (eV/angstrom), by the names of `_TESTS`.

    Of energies the median, as some elements have no or a wrong reference energy by a hundred labels.
    """
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
        of_energies = [abs(energy - e.energy) for energy, e in zip(energies, examples, strict=True)]
        of_forces = [np.abs(force - e.forces).mean() for force, e in zip(forces, examples, strict=True)]
        errors[title] = {
            "structures": len(examples),
            "energy_median": float(np.median(of_energies)),
            "force_mae": float(np.mean(of_forces)),
            "force_median": float(np.median(of_forces)),
        }
    return errors


def relaxed_errors(model: PCBridgeModel) -> dict[str, float]:
    """Of whole molecules, relaxed on E from MMFF94 minima, against their B3LYP/6-31G* minima; means over molecules."""
    molecules, graphs = taken_by(model, same_level.read())
    starts = [molecule.mmff for molecule in molecules]

    def relaxed(graph: GraphBatch, positions: torch.Tensor) -> torch.Tensor:
        return model.relax_structure(positions, max_evaluations=MAX_EVALUATIONS, **graph.inputs).positions

    records = measured(molecules, moved(model, graphs, starts, _EVALUATION_BATCH, relaxed), None)["records"].values()
    means = {key: float(np.mean([r[key] for r in records])) for key in ("bonds", "one_three", "angles")}
    return {"molecules": len(records), **means}


def report(results: list[dict]) -> str:
    """A Markdown table of the means over seeds."""
    first = results[0]
    fragments, large = (first["errors"][title]["structures"] for title in _TESTS)
    text = [
        "# What more DFT labels are worth",
        "",
        f"E alone, {first['updates']} updates by batches of 32, against B3LYP/6-31G*: mean and standard deviation over "
        f"seeds of errors of {fragments} structures of unseen fragments (up to 9 heavy atoms) and {large} minima of 12 "
        "to 20 heavy atoms; eV/angstrom, and the median of energies, eV per molecule. Relaxed on E from MMFF94 minima, "
        f"{first['relaxed']['molecules']} of the latter: errors of bonds (angstrom), angles (degrees). With GFN2-xTB "
        f"a quarter of each batch is at B3LYP/6-31G*, the rest of {max(r['gfn2_labels'] for r in results):,} labels. "
        "Written by "
        "`python -m experiments.learning_curve`.",
        "",
        "| training labels | B3LYP/6-31G* labels | seeds | forces, fragments | median | forces, large "
        "| energies, fragments | energies, large | relaxed, bonds | relaxed, angles |",
        "|---" * 10 + "|",
    ]
    columns = [("unseen fragments", "force_mae"), ("unseen fragments", "force_median"), ("large", "force_mae")]
    columns += [("unseen fragments", "energy_median"), ("large", "energy_median")]
    for (name, labels), runs in _groups(results).items():
        cells = [_shown([r["errors"][title][key] for r in runs], 3) for title, key in columns]
        cells += [_shown([r["relaxed"][key] for r in runs], digits) for key, digits in (("bonds", 4), ("angles", 2))]
        text.append(f"| {ARMS[name].title} | {labels:,} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join([*text, ""])


def _groups(results: list[dict]) -> dict[tuple[str, int], list[dict]]:
    """Runs of one kind, by `ARMS` and by the mean number of labels."""
    groups = defaultdict(list)
    for result in results:
        groups[result["arm"], result["asked"]].append(result)
    named = {(arm, round(np.mean([r["labels"] for r in runs]))): runs for (arm, _), runs in groups.items()}
    return dict(sorted(named.items(), key=lambda group: (list(ARMS).index(group[0][0]), group[0][1])))


def _shown(values: list[float], digits: int) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def plot(results: list[dict], path: Path) -> None:
    """Errors of forces and of relaxed bonds by number of labels, a line for each curve, a cross for each other arm."""
    panels = {
        "unseen fragments": ("force MAE, eV/angstrom", lambda r: r["errors"]["unseen fragments"]["force_mae"], 0.05),
        "12 to 20 heavy atoms": ("force MAE, eV/angstrom", lambda r: r["errors"]["large"]["force_mae"], 0.08),
        "12 to 20 heavy atoms, relaxed on E": ("bonds, angstrom", lambda r: r["relaxed"]["bonds"], 0.004),
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.6), constrained_layout=True)
    groups = _groups(results)
    for axis, (title, (label, value, target)) in zip(axes, panels.items(), strict=True):
        for name, arm in ARMS.items():
            points = {n: [value(r) for r in runs] for (each, n), runs in groups.items() if each == name}
            if not points:
                continue
            spread = [np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in points.values()]
            means = [np.mean(values) for values in points.values()]
            axis.errorbar(list(points), means, spread, marker="o" if arm.is_curve else "x", label=arm.title)
        axis.axhline(target, color="grey", linestyle=":", label="wanted")
        axis.set(xscale="log", ylim=(0, None), xlabel="B3LYP/6-31G* labels", ylabel=label, title=title)
    axes[0].legend(fontsize=7)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "learning_curve")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "learning_curve", help="table and plot, without ending"
    )
    parser.add_argument("--report", action="store_true", help="compute nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for seed, count, name in product(arguments.seeds, _COUNTS[::-1], arguments.arms):
        path = arguments.runs / f"{name}_{count or 'all'}_{seed}.json"
        if not arguments.report and not path.exists() and (count is None or ARMS[name].is_curve):
            result = run(name, count, arguments.updates, seed, path.with_suffix(""))
            path.write_text(json.dumps(result, indent=1) + "\n")
    results = [json.loads(path.read_text()) for path in sorted(arguments.runs.glob("*.json"))]
    text = report(results)
    arguments.output.with_suffix(".md").write_text(text)
    arguments.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, arguments.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
