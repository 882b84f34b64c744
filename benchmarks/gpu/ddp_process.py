"""One process of a short training with every loss in float64, of as many as WORLD_SIZE says; run by the part `ddp`.

python -m benchmarks.gpu.ddp_process FOLDER DEVICE BACKEND
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from modeling_pcbridge import LossSettings, PCBridgeConfig, PCBridgeModel
from pcbridge.training.config import SourceConfig, StageConfig, TrainingConfig
from pcbridge.training.data import TrainingData
from pcbridge.training.stage import train_stage

SIZES = {"hidden_size": 32, "intermediate_size": 32, "vector_size": 16, "num_attention_heads": 4, "num_gaussians": 16}
MICRO_BATCHES = 2


def main(folder: Path, device: str, backend: str) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and device == "cuda":
        # Before accelerate, which would take NCCL for any GPU, and NCCL refuses two processes on one.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group(backend)
    accumulation = MICRO_BATCHES // processes
    accelerator = Accelerator(cpu=device == "cpu", gradient_accumulation_steps=accumulation)
    assert accelerator.num_processes == processes
    losses = LossSettings(
        denoising_weight=0.1, force_weight=0.5, optimality_weight=0.01, score_weight=0.1, distillation_weight=0.1
    )
    stage = StageConfig(10, 1e-3, 2, [SourceConfig("pm6", only_labelled=True, max_rows=20)], losses)
    config = TrainingConfig(
        stage,
        None,
        output_dir=str(folder),
        batch_size=4,
        gradient_accumulation_steps=accumulation,
        noise_device="cpu",
    )
    torch.manual_seed(0)
    model = PCBridgeModel(PCBridgeConfig(**SIZES, num_hidden_layers=2, num_structure_layers=1)).double()
    history = train_stage("stage", model, TrainingData(config, model), stage, config, accelerator)
    if accelerator.is_main_process:
        save_file({name: tensor.cpu() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
        (folder / "history.json").write_text(json.dumps(history))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
