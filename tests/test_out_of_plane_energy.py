"""Terms for atoms with three neighbours: which atoms have one, what it measures, and that training can add them."""

import pytest
import torch
from conftest import FORMS, random_positions, small_model

from modeling_pcbridge.graph_batch import GraphBatch
from modeling_pcbridge.out_of_plane_energy import squared_volumes
from pcbridge.training.initial_model import with_terms

# Of H2, too, which has fewer atoms than a term has neighbours.
WITH_THREE_NEIGHBOURS = {"[H][H]": 0, "O": 0, "C": 0, "N": 1, "C=O": 1, "CC(=O)N": 2, "c1ccccc1": 6, "[O-][N+](=O)C": 1}


def out_of_plane_energy(model, processor, smiles: str) -> torch.Tensor:
    """Of one molecule, by terms whose w_1 is 1 and w_2 is 0: the sum of the squared volumes."""
    graph = processor([smiles])
    positions = random_positions(graph)
    whole = model.predict_energy(**graph, positions=positions).energy
    with torch.no_grad():
        model.energy_decoder.out_of_plane.weights.bias[0] += 1.0
    return model.predict_energy(**graph, positions=positions).energy - whole


@pytest.mark.parametrize(("smiles", "count"), WITH_THREE_NEIGHBOURS.items())
def test_atoms_with_three_neighbours_have_a_term(processor, smiles, count):
    found = out_of_plane_energy(small_model(**FORMS["extensive"]), processor, smiles).item()
    assert (found > 1e-6) == (count > 0) and 0 <= found <= count


def test_planes_and_right_angles():
    angles = torch.tensor([0.0, 2.1, 4.2], dtype=torch.float64)
    flat = torch.stack([angles.cos(), angles.sin(), torch.zeros(3, dtype=torch.float64)], -1)
    lengths = torch.tensor([[1.0], [1.4], [0.9]], dtype=torch.float64)
    bonds = torch.stack([flat, torch.eye(3, dtype=torch.float64)]) * lengths
    expected = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(squared_volumes(bonds), expected, atol=1e-5, rtol=0)
    # Neither the order of the neighbours nor a reflection matters, though the volume itself changes its sign.
    bent = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for other in (bent[[1, 0, 2]], bent * torch.tensor([1.0, 1.0, -1.0])):
        torch.testing.assert_close(squared_volumes(other), squared_volumes(bent))


def test_derivatives_also_where_atoms_coincide():
    bonds = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(squared_volumes, bonds)
    zero = torch.zeros(1, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(squared_volumes(zero).sum(), zero, create_graph=True)
    gradient.square().sum().backward()
    assert gradient.isfinite().all() and zero.grad.isfinite().all()


def test_terms_that_training_adds_change_nothing_at_first(graph):
    positions = random_positions(graph)
    before = small_model(**FORMS["global"])
    after = with_terms(before, {"torsion_terms", "out_of_plane_terms"})
    one, other = (model.predict_energy(**graph, positions=positions) for model in (before, after))
    torch.testing.assert_close(other.energy, one.energy, atol=1e-9, rtol=0)
    torch.testing.assert_close(other.forces, one.forces, atol=1e-9, rtol=0)
    # They can learn all the same.
    after.interaction_energy(GraphBatch(**graph), positions).sum().backward()
    for terms in (after.energy_decoder.torsions, after.energy_decoder.out_of_plane):
        assert terms.weights.weight.grad.abs().max() > 1e-3
