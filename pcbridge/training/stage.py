"""Training one stage: updates, moving average, validation, saved states, interruption, on any number of processes."""

import copy
import json
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, gather_object

from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from pcbridge.training.compilation import compiled
from pcbridge.training.config import UPDATES_PER_WINDOW, StageConfig, TrainingConfig
from pcbridge.training.cuda_graphs import CapturedPasses
from pcbridge.training.data import TrainingData, make_loader
from pcbridge.training.deepspeed_zero import ZeroOptimizer
from pcbridge.training.fsdp import shard, whole
from pcbridge.training.interruption import StopRequest, TrainingInterrupted, no_process_left
from pcbridge.training.log import ProgressDisplay, UpdateWindow, peak_memory_gb
from pcbridge.training.optimizers import learning_rate_factor, make_optimizers
from pcbridge.training.progress import Progress
from pcbridge.training.states import (
    TrainingStateError,
    newest_state,
    read_progress,
    restore_training_state,
    save_training_state,
)
from pcbridge.training.update import add_gradients, run_update
from pcbridge.training.validation import Validation

logger = logging.getLogger(__name__)

# What may differ between a run and the one that goes on from its state; all else decides what the weights become.
_MAY_CHANGE = {
    "stage1",  # the stage itself is compared
    "stage2",
    "compare_multi_task",
    "output_dir",
    "resume",
    "checkpoint_every",
    "keep_checkpoints",
    "max_bad_updates",
    "gradient_accumulation_steps",  # with the number of processes, below
    "num_workers",
    "compile",
    "trackers",
    "cpu",
    "deterministic",
    "evaluation",
    "push_to_hub",
    "hub_model_id",
}


def train_stage(
    name: str,
    model: PCBridgeModel,
    data: TrainingData,
    stage: StageConfig,
    config: TrainingConfig,
    accelerator: Accelerator,
) -> list[dict]:
    """Train `model` in place through one stage; it ends with the moving average of its weights.

    With `config.validation` it ends with that average where the validation loss was lowest. With `config.resume` a
    finished or interrupted stage in `config.output_dir` is taken up where it stood.

    Returns:
        The loss history: every few updates one record of step, learning rate, and `RECORD_NAMES` averaged since
        the record before; with the validation loss where it was measured.

    Raises:
        BadLossError: the loss or gradient was NaN or infinite in `config.max_bad_updates` updates in a row.
        TrainingInterrupted: SIGTERM came; the state is saved.
        TrainingStateError: a state cannot be written or read, or is one of another configuration.
    """
    training = _StageTraining(name, model, data, stage, config, accelerator)
    training.run()
    return training.finish()


@contextmanager
def float32_products(config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Within the context matrix products of float32 on a GPU are as exact as `config.tf32` says."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _StageTraining:
    """What one stage holds while it trains."""

    def __init__(
        self,
        name: str,
        model: PCBridgeModel,
        data: TrainingData,
        stage: StageConfig,
        config: TrainingConfig,
        accelerator: Accelerator,
    ):
        self.name, self.model, self.data, self.stage, self.config = name, model, data, stage, config
        self.accelerator = accelerator
        uses_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        # Sharding is for good, so a copy is trained then, and `model` stays whole for the next stage.
        is_sharded = accelerator.is_fsdp2 or uses_deepspeed
        self.trained = (copy.deepcopy(model) if is_sharded else model).to(accelerator.device).train()
        self.average = copy.deepcopy(self.trained)
        self.modules = {"model": self.trained, "average": self.average}
        self.validation = None
        if config.validation is not None:
            pictures = Path(config.output_dir) / "pictures" / name
            self.validation = Validation(self.trained, data, stage, config, pictures, accelerator)
            self.modules["best"] = self.validation.best
        if accelerator.is_fsdp2:
            for module in self.modules.values():
                shard(module, accelerator)
        self.optimizers = make_optimizers(self.trained, config, stage.learning_rate)
        if uses_deepspeed:
            self.optimizers = [ZeroOptimizer(self.trained, adam) for adam in self.optimizers]
        for loss, blocks in stage.losses.trained_blocks().items():
            logger.info("%s: %s loss trains %s", name, loss, ", ".join(blocks))
        self.state_folder = Path(config.output_dir) / "training_state" / name
        self.progress = self._first_progress()
        # No loss trains every block. DDP looks for parameters without a gradient in the last pass of an update only.
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.prepared = self.trained if is_sharded else accelerator.prepare(self.trained)
        self.captured = self._captured_passes()
        self.window = UpdateWindow(name, self.trained, stage, config, accelerator)
        self.display = ProgressDisplay(name, stage.num_steps, self.progress.step, accelerator)

    def run(self) -> None:
        """All updates that are left."""
        progress, config = self.progress, self.config
        batches = iter(make_loader(self.stage, self.data, config, self.accelerator, progress.step))
        compilation = compiled(self.trained) if config.compile else nullcontext()
        precision = float32_products(config, self.accelerator.device)
        with precision, compilation, StopRequest() as stop, no_process_left(), closing(batches):  # type: ignore[type-var]
            while not progress.ended:
                self._update([next(batches) for _ in range(config.gradient_accumulation_steps)])
                progress.ended = progress.step == self.stage.num_steps
                # Losses are read from the device only every so many updates, because that waits for it. What has to
                # be known on the host (bad losses, a request to stop) is known then.
                if progress.step % UPDATES_PER_WINDOW and not progress.ended:
                    continue
                record, stop_now = self.window.read(stop.received)
                self._note(record)
                if progress.step % config.checkpoint_every == 0 or progress.ended or stop_now:
                    self._save()
                if stop_now and not progress.ended:
                    self.display.close()
                    raise TrainingInterrupted(
                        f"{self.name}: stopped on request after {progress.step} updates; the state is saved"
                    )
        self.display.close()

    def finish(self) -> list[dict]:
        """Give the model its final weights; returns the history."""
        self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)  # the next stage wraps the model again
        final = self.average
        if self.validation is not None:
            final, best = self.validation.best, self.progress.best
            assert best is not None  # a stage ends with a validation
            logger.info("%s: keeping update %d, validation loss %.4g", self.name, best.step, best.loss)
        self.model.load_state_dict({key: whole(tensor) for key, tensor in final.state_dict().items()})
        self.model.eval()
        self.accelerator.free_memory()
        return self.progress.history

    def _update(self, update) -> None:
        step = self.progress.step
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = self._learning_rate(step)
        values = run_update(
            self.prepared, update, step, self.stage, self.config, self.accelerator, self.optimizers, self.captured
        )
        self.window.add(step, update, values)
        self._move_average()
        self.display.update()
        self.progress.step = step + 1

    def _note(self, record: dict[str, float]) -> None:
        """Validate if it is time, and tell history, console and trackers; `record` is empty if all updates were bad."""
        progress = self.progress
        step = progress.step - 1
        record = {"step": step, "learning_rate": self._learning_rate(step), **record}
        validation = self.validation
        if validation is not None and (progress.step % validation.settings.every == 0 or progress.ended):
            record["validation_loss"], progress.best = validation(self.average, progress.step, progress.best)
            progress.ended |= validation.is_out_of_patience(progress.best)
        if "loss" not in record and "validation_loss" not in record:
            return
        progress.history.append(record)
        rate = self.window.molecules_per_second()
        self.display.show(progress.step, record, rate)
        tracked = record | {"molecules_per_second": rate, "memory_gb": peak_memory_gb(self.accelerator.device)}
        del tracked["step"]
        self.accelerator.log({f"{self.name}/{key}": value for key, value in tracked.items()}, step=step)

    def _captured_passes(self) -> CapturedPasses | None:
        """Where there is a GPU, and no other process that the passes would have to meet."""
        accelerator = self.accelerator
        if not self.config.cuda_graphs:
            return None
        if accelerator.device.type != "cuda" or accelerator.num_processes > 1:
            logger.warning("cuda_graphs: only with one process on a GPU; going on without")
            return None
        return CapturedPasses(partial(add_gradients, self.prepared, self.stage, accelerator), accelerator.device)

    def _learning_rate(self, step: int) -> float:
        return self.stage.learning_rate * learning_rate_factor(step, self.stage)

    @torch.no_grad()
    def _move_average(self) -> None:
        """Towards the weights by 1 - ema_decay, and faster in the beginning, so that a short run has left its start.

        Not torch's `AveragedModel`, whose count of updates goes from host to device, and so waits, at every update.
        """
        step = self.progress.step
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.trained.parameters()), 1 - decay)

    def _save(self) -> None:
        self.accelerator.wait_for_everyone()
        save_training_state(
            self.state_folder,
            self.modules,
            self.optimizers,
            asdict(self.progress),
            self.config.keep_checkpoints,
            self.accelerator.is_main_process,
        )

    def _first_progress(self) -> Progress:
        """Where to start: at the last state if asked to resume, else at the beginning."""
        config = asdict(self.config)
        settings = {"stage": asdict(self.stage)} | {k: v for k, v in config.items() if k not in _MAY_CHANGE}
        # Processes may become fewer or more if each then accumulates more or fewer.
        settings["micro_batches_per_update"] = config["gradient_accumulation_steps"] * self.accelerator.num_processes
        # Of changed rows other batches would be made.
        for source, examples in zip(self.stage.sources, self.data.examples(self.stage.sources, "train"), strict=True):
            settings.setdefault(f"rows of {source.name}", []).append(examples.fingerprint)
        anew = Progress(json.loads(json.dumps(settings)))  # as a state gives them back
        state = None if self.config.resume is None else newest_state(self.state_folder)
        seen = gather_object([None if state is None else state.name])
        if len(set(seen)) > 1:
            raise TrainingStateError(
                f"the processes find different training states ({', '.join(map(str, seen))}) in {self.state_folder}: "
                "output_dir must be a folder that all of them share"
            )
        if state is None:
            return anew
        progress = Progress.from_dict(read_progress(state))
        if changed := _differing(progress.settings, anew.settings):
            raise TrainingStateError(
                f"the training state {state} was made with another {', '.join(changed)}; take another output_dir, or "
                "resume with the settings of that run"
            )
        restore_training_state(state, self.modules, self.optimizers)
        logger.info("%s: resumed at update %d", self.name, progress.step)
        return progress


def _differing(before: dict, now: dict) -> list[str]:
    """The names of settings that differ, such as `seed` and `stage.num_steps`."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        one, other = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += [f"{name}.{inner}" for inner in _differing(one, other)]
        elif one != other:
            found.append(name)
    return found
