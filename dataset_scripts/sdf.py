"""SDF files record by record, in constant memory, and the records that this project writes."""

import codecs
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import IO

from rdkit import Chem

from dataset_scripts.archives import MAX_MOLECULE_BYTES
from dataset_scripts.bad_rows import BadRowError
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.structure_checks import StructureChecks


def read_sdf(file: IO[bytes], name: str) -> Iterator[str]:
    """The records of an SDF file without their `$$$$` lines; a damaged one does not end the reading.

    What follows the last `$$$$` is a record too, so a MOL file has one. If it was cut off, RDKit refuses it, because a
    MOL block ends in `M  END`.

    Raises:
        BadRowError: a record is endless.
    """
    record, is_first = bytearray(), True
    for line in iter(partial(file.readline, MAX_MOLECULE_BYTES), b""):
        if is_first:
            line, is_first = line.removeprefix(codecs.BOM_UTF8), False
        if line.startswith(b"$$$$"):
            yield _as_text(record)
            record.clear()
        else:
            record += line
        if len(record) > MAX_MOLECULE_BYTES:
            raise BadRowError(name, "oversized record in the SDF")
    if record.strip():
        yield _as_text(record)


def _as_text(record: bytearray) -> str:
    """What is not UTF-8 is replaced; blank lines below the bonds, which RDKit refuses, are left out."""
    return re.sub(r"\n(?:[ \t]*\r?\n)+(?=M  )", "\n", record.decode("utf-8", errors="replace"))


def sdf_record(mol: Chem.Mol, name: str, properties: Mapping[str, object]) -> str:
    """The SDF record of a molecule with a structure."""
    mol = Chem.Mol(mol)
    for key, value in {"_Name": name, **properties}.items():
        mol.SetProp(key, str(value))
    return Chem.SDWriter.GetText(mol)


def has_structure(mol: Chem.Mol, record: str) -> bool:
    """Whether the conformer of a record is a structure; one that should be is made known to RDKit as such.

    Planar molecules of programs that write no dimension code look like drawings, but the lengths of their bonds do not.
    """
    if mol.GetNumConformers() == 0:
        return False
    if mol.GetNumAtoms() == 1 or mol.GetConformer().Is3D():
        return True
    header = [*record.splitlines(), "", ""][1]
    if header[20:22] == "2D" or any(atom.GetTotalNumHs() > 0 for atom in mol.GetAtoms()):
        return False
    try:
        faults = StructureChecks(graph_from_mol(mol)).faults(mol.GetConformer().GetPositions())
    except InputError:  # no molecule of ours
        return False
    mol.GetConformer().Set3D(not faults)
    return not faults


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
    if not has_structure(mol, record):
        raise BadRowError(molecule_id, "no 3D structure in the SDF record")
    return mol
