"""Per-pair inputs of attention: the graph's pair types and a Gaussian basis of interatomic distances.

Everything a layer needs of a pair is one linear map of these features, at the resolution of attention heads. The
features are symmetric, so they and the map are computed for the T = N (N + 1) / 2 pairs i <= j only and unfolded to
(N, N) afterwards. These are the largest tensors of the model; their derivatives are written out, because force
training differentiates them twice and automatic differentiation passes over them about three times as often.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init

from .molecular_graph import NUM_PAIR_TYPES, NUM_STEREO_PAIR_TYPES, PAIR_PADDING

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


class Triangle(NamedTuple):
    """Where the T pairs i <= j of N atoms lie: pair (i, j) is number j (j + 1) / 2 + i, whatever N is.

    Attributes:
        rows, columns: (T,) i and j.
        places: (N, N) number of pair (i, j), or (j, i).
    """

    rows: Tensor
    columns: Tensor
    places: Tensor

    @classmethod
    def of(cls, num_atoms: int, device: torch.device) -> "Triangle":
        # Not torch.triu_indices, for which torch.compile would compile every number of atoms anew.
        numbers = torch.arange(num_atoms * (num_atoms + 1) // 2, device=device)
        columns = (((8 * numbers + 1).double().sqrt() - 1) / 2).long()
        atoms = torch.arange(num_atoms, device=device)
        smaller, larger = torch.minimum(atoms[:, None], atoms), torch.maximum(atoms[:, None], atoms)
        return cls(numbers - columns * (columns + 1) // 2, columns, larger * (larger + 1) // 2 + smaller)

    def take(self, square: Tensor) -> Tensor:
        """(..., N, N) -> (..., T)."""
        return _gather_last(square.flatten(-2), self.rows * square.shape[-1] + self.columns)

    def unfold(self, pairs: Tensor) -> Tensor:
        """(..., T) -> (..., N, N), symmetric."""
        # The compiler derives and fuses plain operations itself.
        unfold = _Unfold.forward if torch.compiler.is_compiling() else _Unfold.apply
        return unfold(pairs, *self)


def _gather_last(values: Tensor, index: Tensor) -> Tensor:
    """`values[..., index]` for 1-D `index`; on CPUs `gather` is more than twice as fast as indexing."""
    return values.gather(-1, index.expand(*values.shape[:-1], -1))


class _Unfold(torch.autograd.Function):
    """Copies pairs i <= j to both halves of a symmetric matrix. Linear; `_Fold` is its transpose."""

    @staticmethod
    def forward(pairs, rows, columns, places):
        return _gather_last(pairs, places.flatten()).unflatten(-1, places.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, gradient):
        return _Fold.apply(gradient, *ctx.saved_tensors), None, None, None


class _Fold(torch.autograd.Function):
    """Adds the two halves of a matrix: (..., N, N) -> (..., T)."""

    @staticmethod
    def forward(square, rows, columns, places):
        upper = Triangle(rows, columns, places).take(square)
        lower = Triangle(columns, rows, places).take(square)
        return upper.add_(lower.mul_((rows != columns).to(lower.dtype)))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, gradient):
        return _Unfold.apply(gradient, *ctx.saved_tensors), None, None, None


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
        triangle: which pairs the T places stand for.
        types: (B, types, T) one-hot.
        gaussians: (B, K, T), the Gaussian basis of the shifted distances.
        gate: (B, 1, K), what the basis functions are multiplied by; depends on the noise level.
        distances: (B, T), angstrom.
    """

    triangle: Triangle
    types: Tensor
    gaussians: Tensor
    gate: Tensor
    distances: Tensor

    def within(self, cutoff: float) -> tuple["Pairs", Tensor]:
        """These features with pairs beyond `cutoff` (angstrom) made padding, and the `envelope`, (B, 1, N, N)."""
        envelope = smooth_envelope(self.distances / cutoff)
        is_near = (envelope > 0).to(self.types.dtype).unsqueeze(1)
        padding = torch.zeros_like(self.types[:1, :, :1])
        padding[:, PAIR_PADDING] = 1
        types = torch.lerp(padding, self.types, is_near)
        return self._replace(types=types), self.triangle.unfold(envelope.unsqueeze(1))


def smooth_envelope(x: Tensor) -> Tensor:
    """1 - 10 x^3 + 15 x^4 - 6 x^5 for x >= 0, and 0 from x = 1 on; two derivatives are zero at either end.

    Factorised, as the sum of powers rounds to less than zero near 1.
    """
    x = x.clamp(max=1)
    return (1 - x).pow(3) * (1 + x * (3 + 6 * x))


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

    def forward(self, atomic_numbers: Tensor, pair_types: Tensor, positions: Tensor, time_embedding: Tensor) -> Pairs:
        """From elements (B, N), pair types (B, N, N), positions (B, N, 3) and time embedding (B, C)."""
        # Autocast would round distances to three digits.
        with torch.autocast(positions.device.type, enabled=False):
            triangle = Triangle.of(atomic_numbers.shape[1], positions.device)
            differences = positions.index_select(1, triangle.rows) - positions.index_select(1, triangle.columns)
            distances = (differences.square().sum(-1) + DISTANCE_EPS).sqrt()  # (B, T)
            types = one_hot_types(triangle.take(pair_types), NUM_PAIR_TYPES, self.type_shifts.dtype)

            scale, shift = self.element_factors(atomic_numbers).chunk(2, dim=-1)
            shifts = (self.type_shifts @ types) + triangle.take(shift @ shift.mT)
            shifted = distances * (1 + triangle.take(scale @ scale.mT)) + shifts
            basis = _GaussianBasis.forward if torch.compiler.is_compiling() else _GaussianBasis.apply
            gaussians = basis(shifted / self.spacing, self.num_gaussians)
            gate = 1 + self.time_gate(time_embedding.to(self.time_gate.weight.dtype)).unsqueeze(1)
        return Pairs(triangle, types, gaussians.to(types.dtype), gate.to(types.dtype), distances)


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
        """The biases and the filters, each (B, H, N, N).

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
        maps = pairs.triangle.unfold(of_types + of_distances).split(self.num_heads, dim=1)
        return maps[: self.num_biases], maps[self.num_biases :]
