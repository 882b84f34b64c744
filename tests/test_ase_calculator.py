"""The ASE calculator with the released checkpoint: optimisation, dynamics, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.ase_calculator import PCBridgeCalculator

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "consistency"
FURAN = "c1ccoc1"


@pytest.fixture(scope="module")
def model() -> PCBridgeModel:
    return PCBridgeModel.from_pretrained(CHECKPOINT)


def embedded(smiles: str) -> tuple[Chem.Mol, Atoms]:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    return mol, Atoms([atom.GetAtomicNum() for atom in mol.GetAtoms()], mol.GetConformer().GetPositions())


@pytest.fixture(scope="module")
def relaxed(model) -> Atoms:
    """Furan at the minimum of the model's energy."""
    _, atoms = embedded(FURAN)
    atoms.calc = PCBridgeCalculator(model)
    atoms.info["energy of the start"] = atoms.get_potential_energy()
    assert BFGS(atoms, logfile=None).run(fmax=0.01, steps=50)
    return atoms


@pytest.mark.parametrize("smiles", [FURAN, "C[C@H](N)CO", "[NH3+]CC"])
def test_energies_and_forces_are_the_models(model, smiles):
    mol, atoms = embedded(smiles)
    charge = Chem.GetFormalCharge(mol)
    expected = model.predict_energy(**PCBridgeProcessor()(mol))
    for calculator in (
        PCBridgeCalculator(str(CHECKPOINT), molecule=smiles),
        PCBridgeCalculator(model, molecule=mol),
        PCBridgeCalculator(model, total_charge=charge),
    ):
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(expected.energy.item(), abs=1e-4)
        np.testing.assert_allclose(atoms.get_forces(), expected.forces[0], atol=1e-4)


def test_optimisation_reaches_a_planar_minimum(relaxed):
    assert relaxed.get_potential_energy() < relaxed.info["energy of the start"] - 0.1
    assert np.abs(relaxed.get_forces()).max() < 0.01
    flatness = np.linalg.svd(relaxed.positions - relaxed.positions.mean(0))[1][-1]
    assert flatness < 0.05  # angstrom, over all atoms


def energies_of_dynamics(relaxed: Atoms, timestep: float, num_steps: int) -> np.ndarray:
    """Total energies, eV, of NVE dynamics from 300 K; `timestep` in fs."""
    atoms = relaxed.copy()
    atoms.calc = relaxed.calc
    width = np.sqrt(units.kB * 300 * atoms.get_masses())[:, None]
    atoms.set_momenta(width * np.random.default_rng(0).normal(size=(len(atoms), 3)))
    dynamics = VelocityVerlet(atoms, timestep=timestep * units.fs)
    return np.array([atoms.get_total_energy() for _ in dynamics.irun(num_steps)])


def test_dynamics_conserve_energy(relaxed):
    coarse = energies_of_dynamics(relaxed, timestep=0.5, num_steps=50)
    fine = energies_of_dynamics(relaxed, timestep=0.25, num_steps=100)
    drift = np.polyfit(np.arange(len(fine)), fine, 1)[0] * len(fine) / len(relaxed)
    assert abs(drift) < 1e-5  # eV an atom in 25 fs
    # The error of velocity Verlet is of second order, if forces are the gradient of the energy.
    assert 3.5 < coarse.std() / fine.std() < 4.5


def test_what_it_refuses(model, relaxed):
    with pytest.raises(PropertyNotImplementedError, match="no cell, hence no stress"):
        relaxed.get_stress()
    with pytest.raises(PropertyNotImplementedError):
        relaxed.get_dipole_moment()
    for change, message in (
        (lambda atoms: atoms.set_pbc(True), "periodic"),
        (lambda atoms: atoms.set_atomic_numbers(atoms.numbers[::-1]), "make a calculator for each molecule"),
    ):
        atoms = relaxed.copy()
        change(atoms)
        atoms.calc = relaxed.calc
        with pytest.raises(ValueError, match=message):
            atoms.get_potential_energy()
    with pytest.raises(ValueError, match="no bonds of total charge 1 fit"):
        PCBridgeCalculator(model, total_charge=1).get_potential_energy(relaxed)
    mol, ethanol = embedded("CCO")
    ethanol.positions[[3, 8]] = ethanol.positions[[8, 3]]  # a hydrogen of the methyl group and that of the hydroxyl
    for molecule in ("CCO", mol):
        with pytest.raises(ValueError, match="do not fit the molecule in its order: C0 and H3 are bonded, but"):
            PCBridgeCalculator(model, molecule=molecule).get_potential_energy(ethanol)
    with pytest.raises(ValueError, match="unsupported element Si"):
        PCBridgeCalculator(model, molecule="C[SiH3]")


def test_a_model_without_forces_is_refused_unless_allowed():
    path = str(CHECKPOINT.parent / "qm9")
    with pytest.raises(ValueError, match="has learned from energies of minima only"):
        PCBridgeCalculator(path, molecule="CCO")
    _, atoms = embedded("CCO")
    atoms.calc = PCBridgeCalculator(path, molecule="CCO", allow_unlearned_forces=True)
    assert np.isfinite(atoms.get_forces()).all()
