"""Does the correction of the library do it? The last stage of the drug-like model with and without it, over seeds.

    python -m experiments.drug_like_arms flexisol_validation.parquet

Both arms are the last round of training (configs/drug_like_minima.yaml), from one checkpoint and with the same labels.
"consistency" learns the structures of its `data/corrected`, "multi-task" the very rows that these were made of, at
GFN2-xTB. A seed is of batches and noise, the same in both. Runs that are there are not done again. The file is that of
`experiments.outside`; without it, the molecules are those of `experiments.same_level`. The starts are MMFF94 minima.
Table and numbers go to experiments/results/drug_like_arms*.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml

from dataset_scripts.tables import write_rows
from experiments import same_level
from experiments.outside import ROOT, mean_shifted, measured, read, taken_by
from experiments.statistics import compare
from modeling_pcbridge import PCBridgeModel
from pcbridge.training.corrected_library import read_minima

CONFIGS = [ROOT / "configs" / f"drug_like_{name}.yaml" for name in ("corrected", "minima")]
CORRECTED = "data/corrected"
RESULTS = Path(__file__).parent / "results" / "drug_like_arms"
ARMS = ("multi-task", "consistency")
_METRICS = {
    "bonds": ("bonds, angstrom", 4),
    "bonds_centred": ("bonds, type means removed", 4),
    "one_three": ("1-3 distances, angstrom", 4),
    "angles": ("angles, degrees", 2),
}


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


def train(arm: str, seed: int, folder: Path, start: Path, num_steps: int) -> Path:
    """The checkpoint of an arm, trained unless it is there."""
    output = folder / f"{arm}-{seed}"
    checkpoint = output / "consistency"
    if not (checkpoint / "model.safetensors").exists():
        config = {"init_from": str(start.resolve()), "output_dir": str(output.resolve()), "seed": seed}
        config["stage2"] = {
            "num_steps": num_steps,
            "sources": yaml.safe_load(CONFIGS[-1].read_text())["stage2"]["sources"],
        }
        for source in config["stage2"]["sources"]:
            if source["name"] == CORRECTED and arm == "multi-task":
                source["name"] = str((folder / "uncorrected").resolve())
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / f"{arm}-{seed}.yaml"
        written.write_text(yaml.safe_dump(config))
        command = [sys.executable, "train_accelerate.py", "--resume", "latest"]
        for path in (*CONFIGS, written.resolve()):
            command += ["--config", str(path)]
        subprocess.run(command, cwd=ROOT, check=True)
    return checkpoint


def report(values: dict[str, dict[str, list[float]]], num_molecules: int, num_steps: int, source: str) -> str:
    """A row for each metric: both arms over seeds, and the paired difference."""
    num_seeds = len(values[ARMS[0]]["bonds"])
    lines = [
        "# The last stage with and without the correction",
        "",
        f"{num_molecules} molecules of {source}, from MMFF94 minima by mean shift; {num_steps} updates from one "
        f"checkpoint, {num_seeds} seeds of batches and noise, mean and standard deviation over them. "
        "Written by `python -m experiments.drug_like_arms`.",
        "",
        "| | " + " | ".join(ARMS) + " | difference | 95% interval | p |",
        "|---|---|---|---|---|---|",
    ]
    for key, (title, d) in _METRICS.items():
        arms = [np.array(values[arm][key]) for arm in ARMS]
        test = compare(*(list(arm) for arm in arms))
        cells = [f"{arm.mean():.{d}f} ± {arm.std(ddof=1):.{d}f}" for arm in arms]
        cells += [f"{100 * test.relative:+.0f}%", f"{test.low:+.{d}f} to {test.high:+.{d}f}", f"{test.p_value:.2g}"]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--start", type=Path, default=ROOT / "checkpoints" / "drug_like", help="checkpoint")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "drug_like_arms", help="of the runs")
    parser.add_argument("--num_steps", type=int, default=1500, help="updates of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train_only", action="store_true", help="for a part of the seeds, beside other processes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write_uncorrected(arguments.folder / "uncorrected")
    at_same_level = arguments.file is None
    molecules = same_level.read() if at_same_level else read(arguments.file)
    results = RESULTS.with_name(f"{RESULTS.name}_same_level") if at_same_level else RESULTS
    values: dict[str, dict[str, list[float]]] = {arm: {key: [] for key in _METRICS} for arm in ARMS}
    for seed in arguments.seeds:
        for arm in ARMS:
            checkpoint = train(arm, seed, arguments.folder, arguments.start, arguments.num_steps)
            if arguments.train_only:
                continue
            model = PCBridgeModel.from_pretrained(checkpoint).eval()
            taken, graphs = taken_by(model, molecules)
            records = measured(taken, mean_shifted(model, graphs, [m.mmff for m in taken]), None)["records"]
            for key in _METRICS:
                values[arm][key].append(float(np.nanmean([record[key] for record in records.values()])))
    if not arguments.train_only:
        text = report(
            values, len(taken), arguments.num_steps, "`large_labelled`" if at_same_level else arguments.file.name
        )
        results.with_suffix(".json").write_text(json.dumps(values) + "\n")
        results.with_suffix(".md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
