"""Examples of a data set in Parquet shards, read as they are asked for: also for sets that do not fit into memory."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .collator import Example, example_from_row

# Shards that a process holds in memory. Batches walk through one shard a source, sometimes two.
_SHARDS_IN_MEMORY = 8
# Examples are kept where a process can hold them all (8 kB each for QM9), so that later epochs parse nothing.
_MAX_EXAMPLES_IN_MEMORY = 200_000


class ShardedExamples(Sequence[Example]):
    """The rows of `FOLDER/SPLIT/*.parquet`, as `dataset_scripts.prepare` writes them, as a sequence of examples.

    Only the numbers of atoms, and whether there are labels, are read at the beginning: two bytes a row stays in memory.

    Attributes:
        sizes: (rows,) numbers of atoms.
        elements: atomic numbers that occur, also in rows that do not count.
        shard_lengths: rows that count, by shard.
        num_too_large: rows that `max_atoms` left out.
        label_levels: rows that count by the level of theory of their labels, None for no label.
        has_labels: whether any row that counts has a label at one of `levels_of_theory`.
        has_structures: whether any row that counts is a minimum.

    Args:
        folder, split: where the shards are.
        levels_of_theory: see `example_from_row`.
        only_labelled: count rows with an energy at one of these levels only.
        max_atoms: count molecules with at most so many atoms only.

    Raises:
        ValueError: no shards, or no row that counts.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        levels_of_theory: Sequence[str],
        only_labelled: bool = False,
        max_atoms: int | None = None,
    ):
        self.levels_of_theory = tuple(levels_of_theory)
        self.paths = sorted((folder / split).glob("*.parquet"))
        if not self.paths:
            raise ValueError(f"no Parquet shards in {folder / split}; dataset_scripts.prepare makes them")
        # Rows that count, by shard, or None for all.
        self._chosen: list[np.ndarray | None] = []
        self.num_too_large = 0
        self.elements: set[int] = set()
        self.label_levels: Counter[str | None] = Counter()
        minimum_levels: set[str | None] = set()
        sizes = []
        for path in self.paths:
            columns = pq.read_table(
                path, columns=["atomic_numbers", "energy", "energy_level_of_theory", "equilibrium_level_of_theory"]
            )
            self.elements |= set(pc.unique(pc.list_flatten(columns["atomic_numbers"])).to_pylist())
            num_atoms = pc.list_value_length(columns["atomic_numbers"]).to_numpy().astype(np.uint16)
            counts = np.ones(len(num_atoms), dtype=bool)
            if only_labelled:
                labelled = columns["energy"].is_valid()
                known = pc.is_in(columns["energy_level_of_theory"], pa.array(self.levels_of_theory))
                labelled = pc.and_(labelled, known)
                counts &= pc.fill_null(labelled, False).to_numpy()
            if max_atoms is not None:
                self.num_too_large += int((counts & (num_atoms > max_atoms)).sum())
                counts &= num_atoms <= max_atoms
            self._chosen.append(None if counts.all() else np.flatnonzero(counts))
            sizes.append(num_atoms[counts])
            levels = columns.select(["energy_level_of_theory", "equilibrium_level_of_theory"])
            levels = levels if counts.all() else levels.filter(pa.array(counts))
            for entry in levels["energy_level_of_theory"].value_counts().to_pylist():
                self.label_levels[entry["values"]] += entry["counts"]
            minimum_levels.update(levels["equilibrium_level_of_theory"].unique().to_pylist())
        self.sizes = np.concatenate(sizes)
        self.shard_lengths = [len(of_shard) for of_shard in sizes]
        self._ends = list(accumulate(self.shard_lengths))
        if not len(self.sizes):
            raise ValueError(
                f"no row of {folder / split} counts (labels at {' or '.join(self.levels_of_theory)}, sizes)"
            )
        # Forces at a minimum are zero, see `example_from_row`.
        self.has_labels = any(level in self.label_levels or level in minimum_levels for level in self.levels_of_theory)
        self.has_structures = bool(minimum_levels - {None})
        self._make_caches()

    def _make_caches(self) -> None:
        self._read = lru_cache(_SHARDS_IN_MEMORY)(pq.read_table)
        self._example = self._parse
        if len(self) <= _MAX_EXAMPLES_IN_MEMORY:
            self._example = lru_cache(None)(self._parse)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._example(index)

    def _parse(self, index: int) -> Example:
        shard = bisect_right(self._ends, index)
        row = index - (self._ends[shard] - self.shard_lengths[shard])
        chosen = self._chosen[shard]
        table = self._read(self.paths[shard])
        [contents] = table.slice(row if chosen is None else chosen[row], 1).to_pylist()
        return example_from_row(contents, self.levels_of_theory)

    def __getstate__(self) -> dict:
        """Worker processes get the index, not what is in memory."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_read", "_example")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._make_caches()
