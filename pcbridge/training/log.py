"""What a stage tells while it trains: averaged losses, bad updates by molecule, progress on the console."""

import logging
import sys
import time
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from pcbridge.training.bad_numbers import BadLossError, find_bad_molecules
from pcbridge.training.config import StageConfig, TrainingConfig
from pcbridge.training.fsdp import gathered
from pcbridge.training.update import (
    LOSSES,
    RECORD_NAMES,
    MicroBatch,
    Place,
    UpdateValues,
    noise_generator,
    placed_parts,
    training_loss,
)

try:
    import resource
except ImportError as error:
    raise ImportError("training needs Linux or macOS: Windows has no resource module") from error

logger = logging.getLogger(__name__)

# Seconds between lines where the console is a file.
_SECONDS_BETWEEN_LINES = 30.0
# The unit of `ru_maxrss`.
_BYTES = 1 if sys.platform == "darwin" else 1024


class UpdateWindow:
    """Collects what updates return, on the device, until it is read."""

    def __init__(self, name: str, model: PCBridgeModel, stage: StageConfig, config: TrainingConfig, accelerator):
        self.name, self.model, self.stage, self.config, self.accelerator = name, model, stage, config, accelerator
        self.updates: list[tuple[int, list[MicroBatch], UpdateValues]] = []
        self.bad_in_a_row = 0
        self.started, self.molecules = time.perf_counter(), 0

    def add(self, step: int, update: list[MicroBatch], values: UpdateValues) -> None:
        self.updates.append((step, update, values))
        self.molecules += self.config.batch_size * len(update) * self.accelerator.num_processes

    def read(self, stop_requested: bool) -> tuple[dict[str, float], bool]:
        """Means over the good updates since the last time, empty if there is none; whether any process has to stop.

        Raises:
            BadLossError: `config.max_bad_updates` updates in a row were bad.
        """
        # All in one tensor, for one wait for the device.
        values = torch.stack([torch.cat([update.record, update.good[None]]) for _, _, update in self.updates])
        stop = torch.full_like(values[:1], float(stop_requested))
        *rows, (stop_count, *_) = self.accelerator.reduce(torch.cat([values, stop]), reduction="sum").tolist()
        good = [row[:-1] for row in rows if row[-1] > 0]
        for (step, update, _), row in zip(self.updates, rows, strict=True):
            self.bad_in_a_row = 0 if row[-1] > 0 else self.bad_in_a_row + 1
            if self.bad_in_a_row:
                self._report(step, update)
        self.updates = []
        record = dict(zip(RECORD_NAMES, np.mean(good, axis=0).tolist(), strict=True)) if good else {}
        return record, stop_count > 0

    def molecules_per_second(self) -> float:
        """Of all processes, since the stage was started or resumed."""
        return self.molecules / (time.perf_counter() - self.started)

    def _report(self, step: int, update: list[MicroBatch]) -> None:
        parts = placed_parts(step, update, self.accelerator)
        culprits: list[str] = []
        with gathered(self.model):
            for place, (batch, ids) in parts:
                culprits += find_bad_molecules(partial(self._loss, place), batch, ids)
        ids = culprits or [molecule_id for _, (_, ids) in parts for molecule_id in ids]
        who = f"{'molecules' if culprits else 'none alone; the batch is'} {', '.join(ids)}"
        message = f"{self.name}: the loss or gradient of update {step} is NaN or infinite ({who})"
        if self.bad_in_a_row >= self.config.max_bad_updates:
            raise BadLossError(f"{message}; that is {self.bad_in_a_row} in a row")
        logger.warning("%s; its gradient counts as zero", message)

    def _loss(self, place: Place, batch: dict) -> Tensor:
        generator = noise_generator(self.config, self.accelerator, *place)
        return training_loss(self.model, batch, self.stage.losses, generator, self.accelerator).loss


class ProgressDisplay:
    """A progress bar on a terminal; a line now and then where the console is a file. On the main process only."""

    def __init__(self, name: str, num_steps: int, first_step: int, accelerator: Accelerator):
        self.name, self.num_steps, self.is_main = name, num_steps, accelerator.is_main_process
        on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=num_steps,
            initial=first_step,
            desc=name,
            unit="step",
            disable=not (self.is_main and on_terminal),
            mininterval=1.0,
        )
        self.prints_lines = self.is_main and not on_terminal
        self.last_line = -np.inf

    def update(self) -> None:
        self.bar.update()

    def show(self, step: int, record: dict[str, float], molecules_per_second: float) -> None:
        """`step`: the number of updates done."""
        losses = {key.removesuffix("_loss"): f"{record[key]:.3g}" for key in LOSSES if record.get(key)}
        values = losses | {"molecules/s": f"{molecules_per_second:.0f}"}
        self.bar.set_postfix(values)
        if self.prints_lines and time.perf_counter() - self.last_line > _SECONDS_BETWEEN_LINES:
            self.last_line = time.perf_counter()
            text = ", ".join(f"{key} {value}" for key, value in values.items())
            print(f"{self.name}: {step} of {self.num_steps} updates, {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.bar.close()


def peak_memory_gb(device: torch.device) -> float:
    """The most memory held so far: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES / 1e9
