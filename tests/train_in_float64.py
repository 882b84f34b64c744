"""A stage with every loss, in float64 and with Adam, on however many processes started it; used by the tests.

torchrun --nproc_per_node=2 tests/train_in_float64.py FOLDER MICRO_BATCHES
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from conftest import small_model
from safetensors.torch import save_file

from modeling_pcbridge import LossSettings
from modeling_pcbridge.training_config import SourceConfig, StageConfig, TrainingConfig
from modeling_pcbridge.training_loop import train_stage

LOSSES = LossSettings(
    denoising_weight=0.1,
    force_weight=0.5,
    force_form="norm",
    optimality_weight=0.01,
    score_weight=0.1,
    score_form="relaxed",
    score_trains_encoder=True,
    data_precision=0.1,
)


def main(folder: Path, micro_batches: int) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=micro_batches,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    sources = [SourceConfig("pm6", 3.0, max_rows=50), SourceConfig("pm6_displaced", 1.0, max_rows=50)]
    stage = StageConfig(num_steps=6, learning_rate=1e-3, warmup_steps=2, sources=sources, losses=LOSSES)
    config = TrainingConfig(
        stage1=stage,
        stage2=None,
        output_dir=str(folder),
        batch_size=4,
        gradient_accumulation_steps=micro_batches,
        ema_decay=0.1,
    )
    model = small_model(num_structure_layers=1)
    history = train_stage("stage", model, stage, config, accelerator)
    if accelerator.is_main_process:
        save_file(model.state_dict(), folder / "model.safetensors")
        (folder / "history.json").write_text(json.dumps([accelerator.num_processes, history]))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
