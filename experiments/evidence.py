"""Does consistency carry DFT accuracy into structures? Trains and evaluates every declared setting, writes the tables.

    python -m experiments.evidence                              # the data settings, five seeds, two jobs side by side
    python -m experiments.evidence --settings displaced --seeds 0 1
    python -m experiments.evidence --ablations                  # other forms of the losses, from the same stage 1
    python -m experiments.evidence --report                     # only the tables, of what is there
    python -m experiments.evidence --quick                      # minutes; to see that it runs

What was cut off goes on where it stopped, what is finished is not done again. Runs are in outputs/evidence/, tables
and plots in experiments/results/. What each setting is: experiments/evidence_settings.py.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.evidence_report import write_evidence
from experiments.evidence_settings import ABLATIONS, DATA_SETTINGS, QUICK_FINE_TUNING, QUICK_TRAINING, SETTINGS
from pcbridge.training.run import STAGE1

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


class Runner:
    """Runs the programs of the evidence, one thread each, and skips those whose output is there."""

    def __init__(self, quick: bool):
        self.quick = quick
        self.runs = ROOT / "outputs" / ("evidence-quick" if quick else "evidence")

    def folder(self, setting: str, seed: int) -> Path:
        return self.runs / setting / f"seed{seed}"

    def checkpoint(self, setting: str, model: str, seed: int) -> Path:
        """Of one of the models of a setting."""
        folder = self.folder(setting, seed) / model
        return folder if SETTINGS[setting].fine_tunes is None else folder / STAGE1

    def run(self, setting: str, seed: int) -> None:
        """Train and evaluate every model of a setting and seed; raises what `train` does."""
        self.train(setting, seed)
        for model in SETTINGS[setting].models:
            self.evaluate(self.checkpoint(setting, model, seed), self.folder(setting, seed) / f"{model}.json")

    def train(self, setting: str, seed: int) -> None:
        """Train every model of a setting and seed.

        Raises:
            RuntimeError: the setting starts from another that has not been trained, or a program fails.
        """
        declared, folder = SETTINGS[setting], self.folder(setting, seed)
        before = declared.begins_from
        if before is not None and not (self.folder(before, seed) / "metrics.json").exists():
            raise RuntimeError(f"{setting} starts from {before}, seed {seed}; run that first")
        if declared.fine_tunes is not None:
            for model in declared.models:
                options = [f"--init_from={self.folder(before, seed) / model}", f"--seed={seed}"]
                options += QUICK_FINE_TUNING if self.quick else []
                self._train("fine_tuning.yaml", folder / model, options)
            return
        options = [*declared.overrides, f"--seed={seed}", *(QUICK_TRAINING if self.quick else [])]
        if declared.start is not None:
            stage1 = self.folder(before, seed) / STAGE1
            options = [option for option in options if not option.startswith("--stage1.")]
            options += ["--stage1=null", f"--init_from={stage1}", "--compare_multi_task=false"]
        self._train("evidence.yaml", folder, options)

    def _train(self, config: str, folder: Path, options: list[str]) -> None:
        if not (folder / "metrics.json").exists():
            fixed = [f"--output_dir={folder}", "--evaluation=null", "--resume=latest", "--cpu=true"]
            self._call(["train_accelerate.py", "--config", f"configs/{config}", *options, *fixed], folder)

    def evaluate(self, checkpoint: Path, output: Path) -> None:
        if not output.exists():
            self._call(
                ["-m", "experiments.evidence_evaluation", f"--checkpoint={checkpoint}", f"--output={output}"],
                output.parent,
            )

    def references(self) -> None:
        output = self.runs / "references.json"
        if not output.exists():
            self._call(["-m", "experiments.evidence_evaluation", "--references", f"--output={output}"], self.runs)

    def _call(self, arguments: list[str], folder: Path) -> None:
        """Raises RuntimeError that names the log if the program fails."""
        if self.quick and arguments[0] == "-m":
            arguments = [*arguments, "--quick"]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)} failed; see {folder / 'log.txt'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(DATA_SETTINGS))
    parser.add_argument("--ablations", action="store_true", help="instead of --settings, all ablations")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--report", action="store_true", help="run nothing, write the tables of what is there")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()

    runner = Runner(arguments.quick)
    if not arguments.report:
        names = list(ABLATIONS) if arguments.ablations else arguments.settings
        with ThreadPoolExecutor(arguments.jobs) as pool:
            jobs = [pool.submit(runner.references)]
            runs = [(n, s) for i, s in enumerate(arguments.seeds) for n in names if i < SETTINGS[n].num_seeds]
            first = [run for run in runs if SETTINGS[run[0]].begins_from is None]
            # What begins from another setting's models comes when those are there.
            for chosen in (first, [run for run in runs if run not in first]):
                jobs += [pool.submit(runner.run, name, seed) for name, seed in chosen]
                for job in jobs:
                    job.result()
    output = runner.runs if arguments.quick else RESULTS
    write_evidence(runner.runs, output)
    print(f"see {output / 'evidence.md'}")


if __name__ == "__main__":
    main()
