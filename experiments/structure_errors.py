"""How far structures of molecules are from their DFT minima: the errors of all tables of drug-like molecules."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from modeling_pcbridge.molecular_graph import MolecularGraph
from pcbridge.evaluation.metrics import (
    bond_angle_error,
    bond_length_error,
    heavy_atom_rmsd,
    kabsch_rmsd,
    one_three_distance_error,
    torsion_error,
)

METRICS = {
    "bonds": ("bonds, angstrom", 4),
    "bonds_centred": ("bonds, type means removed", 4),
    "one_three": ("1-3 distances, angstrom", 4),
    "angles": ("angles, degrees", 2),
    "torsions": ("torsions, degrees", 1),
    "heavy_rmsd": ("heavy-atom RMSD, angstrom", 3),
    "rmsd": ("all-atom RMSD, angstrom", 3),
}


@dataclass(frozen=True)
class Molecule:
    """A DFT structure and the cheap minima below it, (N, 3), angstrom."""

    name: str
    mol: Chem.Mol
    graph: MolecularGraph
    reference: np.ndarray
    mmff: np.ndarray | None
    gfn2: np.ndarray | None


def record(molecule: Molecule, structure: np.ndarray) -> dict[str, float]:
    """The errors of one structure (N, 3), angstrom; without the one that needs all molecules."""
    graph, reference, one = molecule.graph, molecule.reference, structure[None]
    return {
        "bonds": float(bond_length_error(graph, one, reference)[0]),
        "one_three": float(one_three_distance_error(graph, one, reference)[0]),
        "angles": float(bond_angle_error(graph, one, reference)[0]),
        "torsions": float(torsion_error(graph, one, reference)[0]),
        "heavy_rmsd": float(heavy_atom_rmsd(molecule.mol, one, reference)[0]),
        "rmsd": float(kabsch_rmsd(one, reference)[0]),
    }


def centred_bond_errors(molecules: Sequence[Molecule], structures: Sequence[np.ndarray]) -> list[float]:
    """Per molecule the mean absolute bond error after the mean error of each type of bond is taken out.

    Two levels of theory differ by about a constant per type: the elements of the two atoms and the order of the bond.
    """
    errors: list[np.ndarray] = []
    types: list[list[tuple]] = []
    by_type: dict[tuple, list[float]] = defaultdict(list)
    for molecule, structure in zip(molecules, structures, strict=True):
        i, j = np.argwhere(np.triu(molecule.graph.bonded)).T
        length, of_reference = (np.linalg.norm(x[i] - x[j], axis=-1) for x in (structure, molecule.reference))
        errors.append(length - of_reference)
        types.append(
            [
                (
                    *sorted(molecule.graph.atomic_numbers[[a, b]].tolist()),
                    int(molecule.graph.pair_types[a, b]),
                )
                for a, b in zip(i, j, strict=True)
            ]
        )
        for kind, error in zip(types[-1], errors[-1].tolist(), strict=True):
            by_type[kind].append(error)
    means = {kind: np.mean(some) for kind, some in by_type.items()}
    return [
        float(np.abs(error - [means[kind] for kind in kinds]).mean())
        for error, kinds in zip(errors, types, strict=True)
    ]


def measured(molecules: Sequence[Molecule], structures: Sequence[np.ndarray | None], seconds: float | None) -> dict:
    """All errors of a method: of each molecule by its name, with the time per molecule."""
    served = [(m, s) for m, s in zip(molecules, structures, strict=True) if s is not None]
    records = {m.name: record(m, s) for m, s in served}
    centred = centred_bond_errors(*zip(*served, strict=True)) if served else []
    for (molecule, _), error in zip(served, centred, strict=True):
        records[molecule.name]["bonds_centred"] = error
    records = {name: {key: round(float(value), 6) for key, value in r.items()} for name, r in records.items()}
    return {"records": records, "seconds": None if seconds is None else seconds / max(len(served), 1)}


def mean_cells(records: Iterable[dict[str, float]], metrics: Iterable[str]) -> list[str]:
    """Of each metric the mean over the molecules that have it, with its digits."""
    records = list(records)
    return [f"{np.nanmean([r[key] for r in records]):.{METRICS[key][1]}f}" for key in metrics]


def worse_bonds(result: dict, start: dict) -> set[str]:
    """The molecules whose bonds are farther from the DFT structure than those of the MMFF94 minimum, `start`."""
    before = start["records"]
    return {name for name, r in result["records"].items() if name in before and r["bonds"] > before[name]["bonds"]}
