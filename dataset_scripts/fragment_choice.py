"""Which fragments to label: one by one, each time the one that covers most atoms of the library left uncovered.

An atom is covered when a fragment has an atom of the same environment. When none adds anything at one radius, the next
begins.
"""

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from rdkit import Chem

from dataset_scripts.library_counts import LibraryCounts
from modeling_pcbridge.atom_environments import environments_of_mol


def name_of(kind: str, smiles: str) -> str:
    """A name that follows from the molecule: "fragment_4f1b2a9c3d"."""
    return f"{kind}_{hashlib.sha256(smiles.encode()).hexdigest()[:10]}"


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
        return name_of("fragment", self.smiles)


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
    chosen: list[str] = []

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
                for environment in best.environments[other]:
                    covered[other][environment] = True
            chosen.append(best.smiles)
    return in_order(chosen, counts)


def in_order(fragments: Iterable[str], counts: LibraryCounts) -> list[ChosenFragment]:
    """Given fragments (canonical SMILES, hydrogens implicit), with what they cover of a library one after the other."""
    covered: dict[int, set[int]] = {radius: set() for radius in counts.radii}
    num_covered = dict.fromkeys(counts.radii, 0)
    found = []
    for smiles in fragments:
        mol = Chem.MolFromSmiles(smiles)
        for radius, hashes in environments_of_mol(mol, counts.radii).items():
            table = counts.environments[radius]
            new = table.keys() & set(hashes) - covered[radius]
            covered[radius] |= new
            num_covered[radius] += sum(table[environment].num_atoms for environment in new)
        coverage = {radius: num / counts.num_atoms for radius, num in num_covered.items()}
        found.append(ChosenFragment(smiles, mol.GetNumHeavyAtoms(), counts.fragments[smiles], coverage))
    return found


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
            for radius, hashes in environments_of_mol(mol, counts.radii).items()
        }
        found.append(_Candidate(smiles, mol.GetNumHeavyAtoms(), num_molecules, environments))
    return sorted(found, key=lambda each: (each.num_heavy_atoms, -each.num_molecules, each.smiles))
