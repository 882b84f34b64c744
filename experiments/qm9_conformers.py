"""What is left between structures from the graph and QM9's: is it the shape of a conformer, or which conformer it is?

    python -m experiments.qm9_conformers --molecules 250     # half an hour on one core, goes on where it stopped
    python -m experiments.qm9_conformers --report              # only the table, of what is there

QM9's structures are B3LYP minima below a force field's guess at one conformer, not the lowest minima that there are. So
ten samples of checkpoints/qm9 of each molecule are compared with its QM9 structure, and all are relaxed by GFN2-xTB, a
judge that neither was trained on (extra `xtb`). Lines in experiments/results/qm9_conformers.jsonl; test molecules, by
which nothing is chosen.
"""

import argparse
import json

import numpy as np
import torch
from tqdm.auto import tqdm

from dataset_scripts.label_generation import read_lines
from dataset_scripts.quantum_chemistry import gfn2_minimum
from experiments.qm9_benchmark import DATA, RESULTS, ROOT
from experiments.qm9_evaluation import MEAN_SHIFT_STEPS, NUM_INFERENCE_STEPS, most_central
from experiments.qm9_molecules import load_molecules
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.graph_batch import pad_graphs
from pcbridge.evaluation.metrics import heavy_atom_rmsd
from pcbridge.evaluation.references import ReferenceMolecule

CHECKPOINT = ROOT / "checkpoints" / "qm9"
LINES = RESULTS / "qm9_conformers.jsonl"
_NUM_SAMPLES = 10
_SEED = 0
# GFN2-xTB minima further apart than the tightness of their optimisation.
_SAME_ENERGY = 0.01  # eV


def compare(model: PCBridgeModel, reference: ReferenceMolecule) -> dict:
    """One line: C-RMSD of each sample to the QM9 structure, and GFN2-xTB energies of the minima below all of them.

    Energies are in eV above the minimum below the QM9 structure; None where GFN2-xTB reached none.
    """
    samples = model.predict_structure(
        **pad_graphs([reference.example.graph]),
        num_samples=_NUM_SAMPLES,
        num_inference_steps=NUM_INFERENCE_STEPS,
        mean_shift_steps=MEAN_SHIFT_STEPS,
        generator=torch.Generator().manual_seed(_SEED),
    ).positions[0]
    structures = samples.double().numpy()
    elements = reference.example.graph.atomic_numbers.tolist()
    charge = int(reference.example.graph.formal_charges.sum())
    _, at_qm9 = gfn2_minimum(elements, reference.positions.astype(np.float64), charge)
    above: list[float | None] = []
    for structure in structures:
        try:
            above.append(gfn2_minimum(elements, structure, charge)[1] - at_qm9)
        except RuntimeError:
            above.append(None)
    return {
        "molecule_id": reference.example.molecule_id,
        "c_rmsd": heavy_atom_rmsd(reference.mol, structures, reference.positions).tolist(),
        "most_central": most_central(structures),
        "gfn2_above_ev": above,
    }


def report(lines: list[dict]) -> str:
    """Markdown of what there is."""
    c_rmsd = np.array([line["c_rmsd"] for line in lines])
    above = np.array([line["gfn2_above_ev"] for line in lines], dtype=np.float64)  # None becomes NaN
    rows = np.arange(len(lines))
    chosen = {
        "all samples": c_rmsd.mean(1),
        "most central sample": c_rmsd[rows, [line["most_central"] for line in lines]],
        "sample of lowest GFN2-xTB energy": c_rmsd[rows, np.nanargmin(above, 1)],
        "closest sample, known by the answer only": c_rmsd.min(1),
    }
    lowest = np.nanmin(above, 1)
    lower = lowest < -_SAME_ENERGY
    text = [
        "# QM9 from the graph: shape of a conformer, or choice of it?",
        "",
        f"{len(lines)} test molecules, {_NUM_SAMPLES} samples of checkpoints/qm9 each; heavy-atom RMSD to the QM9 "
        "structure, angstrom.",
        "",
        "| | mean | median |",
        "|---|---|---|",
    ]
    text += [f"| {title} | {values.mean():.3f} | {np.median(values):.3f} |" for title, values in chosen.items()]
    found = f"{lower.sum()} of {len(lines)}"
    best = np.median(-lowest[lower]) if lower.any() else 0.0
    text += [
        "",
        f"In {found} molecules the samples hold a conformer whose GFN2-xTB minimum lies lower than the one below the "
        f"QM9 structure by more than {_SAME_ENERGY} eV (median of these: {best:.3f} eV): QM9's conformer is not the "
        f"ground state there. In {(np.abs(lowest) <= _SAME_ENERGY).sum()} the lowest is QM9's own energy, in "
        f"{(lowest > _SAME_ENERGY).sum()} no sample is as low.",
        "",
    ]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=int, default=250)
    parser.add_argument("--report", action="store_true", help="compute nothing")
    arguments = parser.parse_args()
    if not arguments.report:
        model = PCBridgeModel.from_pretrained(CHECKPOINT)
        done = {line["molecule_id"] for line in read_lines(LINES)}
        references = load_molecules(DATA, "test", arguments.molecules)
        with LINES.open("a") as output:
            for reference in tqdm([r for r in references if r.example.molecule_id not in done], unit="molecule"):
                output.write(json.dumps(compare(model, reference)) + "\n")
                output.flush()
    text = report(read_lines(LINES))
    LINES.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
