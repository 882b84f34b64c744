"""Does consistency carry DFT accuracy into structures? Multi-task against consistency over training seeds.

    python -m experiments.evidence                                # every setting, five seeds, two runs side by side
    python -m experiments.evidence --settings displaced --seeds 0 1
    python -m experiments.evidence --quick                        # minutes; to see that it runs

A run that was cut off goes on where it stopped, a finished one is not run again. Runs are in outputs/evidence/,
tables and plots in experiments/results/.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.report import write_evidence

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "evidence.yaml"
RUNS = ROOT / "outputs" / "evidence"
RESULTS = Path(__file__).parent / "results"

_PM6 = "{name: pm6, weight: 5}"
_LABELLED = "{name: pm6, weight: 4, only_labelled: true}"
_NO_FORCES = ["--stage1.losses.force_weight=0", "--stage2.losses.force_weight=0"]
# What of configs/evidence.yaml each setting changes; "displaced" is the file itself.
SETTINGS: dict[str, list[str]] = {
    # (a) PM6 structures, B3LYP energies at them
    "energies": [f"--{stage}.sources=[{_PM6}, {_LABELLED}]" for stage in ("stage1", "stage2")] + _NO_FORCES,
    # (b) and B3LYP forces at them
    "forces": [f"--{stage}.sources=[{_PM6}, {_LABELLED}]" for stage in ("stage1", "stage2")],
    # (c) and energies and forces of displaced structures
    "displaced": [],
}
QUICK = [
    "--stage1.num_steps=20",
    "--stage2.num_steps=10",
    "--evaluation.max_molecules=8",
    "--evaluation.num_samples=2",
    "--evaluation.num_inference_steps=5",
]


def run_folder(setting: str, seed: int, quick: bool) -> Path:
    return RUNS.with_name(RUNS.name + "-quick" if quick else RUNS.name) / setting / f"seed{seed}"


def train(setting: str, seed: int, quick: bool) -> None:
    """One run of train_accelerate.py on one thread, unless its metrics are there.

    Raises:
        RuntimeError: it failed; the message names its log.
    """
    folder = run_folder(setting, seed, quick)
    if (folder / "metrics.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    options = [*SETTINGS[setting], f"--seed={seed}", f"--output_dir={folder}", "--resume=true", "--cpu=true"]
    command = [sys.executable, "train_accelerate.py", "--config", str(CONFIG), *options, *(QUICK if quick else [])]
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
    if done.returncode != 0:
        raise RuntimeError(f"setting {setting}, seed {seed} failed; see {folder / 'log.txt'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()

    runs = [(setting, seed, arguments.quick) for seed in arguments.seeds for setting in arguments.settings]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for future in [pool.submit(train, *run) for run in runs]:
            future.result()
    metrics = {
        setting: [
            json.loads((run_folder(setting, seed, arguments.quick) / "metrics.json").read_text())
            for seed in arguments.seeds
        ]
        for setting in arguments.settings
    }
    output = RUNS.with_name(RUNS.name + "-quick") if arguments.quick else RESULTS
    write_evidence(metrics, arguments.seeds, output)
    print(f"see {output / 'evidence.md'}")


if __name__ == "__main__":
    main()
