"""Structures away from a minimum, where an energy learns what holds a molecule together: displaced, twisted, in motion.

| geometry | structure |
| --- | --- |
| `given` | that of the input |
| `minimum` | the minimum below it, at the level of the labels |
| `displaced` | Gaussian noise of .03, .06 or .1 angstrom on every coordinate |
| `torsion` | one bond turned (double bonds by 15 to 60, others by 30 to 180 degrees), the rest relaxed a little |
| `dynamics` | after 200 fs of GFN2-xTB Langevin dynamics at 300, 600 or 1,000 K |

`torsion_2` is a second one, of the next bond and at another angle, `torsion_3` a third, and so on; so with `displaced`
and `dynamics`. All are the same for the same `molecule_id` on every run. Those that broke or folded, by the rule of
`check_geometry`, give no label.
"""

import hashlib
import re

import numpy as np
from rdkit import Chem

from dataset_scripts.quantum_chemistry import gfn2_relaxed, gfn2_snapshot
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.rdkit_molecules import (
    atomic_numbers_of,
    check_bond_lengths,
    covalent_radii,
    mapped_smiles,
    with_structure,
)

GEOMETRIES = ("given", "minimum", "displaced", "torsion", "dynamics")
DISPLACEMENTS = (0.03, 0.06, 0.1)  # angstrom
TEMPERATURES = (300, 600, 1000)  # kelvin
DOUBLE_BOND_TURNS = (15, 60)  # degrees, least and most
TURNS = (30, 180)
RELAXATION_STEPS = 10  # after a bond was turned

# Of the sum of the covalent radii: a bond is broken when it is longer, and a molecule has folded onto itself when atoms
# more than two bonds apart are closer than that, or any two than the other.
MAX_BOND_STRETCH = 1.3
MIN_APPROACH = 0.7

_LEAST_OFF_AXIS = 0.3  # angstrom; atoms nearer to the axis do not move when a bond turns

# Kinds of bonds in the order in which they are turned: where barriers are high, and where they say most.
_KINDS_OF_BONDS = tuple(
    (kind, Chem.MolFromSmarts(smarts))
    for kind, smarts in (
        ("double", "*=*"),
        ("amide", "[#6;$(C=[O,S,N])]-[N,O,S]"),
        ("sulfonamide", "[#15,#16;$([#15,#16]=[O,S])]-[N,O,S]"),
        ("heteroatoms", "[!#6;!#1]-[!#6;!#1]"),
        ("conjugated", "[$(*=*),$(*:*),$(*#*)]-[$(*=*),$(*:*),$(*#*),N,O,S]"),
        ("single", "[!#1]-[!#1]"),
    )
)


def parse_geometry(name: str) -> tuple[str, int]:
    """Kind and number of a geometry: "torsion" is ("torsion", 1), "torsion_2" ("torsion", 2).

    Raises:
        ValueError: no such geometry.
    """
    match = re.fullmatch(r"([a-z]+)(?:_([1-9][0-9]*))?", name)
    kind, number = (match[1], int(match[2] or 1)) if match else ("", 1)
    if kind not in GEOMETRIES or (number > 1 and kind in ("given", "minimum")) or name.endswith("_1"):
        numbered = ", ".join(f"{kind}_2" for kind in GEOMETRIES[2:])
        raise InputError(f"no geometry {name!r}; there are {', '.join(GEOMETRIES)}, {numbered} and so on")
    return kind, number


def make_geometry(mol: Chem.Mol, molecule_id: str, geometry: str) -> np.ndarray:
    """The (N, 3) structure in angstrom of a `geometry` (not `given` or `minimum`), made from the structure of `mol`.

    Args:
        mol: hydrogens explicit, with a structure, best a minimum.
        molecule_id: makes it the same on every run.
        geometry: as `parse_geometry` takes it.

    Raises:
        ValueError: the structure broke or folded, or the molecule has no bond to turn.
        RuntimeError: GFN2-xTB failed.
        ImportError: `torsion` and `dynamics` need the extra `xtb`.
    """
    kind, number = parse_geometry(geometry)
    positions = mol.GetConformer().GetPositions()
    if kind == "displaced":
        positions = displaced(positions, molecule_id, number)
    elif kind == "torsion":
        positions = twisted(mol, molecule_id, number)
    elif kind == "dynamics":
        rng = _generator(molecule_id, geometry)
        temperature = float(rng.choice(TEMPERATURES))
        positions = gfn2_snapshot(atomic_numbers_of(mol), positions, Chem.GetFormalCharge(mol), temperature, rng)
    check_geometry(mol, positions)
    return positions


def check_geometry(mol: Chem.Mol, positions: np.ndarray) -> None:
    """Whether (N, 3) `positions` are still the molecule `mol`, which has a structure.

    Raises:
        ValueError: a bond is longer than `MAX_BOND_STRETCH` times the sum of the covalent radii, atoms more than two
            bonds apart are closer than that, any two are closer than `MIN_APPROACH` times it, or the stereo marks are
            others.
    """
    check_bond_lengths(mol, positions, MAX_BOND_STRETCH)
    radii = covalent_radii(atomic_numbers_of(mol))
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    least = np.where(Chem.GetDistanceMatrix(mol) > 2, MAX_BOND_STRETCH, MIN_APPROACH)
    np.fill_diagonal(least, 0)
    near = distances < least * (radii[:, None] + radii[None])
    if near.any():
        i, j = (int(index) for index in np.argwhere(near)[0])
        symbols = [mol.GetAtomWithIdx(index).GetSymbol() for index in (i, j)]
        raise InputError(
            f"folded onto itself: {symbols[0]}{i} and {symbols[1]}{j} are {distances[i, j]:.2f} angstrom apart"
        )
    if mapped_smiles(with_structure(mol, positions)) != mapped_smiles(mol):
        raise InputError("another stereoisomer")


def displaced(positions: np.ndarray, molecule_id: str, number: int = 1) -> np.ndarray:
    """The structure with Gaussian noise on every coordinate."""
    rng = _generator(molecule_id, "" if number == 1 else f"displaced_{number}")
    return positions + rng.normal(size=positions.shape) * rng.choice(DISPLACEMENTS)


def twisted(mol: Chem.Mol, molecule_id: str, number: int = 1) -> np.ndarray:
    """The structure of `mol` with one bond turned: the `number`-th of `bonds_to_turn`, which are in turn.

    The bond and its substituents stay where the turn has put them, and the other atoms are relaxed by GFN2-xTB.

    Raises:
        ValueError: no bond turns.
    """
    bonds = bonds_to_turn(mol, molecule_id)
    if not bonds:
        raise InputError("no bond to turn")
    kind, i, j = bonds[(number - 1) % len(bonds)]
    rng = _generator(molecule_id, f"torsion_{number}")
    angle = rng.uniform(*(DOUBLE_BOND_TURNS if kind == "double" else TURNS)) * rng.choice((-1, 1))
    moving = _side(mol, i, j)
    positions = mol.GetConformer().GetPositions()
    positions[moving] = _turned(positions[moving], positions[i], positions[j] - positions[i], np.radians(angle))
    held = _substituents(mol, i, j)
    if len(held) == mol.GetNumAtoms():
        return positions
    check_bond_lengths(mol, positions, MAX_BOND_STRETCH)
    return gfn2_relaxed(atomic_numbers_of(mol), positions, Chem.GetFormalCharge(mol), sorted(held), RELAXATION_STEPS)


def bonds_to_turn(mol: Chem.Mol, molecule_id: str) -> list[tuple[str, int, int]]:
    """Kind and ends of all bonds that change the structure of `mol` when they turn, those of the first kinds first.

    Bonds of a kind are in an order of the molecule's own, methyl groups and their like come last.
    """
    positions = mol.GetConformer().GetPositions()
    found: dict[frozenset[int], str] = {}
    for kind, pattern in _KINDS_OF_BONDS:
        for i, j in mol.GetSubstructMatches(pattern):
            bond = mol.GetBondBetweenAtoms(i, j)
            if not bond.IsInRing() and bond.GetBondType() in (Chem.BondType.SINGLE, Chem.BondType.DOUBLE):
                found.setdefault(frozenset((i, j)), kind)
    kinds = [kind for kind, _ in _KINDS_OF_BONDS]
    rng = _generator(molecule_id, "bonds to turn")
    ranked = []
    for (i, j), kind in ((sorted(ends), kind) for ends, kind in found.items()):
        sides = (_side(mol, i, j), _side(mol, j, i))
        axis = positions[j] - positions[i]
        if all(_off_axis(positions[side] - positions[i], axis) > _LEAST_OFF_AXIS for side in sides):
            is_rotor = kind != "double" and any(_is_rotor(mol, *ends) for ends in ((i, j), (j, i)))
            ranked.append((is_rotor, kinds.index(kind), rng.random(), kind, i, j))
    return [(kind, i, j) for *_, kind, i, j in sorted(ranked)]


def _is_rotor(mol: Chem.Mol, atom: int, other: int) -> bool:
    """Whether everything at the atom but `other` is three hydrogens or three of one halogen."""
    ends = [n.GetAtomicNum() for n in mol.GetAtomWithIdx(atom).GetNeighbors() if n.GetIdx() != other]
    return len(ends) == 3 and len(set(ends)) == 1 and ends[0] in (1, 9, 17, 35)


def _side(mol: Chem.Mol, i: int, j: int) -> list[int]:
    """The atoms at the end `j` of the bond i-j, without `j`; i-j is in no ring."""
    side, seen = [j], {i, j}
    for atom in side:  # grows
        for neighbor in mol.GetAtomWithIdx(atom).GetNeighbors():
            if neighbor.GetIdx() not in seen:
                seen.add(neighbor.GetIdx())
                side.append(neighbor.GetIdx())
    return side[1:]


def _substituents(mol: Chem.Mol, i: int, j: int) -> set[int]:
    """The bond i-j and what says how far it is turned: the atoms at its ends, and past those in line with it."""
    positions = mol.GetConformer().GetPositions()
    found, seen = [i, j], {i, j}
    for atom in found:  # grows
        if _off_axis(positions[[atom]] - positions[i], positions[j] - positions[i]) < _LEAST_OFF_AXIS:
            new = [other.GetIdx() for other in mol.GetAtomWithIdx(atom).GetNeighbors()]
            found += [other for other in new if other not in seen]
            seen.update(new)
    return seen


def _off_axis(vectors: np.ndarray, axis: np.ndarray) -> float:
    """The largest distance of the ends of (S, 3) vectors from the axis through their origin; 0 of none."""
    along = axis / np.linalg.norm(axis)
    return float(np.linalg.norm(vectors - (vectors @ along)[:, None] * along, axis=1).max(initial=0))


def _turned(positions: np.ndarray, origin: np.ndarray, axis: np.ndarray, angle: float) -> np.ndarray:
    """(S, 3) positions turned by an angle in radians about an axis (Rodrigues' formula)."""
    along = axis / np.linalg.norm(axis)
    vectors = positions - origin
    parallel = (vectors @ along)[:, None] * along
    return origin + parallel + np.cos(angle) * (vectors - parallel) + np.sin(angle) * np.cross(along, vectors)


def _generator(molecule_id: str, purpose: str) -> np.random.Generator:
    # The first displacement keeps the seed that the bundled labels were made with.
    text = f"{molecule_id} {purpose}" if purpose else molecule_id
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
