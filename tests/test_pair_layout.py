"""Lists of neighbours give what all pairs give, with derivatives, and cost in proportion to the molecule."""

import pytest
import torch
from conftest import FORMS, random_positions, small_model
from rdkit import Chem

from modeling_pcbridge import LossSettings
from modeling_pcbridge.graph_batch import GraphBatch
from modeling_pcbridge.molecular_graph import PAIR_PADDING
from modeling_pcbridge.pair_layout import AllPairs, NeighbourLists, Sight, layout_of

LOCAL = {**FORMS["extensive"], "structure_cutoff": 3.0}


@pytest.fixture
def chains(processor):
    """Positions and graph of an extended alkane of some carbons."""

    def chain(num_carbons: int) -> tuple[dict, torch.Tensor]:
        mol = Chem.AddHs(Chem.MolFromSmiles("C" * num_carbons))
        atoms = torch.arange(num_carbons, dtype=torch.float64)
        carbons = torch.stack([1.27 * atoms, 0.42 * (-1) ** atoms, 0 * atoms], dim=-1)
        parents = torch.tensor([atom.GetNeighbors()[0].GetIdx() for atom in mol.GetAtoms()][num_carbons:])
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(len(parents), 3, generator=generator, dtype=torch.float64)
        hydrogens = carbons[parents] + directions / directions.norm(dim=-1, keepdim=True)
        return dict(processor([mol])), torch.cat([carbons, hydrogens])[None]

    return chain


def test_lists_give_what_all_pairs_give(use_layout, graph):
    """Energies, forces, denoised structures, and the gradient of every loss in the parameters, of padded batches."""
    model = small_model(**LOCAL)
    positions = random_positions(graph)
    settings = LossSettings(optimality_weight=0.1, score_weight=1.0, distillation_weight=0.1, relaxation_steps=2)
    labels = {
        "energy": torch.ones(len(positions), dtype=torch.float64),
        "forces": torch.zeros_like(positions),
        "is_equilibrium": torch.ones(len(positions), dtype=torch.bool),
    }
    results = []
    for layout in (AllPairs, NeighbourLists):
        use_layout(layout)
        output = model.predict_energy(**graph, positions=positions)
        timesteps = torch.tensor([1, 10, 100, 200, 400, 700, 1000])
        denoised = model.denoise(GraphBatch(**graph), positions, timesteps)
        model.zero_grad()
        generator = torch.Generator().manual_seed(0)
        loss = model(**graph, positions=positions, **labels, loss_settings=settings, generator=generator).loss
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        results.append([output.energy, output.forces, denoised, loss, *gradients])
    assert len(results[0]) > 40
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8 * one.abs().max().item())
    use_layout(AllPairs)
    everything = small_model(**{**LOCAL, "structure_cutoff": None}).denoise(GraphBatch(**graph), positions, timesteps)
    assert (everything - results[0][2]).abs().max() > 1e-3  # the check can fail


def test_who_is_seen(processor):
    """By the definition, one pair at a time; with padding, and an atom beyond the cutoff that is three bonds away."""
    graph = dict(processor(["CCCCO", "O"]))
    positions = random_positions(graph)
    sight = Sight(2.5, num_bonds=3)
    lists = NeighbourLists.of(graph["pair_types"], positions, sight)
    distances = torch.cdist(positions, positions)
    joined_far = 0
    for row, mol in enumerate(Chem.AddHs(Chem.MolFromSmiles(smiles)) for smiles in ("CCCCO", "O")):
        paths = Chem.GetDistanceMatrix(mol)
        for i in range(mol.GetNumAtoms()):
            near = distances[row, i] < sight.cutoff
            expected = [j for j in range(mol.GetNumAtoms()) if near[j] or paths[i, j] <= 3]
            joined_far += sum(not near[j] for j in expected)
            assert lists.neighbours[row, i][lists.is_real[row, i]].tolist() == expected
    assert joined_far > 10
    padding = ~graph["atom_mask"]
    assert (lists.is_real.sum(-1)[padding] == 1).all() and padding.any()


def test_structures_are_denoised_without_what_is_out_of_sight(chains, use_layout):
    """One layer of 3 angstrom, or three bonds, each in encoder and decoder."""
    use_layout(NeighbourLists)
    model = small_model(**LOCAL, num_hidden_layers=1, num_structure_layers=1)
    inputs, positions = chains(40)
    graph, timesteps = GraphBatch(**inputs), torch.tensor([20])

    def displacements(positions: torch.Tensor) -> torch.Tensor:
        features, pairs = model.encoder(graph, positions, timesteps, Sight(3.0, 3))
        moved = model.structure_decoder(graph, features, pairs, positions)
        return moved - moved[:, 20]  # a common shift is what centring leaves

    moved = positions.clone()
    moved[0, 0] += torch.tensor([0.3, -0.2, 0.1])
    difference = (displacements(moved) - displacements(positions)).norm(dim=-1)[0]
    reach = (positions[0, :, 0] - positions[0, 0, 0]).abs()
    assert difference[reach < 2].max() > 1e-4 and difference[reach > 12].max() < 1e-10


@pytest.mark.parametrize("layout", [AllPairs, NeighbourLists])
def test_denoising_turns_with_the_molecule_and_is_continuous_across_the_cutoff(chains, use_layout, layout):
    use_layout(layout)
    model = small_model(**LOCAL)
    inputs, positions = chains(10)
    graph, timesteps = GraphBatch(**inputs), torch.tensor([20])
    positions = positions - positions.mean(1)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    turned = model.denoise(graph, positions @ rotation, timesteps)
    torch.testing.assert_close(turned, model.denoise(graph, positions, timesteps) @ rotation, rtol=0, atol=1e-9)

    cutoff = torch.cdist(positions, positions)[0, 0, 9].item()  # the two ends of the chain are exactly there
    model.config.structure_cutoff = cutoff
    step = torch.zeros_like(positions)
    step[0, 9, 0] = 1e-6
    across = model.denoise(graph, positions + step, timesteps) - model.denoise(graph, positions - step, timesteps)
    assert across.abs().max() < 1e-4


def test_memory_grows_with_the_molecule_not_with_its_square(chains):
    """What autograd keeps of energies with forces and of a denoising, at the sizes where lists are chosen."""
    model = small_model(**LOCAL)
    kept = {}
    for num_carbons in (60, 120):
        inputs, positions = chains(num_carbons)
        graph, sizes = GraphBatch(**inputs), []

        def keep(tensor: torch.Tensor, sizes: list = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.interaction_energy_and_gradient(graph, positions)
            model.denoise(graph, positions, torch.tensor([20]))
        kept[num_carbons] = sum(sizes)
    assert 1.8 < kept[120] / kept[60] < 2.1


def test_all_pairs_where_they_are_faster_or_must_be(chains, monkeypatch):
    small, large = chains(10), chains(60)

    def chosen(inputs: dict, positions: torch.Tensor, cutoff: float | None = 5.0) -> type:
        return type(layout_of(inputs["pair_types"], positions, None if cutoff is None else Sight(cutoff)))

    assert chosen(*small) is AllPairs
    assert chosen(*large) is NeighbourLists
    assert chosen(*large, cutoff=None) is AllPairs
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert chosen(*large) is AllPairs


def test_sums_over_lists_have_derivatives_to_second_order():
    """Products with keys and sums of values, where some atoms see fewer than others."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    layout = NeighbourLists.of(torch.full((2, 5, 5), PAIR_PADDING + 1), positions, Sight(2.5))
    assert 0 < layout.is_real.sum() < layout.is_real.numel()
    size = layout.neighbours.shape[-1]

    def random(num: int) -> torch.Tensor:
        return torch.randn(2, 2, 5, num, generator=generator, dtype=torch.float64, requires_grad=True)

    for function, inputs in ((layout.scores, (random(4), random(4))), (layout.gather_sum, (random(size), random(4)))):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
