"""Examples of a data set in Parquet files, read as they are asked for: also for sets that do not fit into memory."""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from multiprocessing import Pool, get_start_method
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .collator import Example, example_from_row
from .mixture import SHARDS_AT_ONCE

# Shards that a process holds in memory: at times batches draw from two groups of shards.
_SHARDS_IN_MEMORY = 2 * SHARDS_AT_ONCE
# The first so many examples that a process parses are kept for later epochs: about 0.25 GB of QM9, whose examples take
# 2.5 kB each, and twice that of molecules of 40 atoms. Nothing is evicted, as every epoch asks for each row once.
_EXAMPLES_IN_MEMORY = 100_000


class _ShardIndex(NamedTuple):
    """What is known of a shard without parsing its rows.

    Attributes:
        chosen: places of the rows that count.
        sizes: their numbers of atoms.
        num_too_large: how many others have too many atoms.
        elements: atomic numbers of the chosen rows.
        label_levels: how many of the chosen rows have labels at each level of theory, None for no label.
        minimum_levels: the levels of theory at which chosen rows are minima, None for no minimum.
    """

    chosen: np.ndarray
    sizes: np.ndarray
    num_too_large: int
    elements: set[int]
    label_levels: Counter[str | None]
    minimum_levels: set[str | None]

    @classmethod
    def of(
        cls,
        path: Path,
        levels_of_theory: Sequence[str],
        only_labelled: bool,
        max_atoms: int | None,
        max_rows: int | None,
    ) -> "_ShardIndex":
        columns = pq.read_table(
            path, columns=["atomic_numbers", "energy", "energy_level_of_theory", "equilibrium_level_of_theory"]
        )
        sizes = pc.list_value_length(columns["atomic_numbers"]).to_numpy().astype(np.uint16)
        counts = np.ones(len(sizes), dtype=bool)
        if only_labelled:
            known = pc.is_in(columns["energy_level_of_theory"], pa.array(levels_of_theory))
            counts &= pc.and_(columns["energy"].is_valid(), known).to_numpy()
        fits = sizes <= (np.inf if max_atoms is None else max_atoms)
        chosen = np.flatnonzero(counts & fits)[:max_rows].astype(np.uint32)
        taken = columns.take(chosen)
        counted = taken["energy_level_of_theory"].value_counts().to_pylist()
        return cls(
            chosen,
            sizes[chosen],
            int((counts & ~fits).sum()),
            set(pc.unique(pc.list_flatten(taken["atomic_numbers"])).to_pylist()),
            Counter({entry["values"]: entry["counts"] for entry in counted}),
            set(taken["equilibrium_level_of_theory"].unique().to_pylist()),
        )


# What a process of `parse_all` reads, given once.
_shards: "ShardedExamples"


def _set_shards(shards: "ShardedExamples") -> None:
    global _shards
    _shards = shards


def _example_at(index: int) -> Example:
    return _shards[index]


class ShardedExamples(Sequence[Example]):
    """The rows of Parquet files, in the columns of `schema.FEATURES`, as a sequence of examples.

    Only the numbers of atoms, and whether there are labels, are read at the beginning: six bytes per row are kept.

    Attributes:
        sizes: (rows,) numbers of atoms.
        elements: atomic numbers that occur in rows that count.
        shard_lengths: rows that count, by shard.
        num_too_large: rows that `max_atoms` left out.
        label_levels: rows that count by the level of theory of their labels, None for no label.
        has_labels: whether any row that counts has a label at one of `levels_of_theory`.
        has_structures: whether any row that counts is a minimum that serves as a structure.

    Args:
        paths: the files, at least one; see `files_of_source`.
        levels_of_theory, resonance_invariant, structures: see `example_from_row`.
        only_labelled: count rows with an energy at one of these levels only.
        max_atoms: count molecules with at most so many atoms only.
        max_rows: count only the first so many of these rows.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        levels_of_theory: Sequence[str],
        only_labelled: bool = False,
        max_atoms: int | None = None,
        resonance_invariant: bool = False,
        structures: bool = True,
        max_rows: int | None = None,
    ):
        self.levels_of_theory, self.resonance_invariant = tuple(levels_of_theory), resonance_invariant
        self.structures = structures
        shards: list[_ShardIndex] = []
        left = max_rows
        for path in paths:
            shards.append(_ShardIndex.of(path, self.levels_of_theory, only_labelled, max_atoms, left))
            if left is not None:
                left -= len(shards[-1].sizes)
                if not left:
                    break
        self.paths = paths[: len(shards)]
        self._chosen = [shard.chosen for shard in shards]
        self.sizes = np.concatenate([shard.sizes for shard in shards])
        self.shard_lengths = [len(shard.sizes) for shard in shards]
        self._ends = list(accumulate(self.shard_lengths))
        self.num_too_large = sum(shard.num_too_large for shard in shards)
        self.elements: set[int] = set().union(*(shard.elements for shard in shards))
        self.label_levels: Counter[str | None] = sum((shard.label_levels for shard in shards), Counter())
        minimum_levels = set().union(*(shard.minimum_levels for shard in shards))
        # Forces at a minimum are zero, see `example_from_row`.
        self.has_labels = any(level in self.label_levels or level in minimum_levels for level in self.levels_of_theory)
        self.has_structures = structures and bool(minimum_levels - {None})
        self._make_caches()

    @property
    def fingerprint(self) -> str:
        """Of the numbers of atoms of the rows that count, by shard: of what the order of batches depends on."""
        shards = np.asarray(self.shard_lengths, dtype=np.int64).tobytes()
        return hashlib.blake2b(shards + self.sizes.tobytes(), digest_size=8).hexdigest()

    def _make_caches(self) -> None:
        self._read = lru_cache(_SHARDS_IN_MEMORY)(pq.read_table)
        self._parsed: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(index)
        example = self._parsed.get(index)
        if example is None:
            example = self._parse(index)
            if len(self._parsed) < _EXAMPLES_IN_MEMORY:
                self._parsed[index] = example
        return example

    def parse_all(self, num_processes: int) -> None:
        """Parse every row now, by several processes, so that no batch waits for it; only where all can be kept.

        And where processes are forked: others get what the workers of a loader have of `__getstate__`, the index.
        """
        if len(self) > _EXAMPLES_IN_MEMORY or get_start_method() != "fork":
            return
        with Pool(num_processes, _set_shards, (self,)) as pool:
            self._parsed = dict(enumerate(pool.imap(_example_at, range(len(self)), chunksize=64)))

    def molecules(self, most: int) -> set[tuple[str, bool, bool]]:
        """SMILES of the rows that count, with whether such a row is labelled, and whether it serves as a structure.

        Of more than `most` rows every so many-th, so that memory and time are bounded.
        """
        stride = -(-len(self) // most)
        found: set[tuple[str, bool, bool]] = set()
        known = pa.array(self.levels_of_theory)
        for table in self._columns("smiles", "energy_level_of_theory", "equilibrium_level_of_theory"):
            rows = np.arange(0, table.num_rows, max(stride, 1))
            smiles, label_level, minimum_level = table.take(rows).columns
            # Forces at a minimum are zero, see `example_from_row`.
            labelled = pc.or_(pc.is_in(label_level, known), pc.is_in(minimum_level, known))
            structure = pc.and_(minimum_level.is_valid(), self.structures)
            found.update(zip(smiles.to_pylist(), labelled.to_pylist(), structure.to_pylist(), strict=True))
        return found

    def has_forces(self) -> bool:
        """Whether any row that counts has forces at one of the levels of theory, and is no minimum of that level."""
        known = pa.array(self.levels_of_theory)
        for table in self._columns("forces", "energy_level_of_theory", "equilibrium_level_of_theory"):
            forces, label_level, minimum_level = table.columns
            is_minimum = pc.fill_null(pc.equal(label_level, minimum_level), False)
            counts = pc.and_(pc.and_(forces.is_valid(), pc.is_in(label_level, known)), pc.invert(is_minimum))
            if pc.any(counts).as_py():
                return True
        return False

    def _columns(self, *names: str) -> Iterator[pa.Table]:
        """These columns of the rows that count, shard by shard."""
        for path, chosen in zip(self.paths, self._chosen, strict=True):
            yield pq.read_table(path, columns=list(names)).select(names).take(chosen)

    def _parse(self, index: int) -> Example:
        shard = bisect_right(self._ends, index)
        row = index - (self._ends[shard] - self.shard_lengths[shard])
        table = self._read(self.paths[shard])
        [contents] = table.slice(int(self._chosen[shard][row]), 1).to_pylist()
        return example_from_row(contents, self.levels_of_theory, self.resonance_invariant, self.structures)

    def __getstate__(self) -> dict:
        """Worker processes get the index, not what is in memory."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_read", "_parsed")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._make_caches()
