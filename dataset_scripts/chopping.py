"""Molecules cut into fragments: connected sets of whole functional groups and ring systems, capped by hydrogen.

Every molecule is cut at acyclic single bonds, but not through a functional group (`_KEPT_BONDS`), and every connected
set of the pieces of at most `max_heavy_atoms` is a fragment. Charges are kept, and stereo marks where all neighbours of
the centre are.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache

from rdkit import Chem, rdBase

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
