"""Training one stage: updates, moving average, saved states, interruption. Runs on any number of processes."""

import json
import logging
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from .bad_numbers import BadLossError, drop_gradients_unless, find_bad_molecules, poison_if_bad
from .checkpointing import TrainingStateError, load_training_state, save_training_state, set_aside
from .compilation import compiled
from .interruption import StopRequest, TrainingInterrupted
from .modeling_pcbridge import PCBridgeModel
from .optimizers import learning_rate_factor, make_optimizers
from .training_config import StageConfig, TrainingConfig
from .training_data import make_loader

logger = logging.getLogger(__name__)

LOSS_NAMES = (
    "loss",
    "energy_loss",
    "force_loss",
    "denoising_loss",
    "optimality_consistency_loss",
    "score_consistency_loss",
)
RECORD_NAMES = (*LOSS_NAMES, "gradient_norm")
# Losses are read from the device only every so many updates, because that waits for it. What has to be known on the
# host (bad losses, a request to stop) is known then.
UPDATES_PER_WINDOW = 10

Update = list[tuple[dict, list[str]]]  # micro-batches of this process, each with its molecule ids


def train_stage(
    name: str, model: PCBridgeModel, stage: StageConfig, config: TrainingConfig, accelerator: Accelerator
) -> list[dict]:
    """Train `model` in place through one stage and leave it with the moving average of its weights.

    With `config.resume` a finished or interrupted stage in `config.output_dir` is taken up where it stood.

    Returns:
        The loss history: every few updates one record of step, learning rate, and `RECORD_NAMES` averaged since
        the record before.

    Raises:
        BadLossError: the loss or gradient was NaN or infinite in `config.max_bad_updates` updates in a row.
        TrainingInterrupted: SIGTERM came; the state is saved.
        TrainingStateError: a state cannot be written or read, or is one of another configuration.
    """
    model.to(accelerator.device).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    optimizers = make_optimizers(model, config, stage.learning_rate)
    modules = {"model": model, "average": average}
    state_folder = Path(config.output_dir) / "training_state" / name
    progress = _start(state_folder, stage, config, modules, optimizers, accelerator)

    loader = make_loader(stage, model.config.energy_level_of_theory, config, accelerator, progress["step"])
    prepared = accelerator.prepare(model)
    bar = tqdm(
        total=stage.num_steps,
        initial=progress["step"],
        desc=name,
        unit="step",
        disable=not accelerator.is_main_process,
        mininterval=1.0,
    )
    window = _Window(name, model, stage, config, accelerator)
    batches = iter(loader)
    with compiled(model) if config.compile else nullcontext(), StopRequest() as stop:
        for step in range(progress["step"], stage.num_steps):
            update = [next(batches) for _ in range(config.gradient_accumulation_steps)]
            learning_rate = stage.learning_rate * learning_rate_factor(step, stage)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = learning_rate
            window.add(step, update, _update(prepared, update, step, stage, config, accelerator, optimizers))
            average.update_parameters(model)
            bar.update()
            progress["step"] = step + 1
            is_last = step + 1 == stage.num_steps
            if (step + 1) % UPDATES_PER_WINDOW and not is_last:
                continue
            record, stop_now = window.read(stop.received)
            if record is not None:
                progress["history"].append({"step": step, "learning_rate": learning_rate, **record})
                rate = window.molecules_per_second()
                bar.set_postfix(_postfix(record, rate))
                tracked = {"learning_rate": learning_rate, "molecules_per_second": rate, **record}
                accelerator.log({f"{name}/{key}": value for key, value in tracked.items()}, step=step)
            if (step + 1) % config.checkpoint_every == 0 or is_last or stop_now:
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    save_training_state(state_folder, modules, optimizers, progress, config.keep_checkpoints)
            if stop_now:
                bar.close()
                raise TrainingInterrupted(f"{name}: stopped on request after {step + 1} updates; the state is saved")
    bar.close()
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)  # the next stage wraps the model again
    model.load_state_dict(average.module.state_dict())
    model.eval()
    accelerator.free_memory()
    return progress["history"]


def _start(state_folder: Path, stage: StageConfig, config: TrainingConfig, modules, optimizers, accelerator) -> dict:
    """Where to start: the last state if asked to resume, else the beginning."""
    # What a state must have been made with for the run to go on as if it had not been cut.
    keys = ("model", "preset", "batch_size", "gradient_accumulation_steps", "optimizer", "ema_decay", "seed")
    settings = {"stage": asdict(stage)} | {key: getattr(config, key) for key in keys}
    settings = json.loads(json.dumps(settings))  # as a state gives them back
    if config.resume and (progress := load_training_state(state_folder, modules, optimizers)) is not None:
        changed = [key for key, value in settings.items() if progress["settings"].get(key) != value]
        if changed:
            raise TrainingStateError(
                f"the training state in {state_folder} was made with another {', '.join(changed)}; take another "
                "output_dir, or resume with the settings of that run"
            )
        logger.info("%s: resumed at update %d", state_folder.name, progress["step"])
        return progress
    if not config.resume and accelerator.is_main_process:
        set_aside(state_folder)
    return {"step": 0, "history": [], "settings": settings}


class _Window:
    """Collects what updates return, on the device, until it is read."""

    def __init__(self, name: str, model: PCBridgeModel, stage: StageConfig, config: TrainingConfig, accelerator):
        self.name, self.model, self.stage, self.config, self.accelerator = name, model, stage, config, accelerator
        self.updates: list[tuple[int, Update, Tensor]] = []
        self.bad_in_a_row = 0
        self.started, self.molecules = time.perf_counter(), 0

    def add(self, step: int, update: Update, values: Tensor) -> None:
        """`values`: this process's share of `RECORD_NAMES`, then 1.0 if the update was good, else 0.0."""
        self.updates.append((step, update, values))
        self.molecules += self.config.batch_size * len(update) * self.accelerator.num_processes

    def read(self, stop_requested: bool) -> tuple[dict[str, float] | None, bool]:
        """Means over the good updates since the last time, None if there is none; whether any process has to stop.

        Raises:
            BadLossError: see `train_stage`.
        """
        values = torch.stack([values for _, _, values in self.updates])
        stop = torch.full_like(values[:1], float(stop_requested))
        # Each process holds its share of every mean, so the sum over processes is the loss of the update.
        *rows, (stop_count, *_) = self.accelerator.reduce(torch.cat([values, stop]), reduction="sum").tolist()
        good = [row[:-1] for row in rows if row[-1] > 0]
        for (step, update, _), row in zip(self.updates, rows, strict=True):
            self.bad_in_a_row = 0 if row[-1] > 0 else self.bad_in_a_row + 1
            if self.bad_in_a_row:
                self._report(step, update)
        self.updates = []
        record = dict(zip(RECORD_NAMES, np.mean(good, axis=0).tolist(), strict=True)) if good else None
        return record, stop_count > 0

    def molecules_per_second(self) -> float:
        """Of all processes, since the stage was started or resumed."""
        return self.molecules / (time.perf_counter() - self.started)

    def _report(self, step: int, update: Update) -> None:
        culprits = [
            molecule_id
            for batch, ids in update
            for molecule_id in find_bad_molecules(self.model, batch, ids, self.stage.losses)
        ]
        ids = culprits or [molecule_id for _, ids in update for molecule_id in ids]
        who = f"{'molecules' if culprits else 'none alone; the batch is'} {', '.join(ids)}"
        message = f"{self.name}: the loss or gradient of update {step} is NaN or infinite ({who})"
        if self.bad_in_a_row >= self.config.max_bad_updates:
            raise BadLossError(f"{message}; that is {self.bad_in_a_row} in a row")
        logger.warning("%s; its gradient counts as zero", message)


def _postfix(record: dict[str, float], molecules_per_second: float) -> dict[str, str]:
    losses = {key.removesuffix("_loss"): f"{value:.3g}" for key, value in record.items() if value}
    return losses | {"molecules/s": f"{molecules_per_second:.0f}"}


def count_labels(update: Update, accelerator: Accelerator) -> dict[str, Tensor]:
    """Labels of each kind in all micro-batches of an update on all processes, as scalar tensors."""
    counts = torch.zeros(3, device=accelerator.device)
    for batch, _ in update:
        counts[0] += (~batch["energy"].isnan()).sum()
        counts[1] += (~batch["forces"][:, 0, 0].isnan()).sum()
        counts[2] += batch["is_equilibrium"].sum()
    energy, forces, equilibrium = accelerator.reduce(counts, reduction="sum")
    return {"energy": energy, "forces": forces, "equilibrium": equilibrium}


def noise_generator(config: TrainingConfig, step: int, micro_batch: int, accelerator: Accelerator) -> torch.Generator:
    """The noise of a micro-batch depends on the seed and its place in the run only, so resuming needs no state.

    `micro_batch` is its number on this process. The loader deals micro-batches out in turn, so the same number on all
    processes together is the same micro-batch on one.
    """
    place = micro_batch * accelerator.num_processes + accelerator.process_index
    seed = int(np.random.SeedSequence((config.seed, step, place)).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(accelerator.device).manual_seed(seed)


def _update(prepared, update: Update, step: int, stage: StageConfig, config, accelerator, optimizers) -> Tensor:
    """One optimiser update over its micro-batches; returns what `_Window.add` takes."""
    counts = count_labels(update, accelerator)
    totals = torch.zeros(len(LOSS_NAMES), device=accelerator.device)
    for index, (batch, _) in enumerate(update):
        is_last = index + 1 == len(update)
        # DDP averages gradients over processes and `backward` divides by the micro-batches; the losses are already
        # divided by the label counts of the whole update, so both are undone.
        with nullcontext() if is_last else accelerator.no_sync(prepared):
            with accelerator.autocast():
                generator = noise_generator(config, step, index, accelerator)
                output = prepared(**batch, loss_settings=stage.losses, label_counts=counts, generator=generator)
            loss = poison_if_bad(output.loss)
            accelerator.backward(loss * accelerator.num_processes * accelerator.gradient_accumulation_steps)
        terms = [getattr(output, name) for name in LOSS_NAMES]
        totals += torch.stack([totals.new_zeros(()) if term is None else term.detach().float() for term in terms])
    gradient_norm = accelerator.clip_grad_norm_(prepared.parameters(), config.max_grad_norm).detach().float()
    good = gradient_norm.isfinite()
    drop_gradients_unless(good, prepared)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    # Every process has the same gradient, so a share of it adds up to it.
    values = torch.cat([totals, gradient_norm.reshape(1) / accelerator.num_processes])
    return torch.cat([values.nan_to_num(), good.float().reshape(1)])
