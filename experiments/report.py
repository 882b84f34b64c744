"""Tables and plots of the evidence: means over training seeds, and the paired effect of the consistency losses."""

import json
from dataclasses import asdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.statistics import PairedComparison, compare
from modeling_pcbridge.evaluation import SAMPLING_METHODS
from modeling_pcbridge.report import ENERGY_COLUMNS, STRUCTURE_COLUMNS

MULTI_TASK, CONSISTENCY = "multi-task", "consistency"
_METHODS = {"ddim": "generated, DDIM", "denoising": "generated, one evaluation", "refine": "refined from PM6"}
# Metrics whose effect is tested, with their titles.
_TESTED = (
    ("rmsd_mean", "all-atom RMSD mean"),
    ("rmsd_min", "all-atom RMSD min"),
    ("heavy_rmsd_mean", "heavy RMSD mean"),
    ("bond_length_error", "bond error"),
    ("one_three_error", "1-3 error"),
    ("bond_angle_error", "angle error (deg)"),
    ("torsion_error", "torsion error (deg)"),
    ("energy_above_reference", "E above ref (eV)"),
)


def over_seeds(runs: list[dict], model: str, section: str, metric: str) -> list[float]:
    """One value a run; `section` is a sampling method or "energy"."""
    return [run["models"][model][section][metric] for run in runs]


def effects(runs: list[dict]) -> dict[str, dict[str, PairedComparison]]:
    """Consistency against multi-task, by sampling method and metric."""
    return {
        method: {
            metric: compare(over_seeds(runs, MULTI_TASK, method, metric), over_seeds(runs, CONSISTENCY, method, metric))
            for metric, _ in _TESTED
        }
        for method in SAMPLING_METHODS
    }


def write_evidence(metrics: dict[str, list[dict]], seeds: list[int], folder: Path) -> None:
    """evidence.json, evidence.md and evidence.png from the metrics.json of every run, by setting and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(metrics.values()))[0]
    lines = [
        "# Evidence",
        "",
        f"{first['num_molecules']} molecules of the {first['split']} split against their DFT structures, "
        f"{first['num_samples']} samples each; mean (standard deviation) over training seeds "
        f"{', '.join(map(str, seeds))}. Lengths in angstrom.",
        "",
    ]
    record: dict = {"seeds": seeds, "settings": {}}
    for setting, runs in metrics.items():
        lines += [f"## Setting: {setting}", "", *_structure_table(runs), "", *_energy_table(runs), ""]
        record["settings"][setting] = {
            model: {
                section: {metric: over_seeds(runs, model, section, metric) for metric, _, _ in columns}
                for section, columns in [
                    *((m, STRUCTURE_COLUMNS) for m in SAMPLING_METHODS),
                    ("energy", ENERGY_COLUMNS),
                ]
            }
            for model in (MULTI_TASK, CONSISTENCY)
        }
        if len(seeds) > 1:
            found = effects(runs)
            lines += [*_effect_table(found), ""]
            record["settings"][setting]["effects"] = {
                method: {metric: asdict(effect) for metric, effect in row.items()} for method, row in found.items()
            }
    record["references"] = first["references"]
    (folder / "evidence.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "evidence.md").write_text("\n".join([*lines, "![Errors by seed](evidence.png)", ""]))
    _plot(metrics, folder / "evidence.png")


def _cell(values: list[float | None], decimals: int) -> str:
    if any(value is None for value in values):
        return "-"
    spread = f" ({np.std(values, ddof=1):.{decimals}f})" if len(values) > 1 else ""
    return f"{np.mean(values):.{decimals}f}{spread}"


def _structure_table(runs: list[dict]) -> list[str]:
    lines = ["| | " + " | ".join(title for _, title, _ in STRUCTURE_COLUMNS) + " |"]
    lines.append("|---" * (len(STRUCTURE_COLUMNS) + 1) + "|")
    for method in SAMPLING_METHODS:
        for model in (MULTI_TASK, CONSISTENCY):
            cells = [_cell(over_seeds(runs, model, method, metric), n) for metric, _, n in STRUCTURE_COLUMNS]
            lines.append(f"| {model}: {_METHODS[method]} | " + " | ".join(cells) + " |")
    for name, values in runs[0]["references"].items():
        cells = [_cell([values.get(metric)], n) for metric, _, n in STRUCTURE_COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _energy_table(runs: list[dict]) -> list[str]:
    lines = ["| | " + " | ".join(title for _, title, _ in ENERGY_COLUMNS) + " |"]
    lines.append("|---" * (len(ENERGY_COLUMNS) + 1) + "|")
    for model in (MULTI_TASK, CONSISTENCY):
        cells = [_cell(over_seeds(runs, model, "energy", metric), n) for metric, _, n in ENERGY_COLUMNS]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines


def _effect_table(found: dict[str, dict[str, PairedComparison]]) -> list[str]:
    lines = [
        "Consistency minus multi-task, 95% confidence interval, and paired t-test over seeds:",
        "",
        "| | metric | effect | interval | relative | p |",
        "|---|---|---|---|---|---|",
    ]
    for method, row in found.items():
        for metric, title in _TESTED:
            effect = row[metric]
            lines.append(
                f"| {_METHODS[method]} | {title} | {effect.difference:+.4f} | {effect.low:+.4f} to {effect.high:+.4f} "
                f"| {effect.relative:+.1%} | {effect.p_value:.2g} |"
            )
    return lines


def _plot(metrics: dict[str, list[dict]], path: Path) -> None:
    shown = (("bond_length_error", "bond error (angstrom)"), ("one_three_error", "1-3 error (angstrom)"))
    figure, axes = plt.subplots(
        len(shown), len(metrics), figsize=(4 * len(metrics), 3 * len(shown)), squeeze=False, constrained_layout=True
    )
    for column, (setting, runs) in enumerate(metrics.items()):
        for axis, (metric, title) in zip(axes[:, column], shown, strict=True):
            for place, method in enumerate(("refine", "ddim")):
                pairs = [over_seeds(runs, model, method, metric) for model in (MULTI_TASK, CONSISTENCY)]
                for before, after in zip(*pairs, strict=True):
                    axis.plot([2.5 * place, 2.5 * place + 1], [before, after], "o-", color=f"C{place}", lw=0.8, ms=4)
            for colour, (name, values) in zip(("grey", "black"), runs[0]["references"].items(), strict=False):
                axis.axhline(values[metric], color=colour, ls="--", lw=1, label=name)
            axis.set_xticks([0, 1, 2.5, 3.5], ["multi-task", "consistency"] * 2, fontsize=7)
            axis.set(ylabel=title, ylim=(0, None), title=f"{setting}: refined | generated")
            axis.title.set_fontsize(9)
            axis.legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)
