"""Training states on disk: safetensors and JSON only, written aside and renamed, so that a kill leaves the last one."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_MODULES = "modules.safetensors"
_OPTIMIZERS = "optimizers.safetensors"
_PROGRESS = "progress.json"


def save_training_state(
    folder: Path, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer], progress: dict
) -> None:
    """Write weights, optimiser moments and `progress` to `folder`, replacing what is there."""
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    weights = {
        f"{name}/{key}": tensor.contiguous()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    save_file(weights, aside / _MODULES)
    moments = {}
    for index, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                moments[f"{index}/{parameter}/{key}"] = torch.as_tensor(value).contiguous()
    save_file(moments, aside / _OPTIMIZERS)
    (aside / _PROGRESS).write_text(json.dumps(progress))
    for path in aside.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    previous = folder.with_name(folder.name + ".previous")
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
    aside.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def find_training_state(folder: Path) -> Path | None:
    """The last complete state: `folder`, or the one before if a kill fell between the two renames."""
    for candidate in (folder, folder.with_name(folder.name + ".previous")):
        if (candidate / _PROGRESS).exists():
            return candidate
    return None


def load_training_state(folder: Path, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]) -> dict:
    """Restore what `save_training_state` wrote; returns the progress."""
    weights = load_file(folder / _MODULES)
    for name, module in modules.items():
        prefix = f"{name}/"
        module.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    moments = load_file(folder / _OPTIMIZERS)
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, value in moments.items():
        index, parameter, key = name.split("/")
        states[int(index)].setdefault(int(parameter), {})[key] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads((folder / _PROGRESS).read_text())
