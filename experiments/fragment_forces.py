"""Forces of fragments that no training had: is it labels at B3LYP/6-31G* that are missing, or molecules?

    python -m experiments.fragment_forces            # two minutes of a core

Both heads of a checkpoint, B3LYP/6-31G* against the labels of the bundled `fragments` and `large_labelled`, GFN2-xTB
against tblite at the same structures: the released model learned from some 25 times as many labels at that level. Every
sixth structure of the training split is beside them. Table and plot go to experiments/results/fragment_forces.*.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import example_from_row
from dataset_scripts.quantum_chemistry import gfn2_energy_and_forces
from dataset_scripts.schema import B3LYP_6_31GD, GFN2_XTB
from experiments.figures import bar_plot
from experiments.provenance import write_results, written_by
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.beyond_training import atoms_beyond_training
from pcbridge.evaluation.batches import energies_and_forces

RESULTS = Path(__file__).parent / "results" / "fragment_forces.json"
BATCH_SIZE = 32
_TRAIN, _TEST, _LARGE = "training split", "test split", "`large_labelled`"
_SETS = {_TRAIN: ("fragments", "train", 6), _TEST: ("fragments", "test", 1), _LARGE: ("large_labelled", "test", 1)}
_FEW = (
    3  # heavy atoms: all molecules of so many that there are are among the fragments, many the only ones of their kind
)


def records_of(model: PCBridgeModel, configuration: str, split: str, every: int) -> list[dict]:
    """What each n-th labelled structure is, and the mean absolute errors of its forces by level, eV/angstrom."""
    rows = [row for row in load_bundled(configuration, split) if row["forces"]][::every]
    examples = [example_from_row(row, [B3LYP_6_31GD], True) for row in rows]
    graphs, structures = [e.graph for e in examples], [e.positions for e in examples]
    references = {
        B3LYP_6_31GD: [np.array(row["forces"]) for row in rows],
        GFN2_XTB: [
            gfn2_energy_and_forces(row["atomic_numbers"], np.array(row["positions"]), row["total_charge"])[1]
            for row in rows
        ],
    }
    errors = {}
    for level, of_level in references.items():
        _, forces = energies_and_forces(model, graphs, structures, BATCH_SIZE, level)
        errors[level] = [float(np.abs(f - r).mean()) for f, r in zip(forces, of_level, strict=True)]
    return [
        {
            "smiles": row["smiles"],
            "heavy": int((graph.atomic_numbers > 1).sum()),
            "is_known": not atoms_beyond_training(model.config, graph),
            **{level: errors[level][i] for level in errors},
        }
        for i, (row, graph) in enumerate(zip(rows, graphs, strict=True))
    ]


def classes_of(records: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """The rows of the table."""
    test = records[_TEST]
    new = [record for record in test if not record["is_known"]]
    return {
        _TRAIN: records[_TRAIN],
        _TEST: test,
        "all surroundings in labels": [record for record in test if record["is_known"]],
        f"new surroundings, up to {_FEW} heavy atoms": [record for record in new if record["heavy"] <= _FEW],
        "new surroundings, larger": [record for record in new if record["heavy"] > _FEW],
        _LARGE: records[_LARGE],
    }


def report(classes: dict[str, list[dict]], introduction: str) -> str:
    """A Markdown table, and the molecules with the largest errors."""
    levels = (B3LYP_6_31GD, GFN2_XTB)
    heads = " | ".join(f"{level}, mean | median" for level in levels)
    lines = ["# Forces of unseen fragments at two levels", "", introduction, ""]
    lines += [f"| | structures | molecules | {heads} |", "|---" * 7 + "|"]
    for title, records in classes.items():
        values = [f"{of([r[level] for r in records]):.3f}" for level in levels for of in (np.mean, np.median)]
        molecules = len({record["smiles"] for record in records})
        lines.append(f"| {title} | {len(records)} | {molecules} | {' | '.join(values)} |")
    worst = sorted(classes[_TEST], key=lambda record: -record[B3LYP_6_31GD])
    smiles = list(dict.fromkeys(record["smiles"] for record in worst))[:10]
    return "\n".join([*lines, "", f"The largest errors are of {', '.join(f'`{s}`' for s in smiles)}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/drug_like", help="folder or hub name")
    checkpoint = parser.parse_args().checkpoint
    torch.set_num_threads(1)
    model = PCBridgeModel.from_pretrained(checkpoint).eval()
    records = {title: records_of(model, *which) for title, which in _SETS.items()}
    introduction = (
        "Mean absolute errors of forces, eV/angstrom, of the two heads of one model, each against its own level, at "
        "the same structures; means and medians over structures. " + written_by("fragment_forces", checkpoint)
    )
    classes = classes_of(records)
    write_results(RESULTS, records, report(classes, introduction))
    means = {
        level: {title.replace(", ", ",\n"): float(np.mean([r[level] for r in some])) for title, some in classes.items()}
        for level in (B3LYP_6_31GD, GFN2_XTB)
    }
    bar_plot(RESULTS.with_suffix(".png"), {"force MAE, eV/angstrom": means})


if __name__ == "__main__":
    main()
