"""The shared encoder: a Graphormer over the molecular graph and the interatomic distances (Eq. 6, Appendix B.2)."""

import math

import torch
from torch import Tensor, nn

from .attention import FeedForward, attend, merge_heads, split_heads
from .pair_features import NUM_ELEMENTS, PairFeatures, PairProjection, Pairs
from .pair_layout import Sight
from .resonance import CHARGE_UNITS

# Formal charges -4..4 have an embedding each; larger ones share the last.
_MAX_FORMAL_CHARGE = 4


class TimeEmbedding(nn.Module):
    """Sinusoids of the diffusion time step, then an MLP with GELU; (B,) -> (B, C)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.mlp = FeedForward(2 * (hidden_size // 2), hidden_size, hidden_size)

    def forward(self, timesteps: Tensor) -> Tensor:
        half = self.hidden_size // 2
        # In float32 processors round the angles, up to 1,000, differently, which is 1e-5 angstrom after ten steps.
        exponents = torch.arange(half, device=timesteps.device, dtype=torch.float64) / half
        angles = timesteps.double().unsqueeze(-1) * torch.exp(-math.log(10_000) * exponents)
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.mlp.up.weight.dtype))


class EncoderLayer(nn.Module):
    """Pre-norm attention, whose weights are multiplied by a distance filter, and a feed-forward block."""

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.attention_output = nn.Linear(config.hidden_size, config.hidden_size)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config.hidden_size, config.intermediate_size, config.hidden_size)

    def forward(self, features: Tensor, pairs: Pairs, bias: Tensor, filters: Tensor) -> Tensor:
        queries_keys_values = self.query_key_value(self.attention_norm(features))
        queries, keys, values = split_heads(queries_keys_values, 3 * self.num_heads).chunk(3, dim=-3)
        messages = attend(pairs.layout, queries, keys, values, bias, filters, pairs.envelope)
        features = features + self.attention_output(merge_heads(messages))
        return features + self.feed_forward(self.feed_forward_norm(features))


class PCBridgeEncoder(nn.Module):
    """Invariant node features of a structure at diffusion time t.

    Stereo marks are not an input: energies of mirror images are equal, and E must depend on the structure alone.
    """

    def __init__(self, config):
        super().__init__()
        num_layers = config.num_hidden_layers
        self.charge_units = CHARGE_UNITS if config.resonance_invariant else 1
        self.element_embedding = nn.Embedding(NUM_ELEMENTS, config.hidden_size, padding_idx=0)
        self.charge_embedding = nn.Embedding(2 * _MAX_FORMAL_CHARGE + 1, config.hidden_size)
        self.time_embedding = TimeEmbedding(config.hidden_size)
        self.pair_features = PairFeatures(config)
        self.pair_projection = PairProjection(
            config.num_gaussians, config.num_attention_heads, num_biases=num_layers, num_filters=num_layers
        )
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, graph, positions: Tensor, timesteps: Tensor, sight: Sight | None = None) -> tuple[Tensor, Pairs]:
        """Encode (B, N, 3) positions, in angstrom, at `timesteps` (B,).

        In each layer an atom sees those in `sight` only, so that its features do not depend on how large the rest of
        the molecule is; without, all atoms.

        Returns:
            Node features (B, N, C) and the features of pairs.
        """
        time = self.time_embedding(timesteps)
        features = self.element_embedding(graph.atomic_numbers) + self._of_charges(graph) + time.unsqueeze(1)
        pairs = self.pair_features(graph.atomic_numbers, graph.pair_types, positions, time, sight)
        biases, filters = self.pair_projection(pairs)
        for layer, bias, layer_filter in zip(self.layers, biases, filters, strict=True):
            features = layer(features, pairs, bias, layer_filter)
        return self.final_norm(features), pairs

    def _of_charges(self, graph) -> Tensor:
        """(B, N, C); a share of a charge lies in proportion between the embeddings of the whole ones."""
        largest = _MAX_FORMAL_CHARGE * self.charge_units
        charges = graph.formal_charges.clamp(-largest, largest) + largest
        if self.charge_units == 1:
            return self.charge_embedding(charges)
        below = charges.div(self.charge_units, rounding_mode="floor")
        above = (below + 1).clamp(max=2 * _MAX_FORMAL_CHARGE)
        share = (charges % self.charge_units).unsqueeze(-1).to(self.charge_embedding.weight.dtype) / self.charge_units
        return torch.lerp(self.charge_embedding(below), self.charge_embedding(above), share)
