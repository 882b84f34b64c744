"""Training one stage: batches, updates, moving average, saved states. Runs on any number of processes."""

import logging
import math
import time
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import Example, collate, example_from_row
from dataset_scripts.mixture import MixtureBatchSampler

from .checkpointing import find_training_state, load_training_state, save_training_state
from .modeling_pcbridge import PCBridgeModel
from .training_config import SourceConfig, StageConfig, TrainingConfig

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
# The progress bar reads losses from the device only so often, because that waits for it.
_UPDATES_PER_LOG = 10


class BadLossError(RuntimeError):
    """The loss became NaN or infinite."""


@cache
def load_source(source: SourceConfig, split: str, energy_level_of_theory: str) -> list[Example]:
    """The examples of one source, with graph features computed once a process.

    Raises:
        ValueError: an unknown source, or one without any row.
    """
    rows = load_bundled(source.name, split)
    examples = [example_from_row(row, energy_level_of_theory) for row in rows]
    if source.only_labelled:
        examples = [example for example in examples if example.is_labelled]
    examples = examples[: source.max_rows]
    if not examples:
        raise ValueError(f"data source {source} has no rows at {energy_level_of_theory}")
    return examples


def fit_reference_energies(examples: list[Example]) -> dict[int, float]:
    """Per-element energies in eV, by least squares over the energy labels: atomic number -> energy.

    Raises:
        ValueError: no example has an energy.
    """
    labelled = [example for example in examples if example.energy is not None]
    if not labelled:
        raise ValueError("no training row has an energy, so reference energies cannot be fitted")
    elements = sorted({int(z) for example in labelled for z in example.graph.atomic_numbers})
    counts = torch.tensor(
        [[(example.graph.atomic_numbers == z).sum() for z in elements] for example in labelled], dtype=torch.float64
    )
    energies = torch.tensor([example.energy for example in labelled], dtype=torch.float64)
    # gelsd copes with elements that always come together.
    solution = torch.linalg.lstsq(counts, energies.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
    return dict(zip(elements, solution.tolist(), strict=True))


def make_optimizers(model: PCBridgeModel, config: TrainingConfig, learning_rate: float) -> list[torch.optim.Optimizer]:
    """One Adam, or Muon for the weight matrices of the layers and Adam for everything else."""
    parameters = dict(model.named_parameters())
    matrices = []
    if config.optimizer == "muon":
        matrices = [name for name, p in parameters.items() if ".layers." in name and p.ndim == 2]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [p for name, p in parameters.items() if name not in matrices],
            lr=learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=True,
        )
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                [parameters[name] for name in matrices],
                lr=learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",  # so that one learning rate serves both
            )
        )
    return optimizers


@contextmanager
def compiled(model: PCBridgeModel):
    """Within the context the model's E with its gradient, and its S, run through `torch.compile`.

    Where nothing can be compiled (no C++ compiler, for
    instance) the model stays as it is, and a warning says why.
    """
    try:
        torch.compile(torch.sin)(torch.ones(2))
    except Exception as error:  # whatever the compiler chokes on, training can go on
        logger.warning("compile: going on without torch.compile, because %s", str(error).strip().splitlines()[0])
        yield
        return
    functions = ("interaction_energy_and_gradient", "denoise")
    for name in functions:
        setattr(model, name, torch.compile(getattr(model, name), dynamic=True))
    try:
        # Lets the compiler follow torch.autograd.grad, so that forces and their loss become one graph.
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            yield
    finally:
        for name in functions:
            delattr(model, name)


def learning_rate_factor(step: int, stage: StageConfig) -> float:
    """Linear warm-up, then linear decay to zero after `num_steps`; update number `step` counts from 0."""
    warmup = (step + 1) / max(stage.warmup_steps, 1)
    decay = (stage.num_steps - step) / max(stage.num_steps - stage.warmup_steps, 1)
    return min(1.0, warmup, decay)


def count_labels(batches: list[dict], accelerator: Accelerator) -> dict[str, Tensor]:
    """Labels of each kind in all micro-batches of an update on all processes, as scalar tensors."""
    counts = torch.zeros(3, device=accelerator.device)
    for batch in batches:
        counts[0] += (~batch["energy"].isnan()).sum()
        counts[1] += (~batch["forces"][:, 0, 0].isnan()).sum()
        counts[2] += batch["is_equilibrium"].sum()
    energy, forces, equilibrium = accelerator.reduce(counts, reduction="sum")
    return {"energy": energy, "forces": forces, "equilibrium": equilibrium}


def make_loader(
    stage: StageConfig, energy_level_of_theory: str, config: TrainingConfig, accelerator: Accelerator, start_step: int
) -> DataLoader:
    """The batches of a stage from update `start_step` on; each process gets every so many-th micro-batch."""
    sources = [load_source(source, "train", energy_level_of_theory) for source in stage.sources]
    batches_per_update = config.gradient_accumulation_steps * accelerator.num_processes
    sampler = MixtureBatchSampler(
        sizes=[[example.graph.num_atoms for example in source] for source in sources],
        weights=[source.weight for source in stage.sources],
        batch_size=config.batch_size,
        num_batches=stage.num_steps * batches_per_update,
        seed=config.seed,
        start_batch=start_step * batches_per_update,
    )
    examples = [example for source in sources for example in source]
    return accelerator.prepare(DataLoader(examples, batch_sampler=sampler, collate_fn=collate))


def train_stage(
    name: str, model: PCBridgeModel, stage: StageConfig, config: TrainingConfig, accelerator: Accelerator
) -> list[dict]:
    """Train `model` in place through one stage and leave it with the moving average of its weights.

    A finished or interrupted stage in `config.output_dir` is taken up where it stood when `config.resume` is set.

    Returns:
        The loss history: every few updates one record of step, learning rate, and `RECORD_NAMES` averaged since
        the record before.

    Raises:
        BadLossError: the loss is NaN or infinite.
    """
    model.to(accelerator.device).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    optimizers = make_optimizers(model, config, stage.learning_rate)
    modules = {"model": model, "average": average}
    state_folder = Path(config.output_dir) / "training_state" / name
    progress: dict = {"step": 0, "history": []}
    if config.resume and (found := find_training_state(state_folder)) is not None:
        progress = load_training_state(found, modules, optimizers)
        logger.info("%s: resumed at update %d", name, progress["step"])

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
    started, molecules = time.perf_counter(), 0
    window, updates_in_window = torch.zeros(len(RECORD_NAMES), device=accelerator.device), 0
    batches = iter(loader)
    with compiled(model) if config.compile else nullcontext():
        for step in range(progress["step"], stage.num_steps):
            update = [next(batches) for _ in range(config.gradient_accumulation_steps)]
            learning_rate = stage.learning_rate * learning_rate_factor(step, stage)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = learning_rate
            window += _update(prepared, update, step, stage, config, accelerator, optimizers)
            average.update_parameters(model)
            molecules += config.batch_size * len(update) * accelerator.num_processes
            updates_in_window += 1
            if (step + 1) % _UPDATES_PER_LOG == 0 or step + 1 == stage.num_steps:
                # Each process holds its share of every mean, so the sum over processes is the loss of the update.
                means = accelerator.reduce(window, reduction="sum") / updates_in_window
                record = dict(zip(RECORD_NAMES, means.tolist(), strict=True))
                window.zero_()
                updates_in_window = 0
                if not math.isfinite(record["loss"]):
                    raise BadLossError(f"{name}: the loss is {record['loss']} at update {step}")
                rate = molecules / (time.perf_counter() - started)
                progress["history"].append({"step": step, "learning_rate": learning_rate, **record})
                bar.set_postfix(
                    {key.removesuffix("_loss"): f"{value:.3g}" for key, value in record.items() if value}
                    | {"molecules/s": f"{rate:.0f}"}
                )
            bar.update()
            progress["step"] = step + 1
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == stage.num_steps:
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    save_training_state(state_folder, modules, optimizers, progress)
    bar.close()
    model.load_state_dict(average.module.state_dict())
    model.eval()
    accelerator.free_memory()
    return progress["history"]


def noise_generator(config: TrainingConfig, step: int, micro_batch: int, accelerator: Accelerator) -> torch.Generator:
    """The noise of one micro-batch depends on the seed and its place in the run only, so resuming needs no state."""
    entropy = (config.seed, step, micro_batch, accelerator.process_index)
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(accelerator.device).manual_seed(seed)


def _update(prepared, update: list[dict], step: int, stage: StageConfig, config, accelerator, optimizers) -> Tensor:
    """One optimiser update over its micro-batches; returns this process's share of `RECORD_NAMES`."""
    counts = count_labels(update, accelerator)
    totals = torch.zeros(len(LOSS_NAMES), device=accelerator.device)
    for index, batch in enumerate(update):
        is_last = index + 1 == len(update)
        # DDP averages gradients over processes and `backward` divides by the micro-batches; the losses are already
        # divided by the label counts of the whole update, so both are undone.
        with nullcontext() if is_last else accelerator.no_sync(prepared):
            with accelerator.autocast():
                generator = noise_generator(config, step, index, accelerator)
                output = prepared(**batch, loss_settings=stage.losses, label_counts=counts, generator=generator)
            accelerator.backward(output.loss * accelerator.num_processes * accelerator.gradient_accumulation_steps)
        terms = [getattr(output, name) for name in LOSS_NAMES]
        totals += torch.stack([totals.new_zeros(()) if term is None else term.detach().float() for term in terms])
    gradient_norm = accelerator.clip_grad_norm_(prepared.parameters(), config.max_grad_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    # Every process has the same gradient, so a share of it adds up to it.
    share = gradient_norm.detach().float() / accelerator.num_processes
    return torch.cat([totals, share.reshape(1)])
