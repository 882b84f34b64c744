"""Losses and gradients that are NaN or infinite: found without waiting for the device, reported by molecule."""

from collections.abc import Callable

import torch
from torch import Tensor

from modeling_pcbridge.errors import CalculationError
from pcbridge.training.fsdp import local

# Whole numbers of the same size as floating-point ones, by their bytes.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# The masks of a batch that say which rows have a label.
LABEL_MASKS = ("has_energy", "has_forces", "is_equilibrium")


class BadLossError(CalculationError):
    """Too many updates in a row had a NaN or infinite loss or gradient."""


def poison_if_bad(loss: Tensor) -> Tensor:
    """`loss`, with NaN gradients if it is not finite, so that every process sees it in the reduced gradient."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def drop_gradients_unless(good: Tensor, model: torch.nn.Module) -> None:
    """Set all gradients to zero where `good`, a scalar bool tensor, is False; bit for bit as they are where True."""
    gradients = [local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    # One multiplication for all, of their bits: NaN times zero would be NaN.
    bits = [gradient.view(_BITS[gradient.element_size()]) for gradient in gradients]
    torch._foreach_mul_(bits, good.to(bits[0].dtype))


@torch.no_grad()
def find_bad_molecules(loss: Callable[[dict], Tensor], batch: dict, molecule_ids: list[str]) -> list[str]:
    """Those molecules of a batch whose labels alone make its loss NaN or infinite.

    Args:
        loss: of a batch, scalar. It is asked for the whole batch with the labels of some molecules only, so it can use
            the noise and the precision of training; the bad ones are found by halves.
        batch: keyword arguments of `PCBridgeModel.forward`.
        molecule_ids: of its rows.
    """
    is_some = torch.zeros(len(molecule_ids), dtype=torch.bool, device=batch["positions"].device)

    def bad_among(rows: range) -> list[str]:
        is_some.zero_()[rows.start : rows.stop] = True
        if loss(batch | {mask: batch[mask] & is_some for mask in LABEL_MASKS}).isfinite():
            return []
        if len(rows) == 1:
            return [molecule_ids[rows.start]]
        middle = len(rows) // 2
        return bad_among(rows[:middle]) + bad_among(rows[middle:])

    return bad_among(range(len(molecule_ids)))
