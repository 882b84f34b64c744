"""Multi-head attention pieces shared by the encoder and the structure decoder. Layout (..., H, N, d)."""

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


class FeedForward(nn.Module):
    """Linear, GELU, linear on (..., C)."""

    def __init__(self, input_size: int, intermediate_size: int, output_size: int):
        super().__init__()
        self.up = nn.Linear(input_size, intermediate_size)
        self.activation = nn.GELU(approximate="tanh")
        self.down = nn.Linear(intermediate_size, output_size)

    def forward(self, features: Tensor) -> Tensor:
        return self.down(self.activation(self.up(features)))
