"""E with a cutoff is local and smooth: size-consistent, blind beyond its reach, and it conserves energy."""

import numpy as np
import pytest
import torch
from conftest import FORMS, random_positions, small_model
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from modeling_pcbridge import LossSettings, PCBridgeModel
from modeling_pcbridge.graph_batch import GraphBatch
from modeling_pcbridge.molecular_graph import NUM_PAIR_TYPES
from modeling_pcbridge.pair_layout import AllPairs, NeighbourLists, Sight, smooth_envelope

CUTOFF = FORMS["extensive"]["attention_cutoff"]

FORCES_ONLY = LossSettings().only(force_weight=1.0)


@pytest.fixture(params=[AllPairs, NeighbourLists])
def either_layout(request, use_layout):
    use_layout(request.param)


@pytest.fixture
def local_model() -> PCBridgeModel:
    return small_model(**FORMS["extensive"])


def joined(first: dict, second: dict) -> dict:
    """Two graphs, each a batch of one, as one graph, in which what lies between them is a long path."""
    n, m = first["atomic_numbers"].shape[1], second["atomic_numbers"].shape[1]
    graph = {
        key: torch.cat([first[key], second[key]], dim=1) for key in ("atomic_numbers", "formal_charges", "atom_mask")
    }
    for key, between in (("pair_types", NUM_PAIR_TYPES - 1), ("stereo_pair_types", 0)):
        graph[key] = torch.full((1, n + m, n + m), between, dtype=torch.uint8)
        graph[key][:, :n, :n], graph[key][:, n:, n:] = first[key], second[key]
    for key in ("stereo_quadruples", "torsion_quadruples"):
        graph[key] = torch.cat([first[key], second[key] + n], dim=1)
    return graph


def additivity_error(model: PCBridgeModel, processor) -> float:
    """Of energy (eV) and forces (eV/angstrom) of two molecules 30 angstrom apart, treated as one."""
    graphs = [dict(processor([smiles])) for smiles in ("C[C@H](N)C(=O)O", "CC=C=CO")]
    structures = [random_positions(graph, seed) for seed, graph in enumerate(graphs)]
    structures[1] = structures[1] + torch.tensor([30.0, 0.0, 0.0])
    alone = [model.predict_energy(**graph, positions=x) for graph, x in zip(graphs, structures, strict=True)]
    together = model.predict_energy(**joined(*graphs), positions=torch.cat(structures, dim=1))
    energy = together.energy - alone[0].energy - alone[1].energy
    forces = together.forces - torch.cat([output.forces for output in alone], dim=1)
    return max(energy.abs().item(), forces.abs().max().item())


def test_two_molecules_far_apart_have_the_sum_of_their_energies(either_layout, processor, local_model):
    assert additivity_error(local_model, processor) < 1e-9
    # The check can fail: softmax over all atoms is not additive.
    assert additivity_error(small_model(), processor) > 1e-3


def test_atoms_beyond_the_reach_change_no_contribution(either_layout, processor):
    """Two layers of 2.5 angstrom reach 5 angstrom; the last atoms of an extended chain are moved and made others."""
    cutoff, num_layers = 2.5, 2
    model = small_model(attention_cutoff=cutoff, num_hidden_layers=num_layers)
    graph = dict(processor(["CCCCCCCCCCCC"]))
    mol = Chem.AddHs(Chem.MolFromSmiles("CCCCCCCCCCCC"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    positions = torch.from_numpy(mol.GetConformer().GetPositions())[None]

    def contributions(graph: dict, positions: torch.Tensor) -> torch.Tensor:
        features, _ = model.encoder(GraphBatch(**graph), positions, torch.zeros(1, dtype=torch.int64), Sight(cutoff))
        decoder = model.energy_decoder
        return decoder.mlp(features, decoder.heads_of(None, features))[0].detach()

    changed = {key: tensor.clone() for key, tensor in graph.items()}
    changed["atomic_numbers"][0, -1] = 9
    changed["pair_types"][0, -1, :-1] = changed["pair_types"][0, :-1, -1] = 3
    moved = positions.clone()
    moved[0, -1] += torch.tensor([0.3, -0.2, 0.1])
    reach = torch.minimum(*((x[0] - x[0, -1]).norm(dim=-1) for x in (positions, moved)))
    difference = (contributions(changed, moved) - contributions(graph, positions)).abs()
    within, beyond = difference[reach < num_layers * cutoff], difference[reach > num_layers * cutoff]
    assert len(within) > 3 and len(beyond) > 10
    assert within.max() > 1e-4 and beyond.max() < 1e-12


def test_envelope_against_its_formula():
    x = torch.linspace(0, 1.5, 31, dtype=torch.float64, requires_grad=True)
    inside = x.detach().clamp(max=1)
    expected = 1 - 10 * inside**3 + 15 * inside**4 - 6 * inside**5
    torch.testing.assert_close(smooth_envelope(x).detach(), expected, atol=1e-14, rtol=0)
    # In single precision too it is never below zero, and nothing but zero from the cutoff on.
    near_one = torch.linspace(0.999, 1.001, 10_001)
    assert (smooth_envelope(near_one) >= 0).all() and (smooth_envelope(near_one[near_one >= 1]) == 0).all()


def test_energy_is_smooth_where_an_atom_crosses_the_cutoff(either_layout, processor, local_model):
    """Forces and their slopes are the same on both sides, when the nearest pair of two molecules is at the cutoff."""
    water = dict(processor(["O"]))
    graph = joined(water, water)
    first, second = random_positions(water, 1), random_positions(water, 2)
    direction = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    shift = 30.0
    for _ in range(50):  # until the nearest pair is exactly at the cutoff
        shift -= torch.cdist(first, second + shift * direction).min().item() - CUTOFF

    def force(step: float) -> torch.Tensor:
        positions = torch.cat([first, second + (shift + step) * direction], dim=1)
        return local_model.predict_energy(**graph, positions=positions).forces

    assert (force(-1.0) - force(0.0)).abs().max() > 1e-4  # they do interact
    h = 1e-3
    assert (force(h) - force(-h)).abs().max() < 1e-5
    slopes = [(force(side * 2 * h) - force(side * h)).abs().max() / h for side in (1, -1)]
    assert slopes[0] < 1e-12 and slopes[1] < 1e-2


def test_derivatives_are_finite_at_and_beyond_the_cutoff(either_layout, processor, local_model):
    graph = dict(processor(["CCO", "O"]))
    positions = random_positions(graph)
    positions[0, 1] = positions[0, 0] + torch.tensor([CUTOFF, 0.0, 0.0])
    positions[0, 2] = positions[0, 0] + torch.tensor([0.0, 1e4, 0.0])
    positions[0, 4] = positions[0, 3]
    labels = {"positions": positions, "forces": torch.zeros_like(positions)}
    local_model(**graph, **labels, loss_settings=FORCES_ONLY).loss.backward()
    gradients = [p.grad for p in local_model.parameters() if p.grad is not None]
    assert len(gradients) > 20 and all(gradient.isfinite().all() for gradient in gradients)


def test_large_logits_neither_overflow_nor_vanish(either_layout, processor, local_model):
    """In single precision, with logits of some hundreds for pairs out of sight and in sight."""
    graph = dict(processor(["CCCCCCO"]))
    model = local_model.float()
    for layer in model.encoder.layers:
        layer.query_key_value.weight.data *= 20
    positions = random_positions(graph, dtype=torch.float32) * 3
    output = model.predict_energy(**graph, positions=positions)
    assert output.energy.isfinite().all() and output.forces.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(either_layout, processor, graph, dtype):
    model = small_model(dtype=torch.float32, initializer_range=0.1, **FORMS["extensive"])
    positions = random_positions(graph, dtype=torch.float32)
    exact = model.predict_energy(**graph, positions=positions)
    with torch.autocast("cpu", dtype):
        output = model.predict_energy(**graph, positions=positions)
        labels = {"positions": positions, "forces": torch.zeros_like(positions)}
        loss = model(**graph, **labels, loss_settings=FORCES_ONLY).loss
    loss.backward()
    assert (output.energy - exact.energy).abs().max() < 0.02 * exact.energy.abs().max()
    assert (output.forces - exact.forces).norm() < 0.1 * exact.forces.norm()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    # Weights in half precision, as a model is loaded with dtype=.
    half = small_model(dtype=torch.float32, initializer_range=0.1, **FORMS["extensive"]).to(dtype)
    energy = half.predict_energy(**graph, positions=positions).energy
    assert (energy - exact.energy).abs().max() < 0.05 * exact.energy.abs().max()


def test_dynamics_conserves_energy(processor):
    """60 atoms for 400 steps of .25 fs at first at some 1,000 K; springs hold them, as the model is untrained."""
    smiles = "CC(C)Cc1ccc(cc1)C(C)C(=O)NCCc1ccc(OCC)c(OC)c1"
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert abs(mol.GetNumAtoms() - 60) < 5
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    graph = GraphBatch(**processor([smiles]))
    model = small_model(**FORMS["extensive"], initializer_range=0.07)  # forces of some eV/angstrom
    start = torch.from_numpy(mol.GetConformer().GetPositions())[None]
    # Units: angstrom, eV, and u; the unit of time is then 10.18 fs.
    masses = torch.tensor([atom.GetMass() for atom in mol.GetAtoms()], dtype=torch.float64)[None, :, None]
    step, stiffness = 0.25 / 10.1805, 5.0

    def potential(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        energy, forces = model.detached_energy_and_forces(graph, x)
        return energy + 0.5 * stiffness * (x - start).square().sum((1, 2)), forces - stiffness * (x - start)

    generator = torch.Generator().manual_seed(0)
    velocities = torch.randn(start.shape, generator=generator, dtype=torch.float64) * (0.086 / masses).sqrt()
    positions, (energy, forces) = start, potential(start)
    totals, crossings = [], 0
    near = torch.cdist(positions, positions) < CUTOFF
    for _ in range(400):
        velocities = velocities + 0.5 * step * forces / masses
        positions = positions + step * velocities
        energy, forces = potential(positions)
        velocities = velocities + 0.5 * step * forces / masses
        totals.append((energy + 0.5 * (masses * velocities.square()).sum((1, 2))).item())
        now = torch.cdist(positions, positions) < CUTOFF
        crossings += int((now != near).sum())
        near = now
    assert crossings > 400
    # The velocity Verlet energy swings about the conserved one; drift is what the halves differ by on average.
    drift = np.mean(totals[200:]) - np.mean(totals[:200])
    assert abs(drift) / mol.GetNumAtoms() < 1e-5
