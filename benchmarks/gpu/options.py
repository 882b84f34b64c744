"""What every part of the benchmark can be told; each runs in a process of its own with the same command line."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from pcbridge.training.config import StageConfig, TrainingConfig
from train_accelerate import CONFIGS, parse


@dataclass(frozen=True)
class Options:
    """Of one part.

    Attributes:
        device: "cuda" or "cpu".
        quick: few and small cases, to rehearse.
        output: folder of the results.
        configs: of training, each over the one before it.
        minutes: the part ends by itself after about so many.
        states: archives of the training state to go on from.
    """

    device: str
    quick: bool
    output: Path
    configs: tuple[str, ...]
    minutes: float
    states: tuple[Path, ...]

    @property
    def training(self) -> TrainingConfig:
        """The configuration that training would get."""
        return parse(self.training_arguments)

    @property
    def stages(self) -> dict[str, StageConfig]:
        """What an update of each stage learns; where the configuration has no such stage, that of configs/mini.yaml."""
        training, usual = self.training, parse([f"--config={CONFIGS / 'mini.yaml'}"])
        found = {"stage 1": training.stage1 or usual.stage1, "stage 2": training.stage2 or usual.stage2}
        return {name: stage for name, stage in found.items() if stage is not None}

    @property
    def training_arguments(self) -> list[str]:
        """The beginning of the training command's own command line."""
        return [*(f"--config={config}" for config in self.configs), f"--cpu={str(self.device == 'cpu').lower()}"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small: rehearses everything, here with configs/mini.yaml")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu"))
    parser.add_argument(
        "--config",
        nargs="+",
        dest="configs",
        help="of training, later ones over earlier ones (default: configs/drug_like.yaml configs/gpu.yaml)",
    )
    parser.add_argument(
        "--states", type=Path, nargs="+", default=[], help="training_state_*.zip of an earlier run, to go on from"
    )


def options_of(parsed: argparse.Namespace, minutes: float) -> Options:
    """The options in a parsed command line."""
    names = ("mini.yaml",) if parsed.quick else ("drug_like.yaml", "gpu.yaml")
    configs = parsed.configs or [str(CONFIGS / name) for name in names]
    return Options(parsed.device, parsed.quick, parsed.output, tuple(configs), minutes, tuple(parsed.states))


def part_options() -> Options:
    """Those of the process of one part."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--minutes", type=float, default=60.0)
    parsed = parser.parse_args()
    return options_of(parsed, parsed.minutes)
