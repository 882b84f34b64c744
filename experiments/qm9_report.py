"""Tables and plots of the QM9 benchmark, from what `experiments.qm9_benchmark` measured."""

import json
from pathlib import Path

import numpy as np
from scipy.stats import sem

from experiments.figures import plt, save_figure
from experiments.qm9_evaluation import DDIM, MMFF_REFINED, MMFF_SAMPLES, Records, central, summary
from experiments.qm9_molecules import STARTS
from pcbridge.evaluation.references import ReferenceMolecule
from pcbridge.evaluation.report import format_value, markdown_table, plot_structures

# D-MAE, D-RMSE and C-RMSD on their own random test split of QM9: GTMGC (Xu et al., ICLR 2024), ConfOpt and WGFormer as
# reported there and in the WGFormer paper.
PUBLISHED = {
    "GTMGC (published)": {"d_mae": 0.264, "d_rmse": 0.470, "heavy_rmsd_mean": 0.367},
    "ConfOpt (published)": {"d_mae": 0.244, "d_rmse": 0.438, "heavy_rmsd_mean": 0.246},
    "WGFormer (published)": {"d_mae": 0.227, "d_rmse": 0.422, "heavy_rmsd_mean": 0.206},
}
_GRAPH_COLUMNS = (
    ("d_mae", "D-MAE", 3),
    ("d_rmse", "D-RMSE", 3),
    ("heavy_rmsd_mean", "C-RMSD", 3),
    ("bond_length_error", "bond error", 4),
    ("bond_angle_error", "angle error (deg)", 2),
    ("torsion_error", "torsion error (deg)", 1),
    ("stereo_right", "stereo right", 3),
)
_REFINEMENT_COLUMNS = (
    ("rmsd_mean", "RMSD", 3),
    ("heavy_rmsd_mean", "C-RMSD", 3),
    ("d_mae", "D-MAE", 4),
    ("bond_length_error", "bond error", 4),
    ("bond_angle_error", "angle error (deg)", 2),
)
# How much the mean of another draw of molecules would differ.
_WITH_STANDARD_ERROR = ("d_mae", "d_rmse", "heavy_rmsd_mean")
_PLOTTED = (MMFF_SAMPLES, central(MMFF_SAMPLES), DDIM, central(DDIM), central(MMFF_REFINED))
_NUM_PICTURES = 10
# Stage 1, trained longer, and longer still.
CONTINUED, CONTINUED_TWICE = "continued", "continued twice"
# The model that plots show and that is released; chosen on the validation split.
RELEASED = CONTINUED_TWICE


def write_report(results: dict, references: list[ReferenceMolecule], folder: Path) -> str:
    """`write_tables`, and qm9_errors.png, qm9_refinement.png and qm9_structures.png; returns the Markdown.

    Args:
        results: of `experiments.qm9_benchmark.evaluate`, by model under "models", `RELEASED` among them.
        references: the molecules they were measured on.
    """
    text = write_tables(results, folder)
    _plot_errors(results, references, folder / "qm9_errors.png")
    _plot_refinement(results["models"][RELEASED]["refinement"], folder / "qm9_refinement.png")
    _plot_molecules(results["models"][RELEASED], references, folder / "qm9_structures.png")
    return text


def write_tables(results: dict, folder: Path) -> str:
    """qm9.json and qm9.md in `folder`; returns the Markdown.

    Models that an earlier qm9.json has of the same molecules and samples keep their rows, so that runs may come from
    several machines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {key: value for key, value in results.items() if key != "models"}
    file = folder / "qm9.json"
    earlier = json.loads(file.read_text()) if file.exists() else {}
    known = earlier["models"] if earlier and record.items() <= earlier.items() else {}
    record["models"] = known | {name: _summaries(model) for name, model in results["models"].items()}
    file.write_text(json.dumps(record, indent=1) + "\n")
    text = _markdown(record)
    (folder / "qm9.md").write_text(text)
    return text


def _summaries(model: dict) -> dict:
    """What qm9.json keeps of one model: by row the number of molecules, means, and what tells how sure these are."""
    return {
        "from_graph": {
            row: {
                "molecules": len(records),
                "mean": summary(records),
                "standard_error": {key: summary(records, sem)[key] for key in _WITH_STANDARD_ERROR},
            }
            for row, records in model["from_graph"].items()
        },
        "refinement": {
            row: {"molecules": len(records), "mean": summary(records), "median": summary(records, np.median)}
            for row, records in model["refinement"].items()
        },
        "at_minima": model["at_minima"],
    }


def _titled(row: str, found: dict, num_molecules: int) -> str:
    """The name of a row, with the number of molecules where RDKit or MOPAC failed in some."""
    molecules = found.get("molecules", num_molecules)
    return row if molecules == num_molecules else f"{row} ({molecules} molecules)"


def _with_error(value: tuple[float | None, float | None], decimals: int) -> str:
    mean, error = value
    return format_value(mean, decimals) + ("" if error is None else f" ± {error:.{decimals}f}")


def _markdown(record: dict) -> str:
    lines = [
        "# QM9 benchmark",
        "",
        f"{record['num_molecules']} molecules of the {record['split']} split (110,000 / 10,000 / the rest, "
        "dataset_scripts/qm9.py), drawn at random, without the 66 that stage 2 sees in the bundled data; structures "
        "and energies at B3LYP/6-31G(2df,p). Means over molecules, lengths in angstrom.",
        "",
        "## From the graph",
        "",
        f"{record['num_from_graph']} of them, {record['num_samples']} samples per molecule; DDIM ends in mean shift. ± "
        "is the standard error over molecules, where it was kept. "
        "Published rows are on splits of the same sizes, whose lists are not public; means over their whole test "
        "sets. RDKit and PCBridge are told the stereo marks of the DFT structure; whether the published models were is "
        "not known here.",
        "",
    ]
    rows: dict[str, dict] = {name: {key: (x, None) for key, x in means.items()} for name, means in PUBLISHED.items()}
    for name, model in record["models"].items():
        for row, found in model["from_graph"].items():
            is_ours = "PCBridge" in row
            if not is_ours and name != RELEASED:  # RDKit's rows are the same beside every model
                continue
            title = _titled(f"{name}: {row}" if is_ours else row, found, record["num_from_graph"])
            errors = found.get("standard_error", {})
            rows[title] = {key: (mean, errors.get(key)) for key, mean in found["mean"].items()}
    rows = {title: {key: row.get(key, (None, None)) for key, _, _ in _GRAPH_COLUMNS} for title, row in rows.items()}
    lines += [markdown_table(rows, _GRAPH_COLUMNS, _with_error), "", "## Refinement of cheap structures", ""]
    lines += [
        '"Same conformer": the cheap method\'s minimum below the DFT structure. "From the graph": ETKDGv3, then the '
        "cheap method, whatever its conformer. RMSD counts all atoms with their labels. Means, then medians. The "
        f"starts are those of {RELEASED!r}; of models measured earlier PM6's may have been computed another time, "
        "and the number of molecules where a method failed was not always kept.",
        "",
    ]
    for statistic in ("mean", "median"):
        rows = {}
        for name, model in record["models"].items():
            for row, found in model["refinement"].items():
                is_start = not row.endswith("refined")
                if not is_start or name == RELEASED:
                    title = _titled(row if is_start else f"{row}: {name}", found, record["num_molecules"])
                    rows[title] = found[statistic]
        lines += [markdown_table(dict(sorted(rows.items())), _REFINEMENT_COLUMNS), ""]
    lines += [
        "## At the DFT structures",
        "",
        "| | energy MAE (meV) | RMS force, zero in DFT (eV/angstrom) |",
        "|---|---|---|",
    ]
    for name, model in record["models"].items():
        found = model["at_minima"]
        lines.append(f"| {name} | {1000 * found['energy_mae']:.0f} | {found['force_left']:.2f} |")
    lines += [
        "| SchNet, 110,000 molecules (published) | 14 | - |",
        "| PaiNN, 110,000 molecules (published) | 5.9 | - |",
        "",
    ]
    return "\n".join(lines)


def _plot_errors(results: dict, references: list[ReferenceMolecule], path: Path) -> None:
    """D-MAE from the graph: against molecule size, and its distribution."""
    sizes = {r.example.molecule_id: r.example.graph.num_atoms for r in references}
    from_graph = results["models"][RELEASED]["from_graph"]
    shown = {row: from_graph[row] for row in _PLOTTED}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    for name, records in shown.items():
        num_atoms = np.array([sizes[molecule] for molecule in records])
        errors = np.array([record["d_mae"] for record in records.values()])
        edges = np.unique(np.quantile(num_atoms, np.linspace(0, 1, 8)))
        groups = np.digitize(num_atoms, edges[1:-1])
        centres = [num_atoms[groups == group].mean() for group in np.unique(groups)]
        left.plot(centres, [errors[groups == group].mean() for group in np.unique(groups)], "o-", ms=3, label=name)
        right.plot(np.sort(errors), np.linspace(0, 1, len(errors)), label=name)
    left.set(xlabel="atoms", ylabel="mean D-MAE (angstrom)", ylim=(0, None))
    right.set(xlabel="D-MAE (angstrom)", ylabel="share of molecules below", xlim=(0, 1), ylim=(0, 1))
    right.legend(fontsize=7)
    save_figure(figure, path)


def _plot_refinement(refinement: dict[str, Records], path: Path) -> None:
    """The distribution of D-MAE before and after, for every kind of start."""
    figure, axes = plt.subplots(1, len(STARTS), figsize=(3.2 * len(STARTS), 3.2), constrained_layout=True)
    for axis, key in zip(axes, STARTS, strict=True):
        title = ", ".join(key)
        for row, label in ((title, "start"), (f"{title}, refined", "refined")):
            errors = np.sort([record["d_mae"] for record in refinement[row].values()])
            axis.plot(errors, np.linspace(0, 1, len(errors)), label=label)
        axis.set(title=title, xlabel="D-MAE (angstrom)", xscale="log", xlim=(1e-3, 2), ylim=(0, 1))
        axis.title.set_fontsize(9)
    axes[0].set_ylabel("share of molecules below")
    axes[0].legend(fontsize=8)
    save_figure(figure, path)


def _plot_molecules(model: dict, references: list[ReferenceMolecule], path: Path) -> None:
    """The first ten molecules of the random order, from the smallest error to the largest."""
    records, structures = model["from_graph"][central(DDIM)], model["structures"]
    chosen = sorted(references[:_NUM_PICTURES], key=lambda r: records[r.example.molecule_id]["d_mae"])
    plot_structures(
        chosen,
        {"from the graph": [np.array(structures[r.example.molecule_id]) for r in chosen]},
        path,
    )
