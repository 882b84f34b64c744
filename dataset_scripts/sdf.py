"""SDF files record by record, in constant memory, and the records that this project writes."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import IO

from rdkit import Chem

from dataset_scripts.archives import MAX_MOLECULE_BYTES
from dataset_scripts.bad_rows import BadRowError


def read_sdf(file: IO[bytes], name: str) -> Iterator[str]:
    """The records of an SDF file without their `$$$$` lines; a damaged one does not end the reading.

    What follows the last `$$$$` is a record too, so a MOL file has one. If it was cut off, RDKit refuses it, because a
    MOL block ends in `M  END`.

    Raises:
        BadRowError: a record is endless.
    """
    record = bytearray()
    for line in iter(partial(file.readline, MAX_MOLECULE_BYTES), b""):
        if line.startswith(b"$$$$"):
            yield record.decode("utf-8", errors="replace")
            record.clear()
        else:
            record += line
        if len(record) > MAX_MOLECULE_BYTES:
            raise BadRowError(name, "oversized record in the SDF")
    if record.strip():
        yield record.decode("utf-8", errors="replace")


def sdf_record(mol: Chem.Mol, name: str, properties: Mapping[str, object]) -> str:
    """The SDF record of a molecule with a structure."""
    mol = Chem.Mol(mol)
    for key, value in {"_Name": name, **properties}.items():
        mol.SetProp(key, str(value))
    return Chem.SDWriter.GetText(mol)


def mol_of_sdf(molecule_id: str, record: str) -> Chem.Mol:
    """The molecule of an SDF record, with its structure and the hydrogens that are written out.

    Raises:
        BadRowError: RDKit cannot read the record, or it has no 3D structure.
    """
    mol = Chem.MolFromMolBlock(record, removeHs=False)
    if mol is None:
        raise BadRowError(molecule_id, "unparsable SDF record")
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(0)
    if mol.GetNumAtoms() > 1 and not mol.GetConformer().Is3D():
        raise BadRowError(molecule_id, "no 3D structure in the SDF record")
    return mol
