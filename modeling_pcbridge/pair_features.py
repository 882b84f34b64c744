"""Per-pair inputs of attention: the graph's pair types and a Gaussian basis of interatomic distances.

Everything a layer needs of a pair is one linear map of these features, at the resolution of attention heads. They and
the map are computed for the T pairs of a `PairLayout` and unfolded to the K that each atom sees, (N, K), afterwards.
These are the largest tensors of the model; the derivatives of the basis are written out, because force training
differentiates it twice and automatic differentiation passes over it about three times as often.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init

from .molecular_graph import NUM_PAIR_TYPES, NUM_STEREO_PAIR_TYPES, PAIR_PADDING
from .pair_layout import PairLayout, Sight, layout_of

# Attention bias of a padded pair: exp(-1e4) is exactly zero in every floating-point format, and fp16 can hold it.
PADDING_BIAS = -1e4
# Inside the square root of distances (square angstrom): keeps second derivatives finite at zero distance.
DISTANCE_EPS = 1e-8
NUM_ELEMENTS = 119
_AFFINE_RANK = 4
# A filter sums few active Gaussians, and attention averages over atoms; initial messages of order one need this.
_FILTER_INIT_SCALE = 10.0
# exp(-60) is nothing beside 1, and unlike exp(-90) no denormal number, with which CPUs are a hundred times slower.
_MIN_EXPONENT = -60.0


class _GaussianBasis(torch.autograd.Function):
    """(B, K, T): exp(-(x - k)^2 / 2), k = 0..K-1, of (B, T) distances x in units of the spacing."""

    @staticmethod
    def forward(distances, num_gaussians):
        squares = _offsets(distances, num_gaussians).square()
        return squares.mul_(-0.5).clamp_(min=_MIN_EXPONENT).exp_()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx, gradient):
        distances, gaussians = ctx.saved_tensors
        return _GaussianBasisGradient.apply(gradient, distances, gaussians), None


class _GaussianBasisGradient(torch.autograd.Function):
    """(B, T): - sum_k gradient_k (x - k) gaussian_k. The dependence of `gaussians` on x counts as one on x."""

    @staticmethod
    def forward(gradient, distances, gaussians):
        slopes = _offsets(distances, gaussians.shape[1]).mul_(gaussians)
        return slopes.mul_(gradient).sum(1).neg_()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, outer):
        gradient, distances, gaussians = ctx.saved_tensors
        offsets = _offsets(distances, gaussians.shape[1])
        of_gradient = of_distances = None
        if ctx.needs_input_grad[1]:
            curvature = torch.addcmul(
                torch.ones((), device=outer.device, dtype=outer.dtype), offsets, offsets, value=-1
            )
            of_distances = curvature.mul_(gaussians).mul_(gradient).sum(1).mul_(outer).neg_()
        if ctx.needs_input_grad[0]:
            of_gradient = offsets.mul_(gaussians).mul_(outer.neg().unsqueeze(1))
        return of_gradient, of_distances, None


def _offsets(distances: Tensor, num_gaussians: int) -> Tensor:
    """(B, K, T): x - k."""
    centres = torch.arange(num_gaussians, dtype=distances.dtype, device=distances.device)
    return distances.unsqueeze(1) - centres.unsqueeze(-1)


def one_hot_types(types: Tensor, num_types: int, dtype: torch.dtype) -> Tensor:
    """(B, num_types, T) indicator of integer `types` (B, T)."""
    codes = torch.arange(num_types, dtype=types.dtype, device=types.device)
    return (types.unsqueeze(1) == codes.unsqueeze(-1)).to(dtype)


class Pairs(NamedTuple):
    """The features of a batch's atom pairs.

    Attributes:
        layout: which pairs the T places stand for.
        types: (B, types, T) one-hot.
        gaussians: (B, K, T), the Gaussian basis of the shifted distances.
        gate: (B, 1, K), what the basis functions are multiplied by; depends on the noise level.
        distances: (B, T), angstrom.
        envelope: (B, 1, N, K), by how much the pairs are seen; None where all are.
    """

    layout: PairLayout
    types: Tensor
    gaussians: Tensor
    gate: Tensor
    distances: Tensor
    envelope: Tensor | None


class PairFeatures(nn.Module):
    """Pair types one-hot, and Gaussians of the distance.

    As in Graphormer-3D the distance enters the Gaussians after an affine map that depends on the pair: here
    d' = (1 + u_i . u_j) d + b_type + w_i . w_j, with u and w by element. Centres are spaced evenly over
    0..`max_distance`, and the width is the spacing.
    """

    def __init__(self, config):
        super().__init__()
        self.num_gaussians = config.num_gaussians
        self.spacing = config.max_distance / max(config.num_gaussians - 1, 1)
        self.element_factors = nn.Embedding(NUM_ELEMENTS, 2 * _AFFINE_RANK)
        self.type_shifts = nn.Parameter(torch.empty(NUM_PAIR_TYPES))
        # A shifted distance needs to know the noise level: how much of it is noise decides how to read it.
        self.time_gate = nn.Linear(config.hidden_size, config.num_gaussians)

    def init_parameters(self) -> None:
        init.zeros_(self.type_shifts)

    def forward(
        self,
        atomic_numbers: Tensor,
        pair_types: Tensor,
        positions: Tensor,
        time_embedding: Tensor,
        sight: Sight | None = None,
    ) -> Pairs:
        """From elements (B, N), pair types (B, N, N), positions (B, N, 3) and time embedding (B, C).

        Pairs out of `sight` are made padding; by default atoms see all.
        """
        # Autocast would round distances to three digits.
        with torch.autocast(positions.device.type, enabled=False):
            layout = layout_of(pair_types, positions, sight)
            distances = (layout.differences(positions).square().sum(-1) + DISTANCE_EPS).sqrt()  # (B, T)
            codes, envelope = layout.take(pair_types), None
            if sight is not None:
                of_pairs = sight.envelope(distances, codes)
                codes = codes * (of_pairs > 0)
                envelope = layout.unfold(of_pairs.unsqueeze(1))
            types = one_hot_types(codes, NUM_PAIR_TYPES, self.type_shifts.dtype)

            scale, shift = self.element_factors(atomic_numbers).chunk(2, dim=-1)
            shifted = distances * (1 + layout.products(scale)) + (self.type_shifts @ types) + layout.products(shift)
            basis = _GaussianBasis.forward if torch.compiler.is_compiling() else _GaussianBasis.apply
            gaussians = basis(shifted / self.spacing, self.num_gaussians)
            gate = 1 + self.time_gate(time_embedding.to(self.time_gate.weight.dtype)).unsqueeze(1)
        return Pairs(layout, types, gaussians.to(types.dtype), gate.to(types.dtype), distances, envelope)


class PairProjection(nn.Module):
    """A linear map of pair features to `num_biases` attention biases and `num_filters` filters, each one head wide.

    Biases are added to attention logits (padded pairs get `PADDING_BIAS`); filters multiply attention weights.
    """

    def __init__(
        self, num_gaussians: int, num_heads: int, num_biases: int, num_filters: int, with_stereo: bool = False
    ):
        super().__init__()
        self.num_heads = num_heads
        self.num_biases = num_biases
        self.num_types = NUM_PAIR_TYPES + (NUM_STEREO_PAIR_TYPES if with_stereo else 0)
        num_features = self.num_types + num_gaussians
        self.bias_weight = nn.Parameter(torch.empty(num_biases * num_heads, num_features))
        self.filter_weight = nn.Parameter(torch.empty(num_filters * num_heads, num_features))

    def init_parameters(self, std: float) -> None:
        init.normal_(self.bias_weight, mean=0.0, std=std)
        init.normal_(self.filter_weight, mean=0.0, std=std * _FILTER_INIT_SCALE)

    def forward(
        self, pairs: Pairs, stereo_types: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The biases and the filters, each (B, H, N, K).

        Args:
            pairs: the features.
            stereo_types: (B, stereo types, T) one-hot, where the projection was made `with_stereo`.
        """
        types = pairs.types if stereo_types is None else torch.cat([pairs.types, stereo_types], dim=1)
        padding = torch.full_like(self.bias_weight[:, :1], PADDING_BIAS)
        bias_weight = torch.cat(
            [self.bias_weight[:, :PAIR_PADDING], padding, self.bias_weight[:, PAIR_PADDING + 1 :]], dim=1
        )
        weight = torch.cat([bias_weight, self.filter_weight])
        of_types = weight[:, : self.num_types] @ types
        # The gate multiplies the weights of a molecule rather than the much larger basis.
        of_distances = (weight[:, self.num_types :] * pairs.gate) @ pairs.gaussians
        maps = pairs.layout.unfold(of_types + of_distances).split(self.num_heads, dim=1)
        return maps[: self.num_biases], maps[self.num_biases :]
