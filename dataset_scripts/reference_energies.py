"""Reference energies of the elements at each level of theory, so that energies of several levels can be mixed.

Most of the difference between the total energies of two methods is a constant an atom, the same in every molecule.
Without it only what the methods disagree on is left: .08 of .77 eV a molecule between the two levels of the bundled
data.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

ReferenceEnergies = dict[int, float]


def fit_reference_energies(atomic_numbers: Sequence[Sequence[int]], energies: Sequence[float]) -> ReferenceEnergies:
    """Per-element energies in eV by least squares, atomic number -> energy.

    Args:
        atomic_numbers: of each molecule.
        energies: total energies, eV.

    Raises:
        ValueError: no molecules.
    """
    if len(energies) == 0:
        raise ValueError("there is no energy to fit reference energies to")
    elements = sorted({int(z) for molecule in atomic_numbers for z in molecule})
    counts = np.array([[list(molecule).count(z) for z in elements] for molecule in atomic_numbers], dtype=np.float64)
    # The least-norm solution, for elements that always come together.
    solution = np.linalg.lstsq(counts, np.asarray(energies, dtype=np.float64), rcond=None)[0]
    return dict(zip(elements, solution.tolist(), strict=True))


def fit_by_level_of_theory(rows: Iterable[dict]) -> dict[str, ReferenceEnergies]:
    """Reference energies at every level of theory in the rows; some thousands of rows a level are enough."""
    molecules, energies = defaultdict(list), defaultdict(list)
    for row in rows:
        if row["energy"] is not None:
            molecules[row["energy_level_of_theory"]].append(row["atomic_numbers"])
            energies[row["energy_level_of_theory"]].append(row["energy"])
    return {level: fit_reference_energies(molecules[level], energies[level]) for level in molecules}


def at_level_of_theory(row: dict, level_of_theory: str, references: dict[str, ReferenceEnergies]) -> dict:
    """The row with its labels counted as those of another level of theory.

    The references of its own level are taken off its energy and those of the other put on; forces, which no constant
    changes, stay as they are. An energy with an element that has no reference at both levels becomes absent.

    Raises:
        KeyError: no references at one of the two levels.
    """
    own_level = row["energy_level_of_theory"]
    if own_level is None or own_level == level_of_theory:
        return row
    own, other = references[own_level], references[level_of_theory]
    energy = row["energy"]
    if energy is not None and all(z in own and z in other for z in row["atomic_numbers"]):
        energy += sum(other[z] - own[z] for z in row["atomic_numbers"])
    else:
        energy = None
    return row | {"energy": energy, "energy_level_of_theory": level_of_theory}
