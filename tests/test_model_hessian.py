"""The model Hessian against its formula, and the quasi-Newton step on energies whose minimum is known."""

import torch
from conftest import random_positions

from modeling_pcbridge import PCBridgeProcessor
from modeling_pcbridge.model_hessian import (
    ATOM_STIFFNESS,
    STIFFNESS,
    TRUST_RADIUS,
    model_hessian,
    quasi_newton_step,
    spring_stiffness,
)


def test_hessian_is_that_of_springs(graph):
    """Second derivatives of sum k/2 (r - r0)^2 at r = r0, plus the weak spring on every atom."""
    positions, types, numbers = random_positions(graph), graph["pair_types"], graph["atomic_numbers"]
    stiffness = torch.zeros(types.shape, dtype=torch.float64)
    for pair_type, k in STIFFNESS.items():
        stiffness[types == pair_type] = k
    rest = torch.cdist(positions, positions)
    for row in range(3):
        chosen = torch.triu(stiffness[row], 1).nonzero()

        def energy(x, row=row, chosen=chosen):
            i, j = chosen.T
            lengths = (x.view(-1, 3)[i] - x.view(-1, 3)[j]).norm(dim=-1)
            stretched = lengths - rest[row, i, j]
            return 0.5 * (stiffness[row, i, j] * stretched.square()).sum()

        expected = torch.autograd.functional.hessian(energy, positions[row].flatten())
        expected += ATOM_STIFFNESS * torch.eye(len(expected))
        torch.testing.assert_close(model_hessian(positions, types, numbers)[row], expected, rtol=0, atol=1e-4)


def test_step_reaches_the_minimum_of_the_model_energy(graph):
    """Forces -H d, of a structure that is d from the minimum of a harmonic energy, give the step -d."""
    positions, types, numbers = random_positions(graph), graph["pair_types"], graph["atomic_numbers"]
    displacement = 0.02 * random_positions(graph, seed=1)
    forces = -(model_hessian(positions, types, numbers) @ displacement.flatten(1).unsqueeze(-1)).view_as(positions)
    step = quasi_newton_step(positions, forces, types, numbers)
    torch.testing.assert_close(step, -displacement, rtol=0, atol=1e-10)
    assert (step[~graph["atom_mask"]] == 0).all()


def test_step_keeps_its_direction_within_the_trust_radius(graph):
    positions, types, numbers = random_positions(graph), graph["pair_types"], graph["atomic_numbers"]
    forces = random_positions(graph, seed=2)
    small, large = (quasi_newton_step(positions, scale * forces, types, numbers) for scale in (1e-3, 1e6))
    assert small.norm(dim=-1).amax() < TRUST_RADIUS
    torch.testing.assert_close(large.norm(dim=-1).amax(-1), torch.full((len(large),), TRUST_RADIUS).double())
    cosine = torch.cosine_similarity(small.flatten(1), large.flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_bonds_are_about_as_stiff_as_they_are():
    """Force constants of stretching, eV / square angstrom (1 mdyn/angstrom is 6.24), from vibrational spectra."""
    known = {
        "CC": 28,
        "C=C": 60,
        "C#C": 98,
        "CCl": 21,
        "CBr": 18,
        "CI": 14,
        "CS": 20,
        "SS": 16,
        "CP": 18,
        "CS(C)(=O)=O": 62,
        "O=P(C)(C)C": 56,
    }
    processor = PCBridgeProcessor([1, 6, 8, 15, 16, 17, 35, 53])
    for smiles, expected in known.items():
        graph = processor(smiles)
        stiffness = spring_stiffness(graph["pair_types"], graph["atomic_numbers"])[0]
        i, j = (1, 3) if "S(C)" in smiles else (0, 1)
        # Springs less than half as stiff as the bond would make steps grow.
        assert 0.7 * expected < stiffness[i, j] < 1.6 * expected, smiles
    assert (stiffness == stiffness.T).all() and (stiffness.diagonal() == 0).all()
