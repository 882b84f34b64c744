"""E is invariant and S equivariant; the checkers themselves catch models that are not."""

import copy

import pytest
import torch
from conftest import FORMS, SMILES, random_positions, small_model
from scipy.spatial.transform import Rotation

from modeling_pcbridge.graph_batch import GraphBatch

# float64 rounding over a few hundred operations.
TOLERANCE = 1e-9
TIMESTEP = 200


def denoise(model, graph: dict, positions: torch.Tensor) -> torch.Tensor:
    timesteps = torch.full((len(positions),), TIMESTEP)
    with torch.no_grad():
        return model.denoise(GraphBatch(**graph), positions, timesteps)


def rotation(seed: int) -> torch.Tensor:
    return torch.from_numpy(Rotation.random(rng=seed).as_matrix())


def invariance_error(model, graph: dict) -> float:
    """Largest change of E, in eV, over rotations with translations."""
    positions = random_positions(graph)
    energy = model.predict_energy(**graph, positions=positions).energy
    moved = [positions @ rotation(seed).T + torch.tensor([3.0, -2.0, 1.0]) for seed in range(3)]
    return max((model.predict_energy(**graph, positions=m).energy - energy).abs().max().item() for m in moved)


def equivariance_error(model, graph: dict) -> float:
    """Largest difference, in angstrom, between S of the rotated and the rotated S."""
    positions = random_positions(graph)
    denoised = denoise(model, graph, positions)
    errors = []
    for seed in range(3):
        rotated = denoise(model, graph, positions @ rotation(seed).T)
        errors.append((rotated - denoised @ rotation(seed).T).abs().max().item())
    return max(errors)


def permuted(graph: dict, order: torch.Tensor) -> dict:
    """The graphs with atom `order[i]` moved to place i, in every molecule."""
    inverse = torch.argsort(order)

    def moved(quadruples: torch.Tensor) -> torch.Tensor:
        return torch.where(quadruples >= 0, inverse[quadruples.clamp(min=0)], quadruples)

    return {
        "atomic_numbers": graph["atomic_numbers"][:, order],
        "formal_charges": graph["formal_charges"][:, order],
        "atom_mask": graph["atom_mask"][:, order],
        "pair_types": graph["pair_types"][:, order][:, :, order],
        "stereo_pair_types": graph["stereo_pair_types"][:, order][:, :, order],
        "stereo_quadruples": moved(graph["stereo_quadruples"]),
        "torsion_quadruples": moved(graph["torsion_quadruples"]),
    }


class BrokenModel(torch.nn.Module):
    """Reads one absolute coordinate: neither invariant nor equivariant."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def predict_energy(self, positions, **graph):
        output = self.model.predict_energy(positions=positions, **graph)
        output.energy = output.energy + 1e-3 * positions[:, 0, 0]
        return output

    def denoise(self, graph, positions, timesteps):
        return self.model.denoise(graph, positions, timesteps) + 1e-3 * positions * torch.tensor([1.0, 0.0, 0.0])


def test_energy_is_invariant(model, graph):
    assert invariance_error(model, graph) < TOLERANCE


def test_structure_is_equivariant(model, graph):
    assert equivariance_error(model, graph) < TOLERANCE


def test_checkers_catch_a_broken_model(model, graph):
    broken = BrokenModel(model)
    assert invariance_error(broken, graph) > 1e-4
    assert equivariance_error(broken, graph) > 1e-4


def test_denoised_structure_is_centred_and_moves_the_input(model, graph):
    positions = random_positions(graph)
    denoised = denoise(model, graph, positions - positions.mean(1, keepdim=True))
    still = copy.deepcopy(model)
    torch.nn.init.zeros_(still.structure_decoder.displacement.weight)
    assert (denoised - denoise(still, graph, positions - positions.mean(1, keepdim=True))).abs().max() > 1e-2


def test_permutation_of_atoms(model, graph):
    positions = random_positions(graph)
    order = torch.randperm(positions.shape[1], generator=torch.Generator().manual_seed(0))
    other = permuted(graph, order)
    energy = model.predict_energy(**graph, positions=positions)
    permuted_energy = model.predict_energy(**other, positions=positions[:, order])
    torch.testing.assert_close(permuted_energy.energy, energy.energy, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(permuted_energy.forces, energy.forces[:, order], atol=TOLERANCE, rtol=0)
    expected = denoise(model, graph, positions)[:, order]
    torch.testing.assert_close(denoise(model, other, positions[:, order]), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("smiles", [smiles for smiles in SMILES if "@" not in smiles])
def test_no_hand_is_preferred_without_tetrahedral_marks(model, processor, smiles):
    graph = dict(processor([smiles]))
    positions = random_positions(graph)
    mirror = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    expected = denoise(model, graph, positions) * mirror
    torch.testing.assert_close(denoise(model, graph, positions * mirror), expected, atol=TOLERANCE, rtol=0)


def test_marks_tell_mirror_images_apart(model, processor):
    right, left = dict(processor(["C[C@H](N)C(=O)O"])), dict(processor(["C[C@@H](N)C(=O)O"]))
    positions = random_positions(right)
    mirror = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    denoised = denoise(model, right, positions)
    # The other enantiomer in the mirrored world is the same ...
    torch.testing.assert_close(denoise(model, left, positions * mirror), denoised * mirror, atol=TOLERANCE, rtol=0)
    # ... and in the same world it is not.
    assert (denoise(model, left, positions) - denoised).abs().max() > 1e-3
    cis, trans = dict(processor(["F/C=C\\F"])), dict(processor(["F/C=C/F"]))
    positions = random_positions(cis)
    assert (denoise(model, cis, positions) - denoise(model, trans, positions)).abs().max() > 1e-3
    # The energy belongs to the structure, not to the marks.
    for a, b in ((right, left), (cis, trans)):
        positions = random_positions(a)
        assert torch.equal(
            model.predict_energy(**a, positions=positions).energy, model.predict_energy(**b, positions=positions).energy
        )


def test_equivalent_orders_of_a_stereo_mark_are_the_same(model, processor):
    graph = dict(processor(["C[C@H](N)C(=O)O"]))
    positions = random_positions(graph)
    even = dict(graph, stereo_quadruples=graph["stereo_quadruples"][..., [1, 2, 0, 3]])
    odd = dict(graph, stereo_quadruples=graph["stereo_quadruples"][..., [1, 0, 2, 3]])
    expected = denoise(model, graph, positions)
    torch.testing.assert_close(denoise(model, even, positions), expected, atol=TOLERANCE, rtol=0)
    assert (denoise(model, odd, positions) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_results_do_not_depend_on_batch_or_padding(processor, form):
    # float32, as in use; the bound is rounding, since kernels may sum in another order for another shape.
    model = small_model(dtype=torch.float32, initializer_range=0.1, **form)
    graph = dict(processor(SMILES))
    positions = random_positions(graph, dtype=torch.float32)
    together = model.predict_energy(**graph, positions=positions)
    denoised = denoise(model, graph, positions)
    for i, smiles in enumerate(SMILES):
        alone = dict(processor([smiles]))
        n = alone["atomic_numbers"].shape[1]
        energy = model.predict_energy(**alone, positions=positions[i : i + 1, :n])
        torch.testing.assert_close(energy.energy[0], together.energy[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(energy.forces[0], together.forces[i, :n], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            denoise(model, alone, positions[i : i + 1, :n])[0], denoised[i, :n], atol=1e-5, rtol=1e-4
        )
        assert (together.forces[i, n:] == 0).all() and (denoised[i, n:] == 0).all()


@pytest.mark.parametrize("method", ["ddim", "denoising"])
def test_samples_do_not_depend_on_the_batch(processor, method):
    model = small_model(initializer_range=0.1)
    arguments = {"method": method, "num_inference_steps": 5, "num_samples": 2}
    alone = model.predict_structure(
        **processor(SMILES[:1]), **arguments, generator=torch.Generator().manual_seed(0)
    ).positions
    together = model.predict_structure(
        **processor([SMILES[0], "CCCCCO"]), **arguments, generator=torch.Generator().manual_seed(0)
    ).positions
    torch.testing.assert_close(together[:1, :, : alone.shape[2]], alone, atol=1e-9, rtol=0)
    other = model.predict_structure(**processor(SMILES[:1]), **arguments, generator=torch.Generator().manual_seed(1))
    assert (other.positions - alone).abs().max() > 0.1
