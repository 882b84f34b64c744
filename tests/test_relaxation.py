"""The relaxer on MMFF94, a smooth energy that is not ours, and on the released energy, beside ASE's BFGS."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import bundled_examples
from rdkit import Chem
from rdkit.Chem import ChemicalForceFields as force_fields
from rdkit.Chem import rdDistGeom

from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor, sampling
from modeling_pcbridge.graph_batch import GraphBatch, pad_graphs, pad_positions
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.relaxation import relax, relaxation_init, relaxation_step

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "consistency"
EV_PER_KCAL_PER_MOL = 0.0433641
# Aspirin, caffeine, ibuprofen, cysteine, a sulfonamide, a bromoarene, pinene, one more charged and two tiny.
SMILES = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O",
    "N[C@@H](CS)C(=O)O",
    "CNS(=O)(=O)c1ccccc1",
    "Brc1ccc(Cl)cc1",
    "CC1=CCC2CC1C2(C)C",
    "C[NH2+]CC",
    "O",
    "CC",
]


class MMFF94:
    """A potential, see `relaxation`, of molecules that differ in their atomic numbers; counts what it is asked."""

    def __init__(self, mols: list[Chem.Mol]):
        self.properties = [force_fields.MMFFGetMoleculeProperties(mol) for mol in mols]
        pairs = zip(mols, self.properties, strict=True)
        fields = [force_fields.MMFFGetMoleculeForceField(mol, p, nonBondedThresh=1e3) for mol, p in pairs]
        self.mols = mols  # the force fields refer to them
        self.fields = {tuple(a.GetAtomicNum() for a in m.GetAtoms()): f for m, f in zip(mols, fields, strict=True)}
        self.num_evaluations = 0
        self.most_at_once = 0

    def __call__(self, graph: GraphBatch, positions: torch.Tensor):
        self.num_evaluations += len(positions)
        self.most_at_once = max(self.most_at_once, len(positions))
        energies, forces = [], torch.zeros_like(positions)
        for row, numbers in enumerate(graph.atomic_numbers.tolist()):
            numbers = tuple(z for z in numbers if z > 0)
            field = self.fields[numbers]
            coordinates = positions[row, : len(numbers)].double().flatten().tolist()
            # The energy first: RDKit's gradient takes the distances of the last energy.
            energies.append(field.CalcEnergy(coordinates) * EV_PER_KCAL_PER_MOL)
            gradient = torch.tensor(field.CalcGrad(coordinates), dtype=positions.dtype).view(-1, 3)
            forces[row, : len(numbers)] = -gradient * EV_PER_KCAL_PER_MOL
        return torch.tensor(energies, dtype=positions.dtype), forces


def embedded(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=3) == 0
    return mol


@pytest.fixture(scope="module")
def mols() -> list[Chem.Mol]:
    return [embedded(smiles) for smiles in SMILES]


@pytest.fixture
def potential(mols) -> MMFF94:
    return MMFF94(mols)


@pytest.fixture(scope="module")
def start(mols) -> tuple[GraphBatch, torch.Tensor]:
    graph = GraphBatch(**pad_graphs([graph_from_mol(mol) for mol in mols]))
    return graph, pad_positions([mol.GetConformer().GetPositions() for mol in mols]).double()


def test_every_molecule_converges_below_its_start(potential, start):
    before, _ = potential(*start)
    found = relax(potential, *start, max_force=0.02, max_evaluations=150)
    assert found.converged.all()
    energy, forces = potential(start[0], found.positions)
    torch.testing.assert_close((energy, forces), (found.energy, found.forces))
    assert (energy < before).all()
    assert forces.norm(dim=-1).max() <= 0.02
    assert found.num_evaluations.double().mean() < 60


def test_energies_fall_at_every_step(potential, start):
    state = relaxation_init(potential, *start)
    for _ in range(40):
        previous, state = state, relaxation_step(potential, start[0], state)
        assert (state.energy <= previous.energy + 1e-12).all()  # rounding
    assert state.largest_force.median() < 0.1


def test_minima_are_those_of_ase(potential, start):
    ase, optimize = pytest.importorskip("ase"), pytest.importorskip("ase.optimize")
    from ase.calculators.calculator import Calculator

    class OneMolecule(Calculator):
        implemented_properties = ["energy", "forces"]  # noqa: RUF012, as ASE declares it

        def __init__(self, graph):
            super().__init__()
            self.graph = graph

        def calculate(self, atoms=None, properties=None, system_changes=None):
            energy, forces = potential(self.graph, torch.as_tensor(atoms.positions)[None])
            self.results = {"energy": energy.item(), "forces": forces[0].numpy()}

    graph, positions = start
    found = relax(potential, graph, positions, max_force=2e-4, max_evaluations=600)
    assert found.converged.all()
    same_basin, evaluations = 0, 0
    for row, n in enumerate(graph.atom_mask.sum(1).tolist()):
        atoms = ase.Atoms(graph.atomic_numbers[row, :n].numpy(), positions[row, :n].numpy())
        atoms.calc = OneMolecule(graph[row : row + 1].truncated(n))
        optimizer = optimize.BFGS(atoms, logfile=None)
        assert optimizer.run(fmax=2e-4, steps=1000)
        evaluations += optimizer.nsteps + 1
        if abs(atoms.get_potential_energy() - found.energy[row].item()) < 1e-4:
            same_basin += 1
            theirs = atoms.get_all_distances()
            ours = torch.cdist(found.positions[row, :n], found.positions[row, :n]).numpy()
            assert np.abs(ours - theirs).max() < 0.01
    assert same_basin >= 8  # of 10
    assert found.num_evaluations.sum() < 0.8 * evaluations


def test_a_molecule_is_relaxed_alike_in_any_company(potential, start, monkeypatch):
    """One at a time, all at once, and in turns that others join while some have left."""
    graph, positions = start
    together = relax(potential, graph, positions, 0.02, 100)
    # Nothing is evaluated for a molecule that is done.
    assert potential.num_evaluations == together.num_evaluations.sum()
    assert potential.most_at_once == len(SMILES)
    monkeypatch.setattr("modeling_pcbridge.graph_batch._PAIRS_AT_ONCE", 3 * 33**2)
    potential.most_at_once = 0
    in_turns = relax(potential, graph, positions, 0.02, 100)
    assert potential.most_at_once < len(SMILES)
    for row, n in enumerate(graph.atom_mask.sum(1).tolist()):
        alone = relax(potential, graph[row : row + 1].truncated(n), positions[row : row + 1, :n], 0.02, 100)
        for found in (together, in_turns):
            assert found.num_evaluations[row] == alone.num_evaluations[0]
            torch.testing.assert_close(found.positions[row, :n], alone.positions[0], rtol=0, atol=1e-6)


def test_too_few_evaluations_are_said_to_be_so(potential, start):
    before, _ = potential(*start)
    found = relax(potential, *start, max_force=0.02, max_evaluations=4)
    assert (found.num_evaluations <= 4).all() and (found.energy <= before).all()
    assert not found.converged[:5].any()
    at_once = relax(potential, start[0], found.positions, max_force=100.0, max_evaluations=1)
    assert at_once.converged.all() and (at_once.num_evaluations == 1).all()


def test_nonsense_is_stepped_back_from(potential, start):
    """A potential without numbers further than .03 angstrom from the start, and one whose forces point uphill."""
    graph, positions = start
    here = positions.clone()

    def only_nearby(graph, positions):
        energy, forces = potential(graph, positions)
        known = (positions - here).norm(dim=-1).amax(-1) < 0.03
        return torch.where(known, energy, torch.nan), torch.where(known[:, None, None], forces, torch.nan)

    states = [relaxation_init(only_nearby, graph, positions)]
    for _ in range(8):
        states.append(relaxation_step(only_nearby, graph, states[-1]))
    missed = (states[1].positions == positions).flatten(1).all(1)
    assert missed.sum() >= 5
    assert (states[1].radius[missed] <= states[0].radius[missed] / 2).all()
    assert (states[-1].energy < states[0].energy).all()

    def uphill(graph, positions):
        energy, forces = potential(graph, positions)
        return energy, -forces

    before, _ = potential(graph, positions)
    found = relax(uphill, graph, positions, 0.02, 20)
    assert (found.energy <= before).all() and not found.converged[:5].any()


# --- On the released energy ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> PCBridgeModel:
    return PCBridgeModel.from_pretrained(CHECKPOINT).eval()


@pytest.fixture(scope="module")
def displaced() -> tuple[GraphBatch, torch.Tensor]:
    """Bundled structures displaced by .04 to .08 angstrom a coordinate."""
    examples = bundled_examples("pm6_displaced", "test", 24)
    return GraphBatch(**pad_graphs([e.graph for e in examples])), pad_positions([e.positions for e in examples])


def test_the_teacher_does_not_oscillate(model, displaced):
    graph, positions = displaced
    energies, forces = [], []
    for num_steps in (0, 1, 2, 4, 8, 15):
        energy, force = model.detached_energy_and_forces(graph, model.quasi_newton_steps(graph, positions, num_steps))
        energies.append(energy)
        forces.append(force.norm(dim=-1).amax(-1).mean().item())
    energies = torch.stack(energies)
    assert (energies.diff(dim=0) < 0.02).all() and (energies.diff(dim=0).mean(1) < 0).all()
    assert forces[3] < 0.15 * forces[0] and forces[4] < 0.5 * forces[3] and forces[5] < forces[4]


def test_structures_that_did_not_converge_are_no_predictions(model, monkeypatch):
    inputs = PCBridgeProcessor()([embedded("CCO"), embedded("O")])

    def faults() -> list:
        return model.predict_structure(**inputs, method="mean_shift", relaxation_steps="converged").faults

    assert faults() == [[[]], [[]]]
    monkeypatch.setattr(sampling, "MAX_EVALUATIONS", 2)
    assert faults()[0] == [[sampling.UNFINISHED]]


def test_released_energy_relaxes_to_a_threshold(model):
    mols = [embedded(smiles) for smiles in ("c1ccoc1", "CC(=O)NC", "C[C@H](N)CO", "O")]
    inputs = PCBridgeProcessor()(mols)
    before = model.predict_energy(**inputs)
    found = model.relax_structure(**inputs)
    after = model.predict_energy(**{**inputs, "positions": found.positions})
    assert found.converged.all() and (found.num_evaluations <= 100).all() and found.faults == [[]] * len(mols)
    torch.testing.assert_close(after.energy, found.energy, rtol=0, atol=1e-3)
    torch.testing.assert_close(after.forces, found.forces, rtol=0, atol=1e-3)
    assert (found.energy < before.energy).all()
    assert not model.relax_structure(**inputs, max_evaluations=3).converged.any()
    in_picometres = model.relax_structure(**{**inputs, "positions": 100 * inputs["positions"]})
    assert in_picometres.converged.any() and all(in_picometres.faults)
    for wrong, message in (
        ({"max_force": 0.0}, "max_force must be positive"),
        ({"max_evaluations": 0}, "max_evaluations must be at least 1"),
        ({"positions": None}, "needs positions"),
    ):
        with pytest.raises(ValueError, match=message):
            model.relax_structure(**{**inputs, **wrong})
