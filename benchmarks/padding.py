"""Parts and padding of batches by `max_pairs`, for the sources of configs/drug_like.yaml: a table of docs/cost.md.

    python -m benchmarks.padding [--batch_size 256]

Batches are those of the first 40 updates, seed 0. The folders of data/ must be there, see docs/training.md.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_scripts.bundled import CONFIG_NAMES, parquet_path
from dataset_scripts.mixture import MixtureBatchSampler
from pcbridge.training.config import SourceConfig
from pcbridge.training.data import _ends_of_parts
from train_accelerate import CONFIGS, parse

_LIMITS = (16_384, 32_768, 131_072, 262_144, 524_288, 10**9)
_BATCHES = 40


def num_atoms(source: SourceConfig) -> np.ndarray:
    """Of each training row that the source gives."""
    paths = [parquet_path(source.name, "train")] if source.name in CONFIG_NAMES else Path(source.name).glob("train/*")
    tables = [pq.read_table(path, columns=["atomic_numbers", "energy"]) for path in sorted(paths)]
    if source.only_labelled:
        tables = [table.filter(pc.field("energy").is_valid()) for table in tables]
    return np.concatenate([pc.list_value_length(table["atomic_numbers"]).to_numpy() for table in tables])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=256)
    batch_size = parser.parse_args().batch_size
    stage = parse([f"--config={CONFIGS / 'drug_like.yaml'}"]).stage1
    assert stage is not None
    atoms = [num_atoms(source) for source in stage.sources]
    sampler = MixtureBatchSampler(
        sizes=list(atoms),
        shard_lengths=[[len(each)] for each in atoms],
        weights=[source.weight for source in stage.sources],
        batch_size=batch_size,
        num_batches=_BATCHES,
        seed=0,
        start_batch=0,
    )
    batches = [np.sort(np.concatenate(atoms)[list(rows)]) for rows in sampler]
    real = sum((sizes.astype(float) ** 2).sum() for sizes in batches)
    print("| max_pairs | parts of a batch | padding, of pairs of atoms |\n|---|---|---|")
    for limit in _LIMITS:
        cuts = [list(pairwise([0, *_ends_of_parts(sizes, limit)])) for sizes in batches]
        held = sum((b - a) * sizes[b - 1] ** 2 for sizes, cut in zip(batches, cuts, strict=True) for a, b in cut)
        print(f"| {limit:,} | {np.mean([len(cut) for cut in cuts]):.1f} | {100 * (1 - real / held):.0f}% |")


if __name__ == "__main__":
    main()
