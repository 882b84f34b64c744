"""Mixing data sources into batches of similar-sized molecules, in an order fixed by the seed alone."""

from collections.abc import Iterator, Sequence
from itertools import islice
from math import ceil

import numpy as np
from torch.utils.data import Sampler

from modeling_pcbridge.errors import InputError

# Batches whose rows are drawn together and then sorted by size. More means less padding and less random batches.
BATCHES_PER_WINDOW = 16
# Shards of a source whose rows are mixed with each other. Each shard may hold another kind of molecules, as those that
# `prepare` writes of several inputs do: one after the other they would each be forgotten during the next.
SHARDS_AT_ONCE = 8


def rows_per_batch(weights: Sequence[float], batch_size: int) -> list[int]:
    """How many of `batch_size` rows each source gives, proportional to `weights` (largest remainders).

    Raises:
        ValueError: a negative weight, all weights zero, or a source with weight that gets no row.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if (shares < 0).any() or shares.sum() == 0:
        raise InputError(f"mixing weights must be non-negative and not all zero, not {list(weights)}")
    exact = batch_size * shares / shares.sum()
    counts = np.floor(exact).astype(int)
    for source in np.argsort(counts - exact, kind="stable")[: batch_size - counts.sum()]:
        counts[source] += 1
    if ((counts == 0) & (shares > 0)).any():
        raise InputError(f"a batch of {batch_size} has no room for every source with weights {list(weights)}")
    return counts.tolist()


class MixtureBatchSampler(Sampler[list[int]]):
    """Batches of indices into the concatenation of several sources.

    Every batch has the same number of rows of each source. Each source is walked through in a fresh random order per
    epoch, on its own; small sources simply come around more often. Of a source in more than `SHARDS_AT_ONCE` shards so
    many, taken at random, are mixed at a time and then the next ones, so that few are in use. Batch k depends on the
    seed and k only, so a run resumes at `start_batch` without state.

    Args:
        sizes: for each source, the number of atoms of each of its rows.
        weights: mixing weights.
        batch_size: rows of each batch.
        num_batches: batches in the whole run.
        seed: of all orders.
        start_batch: batches to leave out at the beginning.
        shard_lengths: for each source the rows of its shards, in the order of its rows; by default one shard each.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[int] | np.ndarray],
        weights: Sequence[float],
        batch_size: int,
        num_batches: int,
        seed: int,
        start_batch: int = 0,
        shard_lengths: Sequence[Sequence[int]] | None = None,
    ):
        for source, source_sizes in enumerate(sizes):
            if len(source_sizes) == 0:
                raise InputError(f"data source number {source} is empty")
        self.sizes = [np.asarray(source_sizes) for source_sizes in sizes]
        self.shard_lengths = [np.asarray(of_source) for of_source in shard_lengths or [[len(s)] for s in self.sizes]]
        self.counts = rows_per_batch(weights, batch_size)
        self.num_batches = num_batches
        self.seed = seed
        self.start_batch = start_batch

    def __len__(self) -> int:
        return max(self.num_batches - self.start_batch, 0)

    def __iter__(self) -> Iterator[list[int]]:
        first_window, skip = divmod(self.start_batch, BATCHES_PER_WINDOW)
        return islice(self._batches_from(first_window), skip, skip + len(self))

    def _batches_from(self, window: int) -> Iterator[list[int]]:
        offsets = np.cumsum([0] + [len(sizes) for sizes in self.sizes])
        while True:
            rows = [
                self._window_rows(source, window, count) + offsets[source] for source, count in enumerate(self.counts)
            ]
            for batch in np.random.default_rng((self.seed, window)).permutation(BATCHES_PER_WINDOW):
                yield np.concatenate([source_rows[batch] for source_rows in rows]).tolist()
            window += 1

    def _window_rows(self, source: int, window: int, count: int) -> np.ndarray:
        """(BATCHES_PER_WINDOW, count) rows of one source, those of each epoch sorted by size."""
        sizes = self.sizes[source]
        drawn = np.arange(window * BATCHES_PER_WINDOW * count, (window + 1) * BATCHES_PER_WINDOW * count)
        epochs, places = np.divmod(drawn, len(sizes))
        rows = np.empty_like(drawn)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._rows_at(source, int(epoch), places[epochs == epoch])
        # Each epoch on its own: else copies of a row would share a batch.
        return rows[np.lexsort((sizes[rows], epochs))].reshape(BATCHES_PER_WINDOW, count)

    def _rows_at(self, source: int, epoch: int, places: np.ndarray) -> np.ndarray:
        """The rows at `places` of an epoch's order: shards permuted, and the rows of each group of them."""
        lengths = self.shard_lengths[source]
        order = np.random.default_rng((self.seed, source, epoch)).permutation(len(lengths))
        groups = np.array_split(order, ceil(len(order) / SHARDS_AT_ONCE))
        starts, ends = np.cumsum(lengths) - lengths, np.cumsum([lengths[shards].sum() for shards in groups])
        group_of_place = np.searchsorted(ends, places, side="right")
        rows = np.empty_like(places)
        for group in np.unique(group_of_place):
            members = np.concatenate([starts[shard] + np.arange(lengths[shard]) for shard in groups[group]])
            mixed = np.random.default_rng((self.seed, source, epoch, group)).permutation(members)
            here = group_of_place == group
            rows[here] = mixed[places[here] - (ends[group] - len(members))]
        return rows
