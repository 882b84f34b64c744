"""Evaluate one checkpoint, or the classical references, as the evidence does; one JSON file.

python -m experiments.evidence_evaluation --output out.json --checkpoint outputs/evidence/displaced/seed0/consistency
python -m experiments.evidence_evaluation --references --output references.json
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rdkit import RDLogger

from dataset_scripts.quantum_chemistry import gfn2_minimum
from experiments.evidence_settings import EVALUATION, QUICK_EVALUATION
from modeling_pcbridge import PCBridgeModel
from pcbridge.evaluation.evaluate import evaluate_model, evaluate_reference
from pcbridge.evaluation.references import ReferenceMolecule, mmff_structures, pm6_structures

_SEED = 0


def gfn2_structures(
    start: Callable[[ReferenceMolecule], np.ndarray | None],
) -> Callable[[ReferenceMolecule], np.ndarray | None]:
    """The first of the structures of `start`, optimised with GFN2-xTB (the `xtb` extra)."""

    def optimise(reference: ReferenceMolecule) -> np.ndarray | None:
        structures = start(reference)
        if structures is None:
            return None
        try:
            positions, _ = gfn2_minimum(reference.example.graph.atomic_numbers, structures[0], total_charge=0)
        except RuntimeError:
            return None
        return positions[None]

    return optimise


def evaluate_references(evaluation) -> dict[str, dict]:
    """Rows of the tables that no model of ours is needed for."""
    pm6 = pm6_structures(evaluation)
    return {
        "PM6 (same conformer)": evaluate_reference(pm6, evaluation),
        "GFN2-xTB from PM6": evaluate_reference(gfn2_structures(pm6), evaluation),
        "ETKDGv3 + MMFF94": evaluate_reference(mmff_structures(evaluation.num_samples, _SEED), evaluation),
        "ETKDGv3 + GFN2-xTB": evaluate_reference(gfn2_structures(mmff_structures(1, _SEED)), evaluation),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint")
    what.add_argument("--references", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()

    RDLogger.DisableLog("rdApp.*")
    evaluation = QUICK_EVALUATION if arguments.quick else EVALUATION
    if arguments.references:
        results = evaluate_references(evaluation)
    else:
        results = evaluate_model(PCBridgeModel.from_pretrained(arguments.checkpoint), evaluation, _SEED)
    # Written aside and renamed, so that a file that is there is whole.
    partial = arguments.output.with_suffix(".partial")
    partial.write_text(json.dumps(results))
    partial.replace(arguments.output)


if __name__ == "__main__":
    main()
