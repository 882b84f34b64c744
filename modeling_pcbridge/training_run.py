"""A whole run: stages, evaluation, and everything a run leaves in its output folder."""

import json
import logging
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DataLoaderConfiguration, DistributedType, GradScalerKwargs

from .checkpointing import set_aside
from .configuration_pcbridge import PCBridgeConfig
from .evaluate_checkpoints import evaluate_checkpoints
from .hub import HubPushError, create_repository, push_checkpoint
from .model_card import card_of_run
from .modeling_pcbridge import PCBridgeModel
from .pipeline_pcbridge import PCBridgePipeline
from .processing_pcbridge import PCBridgeProcessor
from .report import plot_losses
from .sampling import check_num_steps
from .training_config import StageConfig, TrainingConfig
from .training_data import elements_of, load_sources, reference_energies_of, sample_rows
from .training_loop import train_stage

logger = logging.getLogger(__name__)

CONSISTENCY, MULTI_TASK, STAGE1 = "consistency", "multi-task", "stage1"
# So many rows of each source are what reference energies are fitted to.
_REFERENCE_ROWS = 10_000


def run(config: TrainingConfig) -> dict:
    """Train, save, evaluate; returns the metrics that are also in `output_dir`/metrics.json."""
    accelerator = make_accelerator(config)
    if config.trackers:
        # Trackers take flat values only.
        accelerator.init_trackers("trackers", config={"config": json.dumps(asdict(config))})
    torch.manual_seed(config.seed)  # the same initial weights on every process
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    hub_model_id = config.hub_model_id if config.push_to_hub else None
    if hub_model_id is not None and accelerator.is_main_process:
        create_repository(hub_model_id)

    if config.resume is None and accelerator.is_main_process:
        for name in (STAGE1, MULTI_TASK, CONSISTENCY):  # all at once: a later resume must not meet another run's stage
            set_aside(output_dir / "training_state" / name)
    accelerator.wait_for_everyone()

    model = initial_model(config)
    if config.evaluation is not None:  # an evaluation that cannot be done is told before hours of training
        check_num_steps("ddim", config.evaluation.num_inference_steps, model.config.num_train_timesteps)
    histories: dict[str, list[dict]] = {}
    models: dict[str, Path] = {}
    stages: dict[str, StageConfig] = {}
    if config.stage1 is not None:
        histories[STAGE1] = train_stage(STAGE1, model, config.stage1, config, accelerator)
        stages[STAGE1] = config.stage1
        models[STAGE1] = save_checkpoint(model, output_dir / STAGE1, config, stages, accelerator)
    if config.stage2 is not None:
        # Each branch starts from the same weights.
        start = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        branches = {CONSISTENCY: config.stage2}
        if config.compare_multi_task:
            branches = {MULTI_TASK: without_consistency(config.stage2), **branches}
        for name, stage in branches.items():
            model.load_state_dict(start)
            histories[name] = train_stage(name, model, stage, config, accelerator)
            models[name] = save_checkpoint(model, output_dir / name, config, stages | {name: stage}, accelerator)

    metrics: dict = {"config": asdict(config), "histories": histories}
    # The other processes leave here: an evaluation may take longer than a process group waits.
    if accelerator.is_main_process:
        plot_losses(histories, output_dir / "losses.png")
        if config.evaluation is not None:
            final = {name: str(folder) for name, folder in models.items() if name != STAGE1 or len(models) == 1}
            metrics |= evaluate_checkpoints(
                final, config.output_dir, config.evaluation, config.seed, str(accelerator.device)
            )
        (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=1))
        if hub_model_id is not None:
            last = list(models.values())[-1]  # the consistency model, or that of stage 1 alone
            try:
                pushed = push_checkpoint(last, hub_model_id, output_dir)
            except HubPushError as error:
                hint = f"What was trained is in {output_dir}; run again with --resume latest to push."
                raise HubPushError(f"{error}\n{hint}") from error
            logger.info("pushed to %s", pushed.commit_url)
    accelerator.end_training()
    return metrics


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
        kwargs_handlers=[
            # A stage without denoising, or without energies, leaves a decoder out of the graph.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # Gradients stay within float16 as they are (docs/training.md).
            GradScalerKwargs(enabled=False),
        ],
    )
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("fp16 needs a GPU; on CPUs accelerate would leave everything in float32")
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
        raise ValueError(
            f"of the ways to spread a model over processes there are FSDP with fsdp_version 2 and DeepSpeed with "
            f"zero_stage 1, not {kind.value}; these models fit on any GPU, so launch with --multi_gpu (DDP), or see "
            "configs/accelerate"
        )
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED) and config.compile:
        raise ValueError("compile has not been tried with FSDP2 or DeepSpeed; leave one of them out")
    if kind == DistributedType.DEEPSPEED:
        _refuse_unsupported_deepspeed(accelerator.state.deepspeed_plugin, config)
    if accelerator.is_fsdp2 and accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
        raise ValueError("set fsdp_cpu_ram_efficient_loading to false: every process loads the weights of init_from")


def _refuse_unsupported_deepspeed(plugin, config: TrainingConfig) -> None:
    if plugin.zero_stage != 1 or plugin.offload_optimizer_device not in (None, "none"):
        raise ValueError(
            "of DeepSpeed there is zero_stage 1 without offloading: the other stages reduce gradients at every "
            "backward pass, and processes have different numbers of them; FSDP2 spreads weights and gradients too"
        )
    if config.optimizer != "adam":
        raise ValueError(
            f"optimizer {config.optimizer} needs whole matrices and DeepSpeed spreads flat pieces of them; take "
            "--optimizer adam, or FSDP2 (configs/accelerate)"
        )
    if config.mixed_precision != "no":
        raise ValueError(
            f"accelerate has no autocast beside DeepSpeed, so mixed_precision {config.mixed_precision} would do "
            "nothing; leave it at no, or take DDP or FSDP2 (configs/accelerate)"
        )


def initial_model(config: TrainingConfig) -> PCBridgeModel:
    """A new model with reference energies fitted to the training labels, or the one of `init_from`."""
    if config.init_from is not None:
        return PCBridgeModel.from_pretrained(config.init_from)
    model = PCBridgeModel(PCBridgeConfig.from_preset(config.preset, **config.model))
    sources = load_sources(config.sources, "train", model, config)
    references = reference_energies_of([row for source in sources for row in sample_rows(source, _REFERENCE_ROWS)])
    table = model.energy_decoder.reference_energies.energies
    for atomic_number, energy in references.items():
        table[atomic_number] = energy
    missing = sorted(set().union(*map(elements_of, sources)) - set(references))
    if missing:
        logger.warning(
            "no energy among %d rows of each source has atomic numbers %s, so total energies of molecules with them "
            "will be far off",
            _REFERENCE_ROWS,
            missing,
        )
    return model


def without_consistency(stage: StageConfig) -> StageConfig:
    """The multi-task baseline: the same stage with both consistency losses off and the denoising term of Eq. 7.

    What weight the "relaxed" form gives to relaxed structures goes to the data, so that both models learn from
    structures as much.
    """
    losses = stage.losses
    moved = losses.score_weight if losses.score_form == "relaxed" else 0.0
    multi_task = replace(
        losses,
        denoising_weight=losses.denoising_weight + moved,
        optimality_weight=0.0,
        score_weight=0.0,
        data_precision=0.0,
    )
    return replace(stage, losses=multi_task)


def save_checkpoint(
    model: PCBridgeModel, folder: Path, config: TrainingConfig, stages: dict[str, StageConfig], accelerator: Accelerator
) -> Path:
    """Weights, config, code, processor and card in `folder`, ready for from_pretrained and for a hub."""
    if accelerator.is_main_process:
        processor = PCBridgeProcessor.of_config(model.config)
        PCBridgePipeline(model, processor=processor, device=model.device).save_pretrained(folder)
        (folder / "README.md").write_text(card_of_run(model.config, config, stages))
    accelerator.wait_for_everyone()
    return folder
