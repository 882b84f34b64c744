"""Fine-tune the released model on a CSV of structures, energies and forces; ends with a checkpoint.

    python examples/fine_tune_on_csv.py --csv mine.csv --level "B3LYP/6-31G*" --output_dir outputs/mine
    python examples/fine_tune_on_csv.py --quick

Columns: `smiles`, `positions` (angstrom) and, where known, `energy` (eV) and `forces` (eV/angstrom), lists as JSON; the
atoms in the order of RDKit's AddHs, or of the map numbers of the SMILES (dataset_scripts/own_data.py). Without --csv an
example is written from bundled molecules first. --quick takes a few updates only, to see it run.
"""

import argparse
import csv
import json
from itertools import islice
from pathlib import Path

from dataset_scripts.bundled import load_bundled
from dataset_scripts.own_data import own_source
from dataset_scripts.prepare import prepare
from dataset_scripts.schema import B3LYP_6_31GD
from modeling_pcbridge import PCBridgeConfig
from modeling_pcbridge.losses import LossSettings
from pcbridge.app.default_model import released_checkpoint
from pcbridge.training.config import SourceConfig, StageConfig, TrainingConfig
from pcbridge.training.run import run

COLUMNS = ("smiles", "positions", "energy", "forces")


def write_example(path: Path, num_rows: int = 64) -> None:
    """What a CSV looks like, made of bundled displaced structures with B3LYP/6-31G* labels."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in islice(load_bundled("pm6_displaced", "train"), num_rows):
            writer.writerow([row["mapped_smiles"], *(json.dumps(row[column]) for column in COLUMNS[1:])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="your data")
    parser.add_argument("--level", default=B3LYP_6_31GD, help="level of theory of its energies and forces")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/fine_tuned"))
    parser.add_argument("--num_steps", type=int, default=300)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    table = options.csv or options.output_dir / "example.csv"
    if options.csv is None:
        write_example(table)

    # From the CSV to training shards, split by molecule.
    shards = options.output_dir / "data"
    print(prepare(own_source(energy_level_of_theory=options.level), [table], shards))

    # Your rows beside a part of the bundled ones, so that what the model knew is not forgotten.
    energies = LossSettings(energy_weight=1.0, denoising_weight=0.1, force_weight=0.5, force_form="norm")
    stage = StageConfig(
        num_steps=10 if options.quick else options.num_steps,
        learning_rate=2e-4,
        warmup_steps=5,
        sources=[SourceConfig(str(shards)), SourceConfig("pm6", max_rows=500)],
        losses=energies,
    )
    checkpoint = str(released_checkpoint())
    levels = PCBridgeConfig.from_pretrained(checkpoint).energy_levels_of_theory
    if options.level not in levels:
        levels = [options.level, *levels]  # a head of its own, and the model's own level from now on
    config = TrainingConfig(
        stage1=stage,
        stage2=None,
        init_from=checkpoint,
        model={"energy_levels_of_theory": levels},
        output_dir=str(options.output_dir),
        batch_size=8 if options.quick else 32,
        ema_decay=0.98,  # a short run: an average over its last fifty updates or so
        evaluation=None,
    )
    run(config)
    print(f"fine-tuned checkpoint: {options.output_dir / 'stage1'}")


if __name__ == "__main__":
    main()
