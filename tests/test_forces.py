"""Forces are the exact gradient, can be trained on, and are there for callers in every autograd mode."""

import torch
from conftest import random_positions

from modeling_pcbridge import LossSettings

FORCES_ONLY = LossSettings().only(force_weight=1.0)
STEP = 1e-5  # angstrom; the error of the central difference is of its square


def test_forces_against_finite_differences(model, graph):
    positions = random_positions(graph)
    forces = model.predict_energy(**graph, positions=positions).forces
    assert forces.abs().max() > 1e-2
    for atom, axis in ((0, 0), (1, 2), (2, 1)):
        shift = torch.zeros_like(positions)
        shift[:, atom, axis] = STEP
        above = model.predict_energy(**graph, positions=positions + shift).energy
        below = model.predict_energy(**graph, positions=positions - shift).energy
        torch.testing.assert_close(forces[:, atom, axis], -(above - below) / (2 * STEP), atol=1e-7, rtol=1e-6)


def test_no_net_force_and_no_torque(model, graph):
    positions = random_positions(graph)
    forces = model.predict_energy(**graph, positions=positions).forces
    assert forces.sum(1).abs().max() < 1e-10
    assert torch.linalg.cross(positions, forces).sum(1).abs().max() < 1e-9


def test_gradient_of_the_force_loss_against_finite_differences(model, graph):
    """The force loss needs d^2 E / dR dparameter."""
    positions = random_positions(graph)
    batch = dict(graph, positions=positions, forces=torch.zeros_like(positions))
    for name in (
        "encoder.pair_features.type_shifts",
        "encoder.pair_projection.filter_weight",
        "encoder.layers.0.query_key_value.weight",
        "energy_decoder.mlp.up.weight",
        "energy_decoder.torsions.axis.weight",
        "energy_decoder.torsions.axis_type.weight",
        "energy_decoder.out_of_plane.weights.weight",
    ):
        if ("torsions" in name or "out_of_plane" in name) and not model.config.torsion_terms:
            continue
        parameter = model.get_parameter(name)
        model.zero_grad()
        model(**batch, loss_settings=FORCES_ONLY).loss.backward()
        gradient = parameter.grad.flatten()
        index = gradient.abs().argmax()
        losses = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.flatten()[index] += sign * STEP
                losses.append(model(**batch, loss_settings=FORCES_ONLY).loss.item())
                parameter.flatten()[index] -= sign * STEP
        expected = (losses[0] - losses[1]) / (2 * STEP)
        assert abs(gradient[index].item() - expected) < 1e-5 * abs(expected), name


def test_forces_in_every_autograd_mode(model, graph):
    positions = random_positions(graph)
    expected = model.predict_energy(**graph, positions=positions)
    with torch.no_grad():
        assert torch.equal(model.predict_energy(**graph, positions=positions).forces, expected.forces)
    with torch.inference_mode():
        inputs = {key: tensor.clone() for key, tensor in dict(graph, positions=positions).items()}
        assert inputs["positions"].is_inference()
        assert torch.equal(model.predict_energy(**inputs).forces, expected.forces)
    assert not expected.forces.requires_grad and not expected.energy.requires_grad
    assert torch.equal(model(**graph, positions=positions).forces, expected.forces)


def test_coincident_atoms_give_finite_gradients(model, graph):
    positions = torch.zeros_like(random_positions(graph))
    batch = dict(graph, positions=positions, forces=positions, is_equilibrium=torch.ones(len(positions), dtype=bool))
    model.train()
    model(**batch, loss_settings=LossSettings(force_weight=1.0, force_form="norm")).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
