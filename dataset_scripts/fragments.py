"""The fragments of a library of molecules that are worth labelling: small, and with the surroundings of its atoms.

    python -m dataset_scripts.fragments library.smi --output fragments.smi --num 1500 --workers 8

DFT of a drug-like molecule takes minutes to hours, of its fragments seconds, and what an atom contributes to energy
and forces depends on what is near it. So:

1. Every molecule is cut at acyclic single bonds, but not through a functional group (`_KEPT_BONDS`), and every
   connected set of the pieces of at most `max_heavy_atoms` is a fragment, capped by hydrogen. Charges are kept, and
   stereo marks where all neighbours of the centre are.
2. The environment of an atom is what lies up to `radius` bonds around it: elements, hydrogens, charges, degrees and
   bond orders, as RDKit's Morgan fingerprints have it.
3. Fragments are chosen one by one, each time the one that covers most atoms of the library which no chosen one
   covers: an atom is covered when a fragment has an atom of the same environment. When none adds anything at one
   radius, the next begins.

Output: a SMILES file in the order of choice, so that the first ones of it are the best set of that size; beside it a
report (.json) with counts, coverage and what failed, and a picture of it (.png). Names come from the fragments
themselves, so that those of two libraries can be labelled into one file.

The library (`library.read_library`) is read once and may be of any size: fragments and environments are counted in
tables of bounded length, from which the rarest go first.
"""

import argparse
import hashlib
import heapq
import importlib
import io
import itertools
import json
import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

from rdkit import Chem, rdBase
from rdkit.Chem import rdFingerprintGenerator
from tqdm.auto import tqdm

from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.library import ELEMENTS, LibraryRecord, library_mol, read_library
from modeling_pcbridge.errors import InputError

logger = logging.getLogger(__name__)

# Single bonds outside rings that are not cut, so that functional groups stay whole. The first two atoms are the bond.
_KEPT_BONDS = tuple(
    Chem.MolFromSmarts(smarts)
    for smarts in (
        "[#15,#16;v4,v5,v6]-*",  # sulfoxides, sulfonyls, phosphates
        "[Cl,Br,I;v3,v5,v7]-*",
        "[-;D1]-*",  # carboxylates, N-oxides, thiolates
        "[+]-[-]",
        "[NX3]-[C;$(C=[N+])]",  # amidinium, guanidinium
    )
)

# Connected sets of pieces that are looked at in one molecule. Most have fewer than 100; a polymer might have millions.
MAX_SETS_PER_MOLECULE = 2000
# Lengths of the tables of fragments and of environments: some hundred megabytes.
MAX_TABLE_LENGTH = 1_000_000

_CHUNK_SIZE = 200  # records per task
_EXAMPLES_PER_REASON = 20
_UNCOVERED_EXAMPLES = 12


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
        except BadRowError as error:
            self.failures[error.reason] += 1
            self.failure_examples.setdefault(error.reason, []).append(str(error))
            return
        self.num_molecules += 1
        self.num_atoms += mol.GetNumAtoms()
        self.fragments.update(fragments_of(mol, max_heavy_atoms))
        smiles = Chem.MolToSmiles(mol)
        place = {atom: i for i, atom in enumerate(mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])}
        for radius, hashes in atom_environments(mol, self.radii).items():
            table = self.environments.setdefault(radius, {})
            for atom, environment in enumerate(hashes):
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


@dataclass(frozen=True)
class ChosenFragment:
    """A fragment worth labelling.

    Attributes:
        smiles: canonical.
        num_heavy_atoms: its size.
        num_molecules: molecules of the library that have it.
        coverage: by radius, the share of the library's heavy atoms whose environment it or an earlier one has.
    """

    smiles: str
    num_heavy_atoms: int
    num_molecules: int
    coverage: dict[int, float]

    @property
    def name(self) -> str:
        """The same for the same fragment of any library."""
        return f"fragment_{hashlib.sha256(self.smiles.encode()).hexdigest()[:10]}"


def fragments_of(mol: Chem.Mol, max_heavy_atoms: int) -> set[str]:
    """Canonical SMILES of the fragments of a molecule with implicit hydrogens, itself among them if it is small."""
    pieces, neighbors, cut_bonds = _pieces(mol)
    others_of: dict[int, list[int]] = {}
    for i, j in cut_bonds:
        others_of.setdefault(i, []).append(j)
        others_of.setdefault(j, []).append(i)
    symbols = [_symbol(atom, num_cuts=0) for atom in mol.GetAtoms()]
    centres = _stereo_centres(mol)
    found = set()
    sets = _connected_sets(neighbors, [len(piece) for piece in pieces], max_heavy_atoms)
    for chosen in itertools.islice(sets, MAX_SETS_PER_MOLECULE):
        atoms = [atom for piece in chosen for atom in pieces[piece]]
        inside = set(atoms)
        num_cuts = {a: sum(other not in inside for other in others_of[a]) for a in atoms if a in others_of}
        if any(centre <= inside for centre in centres):
            smiles = _capped_with_stereo(mol, inside, num_cuts)
        else:
            for atom, count in num_cuts.items():
                symbols[atom] = _symbol(mol.GetAtomWithIdx(atom), count)
            smiles = Chem.MolFragmentToSmiles(mol, atoms, atomSymbols=symbols, isomericSmiles=False)
        if (canonical := _canonical(smiles)) is not None:
            found.add(canonical)
    return found


def _pieces(mol: Chem.Mol) -> tuple[Sequence[Sequence[int]], list[list[int]], list[tuple[int, int]]]:
    """What is never cut: the atoms of each piece, the pieces next to it, and the bonds in between (a tree)."""
    kept = {frozenset(match[:2]) for pattern in _KEPT_BONDS for match in mol.GetSubstructMatches(pattern)}
    cut_bonds = {
        bond.GetIdx(): (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
        for bond in mol.GetBonds()
        if bond.GetBondType() == Chem.BondType.SINGLE
        and not bond.IsInRing()
        and frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) not in kept
    }
    pieces = Chem.GetMolFrags(Chem.FragmentOnBonds(mol, list(cut_bonds), addDummies=False) if cut_bonds else mol)
    piece_of = {atom: number for number, piece in enumerate(pieces) for atom in piece}
    neighbors: list[list[int]] = [[] for _ in pieces]
    for i, j in cut_bonds.values():
        neighbors[piece_of[i]].append(piece_of[j])
        neighbors[piece_of[j]].append(piece_of[i])
    return pieces, neighbors, list(cut_bonds.values())


def _connected_sets(neighbors: list[list[int]], sizes: list[int], max_size: int) -> Iterator[list[int]]:
    """Every connected set of nodes of a tree whose sizes add up to at most `max_size`, once."""

    def grow(chosen: list[int], size: int, frontier: list[tuple[int, int]]) -> Iterator[list[int]]:
        yield chosen
        for place, (node, parent) in enumerate(frontier):
            if size + sizes[node] <= max_size:
                new = [(other, node) for other in neighbors[node] if other != parent and other > root]
                yield from grow([*chosen, node], size + sizes[node], frontier[place + 1 :] + new)

    # Each set is grown from its lowest node.
    for root in range(len(sizes)):
        if sizes[root] <= max_size:
            yield from grow([root], sizes[root], [(other, root) for other in neighbors[root] if other > root])


def _symbol(atom: Chem.Atom, num_cuts: int) -> str:
    """The atom in SMILES, with one hydrogen more for each bond that was cut."""
    element = atom.GetSymbol().lower() if atom.GetIsAromatic() else atom.GetSymbol()
    num_hydrogens = atom.GetTotalNumHs() + num_cuts
    hydrogens = f"H{num_hydrogens}" if num_hydrogens else ""
    charge = f"{atom.GetFormalCharge():+d}" if atom.GetFormalCharge() else ""
    return f"[{element}{hydrogens}{charge}]"


def _stereo_centres(mol: Chem.Mol) -> list[set[int]]:
    """The atoms that must be there for each stereo mark to mean something."""
    centres = [
        {atom.GetIdx(), *(other.GetIdx() for other in atom.GetNeighbors())}
        for atom in mol.GetAtoms()
        if atom.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED
    ]
    for bond in mol.GetBonds():
        if bond.GetStereo() != Chem.BondStereo.STEREONONE:
            ends = (bond.GetBeginAtom(), bond.GetEndAtom())
            centres.append({other.GetIdx() for end in ends for other in end.GetNeighbors()})
    return centres


def _capped_with_stereo(mol: Chem.Mol, inside: set[int], num_cuts: dict[int, int]) -> str:
    """SMILES of a part of a molecule, capped by hydrogen, with the stereo marks whose surroundings are in it."""
    fragment = Chem.RWMol(mol)
    for bond in fragment.GetBonds():
        ends = (bond.GetBeginAtom(), bond.GetEndAtom())
        if not {other.GetIdx() for end in ends for other in end.GetNeighbors()} <= inside:
            bond.SetStereo(Chem.BondStereo.STEREONONE)
    for atom, count in num_cuts.items():
        if count:
            capped = fragment.GetAtomWithIdx(atom)
            capped.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
            capped.SetNumExplicitHs(capped.GetTotalNumHs() + count)
            capped.SetNoImplicit(True)
    fragment.BeginBatchEdit()
    for atom in range(mol.GetNumAtoms()):
        if atom not in inside:
            fragment.RemoveAtom(atom)
    fragment.CommitBatchEdit()
    return Chem.MolToSmiles(fragment)


@lru_cache(maxsize=2**18)
def _canonical(smiles: str) -> str | None:
    """The canonical SMILES, or None where RDKit refuses the molecule or it is a radical."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    if mol is None or any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
        return None
    return Chem.MolToSmiles(mol)


def atom_environments(mol: Chem.Mol, radii: Sequence[int]) -> dict[int, list[int]]:
    """By radius, a hash of the environment of each heavy atom of a molecule with implicit hydrogens."""
    output = rdFingerprintGenerator.AdditionalOutput()
    output.AllocateAtomToBits()
    _morgan(max(radii)).GetSparseCountFingerprint(mol, additionalOutput=output)
    hashes = output.GetAtomToBits()  # of each atom, by radius; a lone atom has no more than radius 0
    return {radius: [of_atom[min(radius, len(of_atom) - 1)] for of_atom in hashes] for radius in radii}


@lru_cache
def _morgan(radius: int):
    invariants = rdFingerprintGenerator.GetMorganAtomInvGen(includeRingMembership=False)
    return rdFingerprintGenerator.GetMorganGenerator(
        radius=radius, includeRedundantEnvironments=True, atomInvariantsGenerator=invariants
    )


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


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A fragment with, by radius, the numbers of its environments that the library has."""

    smiles: str
    num_heavy_atoms: int
    num_molecules: int
    environments: dict[int, tuple[int, ...]]


def choose_fragments(counts: LibraryCounts, num: int) -> list[ChosenFragment]:
    """At most `num` fragments, greedily by covered atoms at the first radius, then at the next.

    Of fragments that add the same, the smaller, then the more frequent one is taken.
    """
    candidates = _candidates(counts)
    weights = {radius: [count.num_atoms for count in table.values()] for radius, table in counts.environments.items()}
    covered = {radius: bytearray(len(table)) for radius, table in weights.items()}
    num_covered = dict.fromkeys(counts.radii, 0)
    chosen: list[ChosenFragment] = []

    def gain(number: int, radius: int) -> int:
        weight, done = weights[radius], covered[radius]
        return sum(
            weight[environment] for environment in candidates[number].environments[radius] if not done[environment]
        )

    for radius in counts.radii:
        # What a fragment adds only falls as others are chosen: a heap of what each added when it was last asked.
        heap = [(-gain(number, radius), number) for number in range(len(candidates))]
        heapq.heapify(heap)
        while heap and len(chosen) < num:
            _, number = heapq.heappop(heap)
            now = gain(number, radius)
            if not now:
                continue
            if heap and (-now, number) > heap[0]:
                heapq.heappush(heap, (-now, number))
                continue
            best = candidates[number]
            for other in counts.radii:
                num_covered[other] += gain(number, other)
                for environment in best.environments[other]:
                    covered[other][environment] = True
            coverage = {other: num_covered[other] / counts.num_atoms for other in counts.radii}
            chosen.append(ChosenFragment(best.smiles, best.num_heavy_atoms, best.num_molecules, coverage))
    return chosen


def _candidates(counts: LibraryCounts) -> list[_Candidate]:
    """All fragments of a library, the small and frequent ones first."""
    # Numbers, of which every fragment with the environment holds the same object: they may be a million.
    numbers = {
        radius: {environment: number for number, environment in enumerate(table)}
        for radius, table in counts.environments.items()
    }
    found = []
    for smiles, num_molecules in counts.fragments.items():
        mol = Chem.MolFromSmiles(smiles)
        environments = {
            radius: tuple(numbers[radius][each] for each in dict.fromkeys(hashes) if each in numbers[radius])
            for radius, hashes in atom_environments(mol, counts.radii).items()
        }
        found.append(_Candidate(smiles, mol.GetNumHeavyAtoms(), num_molecules, environments))
    return sorted(found, key=lambda each: (each.num_heavy_atoms, -each.num_molecules, each.smiles))


def summarize(counts: LibraryCounts, chosen: Sequence[ChosenFragment]) -> dict:
    """The report as JSON has it: counts, coverage after each fragment, failures, what is covered by none."""
    return {
        "molecules": counts.num_molecules,
        "heavy_atoms": counts.num_atoms,
        "failures": {
            reason: {"count": count, "examples": counts.failure_examples[reason]}
            for reason, count in counts.failures.most_common()
        },
        "different_fragments": len(counts.fragments),
        "different_environments": {str(radius): len(table) for radius, table in counts.environments.items()},
        "rarer_ones_were_dropped": counts.least_counts,
        "fragments": [
            {
                "name": fragment.name,
                "smiles": fragment.smiles,
                "heavy_atoms": fragment.num_heavy_atoms,
                "molecules": fragment.num_molecules,
                "coverage": {str(radius): round(share, 5) for radius, share in fragment.coverage.items()},
            }
            for fragment in chosen
        ],
        "uncovered": {
            str(radius): [
                {"smiles": count.smiles, "atom": count.atom, "share": round(count.num_atoms / counts.num_atoms, 5)}
                for count in uncovered_environments(counts, chosen, radius)
            ]
            for radius in counts.radii
        },
    }


def uncovered_environments(
    counts: LibraryCounts, chosen: Sequence[ChosenFragment], radius: int
) -> list[EnvironmentCount]:
    """The most frequent environments that no chosen fragment has, with an example of each."""
    covered: set[int] = set()
    for fragment in chosen:
        covered.update(atom_environments(Chem.MolFromSmiles(fragment.smiles), [radius])[radius])
    left = [count for environment, count in counts.environments[radius].items() if environment not in covered]
    return heapq.nlargest(_UNCOVERED_EXAMPLES, left, key=lambda count: (count.num_atoms, count.smiles))


def draw_report(counts: LibraryCounts, chosen: Sequence[ChosenFragment], path: Path) -> None:
    """A picture: coverage against the number of fragments, and the most frequent environments without any."""
    from matplotlib.figure import Figure
    from rdkit.Chem.Draw import rdMolDraw2D

    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.add_gridspec(2, 1)
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    axes = upper.subplots()
    for radius in counts.radii:
        shares = [0.0, *(100 * fragment.coverage[radius] for fragment in chosen)]
        axes.plot(shares, label=f"radius {radius}: {shares[-1]:.1f}%")
    axes.set(xlabel="fragments", ylabel="heavy atoms covered (%)", ylim=(0, 100))
    axes.set_title(f"{counts.num_molecules:,} molecules, {counts.num_atoms:,} heavy atoms", loc="left")
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.3)

    radius = counts.radii[0]
    left = uncovered_environments(counts, chosen, radius)[:8]
    lower.suptitle(f"most frequent environments of radius {radius} without a fragment" if left else "")
    for place, count in zip(lower.subplots(2, 4, squeeze=False).flat, left + [None] * (8 - len(left)), strict=True):
        place.axis("off")
        if count is not None:
            mol = Chem.MolFromSmiles(count.smiles)
            canvas = rdMolDraw2D.MolDraw2DCairo(500, 300)
            rdMolDraw2D.PrepareAndDrawMolecule(canvas, mol, highlightAtoms=[count.atom])
            canvas.FinishDrawing()
            place.imshow(_read_png(canvas.GetDrawingText()))
            place.set_title(f"{100 * count.num_atoms / counts.num_atoms:.2f}% of atoms", fontsize=9)
    figure.savefig(path, dpi=110)


def _read_png(content: bytes):
    from matplotlib.image import imread

    return imread(io.BytesIO(content), format="png")


def sample_records(records: Iterable[LibraryRecord], num: int, seed: int) -> list[LibraryRecord]:
    """A random sample of a stream, the same for the same seed; the stream is read to its end, not kept."""
    rng = random.Random(seed)
    sample: list[LibraryRecord] = []
    for number, record in enumerate(records):
        if number < num:
            sample.append(record)
        elif (place := rng.randrange(number + 1)) < num:
            sample[place] = record
    return sample


def make_fragments(
    library: Sequence[Path],
    output: Path,
    max_heavy_atoms: int = 9,
    num: int = 1500,
    radius: Sequence[int] = (1, 2),
    sample: int | None = None,
    seed: int = 0,
    elements: Sequence[str] = ELEMENTS,
    workers: int = 1,
) -> dict:
    """The command (see its options): write the fragments, the report and the picture; return the report.

    Raises:
        ValueError: a wrong option, a file that cannot be read, or a library without a single good molecule.
    """
    for option, value in (("max_heavy_atoms", max_heavy_atoms), ("num", num), ("workers", workers), ("sample", sample)):
        if value is not None and value < 1:
            raise InputError(f"{option} must be at least 1, not {value}")
    if not radius or min(radius) < 0 or len(set(radius)) < len(radius):
        raise InputError(f"radius must be different numbers of at least 0, not {list(radius)}")
    known = {Chem.GetPeriodicTable().GetElementSymbol(number) for number in range(1, 119)}
    if unknown := [element for element in elements if element not in known]:
        raise InputError(f"no element {unknown[0]!r}")
    records: Iterable[LibraryRecord] = itertools.chain.from_iterable(map(read_library, library))
    if sample is not None:
        records = sample_records(records, sample, seed)
    counts = count_library(records, max_heavy_atoms, radius, elements, workers)
    for reason, count in counts.failures.most_common():
        logger.warning("left out %d molecules: %s (%s)", count, reason, counts.failure_examples[reason][0])
    if not counts.num_molecules:
        raise InputError(f"no molecule of {', '.join(map(str, library))} can be used")
    chosen = choose_fragments(counts, num)
    report = summarize(counts, chosen)
    output.write_text("".join(f"{fragment.smiles} {fragment.name}\n" for fragment in chosen))
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    draw_report(counts, chosen, output.with_suffix(".png"))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, nargs="+", help=".smi, .csv, .sdf (each also as .gz), .parquet files")
    parser.add_argument("--output", type=Path, required=True, help="SMILES file; .json and .png are written beside it")
    parser.add_argument("--max-heavy-atoms", type=int, default=9, help="of a fragment (default: %(default)s)")
    parser.add_argument("--num", type=int, default=1500, help="fragments at most (default: %(default)s)")
    parser.add_argument("--radius", type=int, nargs="+", default=[1, 2], help="one after the other (default: 1 2)")
    parser.add_argument("--sample", type=int, help="take only so many records of the library, by chance")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--elements", nargs="+", default=ELEMENTS, help=f"(default: {' '.join(ELEMENTS)})")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        report = make_fragments(**vars(arguments))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{type(error).__name__}: {error}\n")
    print(f"{report['molecules']:8,} molecules cut, {sum(f['count'] for f in report['failures'].values()):,} left out")
    print(f"{report['different_fragments']:8,} different fragments, {len(report['fragments']):,} chosen")
    coverage = report["fragments"][-1]["coverage"] if report["fragments"] else {}
    for radius, share in coverage.items():
        print(f"{share:8.1%} of the heavy atoms are covered to radius {radius}")


if __name__ == "__main__":
    # Through the module, so that workers find its functions there and not in __main__.
    importlib.import_module("dataset_scripts.fragments").main()
