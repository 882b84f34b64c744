"""Whether a structure is one of its molecular graph: the checks that every structure passes before it counts.

They compare a structure with the graph alone, so they know nothing of the model that made it. Limits were chosen so
that B3LYP and PM6 minima of the bundled data and of QM9 keep them (`tests/test_structure_checks.py`): what breaks one
is no strained molecule but a broken one.
"""

from functools import cached_property

import numpy as np
from rdkit import Chem
from torch import Tensor

from .graph_batch import GraphBatch
from .molecular_graph import (
    PAIR_BONDS,
    PAIR_PATH_OF_2,
    MolecularGraph,
    signed_volumes,
    sp_atoms,
    stereo_pair_types,
    stereo_quadruples,
)
from .rdkit_molecules import covalent_radii, with_conformers

_SINGLE, _DOUBLE, _TRIPLE, _AROMATIC = PAIR_BONDS.values()
# Shortest and longest bonds, in sums of the covalent radii.
_BOND_RANGES = {_SINGLE: (0.8, 1.3), _DOUBLE: (0.72, 1.15), _TRIPLE: (0.68, 1.05), _AROMATIC: (0.75, 1.2)}
# Nearer than so many sums of the covalent radii are atoms that the graph has not bonded: two bonds apart, farther.
_LEAST_OF_SECOND, _LEAST_OF_OTHERS = 1.15, 1.2
_LEAST_OF_HYDROGENS = 1.25  # angstrom, between two hydrogen atoms
# Degrees.
_LEAST_ANGLE, _LARGEST_ANGLE_OF_FOUR, _LARGEST_ANGLE_OF_CHALCOGEN, _LEAST_ANGLE_OF_SP = 62, 165, 165, 140
_LARGEST_SUM_OF_PYRAMID = 359.5  # of the three angles at N or P whose lone pair nothing takes
_LARGEST_TWIST, _LARGEST_AMIDE_TWIST = 40, 60
_LARGEST_RING_DEVIATION = 0.26  # angstrom, of the atom of an aromatic ring from its plane
# Elements with their numbers of neighbours.
_KINDS_IN_AROMATIC_RINGS = {(6, 3), (7, 2), (7, 3), (8, 2), (16, 2)}
_SMALL_RING = 7  # up to here a ring holds its double bonds flat or bends them: no twist is asked


class StructureChecks:
    """The checks of one molecular graph, for any number of its structures.

    Args:
        graph: N atoms.
    """

    def __init__(self, graph: MolecularGraph):
        self.graph = graph
        table = Chem.GetPeriodicTable()
        self._symbols = [table.GetElementSymbol(int(z)) for z in graph.atomic_numbers]
        radii = covalent_radii(graph.atomic_numbers)
        self._radii = radii[:, None] + radii[None]
        self._bonded = graph.bonded
        self._neighbours = [np.flatnonzero(row).tolist() for row in self._bonded]
        self._least = np.where(graph.pair_types == PAIR_PATH_OF_2, _LEAST_OF_SECOND, _LEAST_OF_OTHERS) * self._radii
        are_hydrogens = np.logical_and.outer(graph.atomic_numbers == 1, graph.atomic_numbers == 1)
        self._least = np.where(are_hydrogens, _LEAST_OF_HYDROGENS, self._least)
        self._least[self._bonded | np.eye(graph.num_atoms, dtype=bool)] = 0

    def faults(self, positions: np.ndarray) -> list[str]:
        """What is wrong with (N, 3) `positions`, angstrom, a phrase for each fault; empty where the structure is sound.

        Atoms are named by symbol and 0-based number. The graph is not chemically judged, only the structure by it.
        """
        if not np.isfinite(positions).all():
            return ["positions are not finite"]
        positions = np.asarray(positions, dtype=np.float64)
        if broken := self._connectivity(positions):
            return broken  # the others would say the same again
        return [
            *self._angles(positions),
            *self._stereo(positions),
            *self._flatness(positions),
            *self._twists(positions),
        ]

    # --- The checks -----------------------------------------------------------------------------------------------

    def _connectivity(self, positions: np.ndarray) -> list[str]:
        distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
        ratios = distances / self._radii
        found = []
        for i, j in np.argwhere(np.triu(self._bonded)).tolist():
            shortest, longest = _BOND_RANGES[int(self.graph.pair_types[i, j])]
            if not shortest <= ratios[i, j] <= longest:
                what = "short" if ratios[i, j] < shortest else "long"
                found.append(f"the bond {self._name(i, j)} is too {what} ({distances[i, j]:.2f} angstrom)")
        for i, j in np.argwhere(np.triu(distances < self._least, 1)).tolist():
            found.append(f"{self._name(i)} and {self._name(j)} are too close ({distances[i, j]:.2f} angstrom)")
        return found

    def _angles(self, positions: np.ndarray) -> list[str]:
        found = []
        for centre, around in enumerate(self._neighbours):
            is_linear = self._is_sp[centre] and not any(centre in ring for ring in self.rings)
            least = _LEAST_ANGLE_OF_SP if is_linear else _LEAST_ANGLE
            # By symmetry no force bends what is linear or flat, so that a structure may end as it began.
            is_chalcogen = len(around) == 2 and self.graph.atomic_numbers[centre] in (8, 16)
            largest = _LARGEST_ANGLE_OF_FOUR if len(around) == 4 else 180
            largest = _LARGEST_ANGLE_OF_CHALCOGEN if is_chalcogen else largest
            if self._is_pyramid[centre] and self._sum_of_angles(positions, centre) > _LARGEST_SUM_OF_PYRAMID:
                found.append(f"{self._name(centre)} is flat")
            for place, i in enumerate(around):
                for j in around[place + 1 :]:
                    if self._bonded[i, j]:  # a ring of three
                        continue
                    angle = _angle(positions[i] - positions[centre], positions[j] - positions[centre])
                    if not least <= angle <= largest:
                        found.append(f"the angle {self._name(i, centre, j)} is {angle:.0f} degrees")
        return found

    def _sum_of_angles(self, positions: np.ndarray, centre: int) -> float:
        """Degrees, of the three bonds of an atom."""
        bonds = positions[self._neighbours[centre]] - positions[centre]
        return sum(_angle(bonds[k], bonds[k - 1]) for k in range(3))

    def _stereo(self, positions: np.ndarray) -> list[str]:
        """By RDKit's perception of the structure, which shares no code with what the model obeys marks by."""
        if not self.graph.has_stereo:
            return []
        mol = with_conformers(self._skeleton, positions)
        Chem.AssignAtomChiralTagsFromStructure(mol)
        Chem.DetectBondStereochemistry(mol)
        Chem.SetBondStereoFromDirections(mol)
        parities = {frozenset(corners): _parity(corners) for corners in stereo_quadruples(mol).tolist()}
        found = []
        for corners in self.graph.stereo_quadruples.tolist():
            if self._is_perceived(corners):
                is_right = parities.get(frozenset(corners)) == _parity(corners)
            else:
                is_right = signed_volumes(positions, np.array([corners])).item() > 0
            if not is_right:
                found.append(f"the stereo centre or axis of {self._name(*corners)} has the wrong handedness")
        wrong = (self.graph.stereo_pair_types != 0) & (stereo_pair_types(mol) != self.graph.stereo_pair_types)
        bonds = {tuple(sorted(self.graph.marked_bond(i, j))) for i, j in np.argwhere(np.triu(wrong)).tolist()}
        found += [f"the double bond {self._name(*bond)} is not as its E/Z mark says" for bond in sorted(bonds)]
        return found

    def _is_perceived(self, corners: list[int]) -> bool:
        """Whether RDKit perceives the mark in structures: not of axes, phosphines and aziridines."""
        numbers, neighbours = self.graph.atomic_numbers, self._neighbours
        has_centre = any(set(neighbours[centre]) == set(corners) for centre in neighbours[corners[0]])
        return has_centre or any(
            numbers[centre] in (16, 34) and set(neighbours[centre]) == set(corners) - {centre} for centre in corners
        )

    def _flatness(self, positions: np.ndarray) -> list[str]:
        found = []
        for ring in self._aromatic_rings:
            centred = positions[ring] - positions[ring].mean(0)
            deviation = np.abs(centred @ np.linalg.svd(centred)[2][2]).max()
            if deviation > _LARGEST_RING_DEVIATION:
                found.append(f"the aromatic ring of {self._name(*ring)} is not flat ({deviation:.2f} angstrom)")
        return found

    def _twists(self, positions: np.ndarray) -> list[str]:
        found = []
        for axis, ideal, largest, kind in self._flat_axes:
            before, j, k, after = axis[1], axis[0], axis[-1], axis[-2]
            direction = positions[k] - positions[j]
            lines = [
                self._line_of_end(positions, end, inner, direction / np.linalg.norm(direction))
                for end, inner in ((j, before), (k, after))
            ]
            twist = _angle(*lines)
            off = abs(min(twist, 180 - twist) - ideal)
            if off > largest:
                found.append(f"the {kind} {self._name(*axis)} is twisted by {off:.0f} degrees")
        return found

    def _line_of_end(self, positions: np.ndarray, end: int, inner: int, direction: np.ndarray) -> np.ndarray:
        """Across the axis, along which the substituents of its end lie; pyramidal ends have one too."""
        first, *second = (positions[i] - positions[end] for i in self._neighbours[end] if i != inner)
        line = first / np.linalg.norm(first)
        if second:
            line = line - second[0] / np.linalg.norm(second[0])
        return line - (line @ direction) * direction

    # --- What the graph says --------------------------------------------------------------------------------------

    @cached_property
    def _skeleton(self) -> Chem.Mol:
        """The graph for RDKit: bonds with a stereo mark are double, the others single, which have none."""
        mol = Chem.RWMol()
        for z in self.graph.atomic_numbers.tolist():
            atom = Chem.Atom(z)
            atom.SetNoImplicit(True)
            mol.AddAtom(atom)
        marks = np.argwhere(np.triu(self.graph.stereo_pair_types)).tolist()
        marked = {tuple(sorted(self.graph.marked_bond(i, j))) for i, j in marks}
        for i, j in np.argwhere(np.triu(self._bonded)).tolist():
            mol.AddBond(i, j, Chem.BondType.DOUBLE if (i, j) in marked else Chem.BondType.SINGLE)
        mol.UpdatePropertyCache(strict=False)
        Chem.GetSymmSSSR(mol)
        return mol.GetMol()

    @cached_property
    def rings(self) -> list[list[int]]:
        """Atoms of each ring of the smallest set, in their order."""
        return [list(ring) for ring in self._skeleton.GetRingInfo().AtomRings()]

    @cached_property
    def _is_sp(self) -> np.ndarray:
        return sp_atoms(self.graph.atomic_numbers, self.graph.pair_types)

    @cached_property
    def _is_pyramid(self) -> list[bool]:
        """N or P with three single bonds to hydrogen and atoms of four neighbours."""

        def is_saturated(atom: int) -> bool:
            return self.graph.atomic_numbers[atom] == 1 or len(self._neighbours[atom]) == 4

        return [
            self.graph.atomic_numbers[atom] in (7, 15) and len(around) == 3 and all(map(is_saturated, around))
            for atom, around in enumerate(self._neighbours)
        ]

    @cached_property
    def _aromatic_rings(self) -> list[list[int]]:
        """Rings of five or six aromatic bonds, or with the atoms and as many double bonds as such a ring.

        A resonance-invariant graph has not all of RDKit's aromatic bonds: furan has two double bonds there, and
        pyridone two and that to oxygen.
        """
        is_multiple = self._bonded & (self.graph.pair_types != _SINGLE)
        is_terminal = np.array([len(around) == 1 for around in self._neighbours])
        found = []
        for ring in self.rings:
            in_ring = is_multiple[ring, np.roll(ring, 1)]
            num_multiple = in_ring.sum() + is_multiple[ring][:, is_terminal].sum()
            kinds = {(int(self.graph.atomic_numbers[atom]), len(self._neighbours[atom])) for atom in ring}
            is_conjugated = in_ring.any() and num_multiple >= len(ring) // 2 and kinds <= _KINDS_IN_AROMATIC_RINGS
            is_aromatic = (self.graph.pair_types[ring, np.roll(ring, 1)] == _AROMATIC).all()
            if 5 <= len(ring) <= 6 and (is_aromatic or is_conjugated):
                found.append(ring)
        return found

    @cached_property
    def _flat_axes(self) -> list[tuple[list[int], int, int, str]]:
        """Atoms of each axis about which nothing turns, the ideal angle between its ends, the limit, and its kind."""
        types, axes = self.graph.pair_types, []
        for j, k in np.argwhere(types == _DOUBLE).tolist():
            axis = [j, k]
            while len(self._neighbours[axis[-1]]) == 2 and len(axis) <= self.graph.num_atoms:
                (following,) = set(self._neighbours[axis[-1]]) - {axis[-2]}
                if types[axis[-1], following] != _DOUBLE:
                    break
                axis.append(following)
            is_whole = not self._is_sp[j] and not self._is_sp[axis[-1]] and j < axis[-1]
            if is_whole and self._turns_freely(axis):
                is_even = len(axis) % 2 == 0
                kind = "double bond" if len(axis) == 2 else "cumulene"
                axes.append((axis, 0 if is_even else 90, _LARGEST_TWIST, kind))
        for c, n in np.argwhere(self._bonded).tolist():
            if self._is_amide(c, n) and self._turns_freely([c, n]):
                axes.append(([c, n], 0, _LARGEST_AMIDE_TWIST, "amide bond"))
        return axes

    def _is_amide(self, c: int, n: int) -> bool:
        """Whether c-n is the bond of an amide, whatever resonance form the graph describes."""
        numbers, neighbours = self.graph.atomic_numbers, self._neighbours
        return (
            (numbers[c], len(neighbours[c]), numbers[n], len(neighbours[n])) == (6, 3, 7, 3)
            and any(numbers[o] == 8 and len(neighbours[o]) == 1 for o in neighbours[c])
            # Beside a second acyl group, in acylated amidines and hydrazides, N gives its lone pair elsewhere.
            and all(numbers[i] == 1 or (numbers[i] == 6 and len(neighbours[i]) == 4) for i in neighbours[n] if i != c)
        )

    def _turns_freely(self, axis: list[int]) -> bool:
        """Whether both ends have one or two more neighbours, and no small ring contains the axis."""
        degrees = [len(self._neighbours[end]) for end in (axis[0], axis[-1])]
        return all(2 <= degree <= 3 for degree in degrees) and not any(
            len(ring) <= _SMALL_RING and set(axis[:2]) <= set(ring) for ring in self.rings
        )

    def _name(self, *atoms: int) -> str:
        return "-".join(f"{self._symbols[atom]}{atom}" for atom in atoms)


def _angle(u: np.ndarray, v: np.ndarray) -> float:
    """Degrees between two vectors; 0 where one vanishes."""
    lengths = np.linalg.norm(u) * np.linalg.norm(v)
    return float(np.degrees(np.arccos(np.clip(u @ v / lengths, -1, 1)))) if lengths > 0 else 0.0


def _parity(corners: list[int]) -> bool:
    """Whether sorting takes an even number of exchanges."""
    return sum(a > b for place, a in enumerate(corners) for b in corners[place + 1 :]) % 2 == 0


def faults_of_batch(graph: GraphBatch, positions: Tensor) -> list[list[str]]:
    """The faults of (B, N, 3) structures, angstrom, one of each molecule of a batch. The host waits for the device."""
    arrays = positions.double().cpu().numpy()
    return [
        StructureChecks(molecule).faults(array[: molecule.num_atoms])
        for molecule, array in zip(graph.molecules(), arrays, strict=True)
    ]
