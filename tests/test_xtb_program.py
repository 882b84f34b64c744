"""GFN2-xTB minima by the program xtb: those of tblite, and a reason where there is none; elements without a basis."""

import importlib.util
import shutil

import numpy as np
import pytest

from dataset_scripts import quantum_chemistry
from dataset_scripts.labelling import label
from dataset_scripts.quantum_chemistry import b3lyp_energy_and_forces, xtb_minimum

needs_xtb = pytest.mark.skipif(shutil.which("xtb") is None, reason="the program xtb is not installed")


@needs_xtb
@pytest.mark.skipif(importlib.util.find_spec("tblite") is None, reason="needs the extra xtb")
@pytest.mark.parametrize("smiles", ["O", "CCO", "CC(=O)[O-]", "C[NH3+]", "CS(C)(=O)=O"])
def test_minima_are_those_of_tblite(smiles):
    tblite, program = (
        label({"molecule_id": "a", "smiles": smiles}, "minimum", level) for level in ("gfn2", "gfn2_program")
    )
    assert program["energy"] == pytest.approx(tblite["energy"], abs=1e-3)
    distances = [
        np.linalg.norm(np.array(line["positions"])[:, None] - np.array(line["positions"]), axis=-1)
        for line in (tblite, program)
    ]
    np.testing.assert_allclose(*distances, atol=0.03)
    assert program["equilibrium_level_of_theory"] == program["energy_level_of_theory"] == "GFN2-xTB"


@needs_xtb
def test_xtb_says_why_it_failed(monkeypatch):
    with pytest.raises(RuntimeError, match=r"xtb: .*did not converge"):
        xtb_minimum([1, 1], np.array([[0, 0, 0], [0, 0, 1e-4]]), 0)
    monkeypatch.setattr(quantum_chemistry, "XTB_TIMEOUT", 0.001)
    with pytest.raises(RuntimeError, match="longer than"):
        xtb_minimum([8, 1, 1], np.array([[0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]]), 0)


def test_a_missing_program_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ImportError, match="needs the program xtb"):
        xtb_minimum([8, 1, 1], np.eye(3), 0)


def test_elements_without_a_basis_are_named():
    pytest.importorskip("pyscf")
    with pytest.raises(ValueError, match=r"6-31G\* has no I"):
        b3lyp_energy_and_forces([53, 1], np.array([[0, 0, 0], [0, 0, 1.6]]), 0)


@needs_xtb
@pytest.mark.parametrize("level", ["gfn2", "gfn2_program"])
def test_an_element_without_parameters_fails_its_molecule_in_one_sentence(level):
    assert label({"molecule_id": "a", "smiles": "[Og]"}, "minimum", level)["error"] == "GFN2-xTB has no Og"
    assert "error" not in label({"molecule_id": "b", "smiles": "[Rn]"}, "minimum", level)
