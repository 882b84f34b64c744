"""Whether the structure decoder does better on library molecules that it learned than on those that were left out.

    python -m experiments.library_gap [--checkpoint checkpoints/drug_like] [--molecules 200]

Molecules are of `data/corrected/{train,validation}/drug_like.parquet`, see `pcbridge.training.corrected_library`. The
model refines by mean shift the MMFF94 minima below the corrected structures, which are what it should give.
"""

import argparse

import numpy as np
import torch
from datasets import load_dataset

from dataset_scripts.collator import example_from_row, mol_from_row
from experiments.outside import ROOT, mean_shifted
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.rdkit_structures import mmff_minima
from pcbridge.evaluation.metrics import bond_angle_error, bond_length_error


def errors(model: PCBridgeModel, split: str, num_molecules: int) -> tuple[int, list[float]]:
    """How many molecules; bonds (angstrom) and angles (degrees) of MMFF94, then after mean shift, means over them."""
    path = ROOT / "data" / "corrected" / split / "drug_like.parquet"
    rows = load_dataset("parquet", data_files=str(path), split="train").shuffle(seed=0)
    examples, starts = [], []
    for row in rows.select(range(min(num_molecules, len(rows)))):
        minima = mmff_minima(mol_from_row(row), np.array([row["positions"]]))
        if minima is not None:
            examples.append(example_from_row(row, (), model.config.resonance_invariant))
            starts.append(minima[0])
    after = mean_shifted(model, [example.graph for example in examples], starts)
    means = [
        float(np.mean([metric(e.graph, s[None], e.positions)[0] for e, s in zip(examples, structures, strict=True)]))
        for structures in (starts, after)
        for metric in (bond_length_error, bond_angle_error)
    ]
    return len(examples), means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/drug_like")
    parser.add_argument("--molecules", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = PCBridgeModel.from_pretrained(arguments.checkpoint).eval()
    print("| | molecules | bonds, MMFF94 | angles | bonds, refined | angles |\n|---|---|---|---|---|---|")
    for split in ("train", "validation"):
        count, (bonds, angles, bonds_after, angles_after) = errors(model, split, arguments.molecules)
        print(f"| {split} | {count} | {bonds:.4f} | {angles:.2f} | {bonds_after:.4f} | {angles_after:.2f} |")


if __name__ == "__main__":
    main()
