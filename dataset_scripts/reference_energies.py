"""Reference energies of the elements at each level of theory, so that energies of several levels can be mixed.

Most of the difference between the total energies of two methods is a constant an atom, the same in every molecule.
Without it only what the methods disagree on is left: .08 of .77 eV a molecule between the two levels of the bundled
data.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

EnergyByElement = dict[int, float]

# Molecules at two levels of theory that make it worth to fit their difference alone.
_MIN_SHARED = 100

_COLUMNS = [
    "molecule_id",
    "smiles",
    "atomic_numbers",
    "energy",
    "energy_level_of_theory",
    "equilibrium_level_of_theory",
]


def fit_reference_energies(atomic_numbers: Sequence[Sequence[int]], energies: Sequence[float]) -> EnergyByElement:
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


def fit_by_level_of_theory(rows: Iterable[dict]) -> dict[str, EnergyByElement]:
    """Reference energies at every level of theory in the rows; some thousands of rows a level are enough."""
    molecules, energies = defaultdict(list), defaultdict(list)
    for row in rows:
        if row["energy"] is not None:
            molecules[row["energy_level_of_theory"]].append(row["atomic_numbers"])
            energies[row["energy_level_of_theory"]].append(row["energy"])
    return {level: fit_reference_energies(molecules[level], energies[level]) for level in molecules}


def fit_to_files(paths: Sequence[Path], level_of_theory: str, max_rows: int = 10_000) -> dict[str, EnergyByElement]:
    """Reference energies at every level of theory in Parquet files of the schema, from `max_rows` to twice as many
    minima of each, of all files alike, or from all if there are fewer.

    A level without minima has none, with a warning: the strain of other structures, 2.8 eV a molecule in the bundled
    displaced ones, would be taken for a property of the elements. References at another level than `level_of_theory`
    are fitted to the difference to it, where the files have at least `_MIN_SHARED` minima of the same molecules at
    both: references of different molecules differ by what binds those. Elements that these do not have then have no
    reference at that level, with a warning.
    """
    rows: dict[str, list[dict]] = defaultdict(list)
    strides: dict[str, int] = defaultdict(lambda: 1)
    for path in paths:
        table = pq.read_table(path, columns=_COLUMNS, filters=pc.field("energy").is_valid())
        level, is_minimum = table["energy_level_of_theory"], table["equilibrium_level_of_theory"].is_valid()
        for name in level.unique().to_pylist():
            minima = table.filter(pc.and_(pc.equal(level, name), is_minimum))
            rows[name] += minima.take(np.arange(0, len(minima), strides[name])).to_pylist()
            # All alike, whatever their number, since sources may be sorted by size.
            while len(rows[name]) > 2 * max_rows:
                rows[name] = rows[name][::2]
                strides[name] *= 2
    references = fit_by_level_of_theory(row for of_level in rows.values() for row in of_level)
    for name in rows.keys() - references.keys():
        logger.warning("no energy of a minimum at %s, so energies at this level cannot be shifted", name)
    for name in references.keys() - {level_of_theory}:
        differences = _differences(rows[name], paths, level_of_theory)
        if len(differences) >= _MIN_SHARED:
            shifts = fit_reference_energies(*zip(*differences, strict=True))
            shared = shifts.keys() & references[level_of_theory].keys()
            if missing := sorted(references[name].keys() - shared):
                logger.warning(
                    "atomic numbers %s are in no molecule that is there both at %s and at %s, so energies at %s of "
                    "molecules with them count as absent",
                    missing,
                    name,
                    level_of_theory,
                    name,
                )
            references[name] = {z: references[level_of_theory][z] - shifts[z] for z in sorted(shared)}
    return references


def _differences(minima: list[dict], paths: Iterable[Path], level_of_theory: str) -> list[tuple[list[int], float]]:
    """Atomic numbers of each of `minima` that the files have at `level_of_theory` too, and how much higher it is there.

    The two minima are not the same structure; what is gained by relaxing from one to the other is left in, .1 eV.
    """
    # By SMILES too: names such as "train_000001" stand for different molecules in different folders.
    others = {(row["molecule_id"], row["smiles"]): row for row in minima}
    found = []
    for path in paths:
        if not others:
            break
        at_level = (pc.field("energy_level_of_theory") == level_of_theory) & pc.field("energy").is_valid()
        at_level &= pc.field("equilibrium_level_of_theory").is_valid()
        at_level &= pc.field("molecule_id").isin([molecule_id for molecule_id, _ in others])
        for row in pq.read_table(path, columns=_COLUMNS, filters=at_level).to_pylist():
            other = others.pop((row["molecule_id"], row["smiles"]), None)  # each molecule counts once
            if other is not None:
                found.append((row["atomic_numbers"], row["energy"] - other["energy"]))
    return found


def at_level_of_theory(row: dict, level_of_theory: str, references: dict[str, EnergyByElement]) -> dict:
    """The row with its labels counted as those of another level of theory.

    The references of its own level are taken off its energy and those of the other put on; forces, which no constant
    changes, stay as they are. An energy with an element that has no reference at both levels becomes absent.
    """
    own_level, energy = row["energy_level_of_theory"], row["energy"]
    if own_level is None or own_level == level_of_theory:
        return row
    own, other = references.get(own_level, {}), references.get(level_of_theory, {})
    known = energy is not None and all(z in own and z in other for z in row["atomic_numbers"])
    energy = energy + sum(other[z] - own[z] for z in row["atomic_numbers"]) if known else None
    return row | {"energy": energy, "energy_level_of_theory": level_of_theory}
