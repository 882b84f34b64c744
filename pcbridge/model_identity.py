"""What tells a model from another, however it was named."""

import hashlib

import torch

from modeling_pcbridge import PCBridgeModel


def sha256_of(model: PCBridgeModel) -> str:
    """Of the weights and the configuration (hex)."""
    config = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
    digest = hashlib.sha256(repr(sorted(config.items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())  # also of bfloat16
    return digest.hexdigest()
