"""A whole run: stages, evaluation, and everything a run leaves in its output folder."""

import json
import logging
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedType, GradScalerKwargs

from modeling_pcbridge.configuration_pcbridge import PCBridgeConfig
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.hub import HubPushError, create_repository, push_checkpoint
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.sampling import SamplingSettings, check_num_steps
from pcbridge.evaluation.checkpoints import evaluate_checkpoints
from pcbridge.evaluation.config import EvaluationConfig
from pcbridge.evaluation.references import load_references
from pcbridge.evaluation.report import plot_losses, results_markdown
from pcbridge.training.card import card_of_run
from pcbridge.training.config import StageConfig, TrainingConfig
from pcbridge.training.data import TrainingData
from pcbridge.training.initial_model import initial_model
from pcbridge.training.learned import record_learned
from pcbridge.training.stage import train_stage
from pcbridge.training.states import set_aside

logger = logging.getLogger(__name__)

CONSISTENCY, MULTI_TASK, STAGE1 = "consistency", "multi-task", "stage1"


class Trained(NamedTuple):
    """What a stage left.

    Attributes:
        folder: the checkpoint.
        stages: those that trained it, by name.
        history: records of losses of the last of them, see `train_stage`.
    """

    folder: Path
    stages: dict[str, StageConfig]
    history: list[dict]


def run(config: TrainingConfig) -> dict:
    """Train, save, evaluate; returns the metrics that are also in `output_dir`/metrics.json."""
    accelerator = make_accelerator(config)
    _prepare_places(config, accelerator)
    torch.manual_seed(config.seed)  # the same initial weights on every process
    model, data = initial_model(config)
    check_evaluation(config, model.config)
    trained = _train(model, data, config, accelerator)
    histories = {name: each.history for name, each in trained.items()}
    metrics: dict = {"config": asdict(config), "histories": histories}
    # The process group ends here, on all processes together, as NCCL wants it. What follows is the main process's alone
    # and may take longer than a group waits.
    accelerator.end_training()
    if accelerator.is_main_process:
        plot_losses(histories, Path(config.output_dir) / "losses.png")
        metrics |= _evaluate(trained, model.config, config, str(accelerator.device))
        (Path(config.output_dir) / "metrics.json").write_text(json.dumps(metrics, indent=1))
        if config.push_to_hub and config.hub_model_id is not None:
            last = list(trained.values())[-1].folder  # the consistency model, or that of stage 1 alone
            _push(last, config.hub_model_id, config.output_dir)
    return metrics


def check_evaluation(config: TrainingConfig, model: PCBridgeConfig) -> None:
    """Refuses an evaluation or pictures of the bundled molecules that cannot be made, before hours of training."""
    num_steps = []
    if config.evaluation is not None:
        num_steps.append(config.evaluation.num_inference_steps)
    if config.validation is not None and config.validation.num_pictures > 0:
        num_steps.append(SamplingSettings.num_inference_steps)
    for steps in num_steps:
        check_num_steps("ddim", steps, model.num_train_timesteps)
    if num_steps:
        try:
            load_references(EvaluationConfig("validation", 1), model.supported_elements)
        except InputError as error:
            raise InputError(f"{error}; set evaluation to null and validation.num_pictures to 0") from error


def _prepare_places(config: TrainingConfig, accelerator: Accelerator) -> None:
    """Everything that the run will write to: trackers, folders and the hub's repository."""
    if config.trackers:
        # Trackers take flat values only.
        accelerator.init_trackers("trackers", config={"config": json.dumps(asdict(config))})
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        if config.push_to_hub and config.hub_model_id is not None:
            create_repository(config.hub_model_id)
        if config.resume is None:  # all stages at once: a later resume must not meet another run's
            for name in (STAGE1, MULTI_TASK, CONSISTENCY):
                set_aside(output_dir / "training_state" / name)
    accelerator.wait_for_everyone()


def _train(
    model: PCBridgeModel, data: TrainingData, config: TrainingConfig, accelerator: Accelerator
) -> dict[str, Trained]:
    """Stage 1, then stage 2 and its baseline, each from the weights of stage 1; by name, in this order."""
    trained: dict[str, Trained] = {}

    def train(name: str, stage: StageConfig, before: dict[str, StageConfig], seed: int) -> None:
        history = train_stage(name, model, data, stage, replace(config, seed=seed), accelerator)
        stages = {**before, name: stage}
        folder = save_checkpoint(model, Path(config.output_dir) / name, config, data, stages, accelerator)
        trained[name] = Trained(folder, stages, history)

    first = {} if config.stage1 is None else {STAGE1: config.stage1}
    for name, stage in first.items():
        train(name, stage, {}, config.seed)
    if config.stage2 is not None:
        branches = {CONSISTENCY: config.stage2}
        if config.compare_multi_task:
            branches = {MULTI_TASK: without_consistency(config.stage2), **branches}
        # Other batches and noise than those of stage 1, the same for both branches.
        seed = int(np.random.SeedSequence((config.seed, 2)).generate_state(1)[0])
        start = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        for name, stage in branches.items():
            model.load_state_dict(start)
            train(name, stage, first, seed)
    return trained


def _evaluate(trained: dict[str, Trained], model: PCBridgeConfig, config: TrainingConfig, device: str) -> dict:
    """Metrics of the final checkpoints, which also go into their cards; empty without `config.evaluation`."""
    if config.evaluation is None:
        return {}
    final = {name: each for name, each in trained.items() if name != STAGE1 or len(trained) == 1}
    folders = {name: str(each.folder) for name, each in final.items()}
    metrics = evaluate_checkpoints(folders, config.output_dir, config.evaluation, config.seed, device)
    for each in final.values():
        card_of_run(model, config, each.stages, results_markdown(metrics)).save(each.folder / "README.md")
    return metrics


def _push(folder: Path, hub_model_id: str, output_dir: str) -> None:
    try:
        pushed = push_checkpoint(folder, hub_model_id, output_dir)
    except HubPushError as error:
        hint = f"What was trained is in {output_dir}; run again with --resume latest to push."
        raise HubPushError(f"{error}\n{hint}") from error
    logger.info("pushed to %s", pushed.commit_url)


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The processes and device of a run.

    Raises:
        ValueError: the configuration asks for what this device or this way to launch does not have.
    """
    accelerator = Accelerator(
        # Apple's GPUs have no float64, in which reference energies are subtracted.
        cpu=config.cpu or torch.backends.mps.is_available(),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),  # batches go to a GPU while it computes
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.trackers or None,
        project_dir=config.output_dir,
        # Gradients stay within float16 as they are (docs/training.md).
        kwargs_handlers=[GradScalerKwargs(enabled=False)],
    )
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("fp16 needs a GPU; on CPUs accelerate would leave everything in float32")
    refuse_unsupported_sharding(accelerator, config)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    return accelerator


def refuse_unsupported_sharding(accelerator: Accelerator, config: TrainingConfig) -> None:
    """FSDP2 and DeepSpeed's ZeRO 1 are the ways to spread a model over processes that the training states know.

    Raises:
        ValueError: another way, or one of them with what does not go with it.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.MEGATRON_LM or (kind == DistributedType.FSDP and not accelerator.is_fsdp2):
        raise InputError(
            f"of the ways to spread a model over processes there are FSDP with fsdp_version 2 and DeepSpeed with "
            f"zero_stage 1, not {kind.value}; these models fit on any GPU, so launch with --multi_gpu (DDP), or see "
            "configs/accelerate"
        )
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED) and config.compile:
        raise InputError("compile has not been tried with FSDP2 or DeepSpeed; leave one of them out")
    if kind == DistributedType.DEEPSPEED:
        _refuse_unsupported_deepspeed(accelerator.state.deepspeed_plugin, config)
    if accelerator.is_fsdp2 and accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
        raise InputError("set fsdp_cpu_ram_efficient_loading to false: every process loads the weights of init_from")


def _refuse_unsupported_deepspeed(plugin, config: TrainingConfig) -> None:
    if plugin.zero_stage != 1 or plugin.offload_optimizer_device not in (None, "none"):
        raise InputError(
            "of DeepSpeed there is zero_stage 1 without offloading: the other stages reduce gradients at every "
            "backward pass, and processes have different numbers of them; FSDP2 spreads weights and gradients too"
        )
    if config.optimizer != "adam":
        raise InputError(
            f"optimizer {config.optimizer} needs whole matrices and DeepSpeed spreads flat pieces of them; take "
            "--optimizer adam, or FSDP2 (configs/accelerate)"
        )
    if config.mixed_precision != "no":
        raise InputError(
            f"accelerate has no autocast beside DeepSpeed, so mixed_precision {config.mixed_precision} would do "
            "nothing; leave it at no, or take DDP or FSDP2 (configs/accelerate)"
        )


def without_consistency(stage: StageConfig) -> StageConfig:
    """The multi-task baseline: the same stage by Eqs. 7 and 12 alone, without consistency losses and distillation.

    What weight the distillation gives to relaxed structures goes to the data, so that both models learn from structures
    as much.
    """
    losses = stage.losses
    multi_task = replace(
        losses,
        denoising_weight=losses.denoising_weight + losses.distillation_weight,
        optimality_weight=0.0,
        score_weight=0.0,
        distillation_weight=0.0,
        data_precision=0.0,
    )
    return replace(stage, losses=multi_task)


def save_checkpoint(
    model: PCBridgeModel,
    folder: Path,
    config: TrainingConfig,
    data: TrainingData,
    stages: dict[str, StageConfig],
    accelerator: Accelerator,
) -> Path:
    """Weights, config, code, processor and card in `folder`, ready for from_pretrained and for a hub."""
    if accelerator.is_main_process:
        record_learned(model.config, data, stages.values())
        model.save_pretrained(folder)
        card_of_run(model.config, config, stages).save(folder / "README.md")
    accelerator.wait_for_everyone()
    return folder
