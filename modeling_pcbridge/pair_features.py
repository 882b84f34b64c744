"""Per-pair inputs of attention: the graph's pair types and a Gaussian basis of interatomic distances.

Everything a layer needs of a pair is one linear map of these features, at the resolution of attention heads, so the
heavy work is a single matrix product (rows x features) @ (features x pairs).
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .molecular_graph import NUM_PAIR_TYPES, PAIR_PADDING

# Attention bias of a padded pair: exp(-1e4) is exactly zero in every floating-point format, and fp16 can hold it.
PADDING_BIAS = -1e4
# Inside the square root of distances (square angstrom): keeps second derivatives finite at zero distance.
DISTANCE_EPS = 1e-8
NUM_ELEMENTS = 119
_AFFINE_RANK = 4
# A filter sums few active Gaussians, and attention averages over atoms; initial messages of order one need this.
_FILTER_INIT_SCALE = 10.0


def one_hot_types(types: Tensor, num_types: int, dtype: torch.dtype) -> Tensor:
    """(num_types, B, N, N) indicator of integer `types` (B, N, N)."""
    codes = torch.arange(num_types, dtype=types.dtype, device=types.device)
    return (types.unsqueeze(0) == codes.view(-1, 1, 1, 1)).to(dtype)


def num_pair_features(config) -> int:
    """Rows of the pair features: one a pair type, one a Gaussian."""
    return NUM_PAIR_TYPES + config.num_gaussians


class PairFeatures(nn.Module):
    """Features of atom pairs, (features, B, N, N): pair types one-hot, then time-gated Gaussians of the distance.

    As in Graphormer-3D the distance enters the Gaussians after an affine map that depends on the pair: here
    d' = (1 + u_i . u_j) d + b_type + w_i . w_j, with u and w by element.
    """

    def __init__(self, config):
        super().__init__()
        self.num_gaussians = config.num_gaussians
        self.max_distance = config.max_distance
        self.means = nn.Parameter(torch.empty(config.num_gaussians))
        self.log_widths = nn.Parameter(torch.empty(config.num_gaussians))
        self.element_factors = nn.Embedding(NUM_ELEMENTS, 2 * _AFFINE_RANK)
        self.type_shifts = nn.Parameter(torch.empty(NUM_PAIR_TYPES))
        # A shifted distance needs to know the noise level: how much of it is noise decides how to read it.
        self.time_gate = nn.Linear(config.hidden_size, config.num_gaussians)

    def init_parameters(self) -> None:
        spacing = self.max_distance / max(self.num_gaussians - 1, 1)
        init.copy_(self.means, torch.linspace(0.0, self.max_distance, self.num_gaussians, device="cpu"))
        init.constant_(self.log_widths, float(torch.tensor(spacing, device="cpu").log()))
        init.zeros_(self.type_shifts)

    def forward(self, atomic_numbers: Tensor, pair_types: Tensor, positions: Tensor, time_embedding: Tensor) -> Tensor:
        """(F, B, N, N) from elements (B, N), pair types (B, N, N), positions (B, N, 3), time embedding (B, C)."""
        x, y, z = positions.unbind(-1)
        squared = sum((c.unsqueeze(-1) - c.unsqueeze(-2)).square() for c in (x, y, z))
        distances = (squared + DISTANCE_EPS).sqrt()
        types = one_hot_types(pair_types, NUM_PAIR_TYPES, self.means.dtype)

        scale, shift = self.element_factors(atomic_numbers).chunk(2, dim=-1)
        type_shift = (self.type_shifts @ types.flatten(1)).view_as(distances)
        distances = distances * (1 + scale @ scale.mT) + type_shift + shift @ shift.mT

        inverse_width = torch.exp(-self.log_widths).view(-1, 1, 1, 1)
        gaussians = torch.exp(-0.5 * ((distances.unsqueeze(0) - self.means.view(-1, 1, 1, 1)) * inverse_width).square())
        gate = 1 + self.time_gate(time_embedding).mT[..., None, None]  # (K, B, 1, 1)
        return torch.cat([types, gaussians.to(types.dtype) * gate.to(types.dtype)])


class PairProjection(nn.Module):
    """A linear map of pair features to `num_maps` attention biases and `num_filters` filters, each a head wide.

    Biases are added to attention logits (padded pairs get `PADDING_BIAS`); filters multiply attention weights.
    """

    def __init__(self, num_features: int, num_heads: int, num_biases: int, num_filters: int):
        super().__init__()
        self.num_heads = num_heads
        self.num_biases = num_biases
        self.bias_weight = nn.Parameter(torch.empty(num_biases * num_heads, num_features))
        self.filter_weight = nn.Parameter(torch.empty(num_filters * num_heads, num_features))

    def init_parameters(self, std: float) -> None:
        init.normal_(self.bias_weight, mean=0.0, std=std)
        init.normal_(self.filter_weight, mean=0.0, std=std * _FILTER_INIT_SCALE)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Biases (num_biases, H, B, N, N) and filters (num_filters, H, B, N, N) from (F, B, N, N)."""
        padding = torch.full_like(self.bias_weight[:, :1], PADDING_BIAS)
        after = self.bias_weight[:, PAIR_PADDING + 1 :]
        bias_weight = torch.cat([self.bias_weight[:, :PAIR_PADDING], padding, after], dim=1)
        projected = torch.cat([bias_weight, self.filter_weight]) @ features.flatten(1)
        projected = projected.view(-1, self.num_heads, *features.shape[1:])
        return projected[: self.num_biases], projected[self.num_biases :]
