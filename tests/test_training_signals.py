"""What each loss may and may not move, on real rows of the bundled data."""

import math

import numpy as np
import pytest
import torch
from conftest import bundled_examples, small_model

from dataset_scripts.collator import collate
from modeling_pcbridge import LossSettings
from modeling_pcbridge.diffusion import centre
from modeling_pcbridge.graph_batch import GRAPH_KEYS, GraphBatch
from modeling_pcbridge.losses import LOSS_NAMES


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_batch_has_every_kind_of_row(batch):
    assert batch["has_energy"].tolist() == batch["has_forces"].tolist() == [True] * 8 + [False] * 4
    assert batch["is_equilibrium"].tolist() == [False] * 4 + [True] * 8
    assert batch["label_rows"] == (slice(0, 8), slice(4, 12))


@pytest.mark.parametrize(
    "settings",
    [
        LossSettings().only(optimality_weight=0.1, score_weight=1.0),
        LossSettings(score_form="denoised").only(optimality_weight=0.1, score_weight=1.0),
        LossSettings().only(optimality_weight=0.1, distillation_weight=1.0),
    ],
    ids=["noisy", "denoised", "distillation"],
)
def test_consistency_losses_move_only_the_structure_decoder(batch, settings):
    model = small_model(dtype=torch.float32).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model(**batch, loss_settings=settings, generator=generator()).loss.backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("structure_decoder.") for name in moved)
    outside = [name for name, p in model.named_parameters() if not name.startswith("structure_decoder.")]
    assert all(model.get_parameter(name).grad is None for name in outside)


def test_relaxed_structures_may_train_the_encoder_but_never_the_energy_decoder(batch):
    model = small_model(dtype=torch.float32).train()
    settings = LossSettings(distillation_trains_encoder=True).only(distillation_weight=1.0)
    model(**batch, loss_settings=settings, generator=generator()).loss.backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"encoder", "structure_decoder"}


def test_relaxing_goes_downhill_and_turns_with_the_molecule(batch):
    model = small_model(dtype=torch.float64)
    graph = GraphBatch(**{key: batch[key] for key in GRAPH_KEYS})
    start = centre(batch["positions"].double(), graph.atom_mask)
    energy, _ = model.energy_and_forces(graph, start)
    one_step = model.quasi_newton_steps(graph, start, 1)
    # The direction is downhill for any E; how far is right for molecules, not for an untrained E.
    slightly = start + 1e-3 * (one_step - start)
    assert (model.energy_and_forces(graph, slightly)[0] < energy).all()
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator()))[0]
    turned = model.quasi_newton_steps(graph, start @ rotation.mT, 2)
    torch.testing.assert_close(turned, model.quasi_newton_steps(graph, start, 2) @ rotation.mT, rtol=0, atol=1e-5)


def test_optimality_gradient_arrives_through_the_energy(batch):
    """Descending along the gradient lowers E(R_pred); with a constant energy there is no gradient."""
    model = small_model(dtype=torch.float64).train()
    settings = LossSettings().only(optimality_weight=1.0)

    def loss_of_model():
        return model(**batch, loss_settings=settings, generator=generator()).loss

    loss = loss_of_model()
    loss.backward()
    assert loss.item() > 0
    weight = model.structure_decoder.displacement.weight
    gradient = weight.grad.clone()
    assert gradient.abs().max() > 0
    index = gradient.abs().argmax()
    values = []
    with torch.no_grad():
        for shift in (1e-6, -1e-6):
            weight.flatten()[index] += shift
            values.append(loss_of_model().item())
            weight.flatten()[index] -= shift
    assert gradient.flatten()[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)

    torch.nn.init.zeros_(model.energy_decoder.mlp.down.weight)
    model.zero_grad()
    loss_of_model().backward()
    assert weight.grad.abs().max() == 0


def test_force_loss_moves_the_energy_model_and_not_the_structure_decoder(batch):
    model = small_model(dtype=torch.float32).train()
    model(**batch, loss_settings=LossSettings().only(force_weight=1.0)).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert any(name.startswith("encoder.") for name in with_gradient)
    assert any(name.startswith("energy_decoder.") for name in with_gradient)
    assert not any(name.startswith("structure_decoder.") for name in with_gradient)


def test_structures_that_are_no_minima_do_not_train_the_structure_decoder():
    model = small_model(dtype=torch.float32).train()
    batch = collate(bundled_examples("pm6_displaced", "train", 4))
    output = model(**batch, loss_settings=LossSettings(force_weight=1.0, optimality_weight=1.0, score_weight=1.0))
    assert output.denoising_loss == 0 and output.score_consistency_loss == 0
    assert output.optimality_consistency_loss == 0
    output.loss.backward()
    gradients = [p.grad for p in model.structure_decoder.parameters()]
    assert all(g is None or g.abs().max() == 0 for g in gradients)


def test_absent_labels_contribute_nothing(batch):
    """The mean over labelled rows is that of the labelled rows alone, in loss and gradient."""
    model = small_model(dtype=torch.float64).train()
    settings = LossSettings().only(energy_weight=1.0, force_weight=1.0)
    rows = torch.arange(12) < 8
    labelled = {k: v[rows] for k, v in batch.items() if isinstance(v, torch.Tensor)}
    everything = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
    gradients = []
    for inputs in (everything, labelled, batch):
        model.zero_grad()
        output = model(**inputs, loss_settings=settings)
        output.loss.backward()
        gradients.append((output.loss.item(), model.encoder.pair_projection.filter_weight.grad.clone()))
    for loss, gradient in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-12)
        torch.testing.assert_close(gradient, gradients[0][1], rtol=1e-9, atol=1e-12)
    # Counted, the zeros in place of absent labels would be seen.
    counted = everything | {"has_energy": torch.ones_like(everything["has_energy"])}
    assert abs(model(**counted, loss_settings=settings).loss.item() - gradients[0][0]) > 1.0


def test_the_loss_is_the_weighted_sum_of_its_terms(batch):
    model = small_model(dtype=torch.float64).train()
    settings = LossSettings(2.0, 0.5, 3.0, optimality_weight=0.1, score_weight=0.2, distillation_weight=0.3)
    output = model(**batch, loss_settings=settings, generator=generator())
    terms = [getattr(output, name).item() for name in LOSS_NAMES.values()]
    weights = [getattr(settings, name) for name in LOSS_NAMES]
    assert set(LOSS_NAMES) == set(settings.weights()) and min(terms) > 0
    assert output.loss.item() == pytest.approx(np.dot(weights, terms))


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_losses_come_with_the_energies_and_forces_they_compare(batch, context):
    """As metrics of transformers' Trainer need them, which evaluates under no_grad."""
    model = small_model(dtype=torch.float64)
    with context():
        output = model(**batch, loss_settings=LossSettings().only(energy_weight=1.0, force_weight=1.0))
    graph = {name: batch[name] for name in GRAPH_KEYS}
    expected = model.predict_energy(**graph, positions=batch["positions"])
    labelled = slice(0, 8)
    torch.testing.assert_close(output.energy[labelled], expected.energy[labelled], rtol=0, atol=1e-9)
    assert output.energy[8:].isnan().all()
    torch.testing.assert_close(output.forces[labelled], expected.forces[labelled], rtol=0, atol=1e-12)
    assert not output.energy.requires_grad and not output.forces.requires_grad
    errors = (expected.energy - batch["energy"])[labelled].abs().mean()
    assert output.energy_loss.item() == pytest.approx(errors.item())


def test_total_energy_is_exact_despite_float32(processor):
    """Reference energies of thousands of eV must not round what the network adds."""
    model = small_model(dtype=torch.float32, initializer_range=0.1)
    inputs = dict(processor([([8, 1, 1], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], 0)]))
    interaction = model.predict_energy(**inputs).energy.item()
    model.energy_decoder.reference_energies.energies[[1, 8]] = torch.tensor([-16.5, -2046.123456789]).double()
    total = model.predict_energy(**inputs).energy
    expected = torch.tensor(-2046.123456789, dtype=torch.float32).double().item() - 33.0 + interaction
    assert total.dtype == torch.float64 and math.isclose(total.item(), expected, abs_tol=1e-9)
