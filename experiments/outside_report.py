"""Tables and a plot of the errors of structures of drug-like molecules: by method, size, conformer and groups."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rdkit import Chem

from experiments.figures import plt, save_figure
from experiments.structure_errors import METRICS, Molecule, mean_cells, worse_bonds

SAME_CONFORMER = 3.0  # degrees, the torsion error of a start that is in the conformer of the DFT structure
_SIZES = [(8, 14), (15, 19), (20, 24), (25, 60)]  # heavy atoms
# What molecules may contain, as SMARTS with the least number of matches.
_GROUPS = {
    "N": ("[#7]", 1),
    "O": ("[#8]", 1),
    "F": ("[F]", 1),
    "CF2 or CF3": ("C(F)F", 1),
    "Cl": ("[Cl]", 1),
    "three or more Cl": ("[Cl]", 3),
    "S": ("[#16]", 1),
    "P": ("[P]", 1),
    "Br or I": ("[Br,I]", 1),
    "an ion": ("[$([+;!$(*~[-])]),$([-;!$(*~[+])])]", 1),
    "any": ("*", 1),
}


def table(results: dict[str, dict], start: dict) -> list[str]:
    """A row for each method: how many molecules, means over them, and how many have worse bonds than MMFF94."""
    medians = ["bonds, median", "angles, median"]
    titles = [title for title, _ in METRICS.values()]
    columns = ["served", *titles, *medians, "bonds worse than MMFF94", "s per molecule", "weights"]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, result in results.items():
        records = result["records"]
        cells = [str(len(records))]
        cells += mean_cells(records.values(), METRICS)
        for key in ("bonds", "angles"):
            cells.append(f"{np.nanmedian([r[key] for r in records.values()]):.{METRICS[key][1]}f}")
        compared = set(records) & set(start["records"])
        cells.append("" if name == "MMFF94" else f"{100 * len(worse_bonds(result, start)) / len(compared):.0f}%")
        cells.append("" if result["seconds"] is None else f"{result['seconds']:.2f}")
        cells.append(result.get("weights", ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def by_group(results: dict[str, dict], molecules: Sequence[Molecule], start: dict) -> list[str]:
    """Of the molecules that contain a group: mean bond error, and how many have worse bonds than MMFF94's minimum."""
    having = of_groups(molecules)
    lines = ["| | " + " | ".join(f"{group} ({len(names)})" for group, names in having.items()) + " |"]
    lines += ["|---" * (len(having) + 1) + "|"]
    for name, result in results.items():
        worse = worse_bonds(result, start)
        bonds = {name: record["bonds"] for name, record in result["records"].items()}
        cells = []
        for names in having.values():
            served = [bonds[name] for name in names if name in bonds]
            cells.append(f"{np.mean(served):.4f} / {len(worse & names)}" if served else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def of_groups(molecules: Sequence[Molecule]) -> dict[str, set[str]]:
    """Names of molecules by what they contain, without what none does."""
    having = {}
    for group, (smarts, least) in _GROUPS.items():
        pattern = Chem.MolFromSmarts(smarts)
        if names := {m.name for m in molecules if len(m.mol.GetSubstructMatches(pattern)) >= least}:
            having[group] = names
    return having


def of_sizes(molecules: Sequence[Molecule]) -> dict[str, set[str]]:
    """Names of molecules by numbers of heavy atoms."""
    heavy = {m.name: int((m.graph.atomic_numbers > 1).sum()) for m in molecules}
    return {f"{low} to {high}": {name for name in heavy if low <= heavy[name] <= high} for low, high in _SIZES}


def of_starts(start: dict) -> dict[str, set[str]]:
    """Names of molecules by whether the MMFF94 minimum, `start`, is in the conformer of the DFT structure."""
    torsions = {name: record["torsions"] for name, record in start["records"].items()}
    far = {name for name in torsions if torsions[name] > SAME_CONFORMER}
    return {f"at most {SAME_CONFORMER:.0f}": set(torsions) - far, f"more than {SAME_CONFORMER:.0f}": far}


def by_class(results: dict[str, dict], classes: dict[str, set[str]], key: str) -> list[str]:
    """Means of one metric by class of molecules."""
    lines = ["| | " + " | ".join(f"{title} ({len(names)})" for title, names in classes.items()) + " |"]
    lines += ["|---" * (len(classes) + 1) + "|"]
    for name, result in results.items():
        cells = [_mean_of(result, names, key) for names in classes.values()]
        cells = ["" if np.isnan(cell) else f"{cell:.{METRICS[key][1]}f}" for cell in cells]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _mean_of(result: dict, names: set[str], key: str) -> float:
    values = [record[key] for name, record in result["records"].items() if name in names]
    return float(np.nanmean(values)) if values else np.nan


def plot(results: dict[str, dict], sizes: dict[str, set[str]], path: Path) -> None:
    """Errors of bonds and angles against size: of other methods, dashed, and of the checkpoint of the last rows."""
    checkpoints = {name: name.partition(", ")[0] for name in results if ", " in name}
    last = list(checkpoints.values())[-1:]
    sizes = {title: names for title, names in sizes.items() if names}
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), constrained_layout=True)
    for axis, key, label in zip(axes, ("bonds", "angles"), ("bonds, angstrom", "angles, degrees"), strict=True):
        for name, result in results.items():
            if name in checkpoints and checkpoints[name] not in last:
                continue
            style = "-" if name in checkpoints else "--"
            errors = [_mean_of(result, names, key) for names in sizes.values()]
            axis.plot(errors, style, marker="o", label=name.removeprefix(f"{checkpoints.get(name)}, "))
        axis.set_xticks(range(len(sizes)), list(sizes))
        axis.set(xlabel="heavy atoms", ylabel=f"mean absolute error of {label}", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    save_figure(figure, path)


def write_report(
    results: dict[str, dict], molecules: Sequence[Molecule], title: str, introduction: str, output: Path
) -> None:
    """All numbers, the tables and the plot, at `output` with the endings .json, .md and .png."""
    sizes, start = of_sizes(molecules), results["MMFF94"]
    lines = [
        f"# {title}",
        "",
        f"{introduction} Starts are the MMFF94 minima below the DFT structures. Means over the molecules that a method "
        "serves.",
        "",
        *table(results, start),
        "",
        "## Bonds by heavy atoms, angstrom",
        "",
        *by_class(results, sizes, "bonds"),
        "",
        "## Angles, degrees, by torsion errors of the MMFF94 minimum, degrees",
        "",
        *by_class(results, of_starts(start), "angles"),
        "",
        "## Bonds, angstrom, and how many molecules have worse ones than MMFF94's minimum, by what they contain",
        "",
        *by_group(results, molecules, start),
        "",
    ]
    text = "\n".join(lines)
    output.with_suffix(".md").write_text(text)
    output.with_suffix(".json").write_text(json.dumps(results) + "\n")
    plot(results, sizes, output.with_suffix(".png"))
    print(text)
