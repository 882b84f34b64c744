"""Structures of a library relaxed on the energy of a model: what its structure decoder should give for them.

    python -m pcbridge.training.relaxed_library --model outputs/drug_like/stage1 --output data/relaxed \\
        --sources drug_like data/drug_like_mmff94

The distillation term of stage 2 relaxes every structure by a few steps, again each time it is drawn. This does it
once, to convergence; a stage with `--output` among its sources then denoises the minima of E like any others (Eq. 7).
Each source is a bundled configuration or a folder that `dataset_scripts.prepare` wrote. One shard per source and split,
written whole, so that a killed run goes on with the next. Structures that do not converge, or do not pass
`StructureChecks` afterwards, are left out and counted.
"""

import argparse
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_dataset
from tqdm.auto import tqdm

from dataset_scripts.bundled import CONFIG_NAMES, load_bundled
from dataset_scripts.collator import example_from_row
from dataset_scripts.schema import FEATURES
from dataset_scripts.tables import write_rows
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.structure_checks import StructureChecks
from pcbridge.evaluation.batches import padded_batches, unpadded

logger = logging.getLogger(__name__)

MAX_FORCE = 0.05  # eV/angstrom
MAX_EVALUATIONS = 100
_SPLITS = ("train", "validation")
_BATCH_SIZE = 8


def read_minima(source: str, split: str) -> Dataset:
    """The rows of a source that are minima at some level.

    Raises:
        InputError: neither a bundled configuration nor a folder with that split.
    """
    if source in CONFIG_NAMES:
        rows = load_bundled(source, split)
    else:
        files = sorted(map(str, Path(source).glob(f"{split}/*.parquet")))
        if not files:
            raise InputError(
                f"no data source {source!r}: neither a bundled configuration ({', '.join(CONFIG_NAMES)}) nor a folder "
                f"with shards in {split}/"
            )
        rows = load_dataset("parquet", data_files=files, split="train", features=FEATURES)
    return rows.filter(lambda level: level is not None, input_columns="equilibrium_level_of_theory")


def relaxed_rows(model: PCBridgeModel, rows: Dataset) -> tuple[list[dict], Counter[str]]:
    """The rows at minima of the model's energy, without labels, and how many were left out for which reason."""
    by_size = sorted(rows, key=lambda row: len(row["atomic_numbers"]))
    examples = [example_from_row(row, (), model.config.resonance_invariant) for row in by_size]
    graphs, starts = [e.graph for e in examples], [e.positions for e in examples]
    level = f"PCBridge of {model.config.energy_level_of_theory}"
    relaxed: list[dict] = []
    left_out: Counter[str] = Counter()
    first = 0
    with tqdm(total=len(graphs), unit="molecule", mininterval=10) as bar:
        for graph, positions in padded_batches(model, graphs, starts, _BATCH_SIZE):
            output = model.relax_structure(
                positions, max_force=MAX_FORCE, max_evaluations=MAX_EVALUATIONS, **graph.inputs
            )
            assert output.converged is not None
            structures = unpadded(graph, output.positions)
            for k, (structure, converged) in enumerate(zip(structures, output.converged.tolist(), strict=True)):
                if not converged:
                    left_out["did not converge"] += 1
                elif StructureChecks(graphs[first + k]).faults(structure):
                    left_out["is no longer a structure of its graph"] += 1
                else:
                    relaxed.append(_relaxed_row(by_size[first + k], structure, level))
            first += len(structures)
            bar.update(len(structures))
    return relaxed, left_out


def _relaxed_row(row: dict, structure: np.ndarray, level: str) -> dict:
    unlabelled = dict.fromkeys(("energy", "forces", "energy_level_of_theory"))
    return row | unlabelled | {"positions": structure.round(6).tolist(), "equilibrium_level_of_theory": level}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or hub name")
    parser.add_argument("--sources", nargs="+", required=True, help="bundled configurations or prepared folders")
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards")
    arguments = parser.parse_args()
    try:
        model = PCBridgeModel.from_pretrained(arguments.model).eval()
        model.config.check_forces_are_learned("relaxing a library")
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        for source in arguments.sources:
            for split in _SPLITS:
                path = arguments.output / split / f"{Path(source).name}.parquet"
                if path.exists():
                    continue
                rows, left_out = relaxed_rows(model, read_minima(source, split))
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished = path.with_suffix(".unfinished")
                write_rows(unfinished, rows)
                unfinished.rename(path)
                reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
                print(f"{source}, {split}: {len(rows)} rows; left out: {reasons}", flush=True)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
