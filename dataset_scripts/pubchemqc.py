"""PubChemQC: PM6 minima, with B3LYP/6-31G* energies at them in the set B3LYP/6-31G*//PM6.

From RIKEN's tar.xz archives of one JSON file per molecule, or from the shards of the Hub mirrors
molssiai-hub/pubchemqc-b3lyp and -pm6. Kept are closed-shell molecules of one fragment in the state S0 whose bonds, as
Open Babel found them, are those of PubChem's SMILES. All energies are in eV in the files, orbital energies too.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rdkit import Chem

from dataset_scripts.archives import MAX_MOLECULE_BYTES, iterate_members
from dataset_scripts.bad_rows import BadRowError, ExcludedRowError, naming
from dataset_scripts.rows import make_row, mol_of_smiles_in_order
from dataset_scripts.schema import B3LYP_6_31GD, PM6


def read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each JSON file of a Compound_*.tar.xz."""
    for name, member in iterate_members(path, ".json"):
        yield name, member.read()


def read_hub_shard(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each record of a shard: one JSON array, pretty-printed with an indentation of four.

    Cut at the lines `    {` and `    }`. A JSON parser would end at the first NaN or damaged record of gigabytes.

    Raises:
        BadRowError: the shard ends inside the array, or is laid out differently.
    """
    record = bytearray()
    number, line = 0, b""
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b"    }"):
                yield f"{path.name} record {number}", bytes(record) + b"}"
                number += 1
                record.clear()
            elif line[:1] not in (b"[", b"]"):
                record += line
            if len(record) > MAX_MOLECULE_BYTES:
                raise BadRowError(str(path), "not a JSON array with an indentation of four")
        if record or line.strip() != b"]":
            raise BadRowError(str(path), "the JSON array is cut short")


def row_of_file(record: tuple[str, bytes], method: str) -> dict:
    """The row of a file of RIKEN's archives; `method` is "B3LYP@PM6" or "PM6"."""
    name, content = record
    state = name.split(".")[-2]
    if state != "S0":
        raise ExcludedRowError(name, "not the state S0", state)
    with naming(name):
        molecule = json.loads(content)["pubchem"]
        calculation = molecule[method]
        atoms, properties = calculation["atoms"], calculation["properties"]
        return _row(
            cid=molecule["cid"],
            smiles=molecule["Isomeric SMILES"],
            atomic_numbers=atoms["elements"]["number"],
            coordinates=atoms["coords"]["3d"],
            bonds=((calculation.get("bonds") or {}).get("connections") or {}).get("index"),
            charge=properties["charge"],
            multiplicity=properties["multiplicity"],
            energy=(properties.get("energy") or {}).get("total"),
            has_energy=method != "PM6",
        )


def row_of_hub_record(record: tuple[str, bytes], has_energy: bool) -> dict:
    """The row of a record of a Hub shard."""
    name, content = record
    with naming(name):
        molecule = json.loads(content)
        if molecule["state"] != "S0":
            raise ExcludedRowError(name, "not the state S0", molecule["state"])
        return _row(
            cid=molecule["cid"],
            smiles=molecule["pubchem-isomeric-smiles"],
            atomic_numbers=molecule["atomic-numbers"],
            coordinates=molecule["coordinates"],
            bonds=molecule.get("connection-indices"),
            charge=molecule["charge"],
            multiplicity=molecule["multiplicity"],
            energy=molecule.get("total-energy"),
            has_energy=has_energy,
        )


def _row(
    cid: int,
    smiles: str,
    atomic_numbers: list[int],
    coordinates: list[float],
    bonds: list[int] | None,
    charge: int,
    multiplicity: int,
    energy: float | None,
    has_energy: bool,
) -> dict:
    """Args: `coordinates` (3N,) angstrom, `bonds` (2B,) 1-based or None, `energy` eV."""
    name = f"pubchemqc_{cid:09d}"
    if has_energy and (energy is None or math.isnan(energy) or energy >= 0):
        raise ExcludedRowError(name, "missing or non-negative energy", energy)
    if multiplicity != 1:
        raise ExcludedRowError(name, "the molecule is a radical; only closed-shell molecules are supported")
    if "." in smiles:
        raise ExcludedRowError(name, "the molecule is disconnected (several fragments)")
    positions = np.array(coordinates, dtype=np.float64).reshape(-1, 3)
    pairs = None if bonds is None else np.array(bonds, dtype=np.int64).reshape(-1, 2) - 1
    mol = mol_of_smiles_in_order(name, smiles, atomic_numbers, positions, pairs)
    if Chem.GetFormalCharge(mol) != charge:
        raise ExcludedRowError(name, "charge of the calculation differs from the SMILES")
    # The unit of PM6 energies is documented nowhere, so they stay absent.
    return make_row(name, mol, positions, PM6, energy if has_energy else None, None, B3LYP_6_31GD)
