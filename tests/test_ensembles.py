"""Ensembles: n-butane's conformers by MMFF94, whose energies and symmetries are known."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolTransforms

from modeling_pcbridge.constants import KCAL_PER_MOL_TO_EV
from modeling_pcbridge.rdkit_molecules import conformer_from_positions, mol_from_smiles
from modeling_pcbridge.rdkit_structures import etkdg_conformers, mmff_minima
from pcbridge.app.ensembles import ensemble
from pcbridge.app.molecule_files import Molecule, Prediction


def predictions_of(smiles: str, structures: np.ndarray) -> list[Prediction]:
    """Structures (S, N, 3) with their MMFF94 energies."""
    mol = mol_from_smiles(smiles)
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    found = []
    for positions in structures:
        with_structure = Chem.Mol(mol)
        with_structure.AddConformer(conformer_from_positions(positions))
        energy = rdForceFieldHelpers.MMFFGetMoleculeForceField(with_structure, properties).CalcEnergy()
        molecule = Molecule("line 1", smiles, smiles, mol)
        forces = np.zeros_like(positions)
        found.append(Prediction(molecule, 0, positions, energy * KCAL_PER_MOL_TO_EV, forces, "MMFF94", "MMFF94", None))
    return found


def minima_of(smiles: str, number: int) -> np.ndarray:
    mol = mol_from_smiles(smiles)
    return mmff_minima(mol, etkdg_conformers(mol, number, seed=0))


def torsion(prediction: Prediction) -> float:
    return rdMolTransforms.GetDihedralDeg(conformer_from_positions(prediction.positions), 0, 1, 2, 3)


def test_butane_is_anti_and_two_gauche_forms_at_room_temperature():
    found = ensemble(predictions_of("CCCC", minima_of("CCCC", 20)), 10 * KCAL_PER_MOL_TO_EV, 0.3)
    anti, *gauche = found
    assert abs(torsion(anti)) == pytest.approx(180, abs=1)
    assert sorted(map(torsion, gauche)) == pytest.approx([-65, 65], abs=4)  # mirror images are two conformers
    assert [prediction.sample for prediction in found] == [0, 1, 2]
    above = np.array([prediction.relative_energy for prediction in found]) / KCAL_PER_MOL_TO_EV
    assert above[0] == 0 and above[1:] == pytest.approx([0.78, 0.78], abs=0.05)  # kcal/mol, of MMFF94
    weights = [prediction.boltzmann_weight for prediction in found]
    assert sum(weights) == pytest.approx(1)
    # kT is 0.5925 kcal/mol at 298.15 K.
    assert weights[1] / weights[0] == pytest.approx(np.exp(-above[1] / 0.5925), rel=1e-3)


def test_what_is_too_high_is_left_out():
    conformers = predictions_of("CCCC", minima_of("CCCC", 20))
    (anti,) = ensemble(conformers, 0.5 * KCAL_PER_MOL_TO_EV, 0.3)
    assert abs(torsion(anti)) == pytest.approx(180, abs=1) and anti.boltzmann_weight == 1


def test_turned_and_relabelled_copies_are_one_conformer_and_the_lowest_stays():
    """A ring flip of toluene and a turn of its methyl group give equal atoms other numbers."""
    minimum = minima_of("Cc1ccccc1", 1)[0]
    axis, swapped = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), [0, 1, 6, 5, 4, 3, 2, 7, 9, 8, 14, 13, 12, 11, 10]
    higher = minimum + 0.02 * np.random.default_rng(0).normal(size=minimum.shape)
    turned = (minimum @ axis.T + 3)[swapped]
    conformers = predictions_of("Cc1ccccc1", np.array([higher, turned, minimum]))
    assert np.abs(turned - minimum).max() > 1
    (kept,) = ensemble(conformers, 100.0, 0.3)
    assert kept.energy == min(conformer.energy for conformer in conformers) < conformers[0].energy
    assert len(ensemble(conformers, 100.0, 0.0)) >= 2


def test_conformers_are_those_of_rdkit_and_a_timeout_leaves_what_was_found():
    mol = mol_from_smiles("CC(C)Cc1ccc(cc1)[C@H](C)C(=O)O")
    together = Chem.Mol(mol)
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = 3
    rdDistGeom.EmbedMultipleConfs(together, 4, parameters)
    found = etkdg_conformers(mol, 4, seed=2)
    assert np.array_equal(found, [conformer.GetPositions() for conformer in together.GetConformers()])
    in_time = etkdg_conformers(mol, 10_000, seed=2, timeout=0.5)
    assert 1 < len(in_time) < 10_000 and np.array_equal(in_time[0], found[0])
    assert etkdg_conformers(mol, 4, seed=2, timeout=0) is None
