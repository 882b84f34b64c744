"""Does the correction of the library do it? The last stage of the drug-like model with and without it, over seeds.

    python -m experiments.drug_like_arms flexisol_validation.parquet

Both arms are the last round of training (configs/drug_like_minima.yaml), from one checkpoint and with the same labels.
"consistency" learns the structures of its `data/corrected`, "multi-task" the very rows that these were made of, at
GFN2-xTB. A seed is of batches and noise, the same in both. Runs that are there are not done again. The file is that of
`experiments.outside`; without it, the molecules are those of `experiments.same_level`. The starts are MMFF94 minima.
Table and numbers go to experiments/results/drug_like_arms*.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml

from dataset_scripts.tables import write_rows
from experiments import same_level
from experiments.figures import bar_plot
from experiments.outside import REFINED, RELAXED, ROOT, SHIFTED, read, structures_from_mmff94, taken_by
from experiments.outside_report import of_groups, of_sizes
from experiments.provenance import WEIGHTS, write_results
from experiments.statistics import compare
from experiments.structure_errors import METRICS, Molecule, measured
from modeling_pcbridge import PCBridgeModel
from pcbridge.training.corrected_library import read_minima
from pcbridge.training.run import CONSISTENCY, MULTI_TASK

CONFIGS = [ROOT / "configs" / f"drug_like_{name}.yaml" for name in ("corrected", "minima")]
CORRECTED = "data/corrected"
RESULTS = Path(__file__).parent / "results" / "drug_like_arms"
ARMS = (MULTI_TASK, CONSISTENCY)
ALL = "any"  # of the classes of `outside_report`
WAYS = (SHIFTED, REFINED, RELAXED)


def write_uncorrected(folder: Path) -> None:
    """The rows that `CORRECTED` was made of, shard by shard."""
    for path in sorted((ROOT / CORRECTED).glob("*/*.parquet")):
        copy = folder / path.parent.name / path.name
        if copy.exists():
            continue
        chosen = set(pq.read_table(path, columns=["molecule_id"])["molecule_id"].to_pylist())
        prepared = ROOT / "data" / path.stem
        source = str(prepared) if prepared.is_dir() else path.stem  # else a bundled configuration
        copy.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_minima(source, path.parent.name) if row["molecule_id"] in chosen]
        write_rows(copy, [row | dict.fromkeys(("energy", "forces", "energy_level_of_theory")) for row in rows])


def train(output: Path, structures: Path, seed: int, start: Path, num_steps: int) -> Path:
    """The checkpoint of a last round with these structures in the place of `CORRECTED`, trained unless it is there."""
    sources = yaml.safe_load(CONFIGS[-1].read_text())["stage2"]["sources"]
    for source in sources:
        if source["name"] == CORRECTED:
            source["name"] = str(structures.resolve())
    return train_round(output, seed, start, {"num_steps": num_steps, "sources": sources})


def train_round(output: Path, seed: int, start: Path, stage2: dict) -> Path:
    """The checkpoint of a last round with these changes of its options, trained unless it is there."""
    checkpoint = output / CONSISTENCY
    if not (checkpoint / WEIGHTS).exists():
        config = {"init_from": str(start.resolve()), "output_dir": str(output.resolve()), "seed": seed}
        config["stage2"] = stage2
        output.parent.mkdir(parents=True, exist_ok=True)
        written = output.with_suffix(".yaml")
        written.write_text(yaml.safe_dump(config))
        command = [sys.executable, "train_accelerate.py", "--resume", "latest"]
        for path in (*CONFIGS, written.resolve()):
            command += ["--config", str(path)]
        subprocess.run(command, cwd=ROOT, check=True)
    return checkpoint


def errors_of(checkpoint: Path, molecules: Sequence[Molecule]) -> dict[str, dict[str, dict[str, float]]]:
    """Means of each metric by the `WAYS` of `structures_from_mmff94` and by class of molecules.

    Classes are those of `outside_report` by size and by what molecules contain, of which "any" has all of them.
    """
    model = PCBridgeModel.from_pretrained(checkpoint).eval()
    taken, graphs = taken_by(model, molecules)
    classes = of_sizes(taken) | of_groups(taken)
    found = {}
    for way, (structures, _) in structures_from_mmff94(model, taken, graphs).items():
        records = measured(taken, structures, None)["records"]
        found[way] = {
            title: {key: float(np.nanmean([records[name][key] for name in sorted(names)])) for key in METRICS}
            for title, names in classes.items()
            if names
        }
    return found


def report(values: dict[str, list[dict]], introduction: str) -> str:
    """For each way both arms over seeds and the paired difference: of each metric, of bonds and angles by class."""
    lines = ["# The last stage with and without the correction", "", introduction]
    head = ["| | " + " | ".join(ARMS) + " | difference | 95% interval | p |", "|---|---|---|---|---|---|"]
    for way in WAYS:

        def row(title: str, name: str, key: str, way: str = way) -> str:
            d, arms = METRICS[key][1], [[of_seed[way][name][key] for of_seed in values[arm]] for arm in ARMS]
            test = compare(*arms)
            cells = [f"{np.mean(arm):.{d}f} ± {np.std(arm, ddof=1):.{d}f}" for arm in arms]
            cells += [f"{100 * test.relative:+.0f}%", f"{test.low:+.{d}f} to {test.high:+.{d}f}", f"{test.p_value:.2g}"]
            return f"| {title} | {' | '.join(cells)} |"

        lines += ["", f"## {way[0].upper()}{way[1:]}", "", *head]
        lines += [row(title, ALL, key) for key, (title, _) in METRICS.items()]
        for key in ("bonds", "angles"):
            lines += ["", f"{METRICS[key][0].capitalize()}, by heavy atoms and by what molecules contain:", "", *head]
            lines += [row(name, name, key) for name in values[ARMS[0]][0][way] if name != ALL]
    return "\n".join([*lines, ""])


def plot(values: dict[str, list[dict]], path: Path) -> None:
    """Errors of consistency relative to multi-task, means over seeds."""

    def mean(arm: str, way: str, key: str) -> float:
        return float(np.mean([of_seed[way][ALL][key] for of_seed in values[arm]]))

    ratios = {
        way: {title: mean(CONSISTENCY, way, key) / mean(MULTI_TASK, way, key) for key, (title, _) in METRICS.items()}
        for way in WAYS
    }
    bar_plot(path, {f"error, {CONSISTENCY} / {MULTI_TASK}": ratios})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--start", type=Path, default=ROOT / "checkpoints" / "drug_like", help="checkpoint")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "drug_like_arms", help="of the runs")
    parser.add_argument("--num_steps", type=int, default=1000, help="updates of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train_only", action="store_true", help="for a part of the seeds, beside other processes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    uncorrected = arguments.folder / "uncorrected"
    write_uncorrected(uncorrected)
    checkpoints: dict[str, list[Path]] = {arm: [] for arm in ARMS}
    for seed in arguments.seeds:
        for arm, structures in zip(ARMS, (uncorrected, ROOT / CORRECTED), strict=True):
            output = arguments.folder / f"{arm}-{seed}"
            checkpoints[arm].append(train(output, structures, seed, arguments.start, arguments.num_steps))
    if arguments.train_only:
        return
    at_same_level = arguments.file is None
    molecules = same_level.read() if at_same_level else read(arguments.file)
    values = {arm: [errors_of(checkpoint, molecules) for checkpoint in checkpoints[arm]] for arm in ARMS}
    introduction = (
        f"{len(molecules)} molecules of {'`large_labelled`' if at_same_level else arguments.file.name}, from MMFF94 "
        f"minima; {arguments.num_steps} updates from one checkpoint, {len(arguments.seeds)} seeds of batches and "
        "noise, mean and standard deviation over them. Written by `python -m experiments.drug_like_arms`."
    )
    text = report(values, introduction)
    results = RESULTS.with_name(f"{RESULTS.name}_same_level") if at_same_level else RESULTS
    write_results(results.with_suffix(".json"), values, text)
    plot(values, results.with_suffix(".png"))


if __name__ == "__main__":
    main()
