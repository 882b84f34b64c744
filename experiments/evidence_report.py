"""Tables and plots of the evidence: means over training seeds, and the paired effect of the consistency losses."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from dataset_scripts.bundled import load_bundled
from experiments.evidence_settings import ABLATIONS, DATA_SETTINGS, EVALUATION, SETTINGS
from experiments.figures import plt, save_figure
from experiments.statistics import PairedComparison, compare
from pcbridge.evaluation.evaluate import PREDICTION_NAMES
from pcbridge.evaluation.references import load_references
from pcbridge.evaluation.report import (
    ENERGY_COLUMNS,
    PREDICTION_TITLES,
    STRUCTURE_COLUMNS,
    markdown_table,
    plot_energy_scatter,
    plot_structures,
    reference_rows,
)
from pcbridge.training.run import CONSISTENCY, MULTI_TASK

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
# The paper's Table C.11: test molecules with no training molecule more similar than this (Tanimoto, Morgan radius 2).
SIMILARITY_LIMIT = 0.7
_NUM_PICTURES = 6
_MAIN_KINDS = (
    "denoising",
    "ddim",
    "ddim_mean_shift",
    "lowest_energy_mean_shift",
    "mean_shift",
    "refine_relaxed",
)
# What settings are compared by, and ablations.
_SETTING_KINDS = ("mean_shift", "ddim_mean_shift")
_ABLATION_KINDS = ("refine", "ddim", "denoising")
_MAIN_METRICS = (
    "heavy_rmsd_mean",
    "heavy_rmsd_median",
    "rmsd_mean",
    "bond_length_error",
    "one_three_error",
    "bond_angle_error",
    "torsion_error",
    "energy_above_reference",
)
_CAPTION = (
    "Mean (standard deviation) over training seeds of the means over test molecules. Lengths in angstrom. How each "
    "setting is trained: experiments/evidence_settings.py, configs/evidence.yaml."
)
Evaluations = dict[int, dict[str, dict]]  # seed -> model -> what experiments.evidence_evaluation wrote


def read_evaluations(folder: Path) -> Evaluations:
    """The evaluations of a setting, of the seeds for which all its models are there."""
    found: Evaluations = {}
    for seed_folder in sorted(folder.glob("seed*")):
        files = {name: seed_folder / f"{name}.json" for name in SETTINGS[folder.name].models}
        if all(file.exists() for file in files.values()):
            seed = int(seed_folder.name.removeprefix("seed"))
            found[seed] = {name: json.loads(file.read_text()) for name, file in files.items()}
    return found


def recorded_evaluations(record: dict, models: Sequence[str]) -> Evaluations:
    """What `_record` kept, by seed again: means over molecules without what each molecule gave."""

    def of_seed(place: int, model: str) -> dict:
        return {
            section: {metric: values[place] for metric, values in by_metric.items()}
            for section, by_metric in record[model].items()
        }

    return {
        seed: {model: of_seed(place, model) for model in models} for place, seed in enumerate(record.get("seeds", []))
    }


def over_seeds(evaluations: Evaluations, model: str, section: str, metric: str) -> list[float]:
    """One value a seed; `section` is one of `PREDICTION_NAMES` or "energy"."""
    return [models[model][section][metric] for models in evaluations.values()]


def _by_metric(evaluations: Evaluations, model: str, section: str, columns) -> dict[str, list[float]]:
    return {metric: over_seeds(evaluations, model, section, metric) for metric, _, _ in columns}


def effects(evaluations: Evaluations) -> dict[str, dict[str, PairedComparison]]:
    """Consistency against multi-task, by kind of prediction and metric."""
    return {
        name: {
            metric: compare(
                over_seeds(evaluations, MULTI_TASK, name, metric), over_seeds(evaluations, CONSISTENCY, name, metric)
            )
            for metric, _ in _TESTED
        }
        for name in PREDICTION_NAMES
    }


def only_molecules(results: dict, chosen: set[str]) -> dict:
    """The structure metrics of `chosen` molecules alone, in the form of the whole results."""
    ids = results["per_molecule"]["molecule_id"]
    rows = [row for row, molecule_id in enumerate(ids) if molecule_id in chosen]

    def means(values: dict[str, list]) -> dict:
        summary = {}
        for key, _, _ in STRUCTURE_COLUMNS:
            if key in values:
                summary[key] = float(np.nanmean([values[key][row] for row in rows]))
        summary["heavy_rmsd_median"] = float(np.median([values["heavy_rmsd_mean"][row] for row in rows]))
        return summary

    if "heavy_rmsd_mean" in results["per_molecule"]:  # a classical reference
        return means(results["per_molecule"]) | {"failures": len(chosen) - len(rows)}
    return {name: means(results["per_molecule"][name]) for name in PREDICTION_NAMES}


def dissimilar_molecules(molecule_ids: list[str], split: str) -> set[str]:
    """Those of `split` whose most similar training molecule is below `SIMILARITY_LIMIT`."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)

    def fingerprints(rows) -> list:
        return [generator.GetFingerprint(Chem.MolFromSmiles(row["smiles"])) for row in rows]

    training = fingerprints(load_bundled("dft_equilibrium", "train"))
    rows = [row for row in load_bundled("dft_equilibrium", split) if row["molecule_id"] in set(molecule_ids)]
    return {
        row["molecule_id"]
        for row, fingerprint in zip(rows, fingerprints(rows), strict=True)
        if max(DataStructs.BulkTanimotoSimilarity(fingerprint, training)) < SIMILARITY_LIMIT
    }


def write_evidence(runs: Path, folder: Path) -> None:
    """evidence.json, evidence.md, evidence_<setting>.md and plots from the evaluations under `runs`.

    Seeds that `folder`/evidence.json has from before and `runs` has not are kept. The file of a setting, and the
    pictures of single molecules, are written only where `runs` has them.

    Raises:
        FileNotFoundError: no data setting has a finished seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "evidence.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    records = before.get("settings", {}) | before.get("ablations", {})
    new = {name: read_evaluations(runs / name) for name in SETTINGS}
    found: dict[str, Evaluations] = {}
    for name, setting in SETTINGS.items():
        evaluations = recorded_evaluations(records.get(name, {}), setting.models) | new[name]
        if evaluations:
            found[name] = dict(sorted(evaluations.items()))
    settings = {name: found[name] for name in DATA_SETTINGS if name in found}
    ablations = {name: found[name] for name in ABLATIONS if name in found}
    if not settings:
        raise FileNotFoundError(f"no finished run of {', '.join(DATA_SETTINGS)} under {runs}")
    references = json.loads((runs / "references.json").read_text())
    ids = next(iter(references.values()))["per_molecule"]["molecule_id"]
    dissimilar = dissimilar_molecules(ids, "test")

    record: dict = {"num_molecules": len(ids), "settings": {}}
    for name, evaluations in settings.items():
        old = records.get(name, {}).get("dissimilar", {})
        subset = recorded_evaluations(old, SETTINGS[name].models) | {
            seed: {model: only_molecules(results, dissimilar) for model, results in by_model.items()}
            for seed, by_model in new[name].items()
        }
        section, record["settings"][name] = _setting_section(name, evaluations, subset, references, dissimilar)
        if new[name]:
            (folder / f"evidence_{name}.md").write_text("\n".join(section))
    kinds = (*_ABLATION_KINDS, "energy")
    record["ablations"] = {name: _record(evaluations, [CONSISTENCY], kinds) for name, evaluations in ablations.items()}
    record["references"] = {
        name: {key: value for key, value in values.items() if key != "per_molecule"}
        for name, values in references.items()
    }
    path.write_text(json.dumps(record, indent=1) + "\n")

    lines = [f"# Evidence: {len(ids)} molecules of the test split against their DFT structures", "", _CAPTION, ""]
    lines += _settings_tables(settings)
    lines += ["All kinds of prediction, energies, effects with their intervals, and dissimilar molecules:", ""]
    lines += [f"- [{name}](evidence_{name}.md): {SETTINGS[name].title}" for name in settings]
    lines += ["", *(_ablation_tables(ablations, found) if ablations else [])]
    pictures = ["![Errors by seed](evidence.png)", "![E of predicted against E of DFT structures](energy_scatter.png)"]
    pictures += ["![Generated (colour) over DFT structures (grey)](structures.png)", ""]
    (folder / "evidence.md").write_text("\n\n".join(["\n".join(lines), *pictures]))
    last = _last_setting(found)
    (folder / "main_table.md").write_text("\n".join(_main_table(found[last], references)) + "\n")
    if new[last]:
        _plot_first_seed(new[last], folder)
    _plot(settings, references, folder / "evidence.png")


def _settings_tables(settings: dict[str, Evaluations]) -> list[str]:
    """The data settings side by side."""
    lines = ["## All settings", ""]
    columns = [column for column in STRUCTURE_COLUMNS if column[0] in _MAIN_METRICS]
    for kind in _SETTING_KINDS:
        rows = {
            f"{name}, {len(evaluations)} seed{'s'[: len(evaluations) > 1]}: {model}": _by_metric(
                evaluations, model, kind, columns
            )
            for name, evaluations in settings.items()
            for model in SETTINGS[name].models
        }
        lines += [f"{PREDICTION_TITLES[kind]}:", "", *markdown_table(rows, columns, _cell).splitlines(), ""]
    return lines


def _setting_section(
    name: str,
    evaluations: Evaluations,
    subset: Evaluations,
    references: dict[str, dict],
    dissimilar: set[str],
) -> tuple[list[str], dict]:
    """Lines of Markdown and the record of one data setting: all molecules, effects, dissimilar molecules.

    `subset` has the evaluations of the dissimilar molecules alone, perhaps of fewer seeds.
    """
    models = list(SETTINGS[name].models)
    lines = [f"# Setting: {name} ({SETTINGS[name].title}), seeds {', '.join(map(str, evaluations))}", "", _CAPTION, ""]
    lines += [*_structure_table(evaluations, models, references), "", *_energy_table(evaluations, models), ""]
    record = _record(evaluations, models, (*PREDICTION_NAMES, "energy"))
    if len(evaluations) > 1:
        effect = effects(evaluations)
        lines += ["Consistency minus multi-task, 95% confidence interval, paired t-test over seeds:", ""]
        lines += [*_effect_table(effect), ""]
        record["effects"] = {kind: {metric: asdict(one) for metric, one in row.items()} for kind, row in effect.items()}
    if subset:
        seeds = ", ".join(map(str, subset))
        title = f"The {len(dissimilar)} molecules with no training molecule above Tanimoto {SIMILARITY_LIMIT}"
        lines += [f"{title}, seeds {seeds}:", ""]
        classical = {reference: only_molecules(values, dissimilar) for reference, values in references.items()}
        lines += [*_structure_table(subset, models, classical), ""]
        record["dissimilar"] = _record(subset, models, PREDICTION_NAMES)
    return lines, record


def _record(evaluations: Evaluations, models: Sequence[str], sections: Sequence[str]) -> dict:
    """What evidence.json keeps: one value a seed, by model, section and metric."""

    def columns(section: str):
        return ENERGY_COLUMNS if section == "energy" else STRUCTURE_COLUMNS

    return {"seeds": list(evaluations)} | {
        model: {section: _by_metric(evaluations, model, section, columns(section)) for section in sections}
        for model in models
    }


def _cell(values: list[float | None], decimals: int) -> str:
    """Mean over seeds, and its spread; a dash where a metric is absent."""
    if any(value is None for value in values):
        return "-"
    spread = f" ({np.std(values, ddof=1):.{decimals}f})" if len(values) > 1 else ""
    return f"{np.mean(values):.{decimals}f}{spread}"


def _structure_table(
    evaluations: Evaluations,
    models: list[str],
    references: dict[str, dict],
    columns=STRUCTURE_COLUMNS,
    kinds: Sequence[str] = PREDICTION_NAMES,
) -> list[str]:
    rows = {
        f"{model}: {PREDICTION_TITLES[name]}": _by_metric(evaluations, model, name, columns)
        for name in kinds
        for model in models
    }
    classical = reference_rows(references)
    rows |= {title: {key: [values.get(key)] for key, _, _ in columns} for title, values in classical.items()}
    return markdown_table(rows, columns, _cell).splitlines()


def _energy_table(evaluations: Evaluations, models: list[str]) -> list[str]:
    rows = {model: _by_metric(evaluations, model, "energy", ENERGY_COLUMNS) for model in models}
    return markdown_table(rows, ENERGY_COLUMNS, _cell).splitlines()


def _effect_table(found: dict[str, dict[str, PairedComparison]]) -> list[str]:
    lines = ["| | metric | effect | interval | relative | p |", "|---|---|---|---|---|---|"]
    for name, row in found.items():
        for metric, title in _TESTED:
            effect = row[metric]
            lines.append(
                f"| {PREDICTION_TITLES[name]} | {title} | {effect.difference:+.4f} | {effect.low:+.4f} to "
                f"{effect.high:+.4f} | {effect.relative:+.1%} | {effect.p_value:.2g} |"
            )
    return lines


def _ablation_tables(ablations: dict[str, Evaluations], found: dict[str, Evaluations]) -> list[str]:
    """Every ablation beside the models of the setting it starts from, over the seeds that both have."""
    lines = ["## Other forms and weights of the consistency losses", ""]
    columns = [c for c in STRUCTURE_COLUMNS if c[0] in dict(_TESTED)]
    for kind in _ABLATION_KINDS:
        rows = {}
        for name, evaluations in ablations.items():
            start = SETTINGS[name].start
            shared = {seed: found[start][seed] for seed in evaluations if seed in found[start]}
            for model in (MULTI_TASK, CONSISTENCY) if shared else ():
                rows[f"{start}: {model}"] = _by_metric(shared, model, kind, columns)
        for name, evaluations in ablations.items():
            rows[f"{SETTINGS[name].title} ({name})"] = _by_metric(evaluations, CONSISTENCY, kind, columns)
        lines += [f"{PREDICTION_TITLES[kind]}:", "", *markdown_table(rows, columns, _cell).splitlines(), ""]
    return lines


def _last_setting(found: dict[str, Evaluations]) -> str:
    """The data setting with the most labels that has been run, with E as in the others."""
    others = ("local", "fine_tuned")
    return [name for name in DATA_SETTINGS if name in found and name not in others][-1]


def _main_table(evaluations: Evaluations, references: dict[str, dict]) -> list[str]:
    """The few numbers that the README shows."""
    columns = [column for column in STRUCTURE_COLUMNS if column[0] in _MAIN_METRICS]
    return _structure_table(evaluations, [MULTI_TASK, CONSISTENCY], references, columns, _MAIN_KINDS)


def _plot_first_seed(evaluations: Evaluations, folder: Path) -> None:
    """The paper's figure 2, and structures."""
    models = next(iter(evaluations.values()))
    plot_energy_scatter(models, folder / "energy_scatter.png")
    ids = models[CONSISTENCY]["per_molecule"]["molecule_id"]
    # Evenly from the smallest to the largest molecule, so nobody chose the good ones.
    chosen = [round(i * (len(ids) - 1) / (_NUM_PICTURES - 1)) for i in range(_NUM_PICTURES)]
    references = {r.example.molecule_id: r for r in load_references(replace(EVALUATION, max_molecules=None))}
    plot_structures(
        [references[ids[i]] for i in chosen],
        {name: [r["per_molecule"]["ddim"]["first_sample"][i] for i in chosen] for name, r in models.items()},
        folder / "structures.png",
    )


def _plot(found: dict[str, Evaluations], references: dict[str, dict], path: Path) -> None:
    shown = (("bond_length_error", "bond error (angstrom)"), ("one_three_error", "1-3 error (angstrom)"))
    shown += (("energy_above_reference", "E above DFT structure (eV)"),)
    figure, axes = plt.subplots(
        len(found), len(shown), figsize=(4.2 * len(shown), 3.2 * len(found)), squeeze=False, constrained_layout=True
    )
    for row, (setting, evaluations) in enumerate(found.items()):
        for axis, (metric, title) in zip(axes[row], shown, strict=True):
            for place, name in enumerate(_SETTING_KINDS):
                pairs = [over_seeds(evaluations, model, name, metric) for model in (MULTI_TASK, CONSISTENCY)]
                for before, after in zip(*pairs, strict=True):
                    axis.plot([2.5 * place, 2.5 * place + 1], [before, after], "o-", color=f"C{place}", lw=0.8, ms=4)
            styles = (("black", "--"), ("black", ":"), ("grey", "--"), ("grey", ":"))
            for (colour, style), (name, values) in zip(styles, references.items(), strict=False):
                if values.get(metric) is not None:
                    axis.axhline(values[metric], color=colour, ls=style, lw=1, label=name)
            axis.set_xticks([0, 1, 2.5, 3.5], ["multi-task", "consistency"] * 2, fontsize=7)
            axis.axhline(0, color="black", lw=0.5)  # errors and energies are judged by their distance from it
            axis.set(ylabel=title, title=f"{setting}: refined from PM6 | generated")
            axis.title.set_fontsize(9)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=7)
    save_figure(figure, path)
