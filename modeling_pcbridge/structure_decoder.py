"""The structure decoder S: SE(3)-equivariant denoised coordinates from encoder features and coordinates (Eq. 6).

Vector features are stored components first, (3, B, N, V); they are half as wide as the scalar features, because each
costs three times as much. Without stereo marks every operation is equivariant under
reflections too, so a graph without marks is not biased to one hand; the marks enter through signed volumes.
"""

import torch
from torch import Tensor, nn

from .attention import FeedForward, attention_weights, merge_heads, split_heads
from .diffusion import centre
from .molecular_graph import NUM_STEREO_PAIR_TYPES
from .pair_features import PairProjection, Pairs, one_hot_types
from .pair_layout import PairLayout

# Signed volumes of real stereocentres are 3 to 9 cubic angstrom.
_VOLUME_SCALES = (1.0, 6.0)
_FILTERS_PER_LAYER = 3
# Trained models stay below 7 on test molecules at every time step.
_LARGEST_VECTOR = 8.0


class StereoUpdate(nn.Module):
    """Lets the four atoms of each tetrahedral stereo mark feel whether, and where to, the mark is violated.

    The signed volume of an ordered quadruple changes sign under reflection and under odd permutations, so it is the
    same for every equivalent order of the neighbours. Its gradient with respect to each corner is a vector along
    which the corner moves towards the right hand.
    """

    def __init__(self, config):
        super().__init__()
        self.sizes = (config.hidden_size, config.vector_size)
        self.mlp = FeedForward(config.hidden_size + len(_VOLUME_SCALES), config.vector_size, sum(self.sizes))

    def forward(self, features: Tensor, positions: Tensor, quadruples: Tensor) -> tuple[Tensor, Tensor]:
        """Updates of node features (B, N, C) and of vector features (3, B, N, V).

        Args:
            features: (B, N, C).
            positions: (B, N, 3), angstrom.
            quadruples: (B, M, 4) atom indices, padded with -1.
        """
        is_real = (quadruples >= 0).flatten(1)
        index = quadruples.clamp(min=0).flatten(1)  # (B, 4M)

        def at_corners(values: Tensor) -> Tensor:
            return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

        a, b, c, d = at_corners(positions).unflatten(1, (-1, 4)).unbind(2)  # (B, M, 3) each
        gradient_b = torch.linalg.cross(c - a, d - a)
        gradient_c = torch.linalg.cross(d - a, b - a)
        gradient_d = torch.linalg.cross(b - a, c - a)
        gradient_a = -(gradient_b + gradient_c + gradient_d)
        volume = ((b - a) * gradient_b).sum(-1, keepdim=True)
        directions = torch.stack([gradient_a, gradient_b, gradient_c, gradient_d], dim=2).flatten(1, 2)
        directions = directions / (1 + directions.square().sum(-1, keepdim=True)).sqrt()

        volumes = torch.cat([torch.tanh(volume / scale) for scale in _VOLUME_SCALES], dim=-1).to(features.dtype)
        corners = torch.cat([at_corners(features), volumes.repeat_interleave(4, dim=1)], dim=-1)
        scalars, gates = (self.mlp(corners) * is_real.unsqueeze(-1)).split(self.sizes, dim=-1)  # (B, 4M, C), (B, 4M, V)

        def add_to_atoms(updates: Tensor) -> Tensor:
            zeros = updates.new_zeros(*features.shape[:2], updates.shape[-1])
            return zeros.scatter_add(1, index.unsqueeze(-1).expand_as(updates), updates)

        vectors = add_to_atoms((directions.unsqueeze(-1) * gates.unsqueeze(2)).flatten(2).to(features.dtype))
        return add_to_atoms(scalars.to(features.dtype)), vectors.unflatten(-1, (3, -1)).movedim(2, 0)


def _bounded(vectors: Tensor) -> Tensor:
    """Vector features (3, B, N, V), scaled down on atoms where they are longer than `_LARGEST_VECTOR` on average.

    Each layer multiplies vectors with vectors, so what lies outside the training data could grow with the powers of it.
    """
    square = vectors.square().sum(0).mean(-1, keepdim=True) / _LARGEST_VECTOR**2
    return vectors * square.clamp(min=1).rsqrt()


class StructureLayer(nn.Module):
    """Attention that passes scalars, relative directions and vectors between atoms, then an update on each atom."""

    def __init__(self, config):
        super().__init__()
        hidden_size, vector_size = config.hidden_size, config.vector_size
        self.num_heads = config.num_attention_heads
        self.norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.direction_values = nn.Linear(hidden_size, vector_size)
        self.vector_values = nn.Linear(vector_size, vector_size, bias=False)
        self.scalar_output = nn.Linear(hidden_size, hidden_size)
        self.vector_output = nn.Linear(2 * vector_size, vector_size, bias=False)
        self.stereo = StereoUpdate(config)
        self.vector_pairs = nn.Linear(vector_size, 2 * vector_size, bias=False)
        self.update_norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.update = FeedForward(hidden_size + vector_size, config.intermediate_size, hidden_size + vector_size)

    def forward(
        self,
        features: Tensor,
        vectors: Tensor,
        positions: Tensor,
        pairs: Pairs,
        inverse_distances: Tensor,
        quadruples: Tensor,
        bias: Tensor,
        filters: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        """One layer on features (B, N, C), vectors (3, B, N, V), inverse distances (B, 1, N, K), zero from i to i."""
        normed = self.norm(features)
        queries, keys, values = split_heads(self.query_key_value(normed), 3 * self.num_heads).chunk(3, dim=-3)
        direction_values = split_heads(self.direction_values(normed), self.num_heads)
        layout = pairs.layout
        attention = attention_weights(layout, queries, keys, bias, pairs.envelope)
        scalar_filter, direction_filter, vector_filter = filters

        scalar_messages = merge_heads(layout.gather_sum(attention * scalar_filter, values))
        direction_messages = self._direction_messages(
            layout, attention * direction_filter * inverse_distances, positions, direction_values
        )
        # The three components of what is carried lie side by side, (B, H, N, 3 d), so that one product serves them.
        carried = split_heads(self.vector_values(vectors), self.num_heads)
        carried = layout.gather_sum(attention * vector_filter, carried.movedim(0, -2).flatten(-2))
        vector_messages = merge_heads(carried.unflatten(-1, (3, -1)).movedim(-2, 0))

        stereo_scalars, stereo_vectors = self.stereo(normed, positions, quadruples)
        features = features + self.scalar_output(scalar_messages) + stereo_scalars
        vectors = vectors + self.vector_output(torch.cat([direction_messages, vector_messages], dim=-1))
        vectors = _bounded(vectors + stereo_vectors)

        first, second = self.vector_pairs(vectors).chunk(2, dim=-1)
        products = (first * second).sum(0)
        updates = self.update(torch.cat([self.update_norm(features), products], dim=-1))
        scalars, gates = updates.split((features.shape[-1], vectors.shape[-1]), dim=-1)
        return features + scalars, _bounded(vectors + gates * second)

    @staticmethod
    def _direction_messages(layout: PairLayout, weights: Tensor, positions: Tensor, values: Tensor) -> Tensor:
        """sum_j weights_ij (x_i - x_j) values_j, (3, B, N, V).

        Expanded into x_i sum_j w_ij v_j - sum_j w_ij x_j v_j, so that no tensor has components, heads and pairs at
        once: one product with values four times as wide. In full precision, as the terms nearly cancel.

        Args:
            layout: which atoms each sees.
            weights: (B, H, N, K).
            positions: (B, N, 3), centred.
            values: (B, H, N, V / H).
        """
        with torch.autocast(weights.device.type, enabled=False):
            positions, dtype = positions.unsqueeze(1).unsqueeze(-1), values.dtype  # (B, 1, N, 3, 1)
            values = values.to(positions.dtype).unsqueeze(-2)
            moments = torch.cat([values, positions * values], dim=-2)  # (B, H, N, 4, V / H)
            moments = layout.gather_sum(weights.to(positions.dtype), moments.flatten(-2)).unflatten(-1, (4, -1))
            messages = positions * moments[..., :1, :] - moments[..., 1:, :]
            return merge_heads(messages.movedim(-2, 0).to(dtype))


class StructureDecoder(nn.Module):
    """Equivariant displacement of every atom, from encoder features and coordinates; its parameters are theta_S."""

    def __init__(self, config):
        super().__init__()
        num_layers = config.num_structure_layers
        self.pair_projection = PairProjection(
            config.num_gaussians,
            config.num_attention_heads,
            num_biases=num_layers,
            num_filters=_FILTERS_PER_LAYER * num_layers,
            with_stereo=True,
        )
        self.layers = nn.ModuleList(StructureLayer(config) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.vector_size = config.vector_size
        self.gate = FeedForward(config.hidden_size, config.hidden_size, config.vector_size)
        self.displacement = nn.Linear(config.vector_size, 1, bias=False)

    def forward(self, graph, features: Tensor, pairs: Pairs, positions: Tensor) -> Tensor:
        """Displacements (B, N, 3), centred, unitless.

        Args:
            graph: the molecular graphs, with stereo marks.
            features: (B, N, C) from the encoder.
            pairs: the features of pairs, from the encoder.
            positions: (B, N, 3), the coordinates that the encoder saw.
        """
        inverse_distances = pairs.distances.reciprocal().masked_fill(pairs.layout.is_self, 0.0).unsqueeze(1)
        inverse_distances = pairs.layout.unfold(inverse_distances)
        stereo_types = pairs.layout.take(graph.stereo_pair_types)
        stereo_types = one_hot_types(stereo_types, NUM_STEREO_PAIR_TYPES, pairs.types.dtype)
        biases, filters = self.pair_projection(pairs, stereo_types)

        vectors = features.new_zeros(3, *features.shape[:2], self.vector_size)
        for number, (layer, bias) in enumerate(zip(self.layers, biases, strict=True)):
            layer_filters = filters[number * _FILTERS_PER_LAYER : (number + 1) * _FILTERS_PER_LAYER]
            features, vectors = layer(
                features, vectors, positions, pairs, inverse_distances, graph.stereo_quadruples, bias, layer_filters
            )
        vectors = vectors * self.gate(self.final_norm(features))
        displacements = self.displacement(vectors).squeeze(-1).movedim(0, -1)
        return centre(displacements.to(positions.dtype), graph.atom_mask)
