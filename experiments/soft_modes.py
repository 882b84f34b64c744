"""How far relaxation on E leaves a minimum that it should stay at: GFN2-xTB minima relaxed on the GFN2-xTB head.

    python -m experiments.soft_modes flexisol_validation.parquet --checkpoints checkpoints/drug_like [MORE ...]

The file is that of `experiments.outside`, with GFN2-xTB minima of drug-like molecules. A head that had learned its
level would leave them where they are: what they move is E's error alone, not another conformer, not another level. The
table goes to experiments/results/soft_modes.md. Two minutes of a core for each checkpoint.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from experiments.outside import BATCH_SIZE, GFN2, read, relaxed, taken_by
from experiments.provenance import weights_of
from experiments.structure_errors import METRICS, mean_cells, record
from modeling_pcbridge import PCBridgeModel
from pcbridge.evaluation.batches import moved

OUTPUT = Path(__file__).parent / "results" / "soft_modes.md"
_METRICS = [key for key in METRICS if key != "bonds_centred"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--checkpoints", nargs="+", default=["checkpoints/drug_like"], help="folders or hub names")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    molecules = read(arguments.file)
    lines = [
        "# How far relaxation on E moves what it should leave",
        "",
        f"GFN2-xTB minima of {arguments.file.name}, relaxed on the head of E at that level: means of how far they "
        "moved, and medians in brackets. In the first column digits of the SHA-256 of the weights. Written by "
        "`python -m experiments.soft_modes FILE`.",
        "",
        "| | molecules | " + " | ".join(METRICS[key][0] for key in _METRICS) + " |",
        "|---" * (2 + len(_METRICS)) + "|",
    ]
    for checkpoint in arguments.checkpoints:
        model = PCBridgeModel.from_pretrained(checkpoint).eval()
        taken, graphs = taken_by(model, molecules)
        minima = [m.gfn2 for m in taken if m.gfn2 is not None]
        after = moved(model, graphs, minima, BATCH_SIZE, partial(relaxed, model, level_of_theory=GFN2))
        records = [
            record(replace(molecule, reference=minimum), structure)
            for molecule, minimum, structure in zip(taken, minima, after, strict=True)
        ]
        medians = [f"{np.median([r[key] for r in records]):.{METRICS[key][1]}f}" for key in _METRICS]
        cells = [f"{mean} ({median})" for mean, median in zip(mean_cells(records, _METRICS), medians, strict=True)]
        name = "/".join(Path(checkpoint).parts[-2:])
        lines.append(f"| {name} ({weights_of(checkpoint)}) | {len(taken)} | {' | '.join(cells)} |")
    OUTPUT.write_text(text := "\n".join([*lines, ""]))
    print(text)


if __name__ == "__main__":
    main()
