"""Molecule files: SMILES, CSV, SDF and xyz in, each also as .gz; SDF, extended xyz and Parquet out."""

import csv
import gzip
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value
from rdkit import Chem

from dataset_scripts.bad_rows import BadRowError, RowError
from dataset_scripts.rows import row_of_mol
from dataset_scripts.schema import FEATURES
from dataset_scripts.sdf import has_structure, read_sdf, sdf_record
from dataset_scripts.tables import read_smiles
from dataset_scripts.text_files import REPLACED, REPLACED_NOTE, as_text, open_text, unpacked
from dataset_scripts.xyz import atoms_of_frame, charge_of_frame, comment_of_frame, read_xyz, text_of_frame
from modeling_pcbridge.beyond_training import beyond_as_text
from modeling_pcbridge.constants import KCAL_PER_MOL_TO_EV
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.rdkit_molecules import (
    atomic_numbers_of,
    check_structure_fits,
    mol_from_positions,
    mol_from_smiles,
    with_conformers,
    with_structure,
)

STANDARD_STREAM = "-"
# What Parquet holds: the project's row format and more columns, the last two null where there is no ensemble.
PARQUET_FEATURES = Features(
    {
        **FEATURES,
        "sample": Value("int32"),
        "origin": Value("string"),
        "beyond_training": Value("string"),
        "relative_energy_kcal_per_mol": Value("float64"),
        "boltzmann_weight": Value("float64"),
    }
)


@dataclass(frozen=True)
class Record:
    """One molecule of an input file, readable or not.

    Attributes:
        place: where it is in the file, such as "line 3".
        name: its name in the file, else the place.
        text: what the file says, for messages.
        note: what its user should know of how it was read.
    """

    place: str
    name: str
    text: str
    note: str = field(default="", kw_only=True)

    def failed(self, error: str) -> "Failure":
        """The same molecule as a failure."""
        return Failure(self.place, self.name, self.text, error, note=self.note)

    def parsed(self) -> "Record":
        """A `Molecule` or a `Failure`."""
        return self


@dataclass(frozen=True)
class RawRecord(Record):
    """A record that was not parsed yet: small, and another process can do it.

    Attributes:
        read: makes the molecule; raises ValueError.
    """

    read: Callable[[], Chem.Mol]

    def parsed(self) -> Record:
        """The record as a `Molecule`, or the `Failure` to make one of it."""
        try:
            return Molecule(self.place, self.name, self.text, self.read(), note=self.note)
        except RowError as error:
            return self.failed(error.without_item)
        except ValueError as error:
            return self.failed(str(error))


@dataclass(frozen=True)
class Molecule(Record):
    """A record that was read.

    Attributes:
        mol: with explicit hydrogens, and with a conformer if the file has a 3D structure.
    """

    mol: Chem.Mol


@dataclass(frozen=True)
class Failure(Record):
    """A record that could not be read or predicted.

    Attributes:
        error: why.
    """

    error: str


@dataclass(frozen=True)
class Prediction:
    """One predicted structure of N atoms.

    Attributes:
        molecule: what was predicted for.
        sample: number of the structure among those of its molecule, from 0.
        positions: (N, 3), angstrom.
        energy: eV.
        forces: (N, 3), eV/angstrom.
        origin: what made it: the model by a method, or RDKit and the model.
        level_of_theory: what predicted energy and forces, e.g. "PCBridge of B3LYP/6-31G*".
        beyond_training: what about the molecule no training molecule had, see `modeling_pcbridge.beyond_training`.
        relative_energy: of a conformer of an ensemble, above the lowest one, eV.
        boltzmann_weight: of a conformer of an ensemble; those of all its conformers add up to 1.
    """

    molecule: Molecule
    sample: int
    positions: np.ndarray
    energy: float
    forces: np.ndarray
    origin: str
    level_of_theory: str
    beyond_training: list[str] | None
    relative_energy: float | None = None
    boltzmann_weight: float | None = None

    @property
    def properties(self) -> dict[str, object]:
        """What files say of the structure beside energy and forces."""
        beyond = beyond_as_text(self.beyond_training)
        found: dict[str, object] = {"sample": self.sample, "origin": self.origin, "beyond_training": beyond}
        if self.relative_energy is not None:
            found["relative_energy_kcal_per_mol"] = self.relative_energy / KCAL_PER_MOL_TO_EV
            found["boltzmann_weight"] = self.boltzmann_weight
        return found


Write = Callable[[list[Prediction]], None]


def read_records(path: str, file_format: str, smiles_column: str = "smiles", timeout: float = 10.0) -> Iterator[Record]:
    """`raw_records` parsed: the molecules of a file; one that cannot be read is a `Failure`."""
    return (record.parsed() for record in raw_records(path, file_format, smiles_column, timeout))


def raw_records(path: str, file_format: str, smiles_column: str = "smiles", timeout: float = 10.0) -> Iterator[Record]:
    """The records of a file, or of standard input for "-", in constant memory.

    Args:
        file_format: "smi" (SMILES, then a name; # starts a comment line), "csv" (columns `smiles_column` and, if there
            is one, `name`, in any letters), "sdf" or "xyz" (plain or extended; `dataset_scripts.xyz` says how a charge
            is given).
        timeout: seconds for the bonds of a molecule that comes without any.

    Raises:
        OSError: the file cannot be opened.
        ValueError: CSV without the SMILES column, or a damaged .gz.
    """
    readers: dict[str, Callable[[TextIO], Iterator[Record]]] = {
        "csv": partial(_read_csv, smiles_column=smiles_column),
        "smi": _read_smiles,
        "sdf": _read_sdf,
        "xyz": partial(_read_xyz, timeout=timeout),
    }
    with _open(path, "r") as stream:
        try:
            yield from readers[file_format](stream)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BadRowError(path, "damaged gzip file", error) from error


@contextmanager
def open_writer(path: str, file_format: str) -> Iterator[Write]:
    """A function that appends predictions to a file in "sdf", "xyz" or "parquet"; "-" is standard output.

    What was written before an interruption stays readable.
    """
    if file_format == "parquet":
        with pq.ParquetWriter(path, PARQUET_FEATURES.arrow_schema, compression="zstd") as parquet:
            yield lambda predictions: parquet.write_table(
                pa.Table.from_pylist([_row(p) for p in predictions], schema=PARQUET_FEATURES.arrow_schema)
            )
        return
    write = {"sdf": _write_sdf, "xyz": _write_xyz}[file_format]
    with _open(path, "w") as stream:

        def write_and_flush(predictions: list[Prediction]) -> None:
            write(stream, predictions)
            stream.flush()

        yield write_and_flush


@contextmanager
def _open(path: str, mode: Literal["r", "w"]) -> Iterator[TextIO]:
    if mode == "r":
        with as_text(unpacked(sys.stdin.buffer)) if path == STANDARD_STREAM else open_text(path) as stream:
            yield stream
    elif path == STANDARD_STREAM:
        yield sys.stdout
    else:
        with open(path, mode, encoding="utf-8") as stream:
            yield stream


def _record(place: str, name: str | None, text: str, read: Callable[[], Chem.Mol]) -> Record:
    name = " ".join((name or place.replace(" ", "_")).split())  # a line break would end the title line of an SDF record
    return RawRecord(place, name, text, read, note=REPLACED_NOTE if REPLACED in name + text else "")


def _read_smiles(stream: TextIO) -> Iterator[Record]:
    for number, smiles, name in read_smiles(stream):
        yield _record(f"line {number}", name, smiles, partial(mol_from_smiles, smiles))


def _read_csv(stream: TextIO, smiles_column: str) -> Iterator[Record]:
    reader = csv.DictReader(stream)
    columns = list(reader.fieldnames or ())
    column, of_names = (_column(columns, name) for name in (smiles_column, "name"))
    if column is None:
        found = ", ".join(columns) or "none"
        raise InputError(f"the CSV file has no column {smiles_column!r}; its columns are {found}")
    for row in reader:
        smiles = (row[column] or "").strip()
        name = None if of_names is None else row[of_names]
        yield _record(f"line {reader.line_num}", name, smiles, partial(mol_from_smiles, smiles))


def _column(columns: list[str], name: str) -> str | None:
    """The column of that name, or the only one that has it in other letters, such as SMILES."""
    alike = [column for column in columns if column.lower() == name.lower()]
    return name if name in alike else alike[0] if len(alike) == 1 else None


def _read_sdf(stream: TextIO) -> Iterator[Record]:
    for number, block in enumerate(read_sdf(stream.buffer, str(stream.name)), start=1):
        title = block.partition("\n")[0].strip()
        yield _record(f"record {number}", title, title, partial(_mol_from_block, block))


def _mol_from_block(block: str) -> Chem.Mol:
    # RDKit's stub leaves out the None.
    parse: Callable[..., Chem.Mol | None] = partial(Chem.MolFromMolBlock, block, removeHs=False)
    mol = parse()
    if mol is None:
        unsanitized = parse(sanitize=False)
        if unsanitized is not None:
            Chem.SanitizeMol(unsanitized)  # raises a ValueError that says what is wrong
        raise InputError("RDKit cannot read the MOL block")
    if not has_structure(mol, block):
        mol.RemoveAllConformers()
    return Chem.AddHs(mol, addCoords=True)


def _read_xyz(stream: TextIO, timeout: float) -> Iterator[Record]:
    number = 0
    try:
        for number, frame in enumerate(read_xyz(stream, stream.name), start=1):
            place, text = f"structure {number}", comment_of_frame(frame)[:80]
            yield _record(place, text_of_frame(frame, "name"), text, partial(_mol_from_frame, place, frame, timeout))
    except BadRowError as error:  # nothing after it can be read
        place = f"structure {number + 1}"
        yield Failure(place, place.replace(" ", "_"), "", error.without_item)


def _mol_from_frame(place: str, frame: str, timeout: float) -> Chem.Mol:
    numbers, positions = atoms_of_frame(place, frame)
    charge = charge_of_frame(place, frame)
    if (named := _mol_named(frame, numbers, positions)) is not None:
        if charge not in (0, Chem.GetFormalCharge(named)):
            raise BadRowError(place, f"a charge of {charge:+d}, but a SMILES of {Chem.GetFormalCharge(named):+d}")
        return named
    return mol_from_positions(numbers.tolist(), positions, charge, timeout)


def _mol_named(frame: str, numbers: np.ndarray, positions: np.ndarray) -> Chem.Mol | None:
    """The molecule whose SMILES the comment line has, as in files of this project, if the structure is of it."""
    try:
        mol = mol_from_smiles(text_of_frame(frame, "smiles"))
        if atomic_numbers_of(mol) == numbers.tolist():
            check_structure_fits(mol, positions)
            return with_structure(mol, positions)
    except ValueError:
        pass
    return None


def sdf_of(prediction: Prediction) -> str:
    """The SDF record of a predicted structure."""
    properties = {
        "energy_eV": prediction.energy,
        "largest_force_eV_per_angstrom": np.linalg.norm(prediction.forces, axis=-1).max(),
        "level_of_theory": prediction.level_of_theory,
        **prediction.properties,
    }
    return sdf_record(
        with_conformers(prediction.molecule.mol, prediction.positions), prediction.molecule.name, properties
    )


def _write_sdf(stream: TextIO, predictions: Iterable[Prediction]) -> None:
    stream.writelines(map(sdf_of, predictions))


def _write_xyz(stream: TextIO, predictions: Iterable[Prediction]) -> None:
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    for prediction in predictions:
        row = _row(prediction)
        atoms = Atoms(row["atomic_numbers"], prediction.positions)
        atoms.info = {"name": prediction.molecule.name, "charge": row["total_charge"], "smiles": row["smiles"]}
        atoms.info |= prediction.properties | {"energy_level_of_theory": prediction.level_of_theory}
        atoms.calc = SinglePointCalculator(atoms, energy=prediction.energy, forces=prediction.forces)
        write(stream, atoms, format="extxyz")


def _row(prediction: Prediction) -> dict:
    """In `PARQUET_FEATURES`; a prediction is no minimum of any method."""
    row = row_of_mol(
        prediction.molecule.name,
        prediction.molecule.mol,
        prediction.positions,
        energy=prediction.energy,
        forces=prediction.forces,
        energy_level_of_theory=prediction.level_of_theory,
    )
    return row | prediction.properties
