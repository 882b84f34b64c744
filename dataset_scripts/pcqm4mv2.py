"""PCQM4Mv2: B3LYP/6-31G* minima of 3,378,606 molecules, without energies.

From pcqm4m-v2-train.sdf.tar.gz, with data.csv.gz beside it, and split_dict.pt for the published split (of which only
the training part has structures).
"""

import csv
import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rdkit import Chem

from dataset_scripts.archives import iterate_members
from dataset_scripts.bad_rows import BadRowError, ExcludedRowError
from dataset_scripts.rows import make_row
from dataset_scripts.schema import B3LYP_6_31GD
from dataset_scripts.sdf import mol_of_sdf, read_sdf
from dataset_scripts.splits import constitution_of

_SPLITS = {"train": "train", "valid": "validation", "test-dev": "test", "test-challenge": "test"}


def read_sdf_archive(path: Path) -> Iterator[tuple[int, str, str]]:
    """Index, SDF record and SMILES of each molecule: record i belongs to row i of the CSV."""
    with gzip.open(path.with_name("data.csv.gz"), "rt", newline="") as file:
        properties = csv.DictReader(file)
        for _, member in iterate_members(path, ".sdf", max_bytes=None):
            buffered = io.BufferedReader(cast(io.RawIOBase, member))
            for record, row in zip(read_sdf(buffered, str(path)), properties, strict=False):
                yield int(row["idx"]), record, row["smiles"]


def row_of_record(record: tuple[int, str, str]) -> dict:
    """The row of a molecule; the graph is the SDF's and has to be the SMILES' too."""
    index, block, smiles = record
    name = _molecule_id(index)
    mol = mol_of_sdf(name, block)
    if any(atom.GetTotalNumHs() for atom in mol.GetAtoms()):
        raise BadRowError(name, "no explicit hydrogens in the SDF record")
    expected = Chem.MolFromSmiles(smiles)
    if expected is None or constitution_of(mol) != constitution_of(expected):
        raise ExcludedRowError(name, "graph of the structure differs from the SMILES", smiles)
    return make_row(name, mol, mol.GetConformer().GetPositions(), B3LYP_6_31GD)


def read_split_dict(path: Path) -> dict[str, np.ndarray]:
    """The indices of each split in split_dict.pt.

    The file is a pickle. It is read with PyTorch's restricted unpickler, which runs nothing; only the constructors
    of NumPy arrays are allowed beside its own.

    Raises:
        pickle.UnpicklingError: the file holds anything else.
    """
    array, dtype = np.empty(0, dtype=np.int64), np.dtype(np.int64)
    reconstruct = array.__reduce__()[0]
    allowed: list[Any] = [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*allowed, np.ndarray, np.dtype, type(dtype)]):
        return torch.load(path, weights_only=True)


def published_split(paths: list[Path]) -> Callable[[str], str]:
    """The split of a molecule by the split_dict.pt beside the files."""
    indices = read_split_dict(paths[0].with_name("split_dict.pt"))
    splits = {_molecule_id(index): _SPLITS[name] for name, members in indices.items() for index in members.tolist()}
    return splits.__getitem__


def _molecule_id(index: int) -> str:
    return f"pcqm4mv2_{index:07d}"
