"""Bond orders and formal charges of a molecule that do not depend on which of its resonance forms was drawn.

Forms that differ by moving electrons along chains of alternating single and multiple bonds, without more charges or
fewer octets, are the same molecule: carboxylate, guanidinium, nitro, sulfonate, Kekulé's two benzenes. A bond whose
order differs between them is called delocalised, and a charge that is on one atom in one form and on another in the
next is shared evenly.

Listing the forms would take time exponential in their number, so none is. Moving electrons is a walk over the atoms
that raises and lowers bonds by turns; it is closed, or leads from an atom that gives up a lone pair (or takes in an
empty orbital) to one where a lone pair (or empty orbital) appears instead. A step is on such a walk exactly if it lies
within a strongly connected component of the graph of all steps: linear in the number of bonds. (A walk may pass an odd
ring twice, so a few hydrocarbons, such as fulvalene, count as delocalised; so they do whichever form was drawn.)
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator
from itertools import pairwise

import numpy as np
from rdkit import Chem

# Charges are whole numbers of 1 / CHARGE_UNITS: halves to quarters, sixths, eighths and twelfths are exact.
CHARGE_UNITS = 24
# Elements that can take part with the valence they have in an octet; others only pass electrons on.
_OCTET_VALENCE = {6: 4, 7: 3, 8: 2, 15: 3, 16: 2, 34: 2}
_DONORS = (7, 8, 16, 34)  # neutral, give a lone pair and become positive
# The three ways in which an atom can be the end of a walk; an end of one kind needs another end of the same kind.
_ANION, _DONOR, _CATION = "anion", "donor", "cation"


class _Form:
    """One resonance form: `orders` of bonds (i, j), i < j, and `charges`; hydrogens included."""

    def __init__(self, mol: Chem.Mol):
        mol = Chem.Mol(mol)
        Chem.Kekulize(mol, clearAromaticFlags=True)
        table = Chem.GetPeriodicTable()
        # Loops over RDKit's atoms and bonds would take most of the time.
        atoms = list(mol.GetAtoms())
        self.elements = [atom.GetAtomicNum() for atom in atoms]
        self.charges = [atom.GetFormalCharge() for atom in atoms]
        self.outer_electrons = [table.GetNOuterElecs(z) for z in self.elements]
        matrix = Chem.GetAdjacencyMatrix(mol, useBO=True, force=True)
        self.valences = matrix.sum(0).round().astype(int).tolist()
        self.neighbours: list[list[int]] = [[] for _ in atoms]
        self.orders: dict[tuple[int, int], int] = {}
        begins, ends = np.triu(matrix).nonzero()
        for i, j, order in zip(begins.tolist(), ends.tolist(), matrix[begins, ends].tolist(), strict=True):
            self.neighbours[i].append(j)
            self.neighbours[j].append(i)
            self.orders[i, j] = round(order)

    def order(self, i: int, j: int) -> int:
        return self.orders[min(i, j), max(i, j)]

    def change(self, i: int, j: int, by: int) -> None:
        self.orders[min(i, j), max(i, j)] += by
        self.valences[i] += by
        self.valences[j] += by

    def multiple_bonds(self, atom: int) -> int:
        """How often its bonds go beyond single ones."""
        return self.valences[atom] - len(self.neighbours[atom])

    def has_lone_pair(self, atom: int) -> bool:
        return self.outer_electrons[atom] - self.charges[atom] - self.valences[atom] >= 2

    def kinds_of_gaining_end(self, atom: int) -> Iterator[str]:
        """As which kinds of end the atom can have one more bond."""
        charge = self.charges[atom]
        if charge < 0 and self.has_lone_pair(atom):
            yield _ANION
        if self.multiple_bonds(atom) == 0 and self.valences[atom] <= _OCTET_VALENCE.get(self.elements[atom], 0):
            if charge == 0 and self.elements[atom] in _DONORS:
                yield _DONOR
            if charge == 1 and self.elements[atom] == 6:
                yield _CATION

    def kinds_of_losing_end(self, atom: int) -> Iterator[str]:
        """As which kinds of end the atom can have one bond less; the inverse of gaining."""
        charge, element, multiple = self.charges[atom], self.elements[atom], self.multiple_bonds(atom)
        octet = _OCTET_VALENCE.get(element, 0)
        if charge == 0 and multiple >= 1 and self.valences[atom] <= octet:
            yield _ANION
            if element == 6 and multiple == 1:
                yield _CATION
        if charge == 1 and multiple == 1 and element in _DONORS and self.valences[atom] <= octet + 1:
            yield _DONOR

    # --- To a form with as few charges as possible ------------------------------------------------------------

    def normalise(self) -> None:
        self._close_hypervalent_bonds()
        self._split_double_charges()
        self._pair_charges()
        self._prefer_triple_bonds()

    def _close_hypervalent_bonds(self) -> None:
        """S+-O- of sulfoxides, sulfones, phosphine oxides, perchlorate becomes S=O."""
        for i, j in [*self.orders, *self.orders]:  # twice, for centres with two charges
            for centre, other in ((i, j), (j, i)):
                heavy = self.elements[centre] > 10 and (
                    len(self.neighbours[centre]) >= 3 or self.elements[centre] != 16
                )
                if heavy and self.charges[centre] > 0 > self.charges[other]:
                    self.change(i, j, 1)
                    self.charges[centre] -= 1
                    self.charges[other] += 1

    def _split_double_charges(self) -> None:
        """X(2-)-Y#Z becomes X(-)=Y=Z(-)."""
        for x in range(len(self.elements)):
            for y in self.neighbours[x] if self.charges[x] <= -2 else ():
                if self.order(x, y) == 1 and (ends := [z for z in self.neighbours[y] if self.order(y, z) == 3]):
                    self.change(x, y, 1)
                    self.change(y, ends[0], -1)
                    self.charges[x] += 1
                    self.charges[ends[0]] -= 1
                    break

    def _pair_charges(self) -> None:
        """-O-C=N+ becomes O=C-N, and N-C+ becomes N+=C."""
        for kind, charge, last in ((_ANION, 1, _DONOR), (_ANION, 1, _CATION), (_DONOR, 1, _CATION)):
            while path := self._path(kind, last):
                for step, (i, j) in enumerate(pairwise(path)):
                    self.change(i, j, 1 if step % 2 == 0 else -1)
                self.charges[path[0]] += charge
                self.charges[path[-1]] -= 1

    def _path(self, first: str, last: str) -> list[int] | None:
        """The shortest way for the lone pair of an end of kind `first` to where it undoes a positive charge."""
        begins = [a for a in range(len(self.elements)) if first in self.kinds_of_gaining_end(a)]
        if last == _DONOR:  # the positive atom arrives at a lone pair: its bond is lowered
            ends = {(a, False) for a in range(len(self.elements)) if last in self.kinds_of_losing_end(a)}
        else:  # at an octet: its bond is raised
            ends = {(a, True) for a in range(len(self.elements)) if last in self.kinds_of_gaining_end(a)}
        queue = [[a] for a in begins] if ends else []
        seen = {(a, False) for a in begins}
        for path in queue:
            raises = len(path) % 2 == 1
            for other in self.neighbours[path[-1]]:
                order = self.order(path[-1], other)
                if other in path or (other, raises) in seen or not (order < 2 if raises else order > 1):
                    continue
                seen.add((other, raises))
                queue.append([*path, other])
                if (other, raises) in ends:
                    return queue[-1]
        return None

    def _prefer_triple_bonds(self) -> None:
        """X=Y=Z- becomes X(-)-Y#Z, as in azides, thiocyanate and propargyl anions."""
        for z in range(len(self.elements)):
            for y in self.neighbours[z] if self.charges[z] == -1 else ():
                if self.order(y, z) == 2 and self.multiple_bonds(y) == 2:
                    for x in self.neighbours[y]:
                        if x != z and self.order(x, y) == 2 and _ANION in self.kinds_of_losing_end(x):
                            self.change(y, z, 1)
                            self.change(x, y, -1)
                            self.charges[z], self.charges[x] = 0, -1
                            break

    # --- What all forms have in common ------------------------------------------------------------------------

    def ends(self) -> Iterator[tuple[int, str, bool]]:
        """The atoms that can be ends of walks, of which kind, and whether as gaining ends."""
        if not any(self.charges):  # no kind of end has both a gaining and a losing one
            return
        for atom in range(len(self.elements)):
            for kind in self.kinds_of_gaining_end(atom):
                yield atom, kind, True
            for kind in self.kinds_of_losing_end(atom):
                yield atom, kind, False

    def steps(self) -> dict[Hashable, list[Hashable]]:
        """The graph of all steps: (atom, True) has just lost a bond and is to raise one, (atom, False) the reverse.

        The ends of a kind are joined by nodes of their own, so that a walk from end to end is closed: one where a walk
        begins at a gaining or stops at a losing end, and one where it stops at a gaining or begins at a losing end.
        """
        steps: dict[Hashable, list[Hashable]] = defaultdict(list)
        for (i, j), order in self.orders.items():
            for a, b in ((i, j), (j, i)):
                if order > 1:
                    steps[a, False].append((b, True))
                elif self.elements[b] > 1:
                    steps[a, True].append((b, False))
        for atom, kind, gains in self.ends():
            for raises in (True, False):
                node, end = (atom, raises), (kind, raises)
                first, second = (end, node) if gains == raises else (node, end)
                steps[first].append(second)
        return steps


def average_forms(mol: Chem.Mol) -> tuple[np.ndarray, dict[tuple[int, int], Chem.BondType]]:
    """Formal charges and bond types over all resonance forms of a sanitised molecule with explicit hydrogens.

    Returns:
        (N,) int8 charges in 1 / `CHARGE_UNITS`, and the type of every bond (i, j), i < j: SINGLE, DOUBLE, TRIPLE (or
        between double and triple), and AROMATIC for every bond that is single in one form and multiple in another.
    """
    form = _Form(mol)
    if any(form.charges):
        form.normalise()
    steps = form.steps()
    component = _strong_components(steps)

    def on_a_walk(start: Hashable, end: Hashable) -> bool:
        return start in component and component[start] == component.get(end)

    bonds, cluster = {}, list(range(len(form.elements)))
    for (i, j), order in form.orders.items():
        bonds[i, j] = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)[order - 1]
        raised = order == 1
        if on_a_walk((i, raised), (j, not raised)) or on_a_walk((j, raised), (i, not raised)):
            if order < 3:
                bonds[i, j] = Chem.BondType.AROMATIC
            old, new = cluster[i], cluster[j]
            cluster = [new if c == old else c for c in cluster]

    shared = defaultdict(set)
    for atom, kind, _ in form.ends():
        if any(on_a_walk((atom, raises), (kind, raises)) for raises in (True, False)):
            shared[cluster[atom], kind].add(atom)
    charges = np.array(form.charges) * CHARGE_UNITS
    for atoms in shared.values():
        total = sum(form.charges[atom] for atom in atoms)
        share = round(CHARGE_UNITS * total / len(atoms))
        # A charge spread thin is still one.
        charges[list(atoms)] = share if share or not total else np.sign(total)
    return charges.astype(np.int8), bonds


def _strong_components(steps: dict[Hashable, list[Hashable]]) -> dict[Hashable, int]:
    """The number of the strongly connected component of every node (Tarjan's algorithm, without recursion)."""
    index: dict[Hashable, int] = {}
    lowest: dict[Hashable, int] = {}
    component: dict[Hashable, int] = {}
    waiting: list[Hashable] = []
    for root in list(steps):
        if root in index:
            continue
        index[root] = lowest[root] = len(index)
        waiting.append(root)
        work = [(root, iter(steps[root]))]
        while work:
            node, ways = work[-1]
            for following in ways:
                if following not in index:
                    index[following] = lowest[following] = len(index)
                    waiting.append(following)
                    work.append((following, iter(steps.get(following, ()))))
                    break
                if following not in component:
                    lowest[node] = min(lowest[node], index[following])
            else:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[node])
                if lowest[node] == index[node]:
                    while (member := waiting.pop()) != node:
                        component[member] = index[node]
                    component[node] = index[node]
    return component
