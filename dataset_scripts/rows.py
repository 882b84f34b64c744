"""Building the rows of the schema, with the checks that every source shares."""

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDetermineBonds

from dataset_scripts.bad_rows import BadRowError, ExcludedRowError
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import (
    atomic_numbers_of,
    conformer_from_positions,
    mapped_smiles,
    mol_from_positions,
    mol_from_smiles,
    with_structure,
)

# Two atoms are bonded up to this multiple of the sum of their covalent radii; the first that gives the known graph
# counts. Across the small rings of QM9 atoms come closer than 1.2, strained bonds are longer than 1.15.
_BOND_FACTORS = (1.15, 1.2, 1.3)


def make_row(
    molecule_id: str,
    mol: Chem.Mol,
    positions: np.ndarray,
    equilibrium_level_of_theory: str | None = None,
    energy: float | None = None,
    forces: np.ndarray | None = None,
    energy_level_of_theory: str | None = None,
) -> dict:
    """A row of `dataset_scripts.schema.FEATURES`.

    Args:
        molecule_id: source and number within it.
        mol: explicit hydrogens, in the atom order of the arrays. Stereo marks are taken from `positions`.
        positions: (N, 3), angstrom.
        equilibrium_level_of_theory: the method whose minimum `positions` is.
        energy: eV.
        forces: (N, 3), eV/angstrom.
        energy_level_of_theory: the method of energy and forces.

    Raises:
        BadRowError: wrong shapes, numbers that are not finite, or labels without a level of theory.
        ExcludedRowError: the model takes no such molecule (several fragments, radicals, unusual bonds).
    """
    _check(molecule_id, mol.GetNumAtoms(), positions=positions, forces=forces)
    if isinstance(energy, (bool, str)):
        raise BadRowError(molecule_id, "the energy is no number", repr(energy))
    if energy is not None and not np.isfinite(energy):
        raise BadRowError(molecule_id, "energy not finite")
    labelled = energy is not None or forces is not None
    if labelled and energy_level_of_theory is None:
        raise BadRowError(molecule_id, "labels without a level of theory")
    mol = with_structure(mol, positions)
    try:
        graph_from_mol(mol)
    except ValueError as error:
        raise ExcludedRowError(molecule_id, str(error)) from error
    level = energy_level_of_theory if labelled else None
    return row_of_mol(molecule_id, mol, positions, equilibrium_level_of_theory, energy, forces, level)


def row_of_mol(
    molecule_id: str,
    mol: Chem.Mol,
    positions: np.ndarray,
    equilibrium_level_of_theory: str | None = None,
    energy: float | None = None,
    forces: np.ndarray | None = None,
    energy_level_of_theory: str | None = None,
) -> dict:
    """As `make_row`, with the stereo marks of `mol` and without a check: for what is known to be right."""
    return {
        "molecule_id": molecule_id,
        "smiles": Chem.MolToSmiles(Chem.RemoveHs(mol)),
        "mapped_smiles": mapped_smiles(mol),
        "atomic_numbers": atomic_numbers_of(mol),
        "total_charge": Chem.GetFormalCharge(mol),
        "positions": np.asarray(positions, dtype=np.float64).tolist(),
        "equilibrium_level_of_theory": equilibrium_level_of_theory,
        "energy": None if energy is None else float(energy),
        "forces": None if forces is None else np.asarray(forces, dtype=np.float64).tolist(),
        "energy_level_of_theory": energy_level_of_theory,
    }


def mol_of_smiles_in_order(
    molecule_id: str,
    smiles: str,
    atomic_numbers: list[int],
    positions: np.ndarray,
    bonds: np.ndarray | None = None,
) -> Chem.Mol:
    """The molecule of `smiles` with its atoms in the order of `atomic_numbers` and `positions`.

    The SMILES is laid over the structure's bonds regardless of their order, so bond orders and formal charges are
    those of the SMILES.

    Args:
        molecule_id: named in errors.
        smiles: hydrogens implicit or explicit.
        atomic_numbers: (N,).
        positions: (N, 3), angstrom.
        bonds: (B, 2) 0-based atom pairs; by distance if None.

    Raises:
        BadRowError: the numbers of atoms and positions differ, positions are not finite, or a bond has no atom.
        ExcludedRowError: RDKit refuses the SMILES, or the structure has another graph.
    """
    _check(molecule_id, len(atomic_numbers), positions=positions)
    try:
        mol = mol_from_smiles(smiles)
    except ValueError as error:
        raise ExcludedRowError(molecule_id, "unparsable SMILES", smiles) from error
    if bonds is not None and not all(0 <= i < len(atomic_numbers) and 0 <= j < len(atomic_numbers) for i, j in bonds):
        raise BadRowError(molecule_id, "bonds of atoms that are not there")
    pattern = _skeleton(
        atomic_numbers_of(mol),
        [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()],
    )
    for factor in _BOND_FACTORS if bonds is None else (None,):
        target = _skeleton(atomic_numbers, [] if bonds is None else bonds)
        if factor is not None:
            target.AddConformer(conformer_from_positions(positions))
            rdDetermineBonds.DetermineConnectivity(target, useVdw=True, covFactor=factor)
        if (target.GetNumAtoms(), target.GetNumBonds()) != (pattern.GetNumAtoms(), pattern.GetNumBonds()):
            continue
        match = target.GetSubstructMatch(pattern)
        if match:
            return Chem.RenumberAtoms(mol, [int(i) for i in np.argsort(match)])
    raise ExcludedRowError(molecule_id, "graph of the structure differs from the SMILES", smiles)


def mol_of_structure(
    molecule_id: str, atomic_numbers: list[int], positions: np.ndarray, total_charge: int = 0
) -> Chem.Mol:
    """The molecule that RDKit perceives in a structure; `mol_of_smiles_in_order` is right more often.

    Raises:
        BadRowError: wrong shape or numbers that are not finite.
        ExcludedRowError: no graph of that charge fits.
    """
    _check(molecule_id, len(atomic_numbers), positions=positions)
    try:
        return mol_from_positions(atomic_numbers, positions, total_charge)
    except ValueError as error:
        raise ExcludedRowError(molecule_id, "no graph fits the structure", error) from error


def _check(molecule_id: str, num_atoms: int, **vectors: np.ndarray | None) -> None:
    for name, values in vectors.items():
        if values is not None and np.shape(values) != (num_atoms, 3):
            raise BadRowError(molecule_id, f"wrong number of {name}", f"{np.shape(values)}, {num_atoms} atoms")
        if values is not None and not np.isfinite(values).all():
            raise BadRowError(molecule_id, f"{name} not finite")


def _skeleton(atomic_numbers, bonds) -> Chem.RWMol:
    """Elements and single bonds, without implicit hydrogens."""
    mol = Chem.RWMol()
    for atomic_number in atomic_numbers:
        atom = Chem.Atom(int(atomic_number))
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for i, j in bonds:
        mol.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    return mol
