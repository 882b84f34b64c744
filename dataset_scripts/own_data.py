"""A user's own molecules: SDF, extended xyz, Parquet, CSV, or what `dataset_scripts.label_generation` wrote.

    stream_source(own_source(energy_level_of_theory="B3LYP/6-31G*"), [Path("mine.xyz")])

Angstrom, eV and eV/angstrom. What a record holds:

- .sdf: graph and structure with explicit hydrogens; of the data fields `energy`, and `forces` as JSON.
- .xyz, .extxyz: structure, energy and forces as ASE reads them; of the comment line the charge, as
  `dataset_scripts.xyz` says, and `smiles`, if given.
- .parquet, .csv: `smiles` and `positions`, and if given `atomic_numbers`, `energy`, `forces`, `molecule_id`,
  `equilibrium_level_of_theory`, `energy_level_of_theory`. Without `atomic_numbers` the atoms are in the order of
  `rdkit_molecules.mol_from_smiles`: the map numbers, or RDKit's AddHs. In CSV, lists are JSON. An empty
  `equilibrium_level_of_theory` says that the structure is no minimum.
- .jsonl: such a record a line. Lines of `label_generation` that failed are counted.

With `mapped_smiles` beside `smiles`, as label_generation has it, the atoms are in the order of its map numbers.
Labels under other names, and total energies in other units than eV (`energy_units`), are refused.
Molecules without a structure get one from `dataset_scripts.label_generation`.
"""

import json
import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dataset_scripts.bad_rows import BadRowError, ExcludedRowError, naming
from dataset_scripts.energy_units import check_energy_unit
from dataset_scripts.raw_sources import RawSource
from dataset_scripts.rows import make_row, mol_of_smiles_in_order, mol_of_structure
from dataset_scripts.schema import FEATURES
from dataset_scripts.sdf import mol_of_sdf, read_sdf
from dataset_scripts.tables import read_csv, read_parquet
from dataset_scripts.text_files import REPLACED, REPLACED_NOTE, open_text
from dataset_scripts.xyz import (
    atoms_of_frame,
    charge_of_frame,
    is_qm9_record,
    labels_of_frame,
    read_xyz,
    text_of_frame,
)
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.rdkit_molecules import atomic_numbers_of, check_structure_fits, mol_from_smiles

_LABELS = ("energy", "forces")
_SDF_FIELD = re.compile(r"^>[^\n]*<([^>\n]+)>[^\n]*\n((?:[^\n]*\S[^\n]*\n)*)", re.MULTILINE)
_LEVELS = ("equilibrium_level_of_theory", "energy_level_of_theory")


def own_source(equilibrium_level_of_theory: str | None = None, energy_level_of_theory: str | None = None) -> RawSource:
    """The source of a user's files, told apart by their endings.

    Records may name their levels themselves, then no other than the ones stated here.

    Args:
        equilibrium_level_of_theory: the method whose minima the structures are; None if they are not minima.
        energy_level_of_theory: the method of the energies and forces; required if there are any.
    """
    levels = dict(zip(_LEVELS, (equilibrium_level_of_theory, energy_level_of_theory), strict=True))
    name = f"own (minima: {equilibrium_level_of_theory}, labels: {energy_level_of_theory})"
    return RawSource(name, _read, partial(_parse, levels=levels))


def _read(path: Path) -> Iterator[tuple[str, str, Any]]:
    """For each record a name, its kind, and itself."""
    readers = {".sdf": _read_sdf, ".xyz": _read_extxyz, ".extxyz": _read_extxyz, ".csv": read_csv}
    readers |= {".parquet": read_parquet, ".jsonl": _read_json_lines}
    kind = path.suffix.lower()
    if kind not in readers:
        raise InputError(f"{path}: not one of {', '.join(readers)}")
    records: Iterator[Any] = readers[kind](path)
    for number, record in enumerate(records):
        texts = [record] if isinstance(record, str) else record.values()
        if any(isinstance(text, str) and REPLACED in text for text in texts):
            warnings.warn(f"{path}, record {number + 1}: {REPLACED_NOTE}", stacklevel=2)
        yield f"{path.stem}_{number:06d}", kind, record


def _read_sdf(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        yield from read_sdf(file, str(path))


def _read_extxyz(path: Path) -> Iterator[str]:
    with open_text(path) as file, naming(str(path), "damaged extended xyz file"):
        yield from read_xyz(file, str(path))


def _read_json_lines(path: Path) -> Iterator[str]:
    with open_text(path) as file:
        yield from filter(str.strip, file)


def _parse(record: tuple[str, str, Any], levels: dict[str, str | None]) -> dict:
    name, kind, content = record
    parse = {".sdf": _from_sdf, ".xyz": _from_frame, ".extxyz": _from_frame}.get(kind, _from_table)
    with naming(name):
        if kind == ".jsonl":
            content = json.loads(content)
            if "error" in content:  # no mistake of the user's, so no reason to stop
                raise ExcludedRowError(name, "the label could not be computed", content["error"])
        try:
            parts = parse(name, content)
            for key, level in levels.items():
                if level is not None and parts.get(key, level) != level:
                    raise BadRowError(name, f"its {key} is {parts[key] or 'empty'}, but {level} was stated for all")
            row = make_row(**{"molecule_id": name} | levels | parts)
            check_energy_unit(name, row["atomic_numbers"], row["energy"], row["energy_level_of_theory"])
            return row
        except ExcludedRowError as error:  # in one's own data it is a mistake
            raise BadRowError(error.item, error.reason, error.detail) from error


def _from_sdf(name: str, record: str) -> dict:
    mol = mol_of_sdf(name, record)
    positions = mol.GetConformer().GetPositions()
    try:
        check_structure_fits(mol, positions)
    except ValueError as error:
        raise BadRowError(name, str(error)) from error
    fields = {key: _value(value.strip()) for key, value in _SDF_FIELD.findall(record)}
    labels = {label: fields.get(label) for label in _LABELS}
    _check_names(name, labels, {key: value for key, value in fields.items() if value is not None})
    return {"mol": mol, "positions": positions, **labels}


def _check_names(name: str, labels: dict, others: dict) -> None:
    """Whether a label that is missing stands under another name, such as REF_energy: it would be lost silently."""
    stems = [stem for label, stem in (("energy", "energy"), ("forces", "force")) if labels[label] is None]
    if len(stems) == 1:  # beside a label that is read, words such as forcefield=MMFF94 are remarks
        others = {key: value for key, value in others.items() if not isinstance(value, str)}
    unread = [key for key in others if any(stem in key.lower() for stem in stems)]
    if unread:
        raise BadRowError(name, f"labels under names that are not read: {', '.join(unread)}; say energy, forces")


def _from_frame(name: str, frame: str) -> dict:
    if is_qm9_record(frame):
        raise BadRowError(name, "a record of QM9, whose labels are read by the source qm9")
    results, everything = labels_of_frame(name, frame)
    labels = {label: results.get(label) for label in _LABELS}
    _check_names(name, labels, everything)
    atomic_numbers, positions = atoms_of_frame(name, frame)
    numbers = atomic_numbers.tolist()
    if smiles := text_of_frame(frame, "smiles"):
        mol = mol_of_smiles_in_order(name, smiles, numbers, positions)
    else:
        mol = mol_of_structure(name, numbers, positions, charge_of_frame(name, frame))
    return {"mol": mol, "positions": positions, **labels}


def _from_table(name: str, record: dict) -> dict:
    if not record.get("smiles"):
        raise BadRowError(name, "no smiles")
    cells = {key: _value(cell) for key, cell in record.items()}
    labels = {label: cells.get(label) for label in _LABELS}
    _check_names(name, labels, {k: v for k, v in cells.items() if k and k not in FEATURES and v is not None})
    if cells.get("positions") is None:
        raise BadRowError(name, "no positions")
    positions = np.array(cells["positions"], dtype=np.float64)
    numbers = cells.get("atomic_numbers")
    if numbers is None or record.get("mapped_smiles"):
        mol = mol_from_smiles(record.get("mapped_smiles") or record["smiles"])
        if numbers is not None and list(numbers) != atomic_numbers_of(mol):
            raise BadRowError(name, "atomic_numbers differ from mapped_smiles")
        if positions.shape == (mol.GetNumAtoms(), 3):  # else `make_row` refuses it
            check_structure_fits(mol, positions)
    else:
        mol = mol_of_smiles_in_order(name, record["smiles"], numbers, positions)
    levels = {key: record[key] for key in _LEVELS if record.get(key)}
    if "equilibrium_level_of_theory" in record:  # where it is empty, the record says that this is no minimum
        levels["equilibrium_level_of_theory"] = record["equilibrium_level_of_theory"] or None
    molecule_id = record.get("molecule_id")
    molecule_id = name if molecule_id in (None, "") else str(molecule_id)
    return {"molecule_id": molecule_id, "mol": mol, "positions": positions, **labels, **levels}


def _value(cell: Any) -> Any:
    """What a cell of a table holds: in CSV, JSON or a text; None where it is empty."""
    if not isinstance(cell, str):
        return cell
    try:
        return json.loads(cell or "null")
    except ValueError:
        return cell
