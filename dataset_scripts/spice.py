"""SPICE 1.1.4 and 2.0.1: wB97M-D3(BJ)/def2-TZVPPD energies and forces, one row per conformation. Not minima.

Read from the release's HDF5 file; needs the `spice` extra.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rdkit import Chem

from dataset_scripts.bad_rows import BadRowError, ExcludedRowError, naming
from dataset_scripts.rows import make_row
from dataset_scripts.schema import WB97M_D3BJ_DEF2_TZVPPD
from modeling_pcbridge.constants import BOHR_TO_ANGSTROM, HARTREE_PER_BOHR_TO_EV_PER_ANGSTROM, HARTREE_TO_EV
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.rdkit_molecules import atomic_numbers_of, mol_from_smiles

if TYPE_CHECKING:
    import h5py

# Dataset, its unit in a release, and the factor to ours.
_UNITS = {
    "conformations": ("bohr", BOHR_TO_ANGSTROM),
    "dft_total_energy": ("hartree", HARTREE_TO_EV),
    "dft_total_gradient": ("hartree/bohr", HARTREE_PER_BOHR_TO_EV_PER_ANGSTROM),
}


@dataclass(frozen=True)
class Molecule:
    """A group of the file, in angstrom, eV and eV/angstrom: (M, N, 3), (M,) and (M, N, 3)."""

    mol: Chem.Mol
    subset: str
    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray


def read_conformations(path: Path) -> Iterator[tuple[Path, str, int]]:
    """File, group and number of each conformation, without reading them.

    Raises:
        BadRowError: the file is damaged.
        ValueError: a file of input geometries instead of a release.
    """
    with naming(str(path), "damaged HDF5 file"):
        names = list(_open(path))
        units = {_open(path)[name]["conformations"].attrs.get("units") for name in names[:1]}
    if units & {"nanometers", "nanometer"}:
        raise InputError(f"{path} holds input geometries (in nanometers, without energies), not a SPICE release")
    for name in names:
        with naming(f"{path.name} {name}", "unreadable group"):
            num_conformations = len(_open(path)[name]["conformations"])
        for number in range(num_conformations):
            yield path, name, number


def row_of_conformation(record: tuple[Path, str, int], subset: str = "") -> dict:
    """The row of a conformation of a molecule whose subset's name contains `subset`."""
    path, group, number = record
    name = f"spice_{group}_{number}"
    with naming(name):
        molecule = _molecule(path, group)
        if subset not in molecule.subset:
            raise ExcludedRowError(name, "another subset", molecule.subset)
        return make_row(
            name,
            molecule.mol,
            molecule.positions[number],
            energy=molecule.energies[number],
            forces=molecule.forces[number],
            energy_level_of_theory=WB97M_D3BJ_DEF2_TZVPPD,
        )


@lru_cache(maxsize=1)
def _open(path: Path) -> "h5py.File":
    import h5py

    return h5py.File(path, "r")


@lru_cache(maxsize=1)
def _molecule(path: Path, name: str) -> Molecule:
    group = _open(path)[name]
    values = {}
    for dataset, (unit, factor) in _UNITS.items():
        if group[dataset].attrs.get("units") != unit:
            raise BadRowError(name, f"{dataset} not in {unit}", group[dataset].attrs.get("units"))
        values[dataset] = group[dataset][()].astype(np.float64) * factor
    mol = mol_from_smiles(group["smiles"].asstr()[0])
    if atomic_numbers_of(mol) != group["atomic_numbers"][()].tolist():
        raise BadRowError(name, "atomic_numbers differ from the SMILES")
    return Molecule(
        mol=mol,
        subset=group["subset"].asstr()[0],
        positions=values["conformations"],
        energies=values["dft_total_energy"],
        forces=-values["dft_total_gradient"],
    )
