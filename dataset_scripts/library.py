"""A library of molecules of any size, record by record: SMILES, SDF, CSV and Parquet files, plain or gzipped."""

import gzip
import hashlib
import logging
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rdkit import Chem

from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.sdf import read_sdf
from dataset_scripts.tables import read_csv, read_parquet, read_smiles
from dataset_scripts.text_files import open_binary, open_text
from modeling_pcbridge.errors import InputError

logger = logging.getLogger(__name__)

# Every kind of atom that the labels and the drug-like models know.
ELEMENTS = ("H", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I")

_SMILES_COLUMNS = ("smiles", "canonical_smiles", "isomeric_smiles")
_NAME_COLUMNS = ("molecule_id", "name", "id", "molecule_chembl_id")


class LibraryRecord(NamedTuple):
    """One record, not parsed yet.

    Attributes:
        name: what the file calls it, else its place: "file.smi, molecule 3".
        text: SMILES or a MOL block.
    """

    name: str
    text: str

    @property
    def is_mol_block(self) -> bool:
        return "\n" in self.text


def read_library(path: Path) -> Iterator[LibraryRecord]:
    """The records of .smi, .smiles, .csv, .sdf, each also as .gz, and .parquet, in constant memory.

    Tables need a column `smiles` (any case); SDF records their MOL block.

    Raises:
        ValueError: a file of another kind, or a table without such a column.
        BadRowError: the file is damaged.
    """
    number = 0
    for number, (name, text) in enumerate(_records(path), start=1):
        yield LibraryRecord(name or f"{path.name}, molecule {number}", text)
    if not number:
        raise InputError(f"{path} has no molecules")


def _records(path: Path) -> Iterator[tuple[str, str]]:
    kind = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
    try:
        if kind in (".smi", ".smiles"):
            with open_text(path) as file:
                yield from ((name, smiles) for _, smiles, name in read_smiles(file))
        elif kind == ".sdf":
            with open_binary(path) as file:
                for block in read_sdf(file, str(path)):
                    yield block.partition("\n")[0].strip(), block + "\n"
        elif kind == ".csv":
            yield from _of_table(path, read_csv(path))
        elif kind == ".parquet":
            yield from _of_table(path, read_parquet(path))
        else:
            raise InputError(f"{path}: not one of .smi, .smiles, .sdf, .csv (each also as .gz), .parquet")
    except (EOFError, gzip.BadGzipFile) as error:
        raise BadRowError(str(path), "damaged gzip file", error) from error


def _of_table(path: Path, rows: Iterator[dict]) -> Iterator[tuple[str, str]]:
    smiles_column: str | None = None
    for row in rows:
        if smiles_column is None:
            by_lower = {str(key).lower(): key for key in reversed(row)}
            found = [by_lower[name] for name in _SMILES_COLUMNS if name in by_lower]
            if not found:
                raise InputError(f"{path}: no column 'smiles', only {', '.join(map(str, row))}")
            smiles_column = found[0]
            name_column = next((by_lower[name] for name in _NAME_COLUMNS if name in by_lower), None)
        yield str(row.get(name_column) or "") if name_column else "", str(row[smiles_column] or "")


def sample_records(records: Iterable[LibraryRecord], num: int, seed: int) -> list[LibraryRecord]:
    """A random sample of a stream, the same for the same seed; the stream is read to its end, not kept."""
    rng = random.Random(seed)
    sample: list[LibraryRecord] = []
    for number, record in enumerate(records):
        if number < num:
            sample.append(record)
        elif (place := rng.randrange(number + 1)) < num:
            sample[place] = record
    return sample


def library_mol(record: LibraryRecord, elements: frozenset[str] = frozenset(ELEMENTS)) -> Chem.Mol:
    """The largest component of a record (the drug of its salt), hydrogens implicit, without map numbers or isotopes.

    Raises:
        BadRowError: it is not ASCII, RDKit cannot parse it, it has no heavy atom, no single largest component, unpaired
            electrons, dummy atoms or other elements than `elements`; the reason says which.
    """
    if not record.text.strip():
        raise BadRowError(record.name, "no SMILES")
    if not record.is_mol_block and not record.text.isascii():  # RDKit takes what follows such a character for a name
        raise BadRowError(record.name, "characters that are not ASCII", record.text)
    mol = Chem.MolFromMolBlock(record.text) if record.is_mol_block else Chem.MolFromSmiles(record.text)
    if mol is None:
        raise BadRowError(record.name, "RDKit cannot parse it", "" if record.is_mol_block else record.text)
    mol = _largest_component(record.name, mol)
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(0)
        if not atom.GetAtomicNum():
            raise BadRowError(record.name, "a dummy atom")
        if atom.GetSymbol() not in elements:
            raise BadRowError(record.name, f"element {atom.GetSymbol()} is not asked for")
        if atom.GetNumRadicalElectrons():
            raise BadRowError(record.name, "unpaired electrons")
        atom.SetIsotope(0)
    mol = Chem.RemoveHs(mol)  # those that were deuterium
    if not mol.GetNumAtoms() or not any(atom.GetAtomicNum() > 1 for atom in mol.GetAtoms()):
        raise BadRowError(record.name, "no heavy atom")
    return mol


def _largest_component(name: str, mol: Chem.Mol) -> Chem.Mol:
    if len(Chem.GetMolFrags(mol)) < 2:
        return mol
    components = sorted(Chem.GetMolFrags(mol, asMols=True), key=lambda m: m.GetNumHeavyAtoms(), reverse=True)
    largest = [m for m in components if m.GetNumHeavyAtoms() == components[0].GetNumHeavyAtoms()]
    if len({Chem.MolToSmiles(m) for m in largest}) > 1:
        raise BadRowError(name, "several components are the largest")
    return largest[0]


def constitution_hash(mol: Chem.Mol) -> str:
    """SHA-256 (hex) of the canonical SMILES without stereo: how a list names molecules without showing them."""
    return hashlib.sha256(Chem.MolToSmiles(mol, isomericSmiles=False).encode()).hexdigest()
