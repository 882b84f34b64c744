"""The environments of heavy atoms: what lies up to some bonds around them (Morgan 1965; Rogers and Hahn 2010).

Two atoms have the same environment of radius 0 if their elements, formal charges, numbers of neighbours and numbers of
hydrogens are equal, and of radius r + 1 if also their bonds lead by the same types to heavy atoms with the same
environments of radius r. RDKit's Morgan fingerprints tell the same atoms apart; the hashes here are ours because
checkpoints keep them, and those of RDKit are no promise.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b

from rdkit import Chem

from .molecular_graph import PAIR_BONDS, MolecularGraph, charges_and_bonds


def environments_of_mol(mol: Chem.Mol, radii: Sequence[int], resonance_invariant: bool = False) -> dict[int, list[int]]:
    """By radius, a 32-bit hash of the environment of each heavy atom, in their order.

    Args:
        mol: sanitised; hydrogens explicit or not.
        radii: from 0.
        resonance_invariant: take charges and bonds over all resonance forms, see `graph_from_mol`.

    Raises:
        ValueError: query or unusual bonds.
    """
    mol = Chem.AddHs(mol)
    charges, bonds = charges_and_bonds(mol, resonance_invariant)
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    return _environments(numbers, charges.tolist(), ((*ends, PAIR_BONDS[t]) for ends, t in bonds.items()), radii)


def environments_of_graph(graph: MolecularGraph, radii: Sequence[int]) -> dict[int, list[int]]:
    """As `environments_of_mol`, of the molecule that the graph was made from."""
    begins, ends = graph.bonded.nonzero()
    types = graph.pair_types[begins, ends]
    bonds = [bond for bond in zip(begins.tolist(), ends.tolist(), types.tolist(), strict=True) if bond[0] < bond[1]]
    return _environments(graph.atomic_numbers.tolist(), graph.formal_charges.tolist(), bonds, radii)


def _environments(
    numbers: Sequence[int], charges: Sequence[int], bonds: Iterable[tuple[int, int, int]], radii: Sequence[int]
) -> dict[int, list[int]]:
    """From elements, charges, and bonds (atom, atom, type)."""
    num_neighbours, num_hydrogens = [0] * len(numbers), [0] * len(numbers)
    heavy_bonds: list[list[tuple[int, int]]] = [[] for _ in numbers]
    for i, j, bond_type in bonds:
        for atom, other in ((i, j), (j, i)):
            num_neighbours[atom] += 1
            if numbers[other] == 1:
                num_hydrogens[atom] += 1
            else:
                heavy_bonds[atom].append((bond_type, other))
    hashes = [_hash(own) for own in zip(numbers, charges, num_neighbours, num_hydrogens, strict=True)]
    is_heavy = [number > 1 for number in numbers]
    found = {}
    for radius in range(max(radii) + 1):
        if radius:
            hashes = [
                _hash((own, *sorted((bond_type, hashes[other]) for bond_type, other in around)))
                for own, around in zip(hashes, heavy_bonds, strict=True)
            ]
        found[radius] = [of_atom for of_atom, heavy in zip(hashes, is_heavy, strict=True) if heavy]
    return {radius: found[radius] for radius in radii}


@lru_cache(100_000)
def _hash(described: tuple) -> int:
    """The same on every machine and in every process, unlike Python's own."""
    return int.from_bytes(blake2b(repr(described).encode(), digest_size=4).digest(), "big")
