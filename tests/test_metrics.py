"""Structure metrics on cases with known answers."""

import numpy as np
import pytest
from rdkit.Chem import rdDistGeom, rdMolTransforms
from scipy.spatial.transform import Rotation

from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from pcbridge.evaluation.evaluate import mean_over_molecules
from pcbridge.evaluation.metrics import (
    bond_angle_error,
    bond_length_error,
    distance_errors,
    heavy_atom_rmsd,
    kabsch_align,
    kabsch_rmsd,
    one_three_distance_error,
    torsion_error,
)
from pcbridge.evaluation.references import mmff_structures, pm6_structures


@pytest.fixture(scope="module")
def molecule():
    mol = mol_from_smiles("CC(C)O")
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    return mol, mol.GetConformer().GetPositions()


def moved(positions: np.ndarray, seed: int = 0) -> np.ndarray:
    return positions @ Rotation.random(rng=seed).as_matrix().T + np.array([5.0, -3.0, 1.0])


def test_rigid_motion_costs_nothing(molecule):
    mol, reference = molecule
    samples = np.stack([moved(reference, seed) for seed in range(3)])
    graph = graph_from_mol(mol)
    assert kabsch_rmsd(samples, reference).max() < 1e-9
    assert heavy_atom_rmsd(mol, samples, reference).max() < 1e-6
    assert max(errors.max() for errors in distance_errors(samples, reference)) < 1e-9
    for error in (bond_length_error, one_three_distance_error, bond_angle_error):
        assert error(graph, samples, reference).max() < 1e-6


def test_kabsch_against_scipy(molecule):
    _, reference = molecule
    noisy = moved(reference) + np.random.default_rng(0).normal(size=reference.shape)
    _, expected = Rotation.align_vectors(reference - reference.mean(0), noisy - noisy.mean(0))
    assert kabsch_rmsd(noisy[None], reference)[0] == pytest.approx(expected / np.sqrt(len(reference)))
    np.testing.assert_allclose(kabsch_align(noisy[None], reference)[0].mean(0), reference.mean(0), atol=1e-12)


def test_a_mirror_image_is_not_aligned():
    mol = mol_from_smiles("C[C@H](N)C(=O)O")
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    reference = mol.GetConformer().GetPositions()
    mirrored = reference * np.array([-1.0, 1.0, 1.0])
    assert kabsch_rmsd(mirrored[None], reference)[0] > 0.3
    assert heavy_atom_rmsd(mol, mirrored[None], reference)[0] > 0.3


def test_heavy_atom_rmsd_ignores_labels_of_equivalent_atoms(molecule):
    mol, reference = molecule
    # The two methyl groups of isopropanol, exchanged with their hydrogens.
    heavy = [2, 1, 0, 3]
    order = np.arange(len(reference))
    order[:4] = heavy
    swapped = reference[order]
    assert kabsch_rmsd(swapped[None], reference)[0] > 0.1
    assert heavy_atom_rmsd(mol, swapped[None], reference)[0] == pytest.approx(0.0, abs=1e-5)


def test_worked_numbers_for_water():
    mol = mol_from_smiles("O")
    graph = graph_from_mol(mol)
    reference = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    sample = np.array([[[0.0, 0.0, 0.0], [1.2, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    assert bond_length_error(graph, sample, reference)[0] == pytest.approx(0.1)
    hh = np.sqrt(1.2**2 + 1) - np.sqrt(2)
    assert one_three_distance_error(graph, sample, reference)[0] == pytest.approx(hh)
    assert bond_angle_error(graph, sample, reference)[0] == pytest.approx(0.0, abs=1e-6)
    d_mae, d_rmse = distance_errors(sample, reference)
    assert d_mae[0] == pytest.approx(2 * (0.2 + hh) / 9)  # nine entries, the diagonal counted
    assert d_rmse[0] == pytest.approx(np.sqrt(2 * (0.04 + hh**2) / 9))
    bent = np.array([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]])
    assert bond_angle_error(graph, bent, reference)[0] == pytest.approx(90.0)


def test_means_leave_out_what_is_absent():
    records = [{"a": 1.0, "heavy_rmsd_mean": 0.1}, {"a": float("nan"), "heavy_rmsd_mean": 0.4}]
    records.append({"a": 3.0, "heavy_rmsd_mean": 0.2})
    summary = mean_over_molecules(records)
    assert summary["a"] == 2.0 and summary["heavy_rmsd_median"] == 0.2


def test_reference_rows_agree_with_independent_figures():
    """PM6 and MMFF94 bond errors over 300 molecules are known: .0127 and .0093 angstrom."""
    from pcbridge.evaluation.config import EvaluationConfig
    from pcbridge.evaluation.evaluate import evaluate_reference

    evaluation = EvaluationConfig(split="validation", max_molecules=80)
    pm6 = evaluate_reference(pm6_structures(evaluation), evaluation)
    assert pm6["bond_length_error"] == pytest.approx(0.0127, abs=0.002)
    assert pm6["stereo_right"] == 1.0 and pm6["failures"] == 0
    mmff = evaluate_reference(mmff_structures(2, seed=0), evaluation)
    assert mmff["bond_length_error"] == pytest.approx(0.0093, abs=0.002)
    assert mmff["stereo_right"] == 1.0
    assert mmff["rmsd_min"] < mmff["rmsd_mean"]


def test_torsion_error_goes_the_short_way_round():
    mol = mol_from_smiles("CCCC")
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    graph, conformer = graph_from_mol(mol), mol.GetConformer()
    structures = []
    for angle in (170.0, -170.0, 110.0):
        rdMolTransforms.SetDihedralDeg(conformer, 0, 1, 2, 3, angle)
        structures.append(conformer.GetPositions())
    errors = torsion_error(graph, np.stack([moved(x) for x in structures]), structures[0])
    assert errors == pytest.approx([0.0, 20.0, 60.0], abs=1e-6)


def test_torsions_of_straight_and_of_small_molecules_do_not_count():
    for smiles in ("CC#CC", "CCO"):
        mol = mol_from_smiles(smiles)
        rdDistGeom.EmbedMolecule(mol, randomSeed=1)
        positions = mol.GetConformer().GetPositions()
        assert np.isnan(torsion_error(graph_from_mol(mol), positions[None], positions)).all()
