"""What a library of any size holds: its fragments and the environments of its atoms, counted in bounded memory."""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context

from rdkit import Chem, rdBase
from tqdm.auto import tqdm

from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.chopping import fragments_of
from dataset_scripts.library import ELEMENTS, LibraryRecord, library_mol
from modeling_pcbridge.atom_environments import environments_of_mol

# Lengths of the tables of fragments and of environments: some hundred megabytes.
MAX_TABLE_LENGTH = 1_000_000

_CHUNK_SIZE = 200  # records per task
_EXAMPLES_PER_REASON = 20


@dataclass
class EnvironmentCount:
    """How many atoms of the library have an environment, and one of them: its molecule and its index there."""

    num_atoms: int
    smiles: str
    atom: int


@dataclass
class LibraryCounts:
    """What a library holds, as far as the choice of fragments needs it.

    Attributes:
        radii: of the environments.
        num_molecules: molecules that were cut.
        num_atoms: their heavy atoms.
        failures: records that gave nothing, by reason.
        failure_examples: names of the first ones of each reason.
        fragments: by canonical SMILES, the molecules that have it.
        environments: by radius and hash.
        least_counts: by table, the count below which fragments or environments were dropped; nothing if none were.
    """

    radii: tuple[int, ...]
    num_molecules: int = 0
    num_atoms: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    failure_examples: dict[str, list[str]] = field(default_factory=dict)
    fragments: Counter[str] = field(default_factory=Counter)
    environments: dict[int, dict[int, EnvironmentCount]] = field(default_factory=dict)
    least_counts: dict[str, int] = field(default_factory=dict)

    def add(self, record: LibraryRecord, max_heavy_atoms: int, elements: frozenset[str]) -> None:
        """Count one record."""
        try:
            mol = library_mol(record, elements)
            environments = _environments(record, mol, self.radii)
        except BadRowError as error:
            self.failures[error.reason] += 1
            self.failure_examples.setdefault(error.reason, []).append(str(error))
            return
        self.num_molecules += 1
        self.num_atoms += mol.GetNumHeavyAtoms()
        self.fragments.update(fragments_of(mol, max_heavy_atoms))
        smiles = Chem.MolToSmiles(mol)
        place = {atom: i for i, atom in enumerate(mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])}
        heavy = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
        for radius, hashes in environments.items():
            table = self.environments.setdefault(radius, {})
            for atom, environment in zip(heavy, hashes, strict=True):
                if environment in table:
                    table[environment].num_atoms += 1
                else:
                    table[environment] = EnvironmentCount(1, smiles, place[atom])

    def merge(self, other: "LibraryCounts") -> None:
        """Add the counts of another part of the library."""
        self.num_molecules += other.num_molecules
        self.num_atoms += other.num_atoms
        self.failures.update(other.failures)
        for reason, examples in other.failure_examples.items():
            mine = self.failure_examples.setdefault(reason, [])
            mine.extend(examples[: _EXAMPLES_PER_REASON - len(mine)])
        self.fragments.update(other.fragments)
        self._shorten("fragments", self.fragments, lambda count: count)
        for radius, theirs in other.environments.items():
            table = self.environments.setdefault(radius, {})
            for environment, count in theirs.items():
                if environment in table:
                    table[environment].num_atoms += count.num_atoms
                else:
                    table[environment] = count
            self._shorten(f"environments of radius {radius}", table, lambda count: count.num_atoms)

    def _shorten(self, name: str, table: dict, count: Callable) -> None:
        while len(table) > MAX_TABLE_LENGTH:
            least = self.least_counts[name] = self.least_counts.get(name, 1) + 1
            for key in [key for key, value in table.items() if count(value) < least]:
                del table[key]


def _environments(record: LibraryRecord, mol: Chem.Mol, radii: Sequence[int]) -> dict[int, list[int]]:
    try:
        return environments_of_mol(mol, radii)
    except ValueError as error:  # of a bond that the model does not know, such as one of a metal
        raise BadRowError(record.name, str(error)) from error


def count_library(
    records: Iterable[LibraryRecord],
    max_heavy_atoms: int,
    radii: Sequence[int],
    elements: Iterable[str] = ELEMENTS,
    workers: int = 1,
) -> LibraryCounts:
    """Cut all molecules and count fragments and environments; the result does not depend on the number of workers."""
    total = LibraryCounts(tuple(radii))
    chunks = _chunks(iter(records))
    arguments = (max_heavy_atoms, tuple(radii), frozenset(elements))
    with ExitStack() as stack:
        if workers == 1:
            results: Iterator[LibraryCounts] = (_count_chunk(chunk, *arguments) for chunk in chunks)
        else:
            pool = stack.enter_context(ProcessPoolExecutor(workers, get_context("spawn")))
            results = _in_order(pool, chunks, arguments, window=4 * workers)
        progress = stack.enter_context(tqdm(desc="cutting", unit=" molecules"))
        for counts in results:
            total.merge(counts)
            progress.update(counts.num_molecules + counts.failures.total())
    return total


def _chunks(records: Iterator[LibraryRecord]) -> Iterator[list[LibraryRecord]]:
    while chunk := list(itertools.islice(records, _CHUNK_SIZE)):
        yield chunk


def _in_order(pool: ProcessPoolExecutor, chunks: Iterator[list], arguments: tuple, window: int) -> Iterator:
    """Results in order, with no more than `window` chunks read ahead."""
    running: deque[Future] = deque()
    for chunk in chunks:
        running.append(pool.submit(_count_chunk, chunk, *arguments))
        if len(running) >= window:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _count_chunk(
    records: list[LibraryRecord], max_heavy_atoms: int, radii: tuple[int, ...], elements: frozenset[str]
) -> LibraryCounts:
    counts = LibraryCounts(radii)
    with rdBase.BlockLogs():
        for record in records:
            counts.add(record, max_heavy_atoms, elements)
    return counts
