"""Our molecules in torch-sim: energies, relaxation with molecules leaving the batch, and dynamics."""

import pytest
import torch
from test_relaxation import CHECKPOINT, embedded

from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor

torch_sim = pytest.importorskip("torch_sim")
from modeling_pcbridge.torch_sim_model import PCBridgeTorchSimModel  # noqa: E402

SMILES = ("c1ccoc1", "CCO", "C[C@H](N)CO", "[NH3+]CC", "COC")  # the second and the last have the same atoms


@pytest.fixture(scope="module")
def inputs() -> dict:
    return dict(PCBridgeProcessor()([embedded(smiles) for smiles in SMILES]))


@pytest.fixture(scope="module")
def model(inputs) -> PCBridgeTorchSimModel:
    return PCBridgeTorchSimModel(PCBridgeModel.from_pretrained(CHECKPOINT), inputs)


def test_energies_and_forces_are_the_models_in_any_selection(model, inputs):
    expected = model.model.predict_energy(**inputs)
    state = model.initial_state()
    assert state.n_systems == len(SMILES) and state.masses.dtype == torch.float64
    for rows in ([0, 1, 2, 3, 4], [4, 1], [2]):
        part = torch_sim.concatenate_states([state[row] for row in rows])
        found = model(part)
        torch.testing.assert_close(found["energy"], expected.energy[rows], rtol=0, atol=1e-4)
        forces = torch.cat([expected.forces[row][inputs["atom_mask"][row]] for row in rows]).double()
        torch.testing.assert_close(found["forces"], forces, rtol=0, atol=1e-4)


def test_relaxation_by_fire_ends_where_ours_ends(model, inputs):
    final = torch_sim.optimize(
        model.initial_state(),
        model,
        optimizer=torch_sim.optimizers.fire,
        convergence_fn=torch_sim.generate_force_convergence_fn(force_tol=0.002, include_cell_forces=False),
        max_steps=3000,
    )
    ours = model.model.relax_structure(**inputs, max_force=0.002)
    assert ours.converged.all()
    assert model(final)["forces"].norm(dim=-1).max() <= 0.002
    torch.testing.assert_close(model(final)["energy"], ours.energy, rtol=0, atol=2e-3)


def test_dynamics_conserve_energy(model, inputs):
    relaxed = model.model.relax_structure(**inputs)
    state = model.initial_state(relaxed.positions)
    init, step = torch_sim.nve(model, dt=torch.tensor(0.5e-3 * torch_sim.units.MetalUnits.time), kT=torch.tensor(0.01))
    state = init(state)
    energies = []
    for _ in range(40):
        kinetic = torch_sim.calc_kinetic_energy(momenta=state.momenta, masses=state.masses, system_idx=state.system_idx)
        energies.append(state.energy + kinetic)
        state = step(state, dt=torch.tensor(0.5e-3 * torch_sim.units.MetalUnits.time))
    energies = torch.stack(energies)
    assert (energies[0] - relaxed.energy > 0.01).all()
    assert (energies - energies[0]).abs().max() < 0.005


def test_states_of_others_are_refused(model, inputs):
    other = PCBridgeTorchSimModel(model.model, PCBridgeProcessor()([embedded("CC=O")]))
    with pytest.raises(ValueError, match="not those of this model's molecules"):
        model(other.initial_state())
    periodic = model.initial_state()
    periodic.pbc = True
    with pytest.raises(ValueError, match="make it by initial_state"):
        model(periodic)
    without = PCBridgeTorchSimModel(model.model, PCBridgeProcessor()(["CO"]))
    with pytest.raises(ValueError, match="no positions"):
        without.initial_state()
