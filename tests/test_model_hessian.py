"""The model Hessian against its formula, and the quasi-Newton step on energies whose minimum is known."""

import torch
from conftest import random_positions

from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.graph_batch import GraphBatch
from modeling_pcbridge.model_hessian import (
    ATOM_STIFFNESS,
    OUT_OF_PLANE_STIFFNESS,
    STIFFNESS,
    TRUST_RADIUS,
    model_hessian,
    quasi_newton_step,
    spring_stiffness,
)
from modeling_pcbridge.molecular_graph import is_bond
from pcbridge.app.default_model import released_checkpoint


def test_hessian_is_that_of_springs(graph):
    """Second derivatives of sum k/2 (r - r0)^2 at r = r0, of heights over planes too, plus weak springs on atoms."""
    positions, types, numbers = random_positions(graph), graph["pair_types"], graph["atomic_numbers"]
    stiffness = torch.zeros(types.shape, dtype=torch.float64)
    for pair_type, k in STIFFNESS.items():
        stiffness[types == pair_type] = k
    rest = torch.cdist(positions, positions)
    num_planes = 0
    for row in range(3):
        chosen = torch.triu(stiffness[row], 1).nonzero()
        planes = []
        for atom, bonded in enumerate(is_bond(types[row])):
            neighbours = bonded.nonzero().flatten()
            if len(neighbours) == 3:
                one, two, three = positions[row, neighbours]
                normal = torch.linalg.cross(two - one, three - one)
                planes.append((atom, neighbours, normal / normal.norm()))
        num_planes += len(planes)

        def energy(x, row=row, chosen=chosen, planes=planes):
            i, j = chosen.T
            atoms = x.view(-1, 3)
            stretched = (atoms[i] - atoms[j]).norm(dim=-1) - rest[row, i, j]
            heights = [(atoms[k] - atoms[around].mean(0)) @ normal for k, around, normal in planes]
            lifted = sum((height - height.detach()).square() for height in heights)
            return 0.5 * (stiffness[row, i, j] * stretched.square()).sum() + 0.5 * OUT_OF_PLANE_STIFFNESS * lifted

        expected = torch.autograd.functional.hessian(energy, positions[row].flatten())
        expected += ATOM_STIFFNESS * torch.eye(len(expected))
        torch.testing.assert_close(model_hessian(positions, types, numbers)[row], expected, rtol=0, atol=1e-4)
    assert num_planes > 0


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


def test_no_mode_of_drug_like_molecules_is_much_softer_than_in_the_energy():
    """Beyond twice the stiffness of the model Hessian a step makes the error of a mode larger: rings would pucker."""
    model = PCBridgeModel.from_pretrained(released_checkpoint("drug_like")).eval().double()
    inputs = PCBridgeProcessor.of_config(model.config)(["CC(=O)Nc1ccc(O)cc1"], embed=True)
    positions = model.relax_structure(**inputs).positions.double()
    batch = GraphBatch.of_inputs({k: v for k, v in inputs.items() if k != "positions"}, positions)
    moves = 1e-3 * torch.eye(positions.numel(), dtype=torch.float64).view(-1, *positions.shape)
    columns = [
        model.detached_energy_and_forces(batch, positions - move)[1]
        - model.detached_energy_and_forces(batch, positions + move)[1]
        for move in moves
    ]
    of_energy = torch.stack(columns).flatten(1) / 2e-3
    of_model = model_hessian(positions, inputs["pair_types"], inputs["atomic_numbers"])[0]
    ratios = torch.linalg.eigvals(torch.linalg.solve(of_model, of_energy)).real
    assert 1 < ratios.max() < 2
