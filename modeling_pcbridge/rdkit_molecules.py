"""RDKit molecules from what people have, SMILES or structures, and whether a structure can be one of a molecule."""

import time
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDetermineBonds

from .errors import InputError

# What a structure may look like far from its minimum; displacements of .1 angstrom a coordinate keep well within.
MAX_STRETCH = 1.6  # of the sum of the covalent radii
MIN_DISTANCE = 0.5  # angstrom; the shortest bond, H-H, has 0.74
_CHARGED_SULFUR = [Chem.MolFromSmarts(smarts) for smarts in ("[O-;D1][S+;D2]=*", "[S-;D1][C;D2]#[S+;D1]")]


def mol_from_smiles(smiles: str) -> Chem.Mol:
    """Parse SMILES into a molecule with explicit hydrogens, in the order of `Chem.AddHs`.

    Atom-mapped SMILES in which every atom, hydrogens included, carries a map number 1..N (as in SPICE and in this
    project's data) give the atoms in that order.

    Raises:
        ValueError: the SMILES is empty, not ASCII or cannot be parsed.
    """
    if not smiles or not smiles.strip():
        raise InputError("the SMILES is empty")
    if not smiles.isascii():  # RDKit takes what follows such a character for a name
        raise InputError("the SMILES has characters that are not ASCII")
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = False  # type: ignore[assignment]  # RDKit's stub is wrong
    mol = Chem.MolFromSmiles(smiles, parameters)
    if mol is None:
        raise InputError(f"RDKit cannot parse the SMILES{_problem_of_smiles(smiles)}")
    mol.RemoveAllConformers()  # of a drawing, in a CXSMILES extension
    map_numbers = [atom.GetAtomMapNum() for atom in mol.GetAtoms()]
    has_all_hydrogens = all(atom.GetTotalNumHs() == 0 for atom in mol.GetAtoms())
    if has_all_hydrogens and sorted(map_numbers) == list(range(1, mol.GetNumAtoms() + 1)):
        return _without_map_numbers(Chem.RenumberAtoms(mol, [int(i) for i in np.argsort(map_numbers)]))
    # Other numbers are those of a reaction, say; they mean nothing here.
    mol = Chem.MolFromSmiles(smiles)
    mol.RemoveAllConformers()
    return Chem.AddHs(_without_map_numbers(mol))


def _problem_of_smiles(smiles: str) -> str:
    """What RDKit says of the chemistry of a SMILES whose syntax is right, in brackets."""
    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    problems = [] if mol is None else Chem.DetectChemistryProblems(mol)
    return f" ({problems[0].Message()})" if problems else ""


def _without_map_numbers(mol: Chem.Mol) -> Chem.Mol:
    if any(atom.GetAtomMapNum() for atom in mol.GetAtoms()):
        for atom in mol.GetAtoms():
            atom.SetAtomMapNum(0)
        # Numbers tell equal neighbours apart; without them a mark between such is none.
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    return mol


def mol_from_positions(
    atomic_numbers: Sequence[int], positions: np.ndarray, total_charge: int = 0, timeout: float = 10.0
) -> Chem.Mol:
    """A molecule from elements and a structure; bonds and stereo marks are perceived by RDKit's DetermineBonds.

    Args:
        atomic_numbers: (N,).
        positions: (N, 3), angstrom.
        total_charge: elementary charges.
        timeout: seconds; the time that bond orders take grows exponentially with nitro groups and the like.

    Raises:
        ValueError: no graph of that charge fits the structure, or none was found in time.
    """
    mol = Chem.RWMol()
    for atomic_number in atomic_numbers:
        mol.AddAtom(Chem.Atom(int(atomic_number)))
    mol.AddConformer(conformer_from_positions(positions))
    try:
        if len(atomic_numbers) > 1:
            mol = _with_bonds(mol, int(total_charge), timeout)
        else:
            mol.GetAtomWithIdx(0).SetFormalCharge(int(total_charge))
            Chem.SanitizeMol(mol)
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        hint = "" if total_charge else "; if it is an ion, state its total charge"
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"no bonds of total charge {total_charge} fit the positions ({reason}){hint}") from error
    Chem.AssignStereochemistryFrom3D(mol)
    return mol.GetMol()


def _with_bonds(mol: Chem.RWMol, total_charge: int, timeout: float) -> Chem.RWMol:
    """`mol` with bonds by RDKit."""
    rdDetermineBonds.DetermineConnectivity(mol)
    groups = _nitro_groups(mol)
    if groups and total_charge == 0:  # of an ion they may share the charge
        try:
            simpler = _with_bond_orders(_without_nitro_groups(mol, groups), total_charge, timeout)
            return _with_nitro_groups(mol, simpler, groups)
        except (ValueError, RuntimeError):
            pass
    return _with_bond_orders(mol, total_charge, timeout)


def _with_bond_orders(mol: Chem.RWMol, total_charge: int, timeout: float) -> Chem.RWMol:
    """By RDKit, which can neither be interrupted nor told a time, but a number of iterations."""
    start, iterations = time.monotonic(), 10_000
    while True:
        candidate, begun = Chem.RWMol(mol), time.monotonic()
        try:
            rdDetermineBonds.DetermineBondOrders(candidate, charge=total_charge, maxIterations=iterations)
            return _with_uncharged_sulfur(candidate)
        except RuntimeError as error:
            if "Max Iterations" not in str(error):
                raise
        now = time.monotonic()
        in_time_left = int(iterations * (timeout - (now - start)) / max(now - begun, 1e-3))
        if in_time_left < iterations:
            raise InputError(f"bond orders were not found within {timeout:g} s; give a SMILES or an SDF record instead")
        iterations = min(4 * iterations, in_time_left)


def _with_uncharged_sulfur(mol: Chem.RWMol) -> Chem.RWMol:
    """`mol` with double bonds at S of one or two neighbours where RDKit has charges: O=[S+][O-] and [S+]#C[S-]."""
    for charged in _CHARGED_SULFUR:
        for atoms in mol.GetSubstructMatches(charged):
            for i, j in pairwise(atoms):
                mol.GetBondBetweenAtoms(i, j).SetBondType(Chem.BondType.DOUBLE)
            for atom in (mol.GetAtomWithIdx(index) for index in atoms):
                if atom.GetAtomicNum() in (8, 16):
                    atom.SetFormalCharge(0)
            Chem.SanitizeMol(mol)
    return mol


def _nitro_groups(mol: Chem.Mol) -> dict[int, tuple[int, int]]:
    """The two O of each N that has two of one neighbour, and one neighbour more."""
    groups = {}
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 7 and atom.GetDegree() == 3:
            ends = [o.GetIdx() for o in atom.GetNeighbors() if o.GetAtomicNum() == 8 and o.GetDegree() == 1]
            if len(ends) == 2:
                groups[atom.GetIdx()] = (ends[0], ends[1])
    return groups


def _without_nitro_groups(mol: Chem.RWMol, groups: dict[int, tuple[int, int]]) -> Chem.RWMol:
    """Fluorine in their place, bonded alike: of two nitro groups on one ring RDKit finds no bond orders."""
    simpler = Chem.RWMol(mol)
    simpler.BeginBatchEdit()
    for n, oxygens in groups.items():
        simpler.GetAtomWithIdx(n).SetAtomicNum(9)
        for o in oxygens:
            simpler.RemoveAtom(o)
    simpler.CommitBatchEdit()
    return simpler


def _with_nitro_groups(mol: Chem.RWMol, simpler: Chem.RWMol, groups: dict[int, tuple[int, int]]) -> Chem.RWMol:
    """`mol` with the bond orders and charges of `simpler` and those of nitro groups."""
    Chem.Kekulize(simpler, clearAromaticFlags=True)
    whole = Chem.RWMol(mol)
    removed = {o for oxygens in groups.values() for o in oxygens}
    kept = [atom for atom in range(mol.GetNumAtoms()) if atom not in removed]
    for place, atom in zip(kept, simpler.GetAtoms(), strict=True):
        whole.GetAtomWithIdx(place).SetFormalCharge(atom.GetFormalCharge())
    for bond in simpler.GetBonds():
        i, j = kept[bond.GetBeginAtomIdx()], kept[bond.GetEndAtomIdx()]
        whole.GetBondBetweenAtoms(i, j).SetBondType(bond.GetBondType())
    for n, (one, other) in groups.items():
        whole.GetAtomWithIdx(n).SetFormalCharge(1)
        whole.GetBondBetweenAtoms(n, one).SetBondType(Chem.BondType.DOUBLE)
        whole.GetAtomWithIdx(other).SetFormalCharge(-1)
    for atom in whole.GetAtoms():
        atom.SetNoImplicit(True)
    Chem.SanitizeMol(whole)
    return whole


def conformer_from_positions(positions: np.ndarray) -> Chem.Conformer:
    """An RDKit conformer with these (N, 3) coordinates in angstrom."""
    conformer = Chem.Conformer(len(positions))
    conformer.Set3D(True)
    conformer.SetPositions(np.ascontiguousarray(positions, dtype=np.float64))
    return conformer


def with_conformers(mol: Chem.Mol, *structures: np.ndarray) -> Chem.Mol:
    """A copy of `mol` whose only conformers are `structures`, (N, 3) each, in angstrom."""
    mol = Chem.Mol(mol)
    mol.RemoveAllConformers()
    for positions in structures:
        mol.AddConformer(conformer_from_positions(positions), assignId=True)
    return mol


def atomic_numbers_of(mol: Chem.Mol) -> list[int]:
    """Of its atoms, in order."""
    return [atom.GetAtomicNum() for atom in mol.GetAtoms()]


def check_structure_fits(mol: Chem.Mol, positions: np.ndarray) -> None:
    """Whether (N, 3) positions in angstrom can belong to the atoms of `mol`, in its order.

    Raises:
        ValueError: two bonded atoms are far apart, an atom is closer to another than to those it is bonded to, or two
            atoms coincide.
    """
    if mol.GetNumAtoms() == 1:
        return
    check_bond_lengths(mol, positions, MAX_STRETCH)
    radii = covalent_radii(atomic_numbers_of(mol))
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    nearest = (distances / (radii[:, None] + radii[None])).argmin(1)
    for atom, other in enumerate(nearest.tolist()):
        pair = f"{_label(mol, atom)} and {_label(mol, other)} are only {distances[atom, other]:.2f} angstrom apart"
        if distances[atom, other] < MIN_DISTANCE:
            raise InputError(pair)
        if mol.GetBondBetweenAtoms(atom, other) is None:
            raise InputError(f"{pair}, but not bonded; the first has its bonds with other atoms")


def check_bond_lengths(mol: Chem.Mol, positions: np.ndarray, max_stretch: float) -> None:
    """Raises ValueError if (N, 3) positions make a bond longer than `max_stretch` times the sum of covalent radii."""
    radii = covalent_radii(atomic_numbers_of(mol))
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        length = np.linalg.norm(positions[i] - positions[j])
        if length > max_stretch * (radii[i] + radii[j]):
            raise InputError(f"{_label(mol, i)} and {_label(mol, j)} are bonded, but {length:.2f} angstrom apart")


def covalent_radii(atomic_numbers: Iterable[int]) -> np.ndarray:
    """Of atoms, (N,), angstrom."""
    table = Chem.GetPeriodicTable()
    return np.array([table.GetRcovalent(int(number)) for number in atomic_numbers])


def _label(mol: Chem.Mol, atom: int) -> str:
    return f"{mol.GetAtomWithIdx(atom).GetSymbol()}{atom}"


def mapped_smiles(mol: Chem.Mol) -> str:
    """SMILES with explicit hydrogens whose map numbers are the 1-based atom indices; `mol_from_smiles` inverts it.

    RDKit writes stereo marks that depend on each other (1,3-disubstituted cyclobutanes) as an equivalent choice for
    unnumbered atoms, which is the other isomer of the numbered ones: where there is a structure, take marks from it.
    """
    mol = Chem.Mol(mol)
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(atom.GetIdx() + 1)
    return Chem.MolToSmiles(mol)


def with_structure(mol: Chem.Mol, positions: np.ndarray) -> Chem.Mol:
    """A copy of `mol` whose only conformer is `positions` (N, 3), in angstrom, and whose stereo marks are its."""
    mol = with_conformers(mol, positions)
    Chem.AssignStereochemistryFrom3D(mol)
    return mol


def unmarked_stereo(mol: Chem.Mol) -> list[str]:
    """The stereo centres and double bonds that have no mark, such as C3 and C1=C2, by symbol and 0-based number.

    Also where there are no other isomers than mirror images, and where a cage, as norbornane, leaves only one.
    """
    unmarked = [s for s in Chem.FindPotentialStereo(mol) if s.specified != Chem.StereoSpecified.Specified]
    # Of candidates those are centres that keep a mark.
    marked = Chem.Mol(mol)
    for stereo in unmarked:
        if stereo.type == Chem.StereoType.Atom_Tetrahedral and mol.GetAtomWithIdx(stereo.centeredOn).GetDegree() > 2:
            marked.GetAtomWithIdx(stereo.centeredOn).SetChiralTag(Chem.ChiralType.CHI_TETRAHEDRAL_CCW)
    Chem.AssignStereochemistry(marked, cleanIt=True, force=True)
    found = []
    for stereo in unmarked:
        if stereo.type == Chem.StereoType.Atom_Tetrahedral:
            if marked.GetAtomWithIdx(stereo.centeredOn).GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED:
                found.append(_label(mol, stereo.centeredOn))
        elif stereo.type == Chem.StereoType.Bond_Double:
            bond = mol.GetBondWithIdx(stereo.centeredOn)
            if not _is_cumulated(bond):
                found.append(f"{_label(mol, bond.GetBeginAtomIdx())}={_label(mol, bond.GetEndAtomIdx())}")
    return found


def _is_cumulated(bond: Chem.Bond) -> bool:
    """Whether an end of a double bond is the middle of an allene, across which marks of double bonds mean nothing."""
    ends = (bond.GetBeginAtom(), bond.GetEndAtom())
    return any(sum(other.GetBondType() == Chem.BondType.DOUBLE for other in end.GetBonds()) > 1 for end in ends)
