"""The check the paper lacks: real B3LYP/6-31G* energies of predicted structures, against those of the DFT structures.

    python -m experiments.dft_check --molecules 30            # hours on one core, goes on where it stopped
    python -m experiments.dft_check --report                  # only the tables, of what is there

Takes the structures that `experiments.evidence` predicted (setting "displaced", seed 0), computes them with PySCF as
the labels were (the `qc` extra), and appends a line each to experiments/results/dft_check.jsonl. The energies and
forces at the DFT structures also show how well the models know E there.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from dataset_scripts.label_generation import read_lines
from dataset_scripts.quantum_chemistry import b3lyp_energy_and_forces
from experiments.evidence_settings import EVALUATION
from experiments.statistics import compare
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.graph_batch import pad_graphs, pad_positions
from modeling_pcbridge.model_hessian import quasi_newton_step
from pcbridge.evaluation.metrics import bond_length_error
from pcbridge.evaluation.references import load_references
from pcbridge.evaluation.report import PREDICTION_TITLES
from pcbridge.training.run import CONSISTENCY, MULTI_TASK

RUN = Path(__file__).parents[1] / "outputs" / "evidence" / "displaced" / "seed0"
LINES = Path(__file__).parent / "results" / "dft_check.jsonl"
DFT = "DFT structure"
# molecule id -> what the structure is -> elements and positions
Structures = dict[str, dict[str, tuple[list[int], np.ndarray]]]
_METHODS = ("refine", "ddim", "mean_shift", "lowest_energy_mean_shift")


def structures(molecules: int) -> Structures:
    """What is computed; molecules evenly from small to large."""
    references = load_references(EVALUATION)
    predictions = {model: json.loads((RUN / f"{model}.json").read_text()) for model in (MULTI_TASK, CONSISTENCY)}
    chosen = np.linspace(0, len(references) - 1, molecules).round().astype(int)
    table = {}
    for row in chosen:
        reference = references[row]
        found = {DFT: reference.positions}
        for method in _METHODS:
            for model, results in predictions.items():
                per_molecule = results["per_molecule"]
                place = per_molecule["molecule_id"].index(reference.example.molecule_id)
                found[f"{model}: {PREDICTION_TITLES[method]}"] = np.array(per_molecule[method]["first_sample"][place])
        elements = [int(z) for z in reference.example.graph.atomic_numbers]
        table[reference.example.molecule_id] = {name: (elements, positions) for name, positions in found.items()}
    return table


def compute(table: Structures, path: Path) -> None:
    """Append what is missing to the lines in `path`; a structure whose calculation fails is a line with its error."""
    done = {(line["molecule_id"], line["structure"]) for line in read_lines(path)}
    tasks = [
        (molecule_id, name, *structure)
        for molecule_id, found in table.items()
        for name, structure in found.items()
        if (molecule_id, name) not in done
    ]
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as output:
        for molecule_id, name, elements, positions in tqdm(tasks, desc="B3LYP/6-31G*", unit="structure"):
            line = {"molecule_id": molecule_id, "structure": name, "positions": np.round(positions, 6).tolist()}
            try:
                energy, forces = b3lyp_energy_and_forces(elements, np.asarray(positions, dtype=np.float64), 0)
                line |= {"energy_ev": energy, "forces_ev_ang": forces.round(6).tolist()}
            except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
                line |= {"error": str(error)}
            output.write(json.dumps(line) + "\n")
            output.flush()


def whole_molecules(lines: list[dict]) -> dict[str, dict[str, dict]]:
    """The lines by molecule and structure, of molecules of which every structure converged."""
    names = {line["structure"] for line in lines}
    by_molecule: dict[str, dict[str, dict]] = {}
    for line in lines:
        if "error" not in line:
            by_molecule.setdefault(line["molecule_id"], {})[line["structure"]] = line
    return {molecule_id: found for molecule_id, found in by_molecule.items() if len(found) == len(names)}


def report() -> str:
    """Markdown of what is in `LINES`, over the molecules of which every structure converged."""
    lines = read_lines(LINES)
    names = list(dict.fromkeys(line["structure"] for line in lines))
    whole = whole_molecules(lines)
    failed = [f"{line['molecule_id']} ({line['structure']})" for line in lines if "error" in line]

    above = {n: [(f[n]["energy_ev"] - f[DFT]["energy_ev"]) for f in whole.values()] for n in names}
    forces = {n: [np.square(f[n]["forces_ev_ang"]).mean() ** 0.5 for f in whole.values()] for n in names}
    text = [
        "# B3LYP/6-31G* energies of predicted structures",
        "",
        f"{len(whole)} test molecules, setting displaced, seed 0; energies above that of the QM9 DFT structure (a "
        "minimum of B3LYP/6-31G(2df,p), so a little above the minimum itself). Failed: "
        + (", ".join(failed) or "none"),
        "",
        "| structure | energy above, mean (eV) | median (eV) | force, mean of RMS (eV/angstrom) |",
        "|---|---|---|---|",
    ]
    for name in names:
        text.append(
            f"| {name} | {np.mean(above[name]):.3f} | {np.median(above[name]):.3f} | {np.mean(forces[name]):.3f} |"
        )
    text += [
        "",
        "Consistency minus multi-task, paired t-test over molecules:",
        "",
        "| | effect | interval | relative | p |",
    ]
    text.append("|---|---|---|---|---|")
    for method in _METHODS:
        pair = [above[f"{model}: {PREDICTION_TITLES[method]}"] for model in (MULTI_TASK, CONSISTENCY)]
        effect = compare(*pair)
        text.append(
            f"| {PREDICTION_TITLES[method]} | {effect.difference:+.3f} | {effect.low:+.3f} to {effect.high:+.3f} "
            f"| {effect.relative:+.0%} | {effect.p_value:.2g} |"
        )
    text += [
        "",
        _levels_apart(whole),
        "",
        "The models' own E at the DFT structures:",
        "",
        "| | energy MAE (eV) | force MAE (eV/angstrom) |",
    ]
    text += ["|---|---|---|", *_model_errors(whole), ""]
    return "\n".join(text)


def _levels_apart(whole: dict[str, dict[str, dict]]) -> str:
    """How far the bonds of the two levels of theory are apart, from the forces of one at the minimum of the other."""
    bonds = []
    for reference in load_references(EVALUATION):
        if reference.example.molecule_id in whole:
            graph, positions = reference.example.graph, reference.positions.astype(np.float64)
            forces = whole[reference.example.molecule_id][DFT]["forces_ev_ang"]
            inputs = (
                torch.tensor(values)[None]
                for values in (positions, np.array(forces), graph.pair_types, graph.atomic_numbers)
            )
            moved = positions + quasi_newton_step(*inputs)[0].numpy()
            bonds.append(bond_length_error(graph, moved[None], positions)[0])
    return (
        f"One quasi-Newton step along the B3LYP/6-31G* forces at the DFT structures changes their bonds by "
        f"{np.mean(bonds):.4f} angstrom: about the bond error that a perfect model of B3LYP/6-31G* would have here."
    )


def _model_errors(whole: dict[str, dict[str, dict]]) -> list[str]:
    chosen = [r for r in load_references(EVALUATION) if r.example.molecule_id in whole]
    labels = [whole[reference.example.molecule_id][DFT] for reference in chosen]
    rows = []
    for name in (MULTI_TASK, CONSISTENCY):
        inputs = pad_graphs([reference.example.graph for reference in chosen])
        inputs["positions"] = pad_positions([reference.positions for reference in chosen])
        predicted = PCBridgeModel.from_pretrained(RUN / name).predict_energy(**inputs)
        energy = np.abs(predicted.energy.numpy() - [label["energy_ev"] for label in labels]).mean()
        force = np.concatenate(
            [
                np.abs(forces[: len(label["forces_ev_ang"])] - label["forces_ev_ang"]).ravel()
                for forces, label in zip(predicted.forces.numpy(), labels, strict=True)
            ]
        ).mean()
        rows.append(f"| {name} | {energy:.3f} | {force:.3f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=int, default=30)
    parser.add_argument("--report", action="store_true", help="compute nothing")
    arguments = parser.parse_args()
    if not arguments.report:
        compute(structures(arguments.molecules), LINES)
    text = report()
    LINES.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
