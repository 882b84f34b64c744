"""What a label is: one molecule, one geometry of it and a level of theory in, one row of the schema out.

`label_generation` does this for many molecules, on many processes.
"""

import hashlib
import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from rdkit import Chem, rdBase

from dataset_scripts.geometries import MAX_BOND_STRETCH, make_geometry
from dataset_scripts.quantum_chemistry import (
    b3lyp_energy_and_forces,
    b3lyp_minimum,
    gfn2_energy_and_forces,
    gfn2_minimum,
    pm6_minimum,
    xtb_minimum,
)
from dataset_scripts.rows import row_of_mol
from dataset_scripts.schema import B3LYP_6_31GD, GFN2_XTB, MMFF94, PM6
from dataset_scripts.sdf import has_structure
from modeling_pcbridge.errors import CalculationError, InputError
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import (
    atomic_numbers_of,
    check_bond_lengths,
    check_structure_fits,
    mapped_smiles,
    mol_from_smiles,
    with_structure,
)
from modeling_pcbridge.rdkit_structures import etkdg_conformers, mmff_minima, mmff_minimum


@dataclass(frozen=True)
class Level:
    """A level of theory and how to compute it.

    Both functions take (atomic_numbers, (N, 3) positions, total_charge) and raise RuntimeError or ValueError where a
    calculation fails; either may be absent.

    Attributes:
        level_of_theory: the name that travels with the labels.
        energy_and_forces: gives the energy in eV and the (N, 3) forces in eV/angstrom at the positions.
        minimum: gives the (N, 3) positions of a minimum and its energy in eV, None where that is no total energy.
        by_bonds: `minimum` takes the molecule with its structure instead, as a force field has to.
    """

    level_of_theory: str
    energy_and_forces: Callable[..., tuple[float, np.ndarray]] | None = None
    minimum: Callable[..., tuple[np.ndarray, float | None]] | None = None
    by_bonds: bool = False


LEVELS = {
    "mmff94": Level(MMFF94, minimum=mmff_minimum, by_bonds=True),
    "pm6": Level(PM6, minimum=pm6_minimum),
    "b3lyp": Level(B3LYP_6_31GD, b3lyp_energy_and_forces, b3lyp_minimum),
    "b3lyp_exact": Level(B3LYP_6_31GD, partial(b3lyp_energy_and_forces, exact=True)),
    "gfn2": Level(GFN2_XTB, gfn2_energy_and_forces, gfn2_minimum),
    "gfn2_program": Level(GFN2_XTB, minimum=xtb_minimum),
}


def find_level(name: str) -> Level:
    """A level by its name in `LEVELS`, or a user's own by `module:attribute`.

    Raises:
        ValueError: no such name, or it is no `Level`.
        ImportError: no such module.
    """
    module, colon, attribute = name.partition(":")
    if not colon and name not in LEVELS:
        raise InputError(f"no level {name!r}; there are {', '.join(LEVELS)}, or give module:attribute")
    level = getattr(importlib.import_module(module), attribute, None) if colon else LEVELS[name]
    if not isinstance(level, Level):
        raise InputError(f"{attribute!r} of module {module!r} is no labelling.Level")
    return level


def starting_structure(molecule: dict) -> Chem.Mol:
    """The molecule with hydrogens, its structure and the stereo marks of that structure.

    Raises:
        ValueError: it cannot be parsed, is a radical or several fragments, or its coordinates are not numbers.
        RuntimeError: it has no structure and ETKDG finds none.
    """
    positions = molecule.get("positions")
    if "mol_block" in molecule:
        mol = Chem.MolFromMolBlock(molecule["mol_block"], removeHs=False)
        if mol is None:
            raise InputError("RDKit cannot parse the SDF record")
        is_structure = has_structure(mol, molecule["mol_block"])
        mol = Chem.AddHs(mol, addCoords=True)
        positions = mol.GetConformer().GetPositions() if is_structure else None
    else:
        mol = mol_from_smiles(molecule["smiles"])
    graph_from_mol(mol)  # refuses what the model cannot take, before time is spent on it
    if positions is None:
        embedded = etkdg_conformers(mol, 1, seed=0)
        if embedded is None:
            raise CalculationError("ETKDG found no structure")
        relaxed = mmff_minima(mol, embedded)
        [positions] = embedded if relaxed is None else relaxed
    positions = np.array(positions, dtype=np.float64)
    if positions.shape != (mol.GetNumAtoms(), 3) or not np.isfinite(positions).all():
        raise InputError(f"positions of shape {positions.shape} for {mol.GetNumAtoms()} atoms, or not numbers")
    return with_structure(mol, positions)


def check_same_molecule(mol: Chem.Mol, positions: np.ndarray) -> None:
    """Whether an optimisation from the structure of `mol` to (N, 3) `positions` kept the molecule.

    Raises:
        ValueError: a bond is longer than `MAX_BOND_STRETCH` allows, or the stereo marks are others.
    """
    try:
        check_bond_lengths(mol, positions, MAX_BOND_STRETCH)
    except ValueError as error:
        raise InputError(f"the optimisation broke a bond ({error})") from error
    if mapped_smiles(with_structure(mol, positions)) != mapped_smiles(mol):
        raise InputError("the optimisation led to another stereoisomer")


def fingerprint(molecule: dict) -> str:
    """What a label is of, whatever the molecule is called: its SMILES or mol block, and its structure if it has one."""
    content = json.dumps([molecule.get(key) for key in ("smiles", "mol_block", "positions")])
    content = re.sub(r"-(?=0\.0[,\]])", "", content)  # zero has no sign, which packed labels do not keep
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def empty_line(molecule: dict, geometry: str, level_name: str) -> dict:
    """What an output line says of its task, beside the labels or the error."""
    task = {"molecule_id": molecule["molecule_id"], "geometry": geometry, "level": level_name}
    return task | {"input": fingerprint(molecule)}


def label(molecule: dict, geometry: str, level_name: str) -> dict:
    """One output line for one molecule and geometry; on failure it has an `error` in place of the labels."""
    line = empty_line(molecule, geometry, level_name)
    try:
        with rdBase.BlockLogs():
            return line | _labelled_row(molecule, geometry, find_level(level_name))
    except (RuntimeError, ValueError) as error:
        return line | {"error": str(error)}


def _labelled_row(molecule: dict, geometry: str, level: Level) -> dict:
    mol = starting_structure(molecule)
    atomic_numbers = atomic_numbers_of(mol)
    total_charge = Chem.GetFormalCharge(mol)
    positions = mol.GetConformer().GetPositions()
    energy: float | None
    forces, equilibrium = None, None
    if geometry == "minimum":
        assert level.minimum is not None  # `generate` has checked
        if level.by_bonds:
            positions, energy = level.minimum(mol)
        else:
            positions, energy = level.minimum(atomic_numbers, positions, total_charge)
        check_same_molecule(mol, positions)
        equilibrium = level.level_of_theory
    else:
        if geometry == "given":
            check_structure_fits(mol, positions)
            equilibrium = molecule.get("equilibrium_level_of_theory")
        else:
            positions = make_geometry(mol, molecule["molecule_id"], geometry)
        assert level.energy_and_forces is not None
        energy, forces = level.energy_and_forces(atomic_numbers, positions, total_charge)
    if (energy is not None and not np.isfinite(energy)) or (forces is not None and not np.isfinite(forces).all()):
        raise CalculationError("the energy or a force is not a number")
    forces = None if forces is None else forces.round(6)
    name, label_level = molecule["molecule_id"], None if energy is None else level.level_of_theory
    return row_of_mol(name, mol, positions.round(6), equilibrium, energy, forces, label_level)
