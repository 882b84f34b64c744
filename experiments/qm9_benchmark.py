"""QM9: structures from the graph, refinement of cheap structures, energies; of a model trained on 110,000 molecules.

    python -m dataset_scripts.prepare qm9pack --split published --on_error skip --output data/qm9
    python -m experiments.qm9_benchmark                  # trains (hours on one core), evaluates, writes results/qm9*
    python -m experiments.qm9_benchmark --report         # only the tables, of what is there

What was cut off goes on where it stopped. Runs are in outputs/qm9/. PM6 structures need MOPAC (Debian package mopac).
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from rdkit import RDLogger

from experiments.qm9_evaluation import at_minima, from_graph, refinement
from experiments.qm9_molecules import CheapStructures, cheap_structures, load_molecules
from experiments.qm9_report import CONTINUED, CONTINUED_TWICE, RELEASED, write_report
from modeling_pcbridge import PCBridgeModel
from pcbridge.evaluation.references import ReferenceMolecule
from pcbridge.training.run import CONSISTENCY, MULTI_TASK, STAGE1

ROOT = Path(__file__).parents[1]
DATA, RUN = ROOT / "data" / "qm9", ROOT / "outputs" / "qm9"
CHECKPOINTS = {name: RUN / name for name in (STAGE1, MULTI_TASK, CONSISTENCY)}
CHECKPOINTS[CONTINUED] = ROOT / "outputs" / "qm9_continued" / STAGE1
CHECKPOINTS[CONTINUED_TWICE] = ROOT / "outputs" / "qm9_continued_2" / STAGE1
RESULTS = Path(__file__).parent / "results"
_SEED = 0
# Molecules whose structures are drawn from the graph, ten times twenty evaluations each; the others are refined only.
NUM_FROM_GRAPH = 250


def _continuation(begin: str, seed: int, num_steps: int) -> list[str]:
    """Options of stage 1 once more from its own weights, on other batches: its validation loss was still falling."""
    return [
        f"--init_from={CHECKPOINTS[begin]}",
        "--stage2=null",
        "--model={}",  # no head for the displaced structures of stage 2
        f"--seed={seed}",
        f"--stage1.num_steps={num_steps}",
        "--stage1.learning_rate=0.003",
    ]


# Folders, in the order of training, and the options beside those of configs/qm9.yaml; each begins where the last ended.
TRAINING_RUNS = {
    RUN: [],
    CHECKPOINTS[CONTINUED].parent: _continuation(STAGE1, seed=1, num_steps=8000),
    CHECKPOINTS[CONTINUED_TWICE].parent: _continuation(CONTINUED, seed=2, num_steps=16000),
}


def train() -> None:
    """All of `TRAINING_RUNS` after the last that is finished, each from its last training state."""
    finished = [folder for folder in TRAINING_RUNS if (folder / "metrics.json").exists()]
    folders = list(TRAINING_RUNS)
    for folder in folders[folders.index(finished[-1]) + 1 :] if finished else folders:
        fixed = ["--config", "configs/qm9.yaml", f"--output_dir={folder}", "--resume=latest"]
        command = [sys.executable, "train_accelerate.py", *fixed, *TRAINING_RUNS[folder]]
        subprocess.run(command, cwd=ROOT, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})


def evaluate(
    checkpoint: Path, references: list[ReferenceMolecule], starts: list[CheapStructures], split: str, num_samples: int
) -> dict:
    """All that is measured of one checkpoint, energies on all of the split; from the graph if `num_samples` > 0."""
    model = PCBridgeModel.from_pretrained(checkpoint)
    drawn = references[:NUM_FROM_GRAPH] if num_samples else []
    graph_records, structures = from_graph(model, drawn, num_samples, _SEED)
    refinement_records, refined = refinement(model, references, starts)
    return {
        "from_graph": graph_records,
        "structures": {name: positions.round(4).tolist() for name, positions in structures.items()},
        "refinement": refinement_records,
        "refined": {
            start: {name: positions.round(5).tolist() for name, positions in by_molecule.items()}
            for start, by_molecule in refined.items()
        },
        "at_minima": at_minima(model, load_molecules(DATA, split, None)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="choose settings on validation")
    parser.add_argument("--molecules", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=10, help="DDIM samples per molecule")
    parser.add_argument("--report", action="store_true", help="train and evaluate nothing")
    arguments = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")

    if arguments.report and not (RUN / f"{RELEASED}-{arguments.split}.json").exists():
        parser.error(f"there is no evaluation of {RELEASED} in {RUN} to report; run without --report")
    if not arguments.report:
        train()
    references = load_molecules(DATA, arguments.split, arguments.molecules)
    starts = cheap_structures(references, RUN / f"starts-{arguments.split}.jsonl")
    models = {}
    for name, checkpoint in CHECKPOINTS.items():
        file = RUN / f"{name}-{arguments.split}.json"
        # Checkpoints of runs that went on elsewhere are missing; qm9.json keeps their rows.
        if checkpoint.exists() and not file.exists() and not arguments.report:
            # Refinement and energies tell the models apart; drawing from the graph takes ten times as long.
            num_samples = arguments.samples if name == RELEASED else 0
            found = evaluate(checkpoint, references, starts, arguments.split, num_samples)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(found))
            partial.replace(file)
        if file.exists():
            models[name] = json.loads(file.read_text())
    results = {
        "split": arguments.split,
        "num_molecules": len(references),
        "num_from_graph": len(references[:NUM_FROM_GRAPH]),
        "num_samples": arguments.samples,
        "models": models,
    }
    print(write_report(results, references, RESULTS if arguments.split == "test" else RUN / arguments.split))


if __name__ == "__main__":
    main()
