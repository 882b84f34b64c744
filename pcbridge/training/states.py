"""Training states on disk: safetensors and JSON only, written aside and renamed, checked when read, pruned.

    training_state/<stage>/step-00000500/{modules,optimizers}.safetensors, progress.json, checksums.json

A kill at any moment leaves the states that were there; a state that was damaged on disk is refused and the one before
it taken.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modeling_pcbridge.errors import CalculationError
from pcbridge.training.fsdp import sharded_like, whole

logger = logging.getLogger(__name__)

_MODULES = "modules.safetensors"
_OPTIMIZERS = "optimizers.safetensors"
_PROGRESS = "progress.json"
_CHECKSUMS = "checksums.json"


class TrainingStateError(CalculationError):
    """A training state could not be written, or none of those on disk can be used."""


def save_training_state(
    folder: Path,
    modules: dict[str, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    progress: dict,
    keep: int,
    writes: bool = True,
) -> None:
    """Add a state of `progress["step"]` updates to `folder`, then remove all but the newest `keep`.

    Every process has to call, since sharded tensors are gathered from all; one of them with `writes`.

    Raises:
        TrainingStateError: it could not be written (a full disk, say); what was there before is untouched.
    """
    weights, moments = _whole_state(modules, optimizers, keep=writes)
    if not writes:
        return
    target = folder / f"step-{progress['step']:08d}"
    aside = folder / f"{target.name}.partial"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _write(aside, weights, moments, progress)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        _sync(folder)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        last = _states(folder)
        left = f"the last one is {last[-1]}" if last else "there is none before it"
        raise TrainingStateError(f"the training state {target} could not be written ({error}); {left}") from error
    states = _states(folder)
    place = states.index(target)
    # Newer ones are damaged, else the run would have gone on from them.
    for other in states[: max(place + 1 - keep, 0)] + states[place + 1 :]:
        shutil.rmtree(other)


def newest_state(folder: Path) -> Path | None:
    """The newest undamaged state of `folder`; None if there is no state.

    Raises:
        TrainingStateError: there are states but all of them are damaged.
    """
    states = _states(folder)
    for state in reversed(states):
        damage = _damage(state)
        if damage is None:
            return state
        logger.warning("the training state %s is damaged (%s) and not used", state, damage)
    if states:
        raise TrainingStateError(f"every training state in {folder} is damaged; remove the folder to start anew")
    return None


def read_progress(state: Path) -> dict:
    """What `save_training_state` was given as progress."""
    return json.loads((state / _PROGRESS).read_text())


def restore_training_state(state: Path, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]) -> None:
    """Give modules and optimisers what they had when `state` was saved."""
    weights = load_file(state / _MODULES)
    for name, module in modules.items():
        prefix = f"{name}/"
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        targets = module.state_dict()
        # Names that the module lacks stay, for `load_state_dict` to refuse.
        module.load_state_dict({k: sharded_like(v, targets.get(k, v)) for k, v in own.items()})
    moments = load_file(state / _OPTIMIZERS)
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    parameters = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
    for name, value in moments.items():
        index, parameter, key = name.split("/")
        value = sharded_like(value, parameters[int(index)][int(parameter)])
        states[int(index)].setdefault(int(parameter), {})[key] = value
    for optimizer, moments_of_one in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": moments_of_one, "param_groups": optimizer.state_dict()["param_groups"]})


def set_aside(folder: Path) -> None:
    """Rename a folder of states that a new run would write to; it stays until the next time."""
    if folder.exists():
        previous = folder.with_name(folder.name + ".previous")
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
        logger.info("training states of an earlier run are now in %s", previous)


def _states(folder: Path) -> list[Path]:
    """Complete states, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".partial")


def _whole_state(
    modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer], keep: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and moments by name, whole and on the CPU; without `keep` they are gathered but let go one by one."""
    weights = (
        (f"{name}/{key}", whole(tensor))
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    )
    moments = (
        (f"{index}/{parameter}/{key}", whole(torch.as_tensor(value)))
        for index, optimizer in enumerate(optimizers)
        for parameter, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    )

    def gathered(named: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
        return {name: tensor.cpu().contiguous() for name, tensor in named if keep}

    return gathered(weights), gathered(moments)


def _write(folder: Path, weights: dict[str, Tensor], moments: dict[str, Tensor], progress: dict) -> None:
    save_file(weights, folder / _MODULES)
    save_file(moments, folder / _OPTIMIZERS)
    (folder / _PROGRESS).write_text(json.dumps(progress))
    checksums = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    (folder / _CHECKSUMS).write_text(json.dumps(checksums))
    for path in folder.iterdir():
        _sync(path)


def _damage(folder: Path) -> str | None:
    """Why a state cannot be trusted, or None."""
    try:
        checksums = json.loads((folder / _CHECKSUMS).read_text())
        for name in (_MODULES, _OPTIMIZERS, _PROGRESS):
            if _checksum(folder / name) != checksums.get(name):
                return f"the checksum of {name} is wrong"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have the operating system put a file, or a folder's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
