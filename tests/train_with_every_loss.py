"""A stage with every loss on however many processes started it; used by the tests.

accelerate launch --config_file configs/accelerate/fsdp2_8_gpus.yaml --num_processes 2 \
    tests/train_with_every_loss.py FOLDER MICRO_BATCHES OPTIMIZER DTYPE

It goes on from the last training state in FOLDER, if there is one.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType
from conftest import small_model
from safetensors.torch import save_file

from modeling_pcbridge import LossSettings
from pcbridge.training.config import SourceConfig, StageConfig, TrainingConfig, ValidationConfig
from pcbridge.training.data import TrainingData
from pcbridge.training.run import refuse_unsupported_sharding
from pcbridge.training.stage import train_stage

LOSSES = LossSettings(
    denoising_weight=0.1,
    force_weight=0.5,
    force_form="norm",
    optimality_weight=0.01,
    score_weight=0.1,
    distillation_weight=0.1,
    distillation_trains_encoder=True,
    data_precision=0.1,
)


def main(folder: Path, micro_batches: int, optimizer: str, dtype: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=micro_batches)
    # FSDP2 and DeepSpeed work on CPUs too, but accelerate takes no notice of its own configuration there.
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.DEEPSPEED
        plugin = DeepSpeedPlugin()  # of the configuration file, by the environment
        plugin.select(_from_accelerator_state=True)
        accelerator.state.deepspeed_plugins = {"default": plugin}
    refuse_unsupported_sharding(accelerator, TrainingConfig(stage1=StageConfig(1, 0.0, 0, []), stage2=None))
    sources = [SourceConfig("pm6", 3.0, max_rows=50), SourceConfig("pm6_displaced", 1.0, max_rows=50)]
    stage = StageConfig(num_steps=12, learning_rate=1e-3, warmup_steps=2, sources=sources, losses=LOSSES)
    config = TrainingConfig(
        stage1=stage,
        stage2=None,
        output_dir=str(folder),
        resume="latest",
        checkpoint_every=10,
        batch_size=4,
        max_pairs=700,
        gradient_accumulation_steps=micro_batches,
        ema_decay=0.1,
        optimizer=optimizer,
        validation=ValidationConfig(every=10, max_molecules=3, num_pictures=1),
    )
    model = small_model(num_structure_layers=1, dtype=getattr(torch, dtype))
    history = train_stage("stage", model, TrainingData(config, model), stage, config, accelerator)
    if accelerator.is_main_process:
        save_file(model.state_dict(), folder / "model.safetensors")
        (folder / "history.json").write_text(json.dumps([accelerator.num_processes, history]))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
