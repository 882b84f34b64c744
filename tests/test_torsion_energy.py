"""Torsions of real molecules, and their terms: the same however atoms are numbered, smooth also at linear angles."""

import numpy as np
import pytest
import torch
from conftest import FORMS, random_positions, small_model
from rdkit import Chem
from rdkit.Chem import rdMolTransforms

from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles, with_structure
from modeling_pcbridge.torsion_energy import smooth_cosines


def torsions(smiles: str) -> np.ndarray:
    return graph_from_mol(mol_from_smiles(smiles)).torsion_quadruples


@pytest.mark.parametrize(
    ("smiles", "count"),
    [
        ("O", 0),
        ("OO", 1),
        ("CC", 9),
        ("C=C", 4),
        ("C1CC1", 3 * 4 + 3 * 4),  # H on both ends; H on one end and the ring's third atom on the other
        ("c1ccccc1", 6 * 4),
        ("CC#N", 0),
        ("C=C=C", 4),  # across the centre
        ("C=C=N", 2),
        ("N=C=N", 1),
        ("C=C=C=C", 4),
        ("CC#CC", 9),
        ("C=C=O", 0),
    ],
)
def test_number_of_torsions(smiles, count):
    found = torsions(smiles)
    assert found.shape == (count, 4) and found.dtype == np.int16
    assert len({frozenset([tuple(q), tuple(q[::-1])]) for q in found.tolist()}) == count
    assert all(len(set(q)) == 4 for q in found.tolist())


def test_torsions_of_an_allene_run_across_its_centre():
    mol = mol_from_smiles("C=C=C")
    for i, j, k, end in torsions("C=C=C").tolist():
        assert {j, k} == {0, 2}
        assert mol.GetBondBetweenAtoms(i, j) is not None and mol.GetBondBetweenAtoms(end, k) is not None


@pytest.mark.parametrize("smiles", ["CC(=O)Nc1ccccc1", "C=C=CC", "C1CC1C#CC", "CC(C)=C=NC"])
def test_torsions_do_not_depend_on_numbering(smiles):
    mol = mol_from_smiles(smiles)
    order = np.random.default_rng(0).permutation(mol.GetNumAtoms())
    shuffled = graph_from_mol(Chem.RenumberAtoms(mol, order.tolist())).torsion_quadruples

    def either_way(quadruples) -> set:
        return {frozenset([tuple(q), tuple(q[::-1])]) for q in quadruples.tolist()}

    assert either_way(order[shuffled]) == either_way(torsions(smiles).astype(int))


@pytest.mark.parametrize(
    ("one", "other"),
    [("CN=[N+]=[N-]", "C[N-][N+]#N"), ("CC([O-])=O", "CC(=O)[O-]"), ("C[N+](=O)[O-]", "C[N+]([O-])=O")],
)
def test_torsions_do_not_depend_on_the_resonance_form(one, other):
    assert len(torsions(one)) == len(torsions(other))


def test_which_end_comes_first_does_not_matter(processor, graph):
    model = small_model(**FORMS["extensive"])
    positions = random_positions(graph)
    flipped = dict(graph, torsion_quadruples=graph["torsion_quadruples"].flip(-1))
    energy = model.predict_energy(**graph, positions=positions).energy
    torch.testing.assert_close(model.predict_energy(**flipped, positions=positions).energy, energy, atol=1e-12, rtol=0)
    # The check can fail: another torsion is another energy.
    other = dict(graph, torsion_quadruples=graph["torsion_quadruples"].roll(1, dims=-1))
    assert (model.predict_energy(**other, positions=positions).energy - energy).abs().max() > 1e-4


def test_cosines_against_rdkit():
    mol = mol_from_smiles("CCCC")
    positions = np.random.default_rng(0).normal(size=(mol.GetNumAtoms(), 3))
    conformer = with_structure(mol, positions).GetConformer()
    quadruples = torsions("CCCC").astype(int).tolist()
    phi = np.array([rdMolTransforms.GetDihedralRad(conformer, *q) for q in quadruples])
    sines = [
        np.sin(rdMolTransforms.GetAngleRad(conformer, *q[:3])) * np.sin(rdMolTransforms.GetAngleRad(conformer, *q[1:]))
        for q in quadruples
    ]
    expected = np.stack([np.power(sines, n) * np.cos(n * phi) for n in (1, 2, 3)], axis=-1)
    corners = torch.from_numpy(positions[np.array(quadruples).T])[None]
    torch.testing.assert_close(smooth_cosines(corners)[0], torch.from_numpy(expected), atol=1e-4, rtol=0)


def test_terms_are_smooth_where_three_atoms_are_in_line():
    corners = torch.tensor([[-1.0, 0.2, 0.0], [0.0, 0.0, 0.0], [1.4, 0.0, 0.0], [2.4, 0.0, 0.0]], dtype=torch.float64)
    corners = corners[None, :, None].requires_grad_()
    torch.autograd.gradcheck(smooth_cosines, corners)
    torch.autograd.gradgradcheck(smooth_cosines, corners)
    # Through the line phi jumps by 180 degrees, but the slope of the terms does not.
    slopes = []
    for y in (-1e-4, 1e-4):
        moved = corners.detach().clone()
        moved[0, 3, 0, 1] = y
        moved.requires_grad_()
        (slope,) = torch.autograd.grad(smooth_cosines(moved)[..., 0].sum(), moved)
        slopes.append(slope)
    assert slopes[0].abs().max() > 0.1 and (slopes[0] - slopes[1]).abs().max() < 1e-3


def test_atoms_on_top_of_each_other_give_finite_derivatives():
    corners = torch.zeros(1, 4, 1, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(smooth_cosines(corners).sum(), corners, create_graph=True)
    gradient.square().sum().backward()
    assert gradient.isfinite().all() and corners.grad.isfinite().all()


def test_torsions_survive_padding_and_unpadding(processor):
    smiles = ["CC=C=C", "O", "CCO"]
    batch = processor(smiles)
    from modeling_pcbridge.graph_batch import GraphBatch

    graphs = GraphBatch(**batch)
    for row, text in enumerate(smiles):
        assert (graphs.molecule(row).torsion_quadruples == torsions(text)).all()
