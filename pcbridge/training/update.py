"""One optimiser update: its micro-batches on every process, their losses, gradients and norms."""

from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from modeling_pcbridge.losses import LOSS_NAMES, LossSettings
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from pcbridge.training.bad_numbers import LABEL_MASKS, drop_gradients_unless, poison_if_bad
from pcbridge.training.config import StageConfig, TrainingConfig
from pcbridge.training.cuda_graphs import CapturedPasses
from pcbridge.training.deepspeed_zero import average_gradients
from pcbridge.training.fsdp import gathered, whole

# The losses in the record of an update, by their names in the model's output.
LOSSES = ("loss", *LOSS_NAMES.values())
BLOCKS = ("encoder", "energy_decoder", "structure_decoder")
RECORD_NAMES = (
    *LOSSES,
    "padded_share",
    "gradient_norm",
    *(f"gradient_norm_{block}" for block in BLOCKS),
)


class UpdateValues(NamedTuple):
    """What an update tells, on the device.

    Attributes:
        record: (len(RECORD_NAMES),) this process's share, so that the sum over processes is the value of the update.
        good: scalar bool, whether its loss and gradient were finite; else the gradient counted as zero.
    """

    record: Tensor
    good: Tensor


# A batch, and the ids of its molecules. A micro-batch comes in parts if it would be too large in one.
Part = tuple[dict, list[str]]
MicroBatch = list[Part]


def count_labels(batches: list[dict], accelerator: Accelerator) -> dict[str, Tensor]:
    """Labels of each kind in `batches` on all processes, as scalar tensors."""
    counts = torch.zeros(3, device=accelerator.device)
    for batch in batches:
        counts += torch.stack([batch[mask].sum() for mask in LABEL_MASKS]).to(accelerator.device)
    energy, forces, equilibrium = accelerator.reduce(counts, reduction="sum")
    return {"energy": energy, "forces": forces, "equilibrium": equilibrium}


class Place(NamedTuple):
    """Where a part of a batch stands in a run, whatever the number of processes.

    Attributes:
        step: number of the update.
        micro_batch: number of the micro-batch in the update. The loader deals them out to the processes in turn.
        part: number of the part of the micro-batch.
    """

    step: int
    micro_batch: int
    part: int


def placed_parts(step: int, update: list[MicroBatch], accelerator: Accelerator) -> list[tuple[Place, Part]]:
    """The parts of this process's share of update number `step`."""
    return [
        (Place(step, index * accelerator.num_processes + accelerator.process_index, number), part)
        for index, micro_batch in enumerate(update)
        for number, part in enumerate(micro_batch)
    ]


def training_loss(
    model: torch.nn.Module,
    batch: dict,
    losses: LossSettings,
    generator: torch.Generator,
    accelerator: Accelerator,
    counts: dict[str, Tensor] | None = None,
) -> Any:
    """The losses of a batch, a `PCBridgeOutput`, in the precision of training."""
    with accelerator.autocast():
        return model(**batch, loss_settings=losses, label_counts=counts, generator=generator)


def noise_seed(config: TrainingConfig, *place: int) -> int:
    """The noise of a batch depends on the seed and its place in the run only, so resuming needs no state."""
    return int(np.random.SeedSequence((config.seed, *place)).generate_state(1, np.uint64)[0] >> 1)


def noise_generator(config: TrainingConfig, accelerator: Accelerator, *place: int) -> torch.Generator:
    """A generator with the seed of a place."""
    device = accelerator.device if config.noise_device == "device" else "cpu"
    return torch.Generator(device).manual_seed(noise_seed(config, *place))


def run_update(
    prepared: torch.nn.Module,
    update: list[MicroBatch],
    step: int,
    stage: StageConfig,
    config: TrainingConfig,
    accelerator: Accelerator,
    optimizers: list[torch.optim.Optimizer],
    captured: CapturedPasses | None = None,
) -> UpdateValues:
    """Forward, backward and optimiser step over the micro-batches of update number `step` on this process.

    Where `captured` is given, it does the passes.
    """
    parts = [(place, batch) for place, (batch, _) in placed_parts(step, update, accelerator)]
    batches = [batch for _, batch in parts]
    counts = count_labels(batches, accelerator)
    with gathered(prepared):
        totals = torch.zeros(len(LOSSES), device=accelerator.device)
        for place, batch in parts:
            if captured is not None:
                totals += captured(batch, counts, noise_seed(config, *place))
                continue
            is_last = place == parts[-1][0]
            generator = noise_generator(config, accelerator, *place)
            totals += add_gradients(prepared, stage, accelerator, batch, counts, generator, is_last)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        average_gradients(prepared)
    # Every process has the same gradient, and about the same padding; a share of each adds up to it.
    block_norms = _block_norms(accelerator.unwrap_model(prepared))
    norm = torch.nn.utils.clip_grad_norm_(prepared.parameters(), config.max_grad_norm)
    gradient_norm = whole(norm).detach().float()
    shared = torch.stack([_padded_share(batches), gradient_norm, *block_norms])
    good = gradient_norm.isfinite()
    drop_gradients_unless(good, prepared)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=captured is None)
    return UpdateValues(torch.cat([totals, shared / accelerator.num_processes]).nan_to_num(), good)


def add_gradients(
    prepared: torch.nn.Module,
    stage: StageConfig,
    accelerator: Accelerator,
    batch: dict,
    counts: dict[str, Tensor],
    generator: torch.Generator,
    is_last: bool = True,
) -> Tensor:
    """Forward and backward over a part, one loss after another; returns `LOSSES`. Processes meet after the last."""
    totals = torch.zeros(len(LOSSES), device=accelerator.device)
    groups = stage.losses.in_turn()
    for index, losses in enumerate(groups):
        # Gradients are averaged over processes, but the losses are already divided by the label counts of the whole
        # update, so that is undone.
        with nullcontext() if is_last and index + 1 == len(groups) else accelerator.no_sync(prepared):
            output = training_loss(prepared, batch, losses, generator, accelerator, counts)
            (poison_if_bad(output.loss) * accelerator.num_processes).backward()
        terms = [getattr(output, name) for name in LOSSES]
        totals += torch.stack([totals.new_zeros(()) if term is None else term.detach().float() for term in terms])
    return totals


def _block_norms(model: PCBridgeModel) -> list[Tensor]:
    norms = []
    for name in BLOCKS:
        block = getattr(model, name)
        gradients = [p.grad for p in block.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros((), device=model.device)
        norms.append(whole(norm).float())
    return norms


def _padded_share(batches: list[dict]) -> Tensor:
    """The share of atom slots that hold no atom, mean over batches."""
    return 1 - torch.stack([batch["atom_mask"].float().mean() for batch in batches]).mean()
