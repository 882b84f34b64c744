"""Whether bonds are worse at atoms whose surroundings no training label had, on outside DFT structures.

    python -m experiments.new_environments flexisol_validation.parquet [--checkpoint checkpoints/drug_like]

The file is that of `experiments.outside`. The model refines the MMFF94 minima as users do; errors of all bonds are
averaged by whether one of their atoms is new, and whether any atom of their molecule is.
"""

import argparse
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from experiments.outside import BATCH_SIZE, read, taken_by
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.beyond_training import atoms_beyond_training
from pcbridge.evaluation.batches import moved, refined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", type=Path)
    parser.add_argument("--checkpoint", default="checkpoints/drug_like")
    arguments = parser.parse_args()
    model = PCBridgeModel.from_pretrained(arguments.checkpoint).eval()
    errors: dict[str, list[tuple[float, float]]] = defaultdict(list)
    num_new, num_heavy = [], 0
    taken, graphs = taken_by(model, read(arguments.structures))
    structures = moved(model, graphs, [m.mmff for m in taken], BATCH_SIZE, partial(refined, model))
    for molecule, graph, structure in zip(taken, graphs, structures, strict=True):
        new = set(atoms_beyond_training(model.config, graph))
        num_new.append(len(new))
        num_heavy += int((graph.atomic_numbers > 1).sum())
        for i, j in np.argwhere(np.triu(graph.bonded)).tolist():
            kind = "of new atoms" if {i, j} & new else "others, same molecules" if new else "other molecules"
            length, before, after = (
                np.linalg.norm(x[i] - x[j]) for x in (molecule.reference, molecule.mmff, structure)
            )
            errors[kind].append((abs(before - length), abs(after - length)))
    some = sum(number > 0 for number in num_new)
    print(f"{some} of {len(num_new)} molecules have new atoms, {sum(num_new)} of {num_heavy} heavy atoms")
    print("| bonds | number | MMFF94, mean error (angstrom) | refined |\n|---|---|---|---|")
    for kind, both in errors.items():
        before, after = np.mean(both, axis=0)
        print(f"| {kind} | {len(both)} | {before:.4f} | {after:.4f} |")


if __name__ == "__main__":
    main()
