"""Streaming prepared shards into your own loop: shuffled by seed, mixed by weight, split by node and worker, resumable.

`train_accelerate.py` reads them by index instead (`sharded`), which sorts batches by size and needs no state.

The order is a schedule of (shard, epoch) pairs that depends on the seed alone. A shard is read whole and its rows are
permuted in memory, so there is no shuffle buffer whose contents a resumed run would lack: `state_dict()` of the
dataset is a few numbers that JSON holds, and `load_state_dict` opens one shard a source.

    dataset = mix([stream_shards("data/qm9", "train", seed=0, num_epochs=10)], weights=[1.0], seed=0)
    dataset = split_dataset_by_node(dataset, rank, world_size)
    loader = DataLoader(dataset, num_workers=2, ...)

Accelerate's `prepare` splits by process itself: give it the dataset before `split_dataset_by_node`. With workers, the
state lives in them; torchdata's StatefulDataLoader collects it.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import IterableDataset, interleave_datasets

from dataset_scripts.schema import FEATURES


def stream_shards(folder: Path | str, split: str, seed: int, num_epochs: int = 1) -> IterableDataset:
    """Rows of what `dataset_scripts.prepare` wrote, in a fresh random order an epoch.

    Shards come in random order and rows in random order within their shard. Every epoch holds every row once.

    Raises:
        ValueError: no shards.
    """
    paths = sorted(Path(folder, split).glob("*.parquet"))
    if not paths:
        raise ValueError(f"no Parquet shards in {Path(folder, split)}; dataset_scripts.prepare makes them")
    schedule = [
        (str(paths[i]), epoch)
        for epoch in range(num_epochs)
        for i in np.random.default_rng((seed, epoch)).permutation(len(paths))
    ]
    # `datasets` divides lists among nodes and workers, and passes other values on whole.
    return IterableDataset.from_generator(_rows, features=FEATURES, gen_kwargs={"schedule": schedule, "seed": seed})


def _rows(schedule: list[tuple[str, int]], seed: int) -> Iterator[dict]:
    for path, epoch in schedule:
        table = pq.read_table(path)
        order = np.random.default_rng((seed, epoch, zlib.crc32(Path(path).name.encode()))).permutation(len(table))
        for batch in table.take(order).to_batches(max_chunksize=1000):
            yield from batch.to_pylist()


def mix(datasets: list[IterableDataset], weights: list[float], seed: int) -> IterableDataset:
    """One stream that takes each next row from a source drawn with these weights.

    It ends when every source has been seen whole; a source that ends earlier starts again.

    Raises:
        ValueError: weights are negative, sum to zero, or are not one a source.
    """
    if len(weights) != len(datasets) or min(weights) < 0 or sum(weights) == 0:
        raise ValueError(f"{len(datasets)} sources need as many non-negative weights, not {weights}")
    probabilities = [weight / sum(weights) for weight in weights]
    return interleave_datasets(datasets, probabilities=probabilities, seed=seed, stopping_strategy="all_exhausted")
