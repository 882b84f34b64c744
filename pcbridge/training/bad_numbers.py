"""Losses and gradients that are NaN or infinite: found without waiting for the device, reported by molecule."""

import torch
from torch import Tensor

from modeling_pcbridge.losses import LossSettings
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel


class BadLossError(RuntimeError):
    """Too many updates in a row had a NaN or infinite loss or gradient."""


def poison_if_bad(loss: Tensor) -> Tensor:
    """`loss`, with NaN gradients if it is not finite, so that every process sees it in the reduced gradient."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def drop_gradients_unless(good: Tensor, model: torch.nn.Module) -> None:
    """Set all gradients to zero where `good`, a scalar bool tensor, is False."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).mul_(good)


def find_bad_molecules(model: PCBridgeModel, batch: dict, molecule_ids: list[str], settings: LossSettings) -> list[str]:
    """Those rows of a batch whose loss is not finite when computed alone."""
    bad = []
    for row, molecule_id in enumerate(molecule_ids):
        single = {key: value[row : row + 1] for key, value in batch.items() if isinstance(value, Tensor)}
        if not model(**single, loss_settings=settings).loss.isfinite():
            bad.append(molecule_id)
    return bad
