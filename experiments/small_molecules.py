"""The smallest molecules against their B3LYP/6-31G* minima: structures of RDKit, refined and relaxed on E.

    python -m experiments.small_molecules      # a minute of one core

The minima are those of dataset_scripts/raw_labels/small_b3lyp_minima.parquet, of molecules and ions of up to five heavy
atoms. Those of the train split trained the released model. Numbers of each molecule, a table and a plot go to
experiments/results/small_molecules.*.
"""

import argparse

import numpy as np
from rdkit import Chem

from dataset_scripts.packed_labels import read_packed_labels
from dataset_scripts.splits import constitution_of, split_of
from experiments.figures import plt, save_figure
from experiments.outside import RESULTS, ROOT
from experiments.provenance import write_results, written_by
from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.beyond_training import atoms_beyond_training
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from modeling_pcbridge.rdkit_structures import rdkit_structures
from pcbridge.evaluation.metrics import bond_angle_error, bond_length_error

MINIMA = ROOT / "dataset_scripts/raw_labels/small_b3lyp_minima.parquet"
OUTPUT = RESULTS.with_name("small_molecules.json")
NAMED = {"[H][H]": "H2", "O": "water", "N": "ammonia", "C": "methane", "F": "HF", "S": "H2S"}
WAYS = {"refined": None, "relaxed": "converged"}  # `relaxation_steps` of `predict_structure`


def measure(model: PCBridgeModel) -> list[dict]:
    """Of each molecule that the model takes: its split, and by way the mean errors of bonds and angles."""
    processor = PCBridgeProcessor.of_config(model.config)
    records = []
    for line in read_packed_labels(MINIMA):
        if "error" in line:
            continue
        mol = mol_from_smiles(line["mapped_smiles"])
        try:
            inputs = processor(rdkit_structures(mol, 1, timeout=60))
        except InputError:
            continue
        graph, reference = graph_from_mol(mol), np.array(line["positions"])
        record = {
            "smiles": line["smiles"],
            "split": split_of(constitution_of(Chem.MolFromSmiles(line["smiles"]))),
            "is_new": bool(atoms_beyond_training(model.config, graph_from_mol(mol, model.config.resonance_invariant))),
        }
        for way, steps in WAYS.items():
            found = model.predict_structure(**inputs, method="mean_shift", relaxation_steps=steps)
            structures = found.positions[0].numpy()
            record[way] = {
                "bonds": float(bond_length_error(graph, structures, reference)[0]),
                "angles": float(bond_angle_error(graph, structures, reference)[0]),
            }
        records.append(record)
    return records


def cells(record: dict) -> list[str]:
    """Errors of bonds and angles by each way; no angle where there are two atoms."""
    errors = [record[way][key] for way in WAYS for key in ("bonds", "angles")]
    return [
        "" if np.isnan(error) else f"{error:.4f}" if k % 2 == 0 else f"{error:.2f}" for k, error in enumerate(errors)
    ]


def mean_of(records: list[dict]) -> dict:
    """A record of the means over molecules."""
    return {
        way: {key: float(np.nanmean([r[way][key] for r in records])) for key in ("bonds", "angles")} for way in WAYS
    }


def report(records: list[dict], checkpoint: str) -> str:
    """A Markdown table: the molecules of `NAMED`, and means over those that trained the released model and others."""
    groups = {
        "trained it": [r for r in records if r["split"] == "train"],
        "others, all surroundings in labels": [r for r in records if r["split"] != "train" and not r["is_new"]],
        "others, `beyond_training`": [r for r in records if r["split"] != "train" and r["is_new"]],
    }
    lines = [
        "# The smallest molecules at the level of the labels, B3LYP/6-31G*",
        "",
        "RDKit's structure refined as users do it, and relaxed to the minimum of E: mean errors per molecule of bonds "
        f"(angstrom) and angles (degrees). {written_by('small_molecules', checkpoint)}",
        "",
        "| | number | " + " | ".join(f"{way}: {key}" for way in WAYS for key in ("bonds", "angles")) + " |",
        "|---" * (2 + 2 * len(WAYS)) + "|",
    ]
    by_smiles = {record["smiles"]: record for record in records}
    for smiles, name in NAMED.items():
        title = name if by_smiles[smiles]["split"] == "train" else f"{name} (did not train it)"
        lines.append(f"| {title} | | {' | '.join(cells(by_smiles[smiles]))} |")
    for name, some in groups.items():
        lines.append(f"| {name} | {len(some)} | {' | '.join(cells(mean_of(some)))} |")
    worst = sorted(records, key=lambda record: -record["refined"]["bonds"])[:8]
    named = ", ".join(f"`{r['smiles']}` {r['refined']['bonds']:.3f}" for r in worst)
    lines += ["", f"Farthest from their bonds: {named}."]
    return "\n".join(lines) + "\n"


def plot(records: list[dict]) -> None:
    """Errors of each molecule, refined against relaxed."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), constrained_layout=True)
    for axis, key, unit in zip(axes, ("bonds", "angles"), ("angstrom", "degrees"), strict=True):
        for is_trained, marker, label in ((True, ".", "train split"), (False, "x", "other splits")):
            some = [record for record in records if (record["split"] == "train") == is_trained]
            axis.scatter(*([r[way][key] for r in some] for way in WAYS), marker=marker, label=label)
        axis.set(xlabel=f"refined, {unit}", ylabel=f"relaxed on E, {unit}", title=f"mean error of {key}")
        axis.set(xscale="symlog" if key == "angles" else "linear", yscale="symlog" if key == "angles" else "linear")
    axes[0].legend()
    save_figure(figure, OUTPUT.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/drug_like", help="folder or hub name")
    checkpoint = parser.parse_args().checkpoint
    records = measure(PCBridgeModel.from_pretrained(checkpoint).eval())
    write_results(OUTPUT, records, report(records, checkpoint))
    plot(records)


if __name__ == "__main__":
    main()
