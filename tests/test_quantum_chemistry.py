"""Each program gives known numbers, and says why where it gives none."""

import logging
import shutil

import numpy as np
import pytest

from dataset_scripts import quantum_chemistry
from dataset_scripts.bundled import SPLITS, load_bundled
from dataset_scripts.labelling import label
from dataset_scripts.quantum_chemistry import (
    b3lyp_energy,
    b3lyp_energy_and_forces,
    b3lyp_minimum,
    gfn2_energy_and_forces,
    gfn2_minimum,
    pm6_minimum,
)
from modeling_pcbridge.constants import HARTREE_TO_EV, KCAL_PER_MOL_TO_EV
from pcbridge.evaluation.metrics import kabsch_align

needs_mopac = pytest.mark.skipif(shutil.which("mopac") is None, reason="the program mopac is not installed")

# Gaussian's B3LYP/6-31G* minimum of water: E(RB3LYP) = -76.40895332 hartree, O-H .9687 angstrom, 103.65 degrees.
_ANGLE = np.radians(103.652)
WATER = np.array([[0, 0, 0], [0.9687, 0, 0], [0.9687 * np.cos(_ANGLE), 0.9687 * np.sin(_ANGLE), 0]])
# fmt: off
ZWITTERION = [
    [-0.1155, 0.9595, -0.0418], [-0.3257, -0.036, 0.0588], [0.8899, 1.0428, -0.2037], [-0.6152, 1.3176, -0.8617],
    [-0.5131, 1.6755, 1.2847], [0.1633, 1.0759, 2.4755], [-0.8295, 1.3118, 3.7678], [-2.0293, 1.3417, 3.4375],
    [-0.2295, 1.3877, 4.8339], [-0.2837, 2.7294, 1.1146], [-1.5919, 1.5277, 1.4116], [0.2264, -0.0173, 2.3832],
    [1.1596, 1.4749, 2.6739],
]
# fmt: on
WATER_ENERGY = -76.40895332 * HARTREE_TO_EV


def bundled_row(name: str, molecule_id: str) -> dict:
    rows = (row for split in SPLITS for row in load_bundled(name, split))
    return next(row for row in rows if row["molecule_id"] == molecule_id)


@needs_mopac
@pytest.mark.parametrize(
    ("molecule_id", "heat_of_formation"),  # kcal/mol, of the same raw table as the bundled structures
    [("qm9_000002", -3.14171226), ("qm9_000005", 33.23791076), ("qm9_000500", -40.73509673)],
)
def test_pm6_minima_agree_with_the_bundled_ones(molecule_id, heat_of_formation):
    start = bundled_row("dft_equilibrium", molecule_id)
    positions, energy = pm6_minimum(start["atomic_numbers"], np.array(start["positions"]), 0)
    bundled = np.array(bundled_row("pm6", molecule_id)["positions"])
    np.testing.assert_allclose(kabsch_align(positions[None], bundled)[0], bundled, atol=5e-3)  # soft torsions, .003
    assert energy == pytest.approx(heat_of_formation * KCAL_PER_MOL_TO_EV, abs=1e-4)


@needs_mopac
def test_mopac_says_why_it_failed(monkeypatch):
    with pytest.raises(RuntimeError, match=r"MOPAC: ATOMS +2 AND +1 ARE SEPARATED BY 0.0001.*'GEO-OK'\.$"):
        pm6_minimum([1, 1], np.array([[0, 0, 0], [0, 0, 1e-4]]), 0)
    with pytest.raises(RuntimeError, match=r"UNRECOGNIZED ELEMENT NAME: \(FM\)"):
        pm6_minimum([100, 1], np.array([[0, 0, 0], [0, 0, 1.5]]), 0)
    monkeypatch.setattr(quantum_chemistry, "MAX_PM6_GRADIENT_NORM", 1e-9)
    with pytest.raises(RuntimeError, match="did not reach a minimum"):
        pm6_minimum([8, 1, 1], WATER, 0)
    monkeypatch.setattr(quantum_chemistry, "MOPAC_TIMEOUT", 1e-6)
    with pytest.raises(RuntimeError, match="took longer than"):
        pm6_minimum([8, 1, 1], WATER, 0)


@needs_mopac
def test_a_proton_that_moves_in_pm6_is_a_failure():
    """beta-Alanine as a zwitterion at the QM9 structure (qm9_000271): PM6 moves the proton to the carboxylate."""
    smiles = "[N+:1]([H:2])([H:3])([H:4])[C:5]([C:6]([C:7](=[O:8])[O-:9])([H:12])[H:13])([H:10])[H:11]"
    found = label({"molecule_id": "qm9_000271", "smiles": smiles, "positions": ZWITTERION}, "minimum", "pm6")
    assert "broke a bond" in found["error"]


def test_a_missing_program_stops_the_run_instead_of_being_a_line_a_molecule(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ImportError, match="mopac"):
        label({"molecule_id": "a", "smiles": "O"}, "minimum", "pm6")


def test_exact_b3lyp_is_that_of_gaussian_and_density_fitting_is_near_it():
    pytest.importorskip("pyscf")
    energy, forces = b3lyp_energy_and_forces([8, 1, 1], WATER, 0, exact=True)
    assert energy == pytest.approx(WATER_ENERGY, abs=1e-6 * HARTREE_TO_EV)
    assert np.abs(forces).max() < 0.01
    # Another form of VWN is .037 hartree off, spherical d functions .002.
    fitted, fitted_forces = b3lyp_energy_and_forces([8, 1, 1], WATER, 0)
    assert fitted == pytest.approx(energy, abs=1e-4 * HARTREE_TO_EV)
    assert b3lyp_energy([8, 1, 1], WATER, 0) == pytest.approx(fitted, abs=1e-6)
    np.testing.assert_allclose(fitted_forces, forces, atol=1e-2)


def test_gfn2_forces_are_minus_the_gradient_and_vanish_at_the_minimum():
    pytest.importorskip("tblite")
    pytest.importorskip("ase")
    energy, forces = gfn2_energy_and_forces([8, 1, 1], WATER, 0)
    step = np.zeros_like(WATER)
    step[1, 0] = 1e-3
    ahead, behind = (gfn2_energy_and_forces([8, 1, 1], WATER + sign * step, 0)[0] for sign in (1, -1))
    assert forces[1, 0] == pytest.approx(-(ahead - behind) / 2e-3, abs=1e-3)

    positions, lowest = gfn2_minimum([8, 1, 1], WATER, 0)
    assert lowest < energy
    assert np.abs(gfn2_energy_and_forces([8, 1, 1], positions, 0)[1]).max() < 0.01
    assert lowest == pytest.approx(-5.07054 * HARTREE_TO_EV, abs=1e-3)
    anion, radical = (gfn2_energy_and_forces([8, 1], WATER[:2], charge)[0] for charge in (-1, 0))
    assert abs(anion - radical) > 1  # the charge is passed on


def test_the_b3lyp_minimum_is_that_of_gaussian_and_nothing_else_is_said(capfd):
    pytest.importorskip("pyscf")
    pytest.importorskip("geometric")
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    row = {"molecule_id": "water", "smiles": "[O:1]([H:2])[H:3]", "positions": (1.1 * WATER).tolist()}
    found = label(row, "minimum", "b3lyp")
    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
    assert capfd.readouterr() == ("", "")
    assert found["equilibrium_level_of_theory"] == found["energy_level_of_theory"] == "B3LYP/6-31G*"
    first, second = np.subtract(found["positions"][1:], found["positions"][0])
    lengths = [np.linalg.norm(first), np.linalg.norm(second)]
    np.testing.assert_allclose(lengths, 0.9687, atol=5e-4)
    assert np.degrees(np.arccos(first @ second / np.prod(lengths))) == pytest.approx(103.652, abs=0.1)
    energy, forces = b3lyp_energy_and_forces([8, 1, 1], np.array(found["positions"]), 0)
    assert found["energy"] == pytest.approx(energy, abs=1e-6) and np.abs(forces).max() < 0.02
    # An atom has no internal coordinates and is a minimum where it is.
    positions, energy = b3lyp_minimum([2], np.ones((1, 3)), 0)
    assert positions.tolist() == [[1, 1, 1]] and energy == pytest.approx(-2.90704 * HARTREE_TO_EV, abs=0.01)


@pytest.mark.slow
def test_fewer_optimiser_steps_from_a_better_structure():
    pytest.importorskip("pyscf")
    pytest.importorskip("geometric")
    minimum = np.array([[0.0, 0.0, 0.119], [0.0, 0.762, -0.476], [0.0, -0.762, -0.476]])  # B3LYP/6-31G*, .01 angstrom
    stretched = minimum * 1.2
    steps = [quantum_chemistry.b3lyp_optimised([8, 1, 1], positions, 0)[2] for positions in (minimum, stretched)]
    assert 1 <= steps[0] < steps[1] <= 10
