"""Optimisers and learning-rate schedule of a training stage."""

import torch

from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from pcbridge.training.config import StageConfig, TrainingConfig
from pcbridge.training.muon import BatchedMuon


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
            BatchedMuon(
                [parameters[name] for name in matrices],
                lr=learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",  # so that one learning rate serves both
            )
        )
    return optimizers


def learning_rate_factor(step: int, stage: StageConfig) -> float:
    """Linear warm-up, for half of a short stage, then linear decay to zero; update number `step` counts from 0."""
    warmup_steps = min(stage.warmup_steps, stage.num_steps // 2)
    warmup = (step + 1) / max(warmup_steps, 1)
    decay = (stage.num_steps - step) / (stage.num_steps - warmup_steps)
    return min(1.0, warmup, decay)
