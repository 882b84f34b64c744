"""What a stage trains on: examples of its sources, reference energies fitted to them, and the batches."""

import logging
from functools import cache, partial

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import Example, collate, example_from_row, order_rows
from dataset_scripts.mixture import MixtureBatchSampler

from .training_config import SourceConfig, StageConfig, TrainingConfig

logger = logging.getLogger(__name__)


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


def collate_in_parts(examples: list[Example], max_pairs: int | None) -> list[tuple[dict, list[str]]]:
    """A micro-batch in as many parts as keep molecules x largest molecule squared within `max_pairs`.

    Each part is the keyword arguments of `PCBridgeModel.forward` and the molecule ids in the same order. No molecule
    may be larger than the limit.
    """
    parts: list[list[Example]] = [[]]
    for example in examples if max_pairs is None else sorted(examples, key=lambda example: example.graph.num_atoms):
        if max_pairs is not None and parts[-1] and (len(parts[-1]) + 1) * example.graph.num_atoms**2 > max_pairs:
            parts.append([])
        parts[-1].append(example)
    ordered = [order_rows(part) for part in parts]
    return [(collate(part), [example.molecule_id for example in part]) for part in ordered]


def within_limit(examples: list[Example], max_pairs: int | None) -> list[Example]:
    """Those examples that fit into a part alone; the others are counted in a warning."""
    if max_pairs is None:
        return examples
    fitting = [example for example in examples if example.graph.num_atoms**2 <= max_pairs]
    if len(fitting) < len(examples):
        left_out = [example for example in examples if example.graph.num_atoms**2 > max_pairs]
        largest = max(left_out, key=lambda example: example.graph.num_atoms)
        logger.warning(
            "left out %d of %d molecules that alone have more than max_pairs = %d pairs of atoms; the largest is %s, "
            "%d atoms",
            len(left_out),
            len(examples),
            max_pairs,
            largest.molecule_id,
            largest.graph.num_atoms,
        )
    return fitting


def make_loader(
    stage: StageConfig, energy_level_of_theory: str, config: TrainingConfig, accelerator: Accelerator, start_step: int
) -> DataLoader:
    """The batches of a stage from update `start_step` on; each process gets every so many-th micro-batch."""
    sources = [
        within_limit(load_source(source, "train", energy_level_of_theory), config.max_pairs) for source in stage.sources
    ]
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
    collate_fn = partial(collate_in_parts, max_pairs=config.max_pairs)
    return accelerator.prepare(DataLoader(examples, batch_sampler=sampler, collate_fn=collate_fn))
