"""The pair features and their hand-written derivatives against the plain formulas over all (N, N) pairs."""

import torch

from modeling_pcbridge.molecular_graph import NUM_PAIR_TYPES, PAIR_PADDING
from modeling_pcbridge.pair_features import PADDING_BIAS, PairFeatures, _GaussianBasis
from modeling_pcbridge.pair_layout import AllPairs


def test_unfolding_is_the_inverse_of_taking_the_upper_half():
    layout = AllPairs.of(5, torch.device("cpu"))
    square = torch.arange(25.0).view(5, 5)
    square = square + square.mT
    assert torch.equal(layout.unfold(layout.take(square)), square)
    assert (layout.rows <= layout.columns).all() and len(layout.rows) == 15


def test_first_and_second_derivatives_of_unfolding():
    layout = AllPairs.of(4, torch.device("cpu"))
    pairs = torch.randn(2, 3, 10, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(layout.unfold, pairs)
    torch.autograd.gradgradcheck(lambda pairs: layout.unfold(pairs).pow(3), pairs)


def test_first_and_second_derivatives_of_the_gaussian_basis():
    distances = (6 * torch.rand(2, 5, dtype=torch.float64)).requires_grad_()
    torch.autograd.gradcheck(lambda x: _GaussianBasis.apply(x, 7), distances)
    torch.autograd.gradgradcheck(lambda x: _GaussianBasis.apply(x, 7), distances)


def test_features_and_projection_against_the_plain_formula(model, graph):
    """Eq. by eq. over all (N, N) pairs, as the class docstrings state it, with its gradient in the positions."""
    features: PairFeatures = model.encoder.pair_features
    projection = model.encoder.pair_projection
    torch.nn.init.normal_(features.type_shifts, std=0.3)
    numbers, types = graph["atomic_numbers"], graph["pair_types"].long()
    positions = torch.randn(*numbers.shape, 3, dtype=torch.float64, requires_grad=True)
    time = torch.randn(len(numbers), model.config.hidden_size, dtype=torch.float64)

    u, w = features.element_factors(numbers).chunk(2, dim=-1)
    distances = ((positions[:, :, None] - positions[:, None]).square().sum(-1) + 1e-8).sqrt()
    shifted = distances * (1 + u @ u.mT) + features.type_shifts[types] + w @ w.mT
    centres = torch.linspace(0, model.config.max_distance, model.config.num_gaussians, dtype=torch.float64)
    gaussians = torch.exp(-0.5 * ((shifted[..., None] - centres) / centres[1]).square())
    gaussians = gaussians * (1 + features.time_gate(time))[:, None, None]
    weight = torch.cat([projection.bias_weight, projection.filter_weight]).detach().clone()
    weight[: len(projection.bias_weight), PAIR_PADDING] = PADDING_BIAS
    expected = weight[:, :NUM_PAIR_TYPES].mT[types] + gaussians @ weight[:, NUM_PAIR_TYPES:].mT
    expected = expected.movedim(-1, 1)

    biases, filters = projection(features(numbers, graph["pair_types"], positions, time))
    result = torch.cat([*biases, *filters], dim=1)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((result * weights).sum(), positions)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), positions)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-9)
