"""A user's own molecules: SDF, extended xyz, Parquet or CSV.

    stream_source(own_source(energy_level_of_theory="B3LYP/6-31G*"), [Path("mine.xyz")])

Angstrom, eV and eV/angstrom. What a record holds:

- .sdf: graph and structure with explicit hydrogens; no labels.
- .xyz, .extxyz: structure, energy and forces as ASE reads them; `charge` and `smiles` of the comment line, if given.
- .parquet, .csv: `smiles` and `positions`, and if given `atomic_numbers`, `energy`, `forces`, `molecule_id`. Without
  `atomic_numbers` the atoms are in the order of `molecular_graph.mol_from_smiles`: the map numbers, or RDKit's AddHs.
  In CSV, lists are JSON.

Molecules without a structure get one from `dataset_scripts.label_generation`.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dataset_scripts.bad_rows import BadRowError, ExcludedRowError, naming
from dataset_scripts.rows import make_row, mol_of_smiles_in_order, mol_of_structure
from dataset_scripts.sdf import mol_of_sdf, read_sdf
from dataset_scripts.sources import Source
from dataset_scripts.tables import read_csv, read_parquet
from modeling_pcbridge.molecular_graph import mol_from_smiles


def own_source(equilibrium_level_of_theory: str | None = None, energy_level_of_theory: str | None = None) -> Source:
    """The source of a user's files, told apart by their endings.

    Args:
        equilibrium_level_of_theory: the method whose minima the structures are; None if they are not minima.
        energy_level_of_theory: the method of the energies and forces; required if there are any.
    """
    make = partial(
        make_row,
        equilibrium_level_of_theory=equilibrium_level_of_theory,
        energy_level_of_theory=energy_level_of_theory,
    )
    return Source(_read, partial(_parse, make=make))


def _read(path: Path) -> Iterator[tuple[str, str, Any]]:
    """For each record a name, its kind, and itself."""
    readers = {".sdf": _read_sdf, ".xyz": _read_extxyz, ".extxyz": _read_extxyz, ".csv": read_csv}
    readers[".parquet"] = read_parquet
    if path.suffix not in readers:
        raise ValueError(f"{path}: not one of {', '.join(readers)}")
    for number, record in enumerate(readers[path.suffix](path)):
        yield f"{path.stem}_{number:06d}", path.suffix, record


def _read_sdf(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        yield from read_sdf(file, str(path))


def _read_extxyz(path: Path) -> Iterator[Any]:
    import ase.io

    frames = ase.io.iread(path, index=":", format="extxyz")
    while True:
        with naming(str(path), "damaged extended xyz file"):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _parse(record: tuple[str, str, Any], make: Callable[..., dict]) -> dict:
    name, kind, content = record
    parts = {".sdf": _from_sdf, ".xyz": _from_atoms, ".extxyz": _from_atoms}.get(kind, _from_table)
    with naming(name):
        try:
            return make(**{"molecule_id": name} | parts(name, content))
        except ExcludedRowError as error:  # in one's own data it is a mistake
            raise BadRowError(error.item, error.reason, error.detail) from error


def _from_sdf(name: str, record: str) -> dict:
    mol = mol_of_sdf(name, record)
    return {"mol": mol, "positions": mol.GetConformer().GetPositions()}


def _from_atoms(name: str, atoms: Any) -> dict:
    results = atoms.calc.results if atoms.calc else {}
    given = atoms.info | atoms.arrays
    stems = [stem for label, stem in (("energy", "energy"), ("forces", "force")) if label not in results]
    if len(stems) == 1:  # beside a label that is read, words such as forcefield=MMFF94 are remarks
        given = {key: value for key, value in given.items() if not isinstance(value, str)}
    unread = [key for key in given if any(stem in key.lower() for stem in stems)]
    if unread:
        raise BadRowError(name, f"labels under names that are not read: {', '.join(unread)}; say energy, forces")
    numbers, positions = atoms.numbers.tolist(), atoms.positions
    if "smiles" in atoms.info:
        mol = mol_of_smiles_in_order(name, atoms.info["smiles"], numbers, positions)
    else:
        mol = mol_of_structure(name, numbers, positions, int(atoms.info.get("charge", 0)))
    return {"mol": mol, "positions": positions, "energy": results.get("energy"), "forces": results.get("forces")}


def _from_table(name: str, record: dict) -> dict:
    cells = {key: record.get(key) for key in ("positions", "atomic_numbers", "energy", "forces")}
    cells = {key: json.loads(cell or "null") if isinstance(cell, str) else cell for key, cell in cells.items()}
    if cells["positions"] is None:
        raise BadRowError(name, "no positions")
    positions = np.array(cells["positions"], dtype=np.float64)
    if cells["atomic_numbers"] is None:
        mol = mol_from_smiles(record["smiles"])
    else:
        mol = mol_of_smiles_in_order(name, record["smiles"], cells["atomic_numbers"], positions)
    labels = {"energy": cells["energy"], "forces": cells["forces"]}
    return {"molecule_id": record.get("molecule_id") or name, "mol": mol, "positions": positions, **labels}
