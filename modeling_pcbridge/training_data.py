"""What a stage trains on: examples of its sources, reference energies fitted to them, and the batches."""

from functools import cache

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import Example, collate, example_from_row, order_rows
from dataset_scripts.mixture import MixtureBatchSampler

from .training_config import SourceConfig, StageConfig, TrainingConfig


@cache
def load_source(source: SourceConfig, split: str, energy_level_of_theory: str) -> list[Example]:
    """The examples of one source, with graph features computed once a process.

    Raises:
        ValueError: an unknown source, or one without any row.
    """
    rows = load_bundled(source.name, split)
    examples = [example_from_row(row, energy_level_of_theory) for row in rows]
    if source.only_labelled:
        examples = [example for example in examples if example.is_labelled]
    examples = examples[: source.max_rows]
    if not examples:
        raise ValueError(f"data source {source} has no rows at {energy_level_of_theory}")
    return examples


def fit_reference_energies(examples: list[Example]) -> dict[int, float]:
    """Per-element energies in eV, by least squares over the energy labels: atomic number -> energy.

    Raises:
        ValueError: no example has an energy.
    """
    labelled = [example for example in examples if example.energy is not None]
    if not labelled:
        raise ValueError("no training row has an energy, so reference energies cannot be fitted")
    elements = sorted({int(z) for example in labelled for z in example.graph.atomic_numbers})
    counts = torch.tensor(
        [[(example.graph.atomic_numbers == z).sum() for z in elements] for example in labelled], dtype=torch.float64
    )
    energies = torch.tensor([example.energy for example in labelled], dtype=torch.float64)
    # gelsd copes with elements that always come together.
    solution = torch.linalg.lstsq(counts, energies.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
    return dict(zip(elements, solution.tolist(), strict=True))


def collate_with_ids(examples: list[Example]) -> tuple[dict, list[str]]:
    """The keyword arguments of `PCBridgeModel.forward`, and the molecule ids in the same order."""
    examples = order_rows(examples)
    return collate(examples), [example.molecule_id for example in examples]


def make_loader(
    stage: StageConfig, energy_level_of_theory: str, config: TrainingConfig, accelerator: Accelerator, start_step: int
) -> DataLoader:
    """The batches of a stage from update `start_step` on; each process gets every so many-th micro-batch."""
    sources = [load_source(source, "train", energy_level_of_theory) for source in stage.sources]
    batches_per_update = config.gradient_accumulation_steps * accelerator.num_processes
    sampler = MixtureBatchSampler(
        sizes=[[example.graph.num_atoms for example in source] for source in sources],
        weights=[source.weight for source in stage.sources],
        batch_size=config.batch_size,
        num_batches=stage.num_steps * batches_per_update,
        seed=config.seed,
        start_batch=start_step * batches_per_update,
    )
    examples = [example for source in sources for example in source]
    return accelerator.prepare(DataLoader(examples, batch_sampler=sampler, collate_fn=collate_with_ids))
