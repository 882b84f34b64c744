"""Structures of drug-like molecules that no one here made: models beside force fields and GFN2-xTB.

    python -m experiments.outside flexisol_validation.parquet --checkpoints checkpoints/drug_like [MORE ...]

The file holds DFT minima with the columns `name`, `mapped_smiles`, `positions`, and `mmff` and `gfn2`, the minima of
these methods below the DFT structure (angstrom; null where there is none). Each model refines the MMFF94 minima by mean
shift and then by two steps on its own energy, relaxes the structures of mean shift on that energy, and, with a head for
GFN2-xTB, corrects the GFN2-xTB minima. Tables, a plot and all numbers of each molecule go to `--output` (default:
experiments/results/outside.*), beside what is there of other checkpoints.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow.parquet as pq
import torch
from rdkit import Chem

from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.graph_batch import GraphBatch
from modeling_pcbridge.molecular_graph import MolecularGraph, graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from pcbridge.evaluation.batches import moved
from pcbridge.evaluation.metrics import (
    bond_angle_error,
    bond_length_error,
    heavy_atom_rmsd,
    kabsch_rmsd,
    one_three_distance_error,
    torsion_error,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "outside"
GFN2 = "GFN2-xTB"
MEAN_SHIFT_STEPS = 5  # evaluations of the model per structure
REFINEMENT_STEPS = 2  # on E
REFINED = f"mean shift {MEAN_SHIFT_STEPS}, two steps on E"  # as `predict_structure` does it by default
MAX_EVALUATIONS = 100  # of E, in a relaxation
BATCH_SIZE = 8
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
METRICS = {
    "bonds": ("bonds, angstrom", 4),
    "bonds_centred": ("bonds, type means removed", 4),
    "one_three": ("1-3 distances, angstrom", 4),
    "angles": ("angles, degrees", 2),
    "torsions": ("torsions, degrees", 1),
    "heavy_rmsd": ("heavy-atom RMSD, angstrom", 3),
    "rmsd": ("all-atom RMSD, angstrom", 3),
}


@dataclass(frozen=True)
class Molecule:
    """A DFT structure and the cheap minima below it, (N, 3), angstrom."""

    name: str
    mol: Chem.Mol
    graph: MolecularGraph
    reference: np.ndarray
    mmff: np.ndarray | None
    gfn2: np.ndarray | None


def read(path: Path) -> list[Molecule]:
    """The molecules of a file as the module says."""

    def array(value: list | None) -> np.ndarray | None:
        return None if value is None else np.array(value)

    molecules = []
    for row in pq.read_table(path).to_pylist():
        mol = mol_from_smiles(row["mapped_smiles"])
        molecules.append(
            Molecule(
                row["name"],
                mol,
                graph_from_mol(mol),
                np.array(row["positions"]),
                array(row["mmff"]),
                array(row["gfn2"]),
            )
        )
    return molecules


def record(molecule: Molecule, structure: np.ndarray) -> dict[str, float]:
    """The errors of one structure (N, 3), angstrom; without the one that needs all molecules."""
    graph, reference, one = molecule.graph, molecule.reference, structure[None]
    return {
        "bonds": float(bond_length_error(graph, one, reference)[0]),
        "one_three": float(one_three_distance_error(graph, one, reference)[0]),
        "angles": float(bond_angle_error(graph, one, reference)[0]),
        "torsions": float(torsion_error(graph, one, reference)[0]),
        "heavy_rmsd": float(heavy_atom_rmsd(molecule.mol, one, reference)[0]),
        "rmsd": float(kabsch_rmsd(one, reference)[0]),
    }


def centred_bond_errors(molecules: Sequence[Molecule], structures: Sequence[np.ndarray]) -> list[float]:
    """Per molecule the mean absolute bond error after the mean error of each type of bond is taken out.

    Two levels of theory differ by about a constant per type: the elements of the two atoms and the order of the bond.
    """
    errors: list[np.ndarray] = []
    types: list[list[tuple]] = []
    by_type: dict[tuple, list[float]] = defaultdict(list)
    for molecule, structure in zip(molecules, structures, strict=True):
        i, j = np.argwhere(np.triu(molecule.graph.bonded)).T
        length, of_reference = (np.linalg.norm(x[i] - x[j], axis=-1) for x in (structure, molecule.reference))
        errors.append(length - of_reference)
        types.append(
            [
                (
                    *sorted(molecule.graph.atomic_numbers[[a, b]].tolist()),
                    int(molecule.graph.pair_types[a, b]),
                )
                for a, b in zip(i, j, strict=True)
            ]
        )
        for kind, error in zip(types[-1], errors[-1].tolist(), strict=True):
            by_type[kind].append(error)
    means = {kind: np.mean(some) for kind, some in by_type.items()}
    return [
        float(np.abs(error - [means[kind] for kind in kinds]).mean())
        for error, kinds in zip(errors, types, strict=True)
    ]


def measured(molecules: Sequence[Molecule], structures: Sequence[np.ndarray | None], seconds: float | None) -> dict:
    """All errors of a method: of each molecule by its name, with the time per molecule."""
    served = [(m, s) for m, s in zip(molecules, structures, strict=True) if s is not None]
    records = {m.name: record(m, s) for m, s in served}
    centred = centred_bond_errors(*zip(*served, strict=True)) if served else []
    for (molecule, _), error in zip(served, centred, strict=True):
        records[molecule.name]["bonds_centred"] = error
    records = {name: {key: round(float(value), 6) for key, value in r.items()} for name, r in records.items()}
    return {"records": records, "seconds": None if seconds is None else seconds / max(len(served), 1)}


def taken_by(model: PCBridgeModel, molecules: Sequence[Molecule]) -> tuple[list[Molecule], list[MolecularGraph]]:
    """The molecules with elements and charges that the model takes and both cheap minima, by size, and their graphs."""
    processor = PCBridgeProcessor.of_config(model.config)
    taken = []
    for molecule in molecules:
        if molecule.mmff is None or molecule.gfn2 is None:
            continue
        try:
            processor(molecule.mol)
        except InputError:
            continue
        taken.append(molecule)
    taken.sort(key=lambda molecule: molecule.graph.num_atoms)
    return taken, [graph_from_mol(molecule.mol, model.config.resonance_invariant) for molecule in taken]


def mean_shifted(model: PCBridgeModel, graphs: Sequence[MolecularGraph], starts: list[np.ndarray]) -> list[np.ndarray]:
    """The structures (N, 3), angstrom, after `MEAN_SHIFT_STEPS` evaluations."""
    return moved(model, graphs, starts, BATCH_SIZE, partial(model.mean_shift, num_steps=MEAN_SHIFT_STEPS))


def of_model(model: PCBridgeModel, molecules: Sequence[Molecule]) -> dict[str, dict]:
    """Errors of each method of the model, see `structures_of`."""
    taken, graphs = taken_by(model, molecules)
    found = structures_of(model, taken, graphs)
    return {name: measured(taken, structures, seconds) for name, (structures, seconds) in found.items()}


def structures_of(
    model: PCBridgeModel, molecules: Sequence[Molecule], graphs: Sequence[MolecularGraph]
) -> dict[str, tuple[list[np.ndarray], float]]:
    """Structures (N, 3), angstrom, of all molecules by each method, and the seconds that it took.

    Mean shift from the MMFF94 minima, then two steps or relaxation on E; GFN2-xTB minima corrected and relaxed, where
    the model has their level.
    """

    def relaxed(graph: GraphBatch, positions: torch.Tensor) -> torch.Tensor:
        return model.relax_structure(
            positions, max_evaluations=MAX_EVALUATIONS, allow_unlearned_forces=True, **graph.inputs
        ).positions

    def corrected(graph: GraphBatch, positions: torch.Tensor) -> torch.Tensor:
        return model.correct_structure(positions, GFN2, **graph.inputs)

    start = time.perf_counter()
    shifted = mean_shifted(model, graphs, [m.mmff for m in molecules])
    found = {f"mean shift {MEAN_SHIFT_STEPS}": (shifted, time.perf_counter() - start)}
    stepped = moved(model, graphs, shifted, BATCH_SIZE, partial(model.quasi_newton_steps, num_steps=REFINEMENT_STEPS))
    found[REFINED] = (stepped, time.perf_counter() - start)
    after = moved(model, graphs, shifted, BATCH_SIZE, relaxed)
    found["mean shift, relaxed on E"] = (after, time.perf_counter() - start)
    if GFN2 in model.config.energy_levels_of_theory[1:]:
        for name, move in (("GFN2-xTB corrected", corrected), ("GFN2-xTB relaxed on E", relaxed)):
            start = time.perf_counter()
            after = moved(model, graphs, [m.gfn2 for m in molecules], BATCH_SIZE, move)
            found[name] = (after, time.perf_counter() - start)
    return found


def mean_cells(records: Iterable[dict[str, float]], metrics: Iterable[str]) -> list[str]:
    """Of each metric the mean over the molecules that have it, with its digits."""
    records = list(records)
    return [f"{np.nanmean([r[key] for r in records]):.{METRICS[key][1]}f}" for key in metrics]


def table(results: dict[str, dict], start: dict) -> list[str]:
    """A row for each method: how many molecules, means over them, and how many have worse bonds than MMFF94."""
    medians = ["bonds, median", "angles, median"]
    titles = [title for title, _ in METRICS.values()]
    columns = ["served", *titles, *medians, "bonds worse than MMFF94", "s per molecule"]
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
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def worse_bonds(result: dict, start: dict) -> set[str]:
    """The molecules whose bonds are farther from the DFT structure than those of the MMFF94 minimum, `start`."""
    before = start["records"]
    return {name for name, r in result["records"].items() if name in before and r["bonds"] > before[name]["bonds"]}


def by_group(results: dict[str, dict], molecules: Sequence[Molecule], start: dict) -> list[str]:
    """Of the molecules that contain a group: mean bond error, and how many have worse bonds than MMFF94's minimum."""
    having = {}
    for group, (smarts, least) in _GROUPS.items():
        pattern = Chem.MolFromSmarts(smarts)
        names = {m.name for m in molecules if len(m.mol.GetSubstructMatches(pattern)) >= least}
        if names:
            having[group] = names
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
    """Errors of bonds and angles against size."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    for axis, key, label in zip(axes, ("bonds", "angles"), ("bonds, angstrom", "angles, degrees"), strict=True):
        for name, result in results.items():
            axis.plot([_mean_of(result, names, key) for names in sizes.values()], marker="o", label=name)
        axis.set_xticks(range(len(sizes)), list(sizes))
        axis.set(xlabel="heavy atoms", ylabel=f"mean absolute error of {label}", yscale="log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def cheap_minima(molecules: Sequence[Molecule]) -> dict[str, list[np.ndarray | None]]:
    """Those of the file, (N, 3), angstrom, by their level."""
    return {"MMFF94": [m.mmff for m in molecules], GFN2: [m.gfn2 for m in molecules]}


def evaluate(molecules: Sequence[Molecule], checkpoints: Sequence[str]) -> dict[str, dict]:
    """What was measured of the cheap minima and of all methods of each checkpoint, by name."""
    results = {name: measured(molecules, found, None) for name, found in cheap_minima(molecules).items()}
    for checkpoint in checkpoints:
        model = PCBridgeModel.from_pretrained(checkpoint).eval()
        for method, result in of_model(model, molecules).items():
            results[f"{'/'.join(Path(checkpoint).parts[-2:])}, {method}"] = result
    return results


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


def write_beside(results: dict[str, dict], molecules: Sequence[Molecule], file: str, output: Path) -> None:
    """`write_report` of these results and of those at `output` that they do not replace, if of the same molecules."""
    written = output.with_suffix(".json")
    stored = json.loads(written.read_text()) if written.exists() else {}
    if stored.get("MMFF94", {}).get("records") != results["MMFF94"]["records"]:
        stored = {}
    title = "Outside DFT structures of drug-like molecules"
    introduction = f"{len(molecules)} molecules of {file}, by `python -m experiments.outside`."
    timed = {name: result for name, result in results.items() if result["seconds"] is not None or name not in stored}
    write_report(stored | timed, molecules, title, introduction, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--checkpoints", nargs="+", default=["checkpoints/drug_like"], help="folders or hub names")
    parser.add_argument("--output", type=Path, default=RESULTS, help="without an ending")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    molecules = read(arguments.file)
    write_beside(evaluate(molecules, arguments.checkpoints), molecules, arguments.file.name, arguments.output)


if __name__ == "__main__":
    main()
