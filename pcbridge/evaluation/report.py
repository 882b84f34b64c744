"""What a run leaves for people: a Markdown table and pictures."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pcbridge.evaluation.evaluate import PREDICTION_NAMES
from pcbridge.evaluation.metrics import kabsch_align
from pcbridge.evaluation.references import ReferenceMolecule

# Column titles of the structure table: metric key, title, decimals.
STRUCTURE_COLUMNS = (
    ("heavy_rmsd_mean", "heavy RMSD mean", 3),
    ("heavy_rmsd_median", "heavy RMSD median", 3),
    ("heavy_rmsd_min", "heavy RMSD min", 3),
    ("rmsd_mean", "all-atom RMSD mean", 3),
    ("rmsd_min", "all-atom RMSD min", 3),
    ("coverage", "coverage", 3),
    ("d_mae", "D-MAE", 3),
    ("d_rmse", "D-RMSE", 3),
    ("bond_length_error", "bond error", 4),
    ("one_three_error", "1-3 error", 4),
    ("bond_angle_error", "angle error (deg)", 2),
    ("torsion_error", "torsion error (deg)", 1),
    ("stereo_right", "stereo right", 3),
    ("energy_above_reference", "E above ref (eV)", 3),
    ("energy_gap", "EGap", 6),
    ("pm6_rmsd_mean", "all-atom RMSD to PM6", 3),
)
ENERGY_COLUMNS = (
    ("pm6_energy_mae", "energy MAE, PM6 minima (eV)", 3),
    ("pm6_force_mae", "force MAE, PM6 minima (eV/A)", 3),
    ("pm6_displaced_energy_mae", "energy MAE, displaced (eV)", 3),
    ("pm6_displaced_force_mae", "force MAE, displaced (eV/A)", 3),
)
PREDICTION_TITLES = {
    "ddim": "generated, DDIM",
    "denoising": "generated, one evaluation",
    "refine": "refined from PM6",
    "mean_shift": "refined from PM6, mean shift",
    "ddim_mean_shift": "generated, DDIM and mean shift",
    "lowest_energy": "generated, lowest energy",
    "lowest_energy_mean_shift": "generated, DDIM and mean shift, lowest energy",
    "refine_relaxed": "refined, then relaxed on E",
    "lowest_energy_relaxed": "generated, relaxed on E, lowest energy",
}
_ELEMENT_COLOURS = {1: "#bbbbbb", 6: "#444444", 7: "#3050f8", 8: "#e02020", 9: "#50b050"}


def format_value(value: float | None, decimals: int) -> str:
    """A table cell; a dash where a metric is absent."""
    return "-" if value is None else f"{value:.{decimals}f}"


def markdown_table(rows: dict[str, dict], columns, format_cell: Callable = format_value) -> str:
    """A Markdown table: a row for each entry, by metric; `format_cell` takes what is there and the decimals."""
    lines = ["| | " + " | ".join(title for _, title, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, metrics in rows.items():
        cells = [format_cell(metrics.get(key), decimals) for key, _, decimals in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def reference_rows(references: dict[str, dict]) -> dict[str, dict]:
    """Classical methods by a title that says in how many molecules they failed: their means are over the others."""
    return {
        f"{name}, {failures} failed" if (failures := values.get("failures", 0)) else name: values
        for name, values in references.items()
    }


def results_markdown(metrics: dict) -> str:
    """The result tables of a run, from what is in its metrics.json."""
    structure_rows, energy_rows = {}, {}
    for name, results in metrics["models"].items():
        energy_rows[name] = results["energy"]
        for method in PREDICTION_NAMES:
            structure_rows[f"{name}: {PREDICTION_TITLES[method]}"] = results[method]
    structure_rows |= reference_rows(metrics["references"])
    return (
        f"Structures against DFT equilibrium structures (angstrom), {metrics['split']} split, "
        f"{metrics['num_molecules']} molecules, {metrics['num_samples']} samples each, seed {metrics['seed']}.\n\n"
        + markdown_table(structure_rows, STRUCTURE_COLUMNS)
        + "\n\nEnergies and forces against the bundled labels at the model's level of theory.\n\n"
        + markdown_table(energy_rows, ENERGY_COLUMNS)
        + "\n"
    )


def plot_losses(histories: dict[str, list[dict]], path: Path) -> None:
    """Every loss term over the updates of each stage."""
    records = [record for history in histories.values() for record in history]
    terms = sorted({key for record in records for key, value in record.items() if key.endswith("_loss") and value})
    if not terms:
        return
    width = 3.2 * len(terms)
    figure, axes = plt.subplots(1, len(terms), figsize=(width, 3), squeeze=False)
    # A layout to measure takes longer than all else here.
    figure.subplots_adjust(left=0.7 / width, right=1 - 0.1 / width, bottom=0.16, top=0.9, wspace=0.3)
    for axis, term in zip(axes[0], terms, strict=True):
        for name, history in histories.items():
            # Not every record has a validation loss.
            points = [(record["step"], record[term]) for record in history if term in record]
            steps, values = [step for step, _ in points], np.array([value for _, value in points])
            if values.any():
                window = min(10, len(values)) if term != "validation_loss" else 1
                smooth = np.convolve(values, np.ones(window) / window, mode="valid")
                axis.plot(steps[window - 1 :], smooth, label=name, lw=1.2)
        axis.set(title=term.removesuffix("_loss").replace("_", " "), xlabel="update", yscale="log")
        axis.title.set_fontsize(9)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_energy_scatter(models: dict[str, dict], path: Path) -> None:
    """E(R_pred) against E(R_eq) of the model's own energy (paper, Fig. 2), and the difference's distribution."""
    figure, axes = plt.subplots(1, len(models) + 1, figsize=(3.6 * (len(models) + 1), 3.4), constrained_layout=True)
    for axis, (name, results) in zip(axes, models.items(), strict=False):
        data = results["per_molecule"]
        reference, predicted = np.array(data["reference_energy"]), np.array(data["ddim"]["first_energy"])
        axis.scatter(reference, predicted, s=6, alpha=0.6)
        ends = [reference.min(), reference.max()]
        axis.plot(ends, ends, color="black", lw=0.8)
        axis.set(title=name, xlabel="E(R_eq) (eV)", ylabel="E(R_pred) (eV)")
        axes[-1].hist(np.clip(predicted - reference, -0.5, 3), bins=50, histtype="step", label=name)
    axes[-1].set(xlabel="E(R_pred) - E(R_eq) (eV)", ylabel="molecules", title="ddim, clipped to -0.5..3 eV")
    axes[-1].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_structures(references: list[ReferenceMolecule], predictions: dict[str, list[np.ndarray]], path: Path) -> None:
    """Predicted structures (colour) over the references (grey), a row per model; without references no file."""
    if not references:
        return
    shape = (len(predictions), len(references))
    figure, axes = plt.subplots(
        *shape, figsize=(2.6 * shape[1], 2.8 * shape[0]), subplot_kw={"projection": "3d"}, squeeze=False
    )
    for row, (name, structures) in zip(axes, predictions.items(), strict=True):
        for axis, reference, structure in zip(row, references, structures, strict=True):
            target = np.asarray(reference.positions, dtype=np.float64)
            # Look along the flattest direction.
            _, _, principal = np.linalg.svd(target - target.mean(0), full_matrices=True)
            aligned = kabsch_align(np.asarray(structure)[None], target)[0]
            _draw(axis, reference.example.graph, (target - target.mean(0)) @ principal.T, "#cccccc", 5.0)
            _draw(axis, reference.example.graph, (aligned - target.mean(0)) @ principal.T, None, 1.8)
            axis.set_title(f"{reference.example.molecule_id}\n{name}", fontsize=7)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1 - 0.16 / shape[0], wspace=0, hspace=0.1)  # titles
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw(axis, graph, positions: np.ndarray, colour: str | None, width: float) -> None:
    bonds = np.argwhere(np.triu(graph.bonded))
    for i, j in bonds:
        middle = (positions[i] + positions[j]) / 2
        for atom in (i, j):
            half = np.stack([positions[atom], middle])
            element_colour = _ELEMENT_COLOURS.get(int(graph.atomic_numbers[atom]), "#a040a0")
            axis.plot(*half.T, color=colour or element_colour, lw=width, solid_capstyle="round")
    axis.set_axis_off()
    axis.view_init(elev=90, azim=-90)
    reach = np.abs(positions).max()
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
    axis.set_box_aspect((1, 1, 1), zoom=1.5)
