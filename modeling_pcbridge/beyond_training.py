"""In what a molecule goes beyond the data that trained a model: what is said of it wherever it is predicted."""

import warnings
from collections.abc import Sequence

import numpy as np
from rdkit import Chem

from .atom_environments import environments_of_graph
from .configuration_pcbridge import PCBridgeConfig
from .molecular_graph import PAIR_BONDS, MolecularGraph
from .resonance import CHARGE_UNITS
from .structure_checks import StructureChecks
from .training_coverage import ENVIRONMENT_RADIUS


def beyond_training(config: PCBridgeConfig, graph: MolecularGraph, reference_energies: np.ndarray) -> list[str] | None:
    """A phrase for each thing about a molecule that no training molecule of the model had; None where it is not known.

    And for bonds of small or antiaromatic rings and charges that stand apart, which what is kept of the training data
    does not tell from others.

    Elements that the model does not support never come so far. Atoms are named by symbol and 0-based number.

    Args:
        config: of the model.
        graph: as the processor of the model makes it.
        reference_energies: (elements,), eV, at the model's own level, 0 where it has learned none.
    """
    coverage = config.coverage
    if coverage is None:
        return None
    table = Chem.GetPeriodicTable()

    def name(atom: int) -> str:
        return f"{table.GetElementSymbol(int(graph.atomic_numbers[atom]))}{atom}"

    found = []
    heavy = np.flatnonzero(graph.atomic_numbers > 1).tolist()
    largest = {"structures": coverage.largest_structure, "labels": coverage.largest_labelled}
    if exceeded := [f"{of} up to {size}" for of, size in largest.items() if len(heavy) > size]:
        found.append(f"it has {len(heavy)} heavy atoms, training {' and '.join(exceeded)}")
    charge_units = CHARGE_UNITS if config.resonance_invariant else 1
    total_charge = round(int(graph.formal_charges.sum(dtype=int)) / charge_units)  # shares of a charge are rounded
    if total_charge not in coverage.total_charges:
        found.append(f"no training molecule had its total charge of {total_charge:+d}")
    without = sorted(z for z in set(graph.atomic_numbers.tolist()) if reference_energies[z] == 0)
    if without and reference_energies.any():
        elements = ", ".join(table.GetElementSymbol(z) for z in without)
        level = config.energy_levels_of_theory[0]
        found.append(f"no label at {level} had {elements}, so only differences of its energies there mean anything")
    if not heavy:
        found.append("it has no heavy atom, by whose surroundings molecules are compared")
    if new := atoms_beyond_training(config, graph):
        have = "has" if len(new) == 1 else "have"
        names = ", ".join(map(name, new))
        found.append(f"{len(new)} of {len(heavy)} heavy atoms ({names}) {have} surroundings that no training label had")
    if shared := bonds_in_many_small_rings(graph):
        names = ", ".join("-".join(map(name, bond)) for bond in shared)
        found.append(
            f"three or more rings of three or four atoms share a bond ({names}), which these surroundings do not show"
        )
    if apart := charges_apart(graph):
        names = " and ".join(", ".join(map(name, atoms)) for atoms in apart)
        found.append(
            f"its charges stand apart ({names}), which these surroundings do not show: in vacuum a proton may pass "
            "between them"
        )
    if config.resonance_invariant:
        for ring in antiaromatic_rings(graph):
            names = "-".join(map(name, ring))
            found.append(f"bonds of the antiaromatic ring {names} alternate, and the model makes them alike")
    return found


def bonds_in_many_small_rings(graph: MolecularGraph) -> list[tuple[int, int]]:
    """Bonds of small propellanes and tetrahedranes, whose atoms have surroundings like any others one bond wide.

    No molecule of the training splits that `checkpoints/drug_like` learned from and that are bundled has one
    (`tests/test_released_checkpoints.py`).
    """
    bonded = graph.bonded.astype(int)
    found = []
    for i, j in np.argwhere(np.triu(bonded)).tolist():
        of_i, of_j = bonded[i].copy(), bonded[j].copy()
        of_i[j] = of_j[i] = 0
        if of_i @ of_j + of_i @ bonded @ of_j >= 3:
            found.append((i, j))
    return found


def charges_apart(graph: MolecularGraph) -> tuple[list[int], list[int]] | None:
    """Positive and negative atoms of zwitterions and betaines; None where charges have one sign or are neighbours.

    Of the molecules with B3LYP/6-31G* labels that `checkpoints/drug_like` learned from one is such
    (`tests/test_released_checkpoints.py`).
    """
    signs = np.sign(graph.formal_charges.astype(int))
    is_alone = ~(graph.bonded & (signs[:, None] * signs == -1)).any(1)
    positive, negative = (np.flatnonzero(is_alone & (signs == sign)).tolist() for sign in (1, -1))
    return (positive, negative) if positive and negative else None


def antiaromatic_rings(graph: MolecularGraph) -> list[list[int]]:
    """Atoms of the rings of 4n conjugated C and N all of whose bonds a resonance-invariant graph has as no single ones.

    It averages over forms that such a ring goes between by a real barrier, as cyclobutadiene does.
    """
    degrees = graph.bonded.sum(-1)
    kinds = list(zip(graph.atomic_numbers.tolist(), degrees.tolist(), strict=True))
    return [
        ring
        for ring in StructureChecks(graph).rings
        if len(ring) % 4 == 0
        and (graph.pair_types[ring, np.roll(ring, 1)] != PAIR_BONDS[Chem.BondType.SINGLE]).all()
        and {kinds[atom] for atom in ring} <= {(6, 3), (7, 2)}
    ]


def atoms_beyond_training(config: PCBridgeConfig, graph: MolecularGraph) -> list[int]:
    """0-based numbers of the heavy atoms with surroundings that no training label had; none where it is not known."""
    if config.coverage is None:
        return []
    known = config.coverage.labelled_environments
    heavy = np.flatnonzero(graph.atomic_numbers > 1).tolist()
    environments = environments_of_graph(graph, [ENVIRONMENT_RADIUS])[ENVIRONMENT_RADIUS]
    return [i for i, each in zip(heavy, environments, strict=True) if each not in known]


def warn_if_beyond(molecule: str, beyond: Sequence[str] | None) -> None:
    """A warning that names the molecule, where something is known to be beyond the training data."""
    if beyond:
        warnings.warn(f"{molecule} is beyond what trained the model: {beyond_as_text(beyond)}", stacklevel=3)


def beyond_as_text(beyond: Sequence[str] | None) -> str:
    """`beyond_training` as one line of a file."""
    return "unknown" if beyond is None else "; ".join(beyond) or "nothing"
