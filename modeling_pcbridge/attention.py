"""Multi-head attention pieces shared by the encoder and the structure decoder. Layout (..., H, N, d)."""

import torch
from torch import Tensor, nn

from .pair_layout import PairLayout


def split_heads(features: Tensor, num_heads: int) -> Tensor:
    """(..., N, H * d) -> (..., H, N, d)."""
    return features.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def merge_heads(features: Tensor) -> Tensor:
    """(..., H, N, d) -> (..., N, H * d)."""
    return features.transpose(-2, -3).flatten(-2)


def attention_weights(
    layout: PairLayout, queries: Tensor, keys: Tensor, bias: Tensor, envelope: Tensor | None = None
) -> Tensor:
    """How much each atom attends to those it sees, (B, H, N, K): softmax of scaled dot products plus `bias`.

    With an `envelope` (B, 1, N, K) as in `attend`. Written out because fused attention has no second derivative, which
    the force loss needs.
    """
    if envelope is None:
        return _logits(layout, queries, keys, bias).softmax(dim=-1)
    weights, total = _enveloped(_logits(layout, queries, keys, bias), envelope)
    return (weights / total).to(queries.dtype)


def attend(
    layout: PairLayout,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor,
    filters: Tensor,
    envelope: Tensor | None = None,
) -> Tensor:
    """Messages (B, H, N, d): the values an atom sees, summed by attention weights times filters.

    With an envelope the weights are exp(logits) envelope / (sum over keys of the same), as smooth as the envelope, and
    what it hides has no part in the messages.

    Args:
        layout: which atoms each sees.
        queries, keys, values: (B, H, N, d).
        bias: (B, H, N, K), `PADDING_BIAS` wherever the envelope is zero.
        filters: (B, H, N, K).
        envelope: (B, 1, N, K), 1 from an atom to itself, in at least float32.
    """
    if envelope is None:
        return layout.gather_sum(attention_weights(layout, queries, keys, bias) * filters, values)
    weights, total = _enveloped(_logits(layout, queries, keys, bias), envelope)
    messages = layout.gather_sum((weights * filters).to(values.dtype), values)
    return messages / total.to(messages.dtype)


def _logits(layout: PairLayout, queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    return layout.scores(queries * queries.shape[-1] ** -0.5, keys) + bias


def _enveloped(logits: Tensor, envelope: Tensor) -> tuple[Tensor, Tensor]:
    """exp(logits) times the envelope, but for a factor, and its sum over keys."""
    logits = logits.to(envelope.dtype)
    # The quotient is the same whatever is subtracted, so the jumps of the maximum do not show. An epsilon below the
    # line would let them show; nothing needs one, since an atom always sees itself.
    with torch.no_grad():
        shift = logits.amax(-1, keepdim=True)
    weights = (logits - shift).exp() * envelope
    return weights, weights.sum(-1, keepdim=True)


class FeedForward(nn.Module):
    """Linear, GELU, linear on (..., C)."""

    def __init__(self, input_size: int, intermediate_size: int, output_size: int):
        super().__init__()
        self.up = nn.Linear(input_size, intermediate_size)
        self.activation = nn.GELU(approximate="tanh")
        self.down = nn.Linear(intermediate_size, output_size)

    def forward(self, features: Tensor) -> Tensor:
        return self.down(self.activation(self.up(features)))
