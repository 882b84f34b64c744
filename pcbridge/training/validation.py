"""Validation while a stage trains: the stage's own loss on held-out rows, the best weights so far, and pictures."""

import copy
from math import isfinite
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from modeling_pcbridge.graph_batch import pad_graphs
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from pcbridge.evaluation.config import EvaluationConfig
from pcbridge.evaluation.references import load_references
from pcbridge.evaluation.report import plot_structures
from pcbridge.training.config import StageConfig, TrainingConfig
from pcbridge.training.data import collate_in_parts, load_sources, sample_rows
from pcbridge.training.fsdp import gathered
from pcbridge.training.update import count_labels, noise_generator


class Validation:
    """Judges the moving average of the weights, and keeps the best of them.

    Args:
        model: of the stage; `best` starts as a copy of it.
        stage: its sources' validation splits and its losses make the validation loss.
        config: with `validation` set.
        folder: where pictures go.
    """

    def __init__(
        self, model: PCBridgeModel, stage: StageConfig, config: TrainingConfig, folder: Path, accelerator: Accelerator
    ):
        assert config.validation is not None
        self.settings, self.stage, self.folder = config.validation, stage, folder
        self.config, self.accelerator = config, accelerator
        self.best = copy.deepcopy(model)
        sources = load_sources(stage.sources, "validation", model, config)
        examples = [example for source in sources for example in sample_rows(source, self.settings.max_molecules)]
        examples = sorted(examples, key=lambda example: example.graph.num_atoms)
        size = config.batch_size
        micro_batches = [examples[start : start + size] for start in range(0, len(examples), size)]
        parts = [part for batch in micro_batches for part in collate_in_parts(batch, config.max_pairs)]
        # Every process takes its share, however many there are.
        own = range(accelerator.process_index, len(parts), accelerator.num_processes)
        self.batches = [(place, parts[place][0]) for place in own]
        self.counts = count_labels(
            [send_to_device(batch, accelerator.device) for _, batch in self.batches], accelerator
        )

    def __call__(self, average: PCBridgeModel, progress: dict) -> tuple[float, bool]:
        """The validation loss of `average` after `progress["step"]` updates, and whether the stage should end here.

        `progress["best"]` holds the step and loss of the weights in `best` and how many validations ago they were.
        """
        step, best = progress["step"], progress.get("best")
        with gathered(average):
            loss = self.loss(average)
            if self.settings.num_pictures > 0 and self.accelerator.is_main_process:
                self._picture(average, step)
        # A loss that is NaN is no standard for later ones.
        if best is None or loss < best["loss"] or not isfinite(best["loss"]):
            progress["best"] = best = {"step": step, "loss": loss, "validations_since": 0}
            self.best.load_state_dict(average.state_dict())
        else:
            best["validations_since"] += 1
        return loss, self.settings.patience is not None and best["validations_since"] >= self.settings.patience

    @torch.no_grad()
    def loss(self, model: PCBridgeModel) -> float:
        """The stage's weighted loss over all validation rows, each time with the same noise."""
        was_training = model.training
        model.eval()
        total = torch.zeros((), device=self.accelerator.device)
        for place, batch in self.batches:
            batch = send_to_device(batch, self.accelerator.device)
            generator = noise_generator(self.config.seed, place, device=self.accelerator.device)
            # Forces are gradients; no parameter's gradient is kept.
            with torch.enable_grad(), self.accelerator.autocast():
                output = model(**batch, loss_settings=self.stage.losses, label_counts=self.counts, generator=generator)
            total += output.loss.detach().float()
        model.train(was_training)
        return self.accelerator.reduce(total, reduction="sum").item()

    def _picture(self, model: PCBridgeModel, step: int) -> None:
        """Generated over DFT structures of the same few molecules of the bundled validation split."""
        references = load_references(EvaluationConfig("validation", self.settings.num_pictures))
        graphs = send_to_device(pad_graphs([reference.example.graph for reference in references]), model.device)
        generator = noise_generator(self.config.seed, 0, device=model.device)
        positions = model.predict_structure(**graphs, generator=generator).positions[:, 0].cpu().double().numpy()
        structures = [
            x[: reference.example.graph.num_atoms] for x, reference in zip(positions, references, strict=True)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        plot_structures(references, {f"update {step}": structures}, self.folder / f"step-{step:08d}.png")
