"""Multi-head attention pieces shared by the encoder and the structure decoder. Layout (..., H, N, d)."""

import torch
from torch import Tensor, nn


def split_heads(features: Tensor, num_heads: int) -> Tensor:
    """(..., N, H * d) -> (..., H, N, d)."""
    return features.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def merge_heads(features: Tensor) -> Tensor:
    """(..., H, N, d) -> (..., N, H * d)."""
    return features.transpose(-2, -3).flatten(-2)


def attention_weights(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """Softmax over keys of scaled dot products plus `bias`; (B, H, N, N).

    Written out because fused attention has no second derivative, which the force loss needs.
    """
    logits = (queries * queries.shape[-1] ** -0.5) @ keys.mT + bias
    return logits.softmax(dim=-1)


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, filters: Tensor) -> Tensor:
    """Messages (B, H, N, d): `values` summed over keys by softmax weights times `filters` (B, H, N, N)."""
    return (attention_weights(queries, keys, bias) * filters) @ values


def attend_locally(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, filters: Tensor, envelope: Tensor
) -> Tensor:
    """As `attend`, with weights exp(logits) envelope / (sum over keys of the same), as smooth as the envelope.

    What the envelope hides has no part in the messages.

    Args:
        queries, keys, values: (B, H, N, d).
        bias: (B, H, N, N), `PADDING_BIAS` wherever the envelope is zero.
        filters: (B, H, N, N).
        envelope: (B, 1, N, N), 1 from an atom to itself, in at least float32.
    """
    logits = ((queries * queries.shape[-1] ** -0.5) @ keys.mT + bias).to(envelope.dtype)
    # The quotient is the same whatever is subtracted, so the jumps of the maximum do not show. An epsilon below the
    # line would let them show; nothing needs one, since an atom always sees itself.
    with torch.no_grad():
        shift = logits.amax(-1, keepdim=True)
    weights = (logits - shift).exp() * envelope
    messages = (weights * filters).to(values.dtype) @ values
    return messages / weights.sum(-1, keepdim=True).to(messages.dtype)


class FeedForward(nn.Module):
    """Linear, GELU, linear on (..., C)."""

    def __init__(self, input_size: int, intermediate_size: int, output_size: int):
        super().__init__()
        self.up = nn.Linear(input_size, intermediate_size)
        self.activation = nn.GELU(approximate="tanh")
        self.down = nn.Linear(intermediate_size, output_size)

    def forward(self, features: Tensor) -> Tensor:
        return self.down(self.activation(self.up(features)))
