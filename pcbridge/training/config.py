"""Everything a training run can be told, as dataclasses that a YAML file or the command line fills."""

from dataclasses import dataclass, field
from typing import Literal

from modeling_pcbridge.errors import InputError, require, require_choices
from modeling_pcbridge.losses import LossSettings
from pcbridge.evaluation.config import EvaluationConfig

# Losses are read from the device, and anything is decided on the host, only every so many updates.
UPDATES_PER_WINDOW = 10


@dataclass(frozen=True)
class SourceConfig:
    """A data source and its share of every batch.

    Attributes:
        name: a configuration of `dataset_scripts.bundled`, or a folder of shards that `dataset_scripts.prepare` wrote.
        weight: share of the rows of a batch.
        only_labelled: leave out rows without an energy at one of the model's levels of theory.
        structures: learn from its minima what structures should be; without, only energies and forces are learned, as
            suits labels at minima of another level than that of the structures.
        max_rows: take only the first so many rows, to try something out.
    """

    name: str
    weight: float = 1.0
    only_labelled: bool = False
    structures: bool = True
    max_rows: int | None = None

    def __post_init__(self):
        require(self.weight > 0, "weight", "positive", self.weight)
        require(self.max_rows is None or self.max_rows > 0, "max_rows", "positive", self.max_rows)


@dataclass(frozen=True)
class StageConfig:
    """One stage of training.

    Attributes:
        num_steps: optimiser updates.
        learning_rate: peak; warmed up linearly over `warmup_steps`, then decayed linearly to zero.
        warmup_steps: updates; at most half of the stage.
        sources: what the batches are mixed from.
        losses: which losses, how weighed.
    """

    num_steps: int
    learning_rate: float
    warmup_steps: int
    sources: list[SourceConfig]
    losses: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self):
        require(self.num_steps > 0, "num_steps", "positive", self.num_steps)
        require(self.learning_rate >= 0, "learning_rate", "zero or more", self.learning_rate)
        require(self.warmup_steps >= 0, "warmup_steps", "zero or more", self.warmup_steps)
        if not any(weight > 0 for weight in self.losses.weights().values()):
            raise InputError("all losses of the stage have weight 0; there is nothing to train")


@dataclass(frozen=True)
class ValidationConfig:
    """How a stage is watched on the validation splits of its sources while it trains.

    Attributes:
        every: updates between validations; a multiple of 10. There is one more at the end.
        max_molecules: so many rows of each source, from every part of it; null for all.
        patience: so many validations in a row without a lower loss end the stage; null never does.
        num_pictures: molecules in a picture of generated over DFT structures (bundled validation split).
    """

    every: int
    max_molecules: int | None = None
    patience: int | None = None
    num_pictures: int = 4

    def __post_init__(self):
        if self.every < 1 or self.every % UPDATES_PER_WINDOW:
            raise InputError(f"validation.every must be a positive multiple of 10, not {self.every}")
        for name in ("patience", "max_molecules"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"validation.{name}", "at least 1", value)
        require(self.num_pictures >= 0, "validation.num_pictures", "zero or more", self.num_pictures)


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run: stage 1 (Eq. 7), then stage 2 with the consistency losses, then evaluation.

    Attributes:
        stage1, stage2: the stages; null leaves one out.
        preset: sizes of the model, see `PCBridgeConfig.from_preset`.
        model: fields of `PCBridgeConfig` that differ from the preset.
        init_from: checkpoint to start from, a folder or a hub name; needed when stage 1 is left out. The model is the
            checkpoint's then, and `preset` is not used. Of `model` only `energy_levels_of_theory` may differ, where new
            levels get heads that start as copies of its first, and terms of E may be switched on.
        compare_multi_task: also train stage 2 without the consistency losses, from the same stage-1 weights and on
            the same batches: the paper's baseline.
        output_dir: where everything goes.
        resume: "latest" goes on from the last training state in `output_dir`; without it such states are set aside.
        checkpoint_every: updates between saved training states; a multiple of 10.
        keep_checkpoints: how many of the newest states a stage keeps.
        max_bad_updates: so many updates in a row with a NaN or infinite loss or gradient end the run; fewer are
            reported with their molecules, and their gradient counts as zero.
        batch_size: molecules per process and micro-batch.
        max_pairs: a micro-batch with more pairs of atom slots (molecules x largest molecule squared) is computed in
            parts, with the same gradient; a molecule that has more alone is left out. Null: no limit.
        gradient_accumulation_steps: micro-batches per update.
        num_workers: processes beside each training process that read and collate batches. Rows are parsed when a batch
            first needs them, or with workers all training rows at the beginning if they are few enough to be kept.
        optimizer: "adam" as in the paper, or "muon" (torch.optim.Muon for the matrices of the layers, Adam for the
            rest), which needs fewer steps.
        weight_decay: decoupled.
        max_grad_norm: gradients are scaled down to this norm.
        ema_decay: of the exponential moving average of the weights, less in the first updates; the average is what is
            saved and evaluated.
        compile: run the model through torch.compile. The first steps take minutes; on the CPUs measured so far it
            is no faster afterwards (benchmarks/results), so it is meant for GPUs.
        cuda_graphs: on one GPU, capture forward and backward passes once per shape of a batch and replay them, so that
            it does not wait for the host, several times as fast; batches come in few shapes then, cut into parts by the
            size of molecules and not by `max_pairs`.
        mixed_precision: "no", "bf16" or, for GPUs without it, "fp16"; see docs/training.md for what each costs.
        tf32: on GPUs that have it, round what float32 matrix products multiply to 10 bits while training, which is many
            times faster; energies are off by .002 eV on average, forces by .0006 eV/angstrom (tests/test_precision.py).
        noise_device: where the noise of training is drawn: on the device that trains, or on the CPU, so that a GPU
            trains on the numbers that a CPU trains on, for comparison; it waits for them then.
        trackers: where losses, learning rate, gradient norm and throughput go besides `metrics.json`: names that
            accelerate knows, such as "tensorboard" (files in `output_dir`, no network).
        seed: of initial weights, batches and noise.
        cpu: train on the CPU even where there is a GPU.
        deterministic: have torch refuse operations without a fixed order of sums (GPUs; slower).
        validation: how each stage is watched; it then ends with the weights of the lowest validation loss.
        evaluation: what is measured at the end; null to leave it out.
        push_to_hub: push the last model with its card and metrics to `hub_model_id` at the end. The repository is made
            at the start, so that a wrong token does not cost a training.
        hub_model_id: "owner/name" on the hub.
    """

    stage1: StageConfig | None
    stage2: StageConfig | None
    preset: str = "mini"
    model: dict = field(default_factory=dict)
    init_from: str | None = None
    compare_multi_task: bool = True
    output_dir: str = "outputs/mini"
    resume: Literal["latest"] | None = None
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    max_bad_updates: int = 10
    batch_size: int = 32
    max_pairs: int | None = None
    gradient_accumulation_steps: int = 1
    num_workers: int = 0
    optimizer: Literal["adam", "muon"] = "adam"
    weight_decay: float = 0.0
    max_grad_norm: float = 10.0
    ema_decay: float = 0.998
    compile: bool = False
    cuda_graphs: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    tf32: bool = True
    noise_device: Literal["device", "cpu"] = "device"
    trackers: list[str] = field(default_factory=list)
    seed: int = 0
    cpu: bool = False
    deterministic: bool = False
    validation: ValidationConfig | None = None
    evaluation: EvaluationConfig | None = field(default_factory=EvaluationConfig)
    push_to_hub: bool = False
    hub_model_id: str | None = None

    def __post_init__(self):
        require_choices(self)
        if self.stage1 is None and self.stage2 is None:
            raise InputError("both stages are left out; there is nothing to train")
        if self.stage1 is None and self.init_from is None:
            raise InputError("stage 2 alone needs init_from, a checkpoint of stage 1")
        if self.checkpoint_every < 1 or self.checkpoint_every % UPDATES_PER_WINDOW:
            raise InputError(f"checkpoint_every must be a positive multiple of 10, not {self.checkpoint_every}")
        for name in ("keep_checkpoints", "max_bad_updates", "batch_size", "gradient_accumulation_steps"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("num_workers", "weight_decay"):
            require(getattr(self, name) >= 0, name, "zero or more", getattr(self, name))
        require(self.max_pairs is None or self.max_pairs > 0, "max_pairs", "positive", self.max_pairs)
        require(self.max_grad_norm > 0, "max_grad_norm", "positive", self.max_grad_norm)
        require(0 <= self.ema_decay < 1, "ema_decay", "at least 0 and below 1", self.ema_decay)
        if self.cuda_graphs and (self.compile or self.noise_device == "cpu"):
            raise InputError("cuda_graphs goes neither with compile nor with noise_device: cpu")
        if self.push_to_hub and self.hub_model_id is None:
            raise InputError("push_to_hub needs hub_model_id")

    @property
    def sources(self) -> list[SourceConfig]:
        """The distinct sources of both stages, in a fixed order."""
        stages = [stage for stage in (self.stage1, self.stage2) if stage is not None]
        return sorted({source for stage in stages for source in stage.sources}, key=str)
