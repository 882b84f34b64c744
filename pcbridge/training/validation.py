"""Validation while a stage trains: the stage's own loss on held-out rows, the best weights so far, and pictures."""

import copy
from dataclasses import replace
from math import isfinite
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from modeling_pcbridge.graph_batch import pad_graphs
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from pcbridge.evaluation.config import EvaluationConfig
from pcbridge.evaluation.references import graphs_for, load_references
from pcbridge.evaluation.report import plot_structures
from pcbridge.training.config import StageConfig, TrainingConfig
from pcbridge.training.data import TrainingData, collate_in_parts, sample_rows
from pcbridge.training.fsdp import gathered
from pcbridge.training.progress import BestSoFar
from pcbridge.training.update import count_labels, noise_generator, training_loss


class Validation:
    """Judges the moving average of the weights, and keeps the best of them.

    Args:
        model: of the stage; `best` starts as a copy of it.
        data: of the run.
        stage: its sources' validation splits and its losses make the validation loss.
        config: with `validation` set.
        folder: where pictures go.
    """

    def __init__(
        self,
        model: PCBridgeModel,
        data: TrainingData,
        stage: StageConfig,
        config: TrainingConfig,
        folder: Path,
        accelerator: Accelerator,
    ):
        assert config.validation is not None
        self.settings, self.stage, self.folder = config.validation, stage, folder
        self.config, self.accelerator = config, accelerator
        self.best = copy.deepcopy(model)
        sources = [
            sample_rows(source, self.settings.max_molecules) for source in data.examples(stage.sources, "validation")
        ]
        all_weights, all_rows = sum(source.weight for source in stage.sources), sum(map(len, sources))
        # By these factors a source has the share of all rows that it has of the batches of training.
        self.factors = [
            source.weight / all_weights * all_rows / len(examples)
            for source, examples in zip(stage.sources, sources, strict=True)
        ]
        parts: list[tuple[int, dict]] = []
        for number, examples in enumerate(sources):
            examples = sorted(examples, key=lambda example: example.graph.num_atoms)
            for start in range(0, len(examples), config.batch_size):
                micro_batch = examples[start : start + config.batch_size]
                parts += [(number, batch) for batch, _ in collate_in_parts(micro_batch, config.max_pairs)]
        # Every process takes its share, however many there are.
        own = range(accelerator.process_index, len(parts), accelerator.num_processes)
        self.batches = [(place, *parts[place]) for place in own]
        of_sources = [
            count_labels([batch for _, source, batch in self.batches if source == number], accelerator)
            for number in range(len(sources))
        ]
        self.counts = {
            kind: torch.stack([f * counts[kind] for f, counts in zip(self.factors, of_sources, strict=True)]).sum()
            for kind in of_sources[0]
        }

    def __call__(self, average: PCBridgeModel, step: int, so_far: BestSoFar | None) -> tuple[float, BestSoFar]:
        """The validation loss of `average` after `step` updates, and which weights are best now; `best` holds them."""
        with gathered(average):
            loss = self.loss(average)
            if self.settings.num_pictures > 0 and self.accelerator.is_main_process:
                self._picture(average, step)
        # A loss that is NaN is no standard for later ones.
        if so_far is None or loss < so_far.loss or not isfinite(so_far.loss):
            self.best.load_state_dict(average.state_dict())
            return loss, BestSoFar(step, loss)
        return loss, replace(so_far, validations_since=so_far.validations_since + 1)

    def is_out_of_patience(self, so_far: BestSoFar) -> bool:
        """Whether the stage should end here."""
        return self.settings.patience is not None and so_far.validations_since >= self.settings.patience

    @torch.no_grad()
    def loss(self, model: PCBridgeModel) -> float:
        """The stage's loss over all validation rows, by the weights of their sources, each time with the same noise."""
        was_training = model.training
        model.eval()
        total = torch.zeros((), device=self.accelerator.device)
        for place, source, batch in self.batches:
            batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
            generator = noise_generator(self.config, self.accelerator, place)
            output = training_loss(model, batch, self.stage.losses, generator, self.accelerator, self.counts)
            total += self.factors[source] * output.loss.float()
        model.train(was_training)
        return self.accelerator.reduce(total, reduction="sum").item()

    def _picture(self, model: PCBridgeModel, step: int) -> None:
        """Generated over DFT structures of the same few molecules of the bundled validation split."""
        references = load_references(
            EvaluationConfig("validation", self.settings.num_pictures), model.config.supported_elements
        )
        graphs = send_to_device(pad_graphs(graphs_for(model, references)), model.device)
        generator = noise_generator(self.config, self.accelerator, 0)
        positions = model.predict_structure(**graphs, generator=generator).positions[:, 0].cpu().double().numpy()
        structures = [
            x[: reference.example.graph.num_atoms] for x, reference in zip(positions, references, strict=True)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        plot_structures(references, {f"update {step}": structures}, self.folder / f"step-{step:08d}.png")
