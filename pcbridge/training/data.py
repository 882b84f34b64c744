"""What a stage trains on: examples of its sources, reference energies fitted to them, and the batches."""

import logging
import signal
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from math import isqrt

import numpy as np
from accelerate import Accelerator
from torch.utils.data import ConcatDataset, DataLoader

from dataset_scripts.bundled import files_of_source
from dataset_scripts.collator import Example, collate, order_rows
from dataset_scripts.coverage import SourceCoverage, coverage_of
from dataset_scripts.mixture import MixtureBatchSampler
from dataset_scripts.sharded import ShardedExamples
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.pair_features import NUM_ELEMENTS
from pcbridge.training.config import SourceConfig, StageConfig, TrainingConfig
from pcbridge.training.few_shapes import in_few_shapes

logger = logging.getLogger(__name__)

# The losses of energies and forces; the others train on minima.
LABEL_LOSSES = {"energy_weight", "force_weight"}
_NUM_RUNS = 100


def sample_rows(rows: Sequence[Example], count: int | None) -> list[Example]:
    """`count` of `rows`, all for None: from every part of them, since sources may be sorted by size.

    In `_NUM_RUNS` runs of neighbours, so that of a large source few shards are opened.
    """
    if count is None or count >= len(rows):
        return list(rows)
    runs = np.array_split(np.arange(count), min(count, _NUM_RUNS))
    # Each of `count` places moved on by its share of the rows that are left out.
    starts = np.linspace(0, len(rows) - count, len(runs)).astype(int)
    return [rows[start + place] for start, run in zip(starts.tolist(), runs, strict=True) for place in run.tolist()]


class TrainingData:
    """The examples of a run: every source and split is read once, with labels at the model's levels of theory.

    Args:
        config: of the run.
        model: whose levels of theory and elements the examples have to fit.
    """

    def __init__(self, config: TrainingConfig, model: PCBridgeModel):
        self.max_pairs, self.num_processes = config.max_pairs, config.num_workers
        self.levels_of_theory = tuple(model.config.energy_levels_of_theory)
        self.resonance_invariant = model.config.resonance_invariant
        self.supported_elements = set(model.config.supported_elements)
        self._examples: dict[tuple[SourceConfig, str], ShardedExamples] = {}
        self._coverage: dict[SourceConfig, SourceCoverage] = {}

    def examples(self, sources: Iterable[SourceConfig], split: str) -> list[ShardedExamples]:
        """The examples of each source.

        Raises:
            ValueError: an unknown source, one without any row, or with elements that the model does not know.
        """
        return [self._of_source(source, split) for source in sources]

    def coverage(self, source: SourceConfig) -> SourceCoverage:
        """What the training rows of a source cover; raises as `examples`."""
        if source not in self._coverage:
            self._coverage[source] = coverage_of(self._of_source(source, "train"))
        return self._coverage[source]

    def _of_source(self, source: SourceConfig, split: str) -> ShardedExamples:
        if (source, split) not in self._examples:
            examples = load_source(
                source, split, self.levels_of_theory, self.max_pairs, self.resonance_invariant, self.num_processes
            )
            if unknown := sorted(examples.elements - self.supported_elements):
                raise InputError(
                    f"data source {source.name} has atomic numbers {unknown}, which the model does not support; leave "
                    "these molecules out, or train a new model with --model '{supported_elements: [...]}'"
                )
            self._examples[source, split] = examples
        return self._examples[source, split]


def load_source(
    source: SourceConfig,
    split: str,
    levels_of_theory: Sequence[str],
    max_pairs: int | None = None,
    resonance_invariant: bool = False,
    num_processes: int = 0,
) -> ShardedExamples:
    """The examples of one source, read as they are asked for. With `num_processes` those of the training split are made
    now, if they can be kept.

    Molecules that alone have more than `max_pairs` pairs of atoms are left out, with a warning that counts them; labels
    of other levels of theory than those count as absent, with another.

    Raises:
        ValueError: an unknown source, or one without any row.
    """
    max_atoms = None if max_pairs is None else isqrt(max_pairs)
    examples = ShardedExamples(
        files_of_source(source.name, split),
        levels_of_theory,
        source.only_labelled,
        max_atoms,
        resonance_invariant,
        source.structures,
        source.max_rows,
    )
    if examples.num_too_large:
        logger.warning(
            "%s, %s: left out %d molecules of more than %d atoms (max_pairs)",
            source.name,
            split,
            examples.num_too_large,
            max_atoms,
        )
    for level, count in examples.label_levels.items():
        if level is not None and level not in levels_of_theory:
            logger.warning(
                "%s, %s: the labels of %d rows are at %s, not at %s as the model's, and count as absent; "
                "--model '{energy_levels_of_theory: [...]}' gives a model a head for each level",
                source.name,
                split,
                count,
                level,
                " or ".join(levels_of_theory),
            )
    if not examples:
        raise InputError(f"data source {source} has no rows at {' or '.join(levels_of_theory)}")
    if num_processes and split == "train":  # of others a run asks for few
        examples.parse_all(num_processes)
    return examples


def reference_energies_of(
    compositions: Sequence[np.ndarray], energies: Sequence[float] | np.ndarray
) -> dict[int, float]:
    """Per-element energies, atomic number -> eV, by least squares over molecules.

    Args:
        compositions: atomic numbers of the atoms of each molecule that count, (N_i,).
        energies: of each, eV.
    """
    counts = np.array([np.bincount(numbers, minlength=NUM_ELEMENTS) for numbers in compositions])
    elements = np.flatnonzero(counts.any(axis=0))
    # The least-norm solution, for elements that always come together.
    solution = np.linalg.lstsq(counts[:, elements], np.asarray(energies), rcond=None)[0]
    return dict(zip(elements.tolist(), solution.tolist(), strict=True))


def check_losses_have_rows(stage: StageConfig, sources: Sequence[ShardedExamples]) -> None:
    """Warns of losses in use that no row of the stage's sources trains.

    Raises:
        ValueError: there are no others.
    """
    there = {
        "energies or forces": any(source.has_labels for source in sources),
        "minima": any(source.has_structures for source in sources),
    }
    needs = dict.fromkeys(LABEL_LOSSES, "energies or forces")
    weighted = [name for name, weight in stage.losses.weights().items() if weight > 0]
    idle = {name: needs.get(name, "minima") for name in weighted if not there[needs.get(name, "minima")]}
    reasons = ", ".join(f"{name} no {what}" for name, what in idle.items())
    if len(idle) == len(weighted):
        raise InputError(f"nothing to train: no row of the stage's sources serves a loss in use ({reasons})")
    if idle:
        logger.warning("losses that no row of the stage's sources trains: %s", reasons)


def collate_in_parts(examples: list[Example], max_pairs: int | None) -> list[tuple[dict, list[str]]]:
    """A micro-batch in as many parts as keep molecules x largest molecule squared within `max_pairs`.

    Each part is the keyword arguments of `PCBridgeModel.forward` and the molecule ids in the same order. A molecule
    that alone is larger than the limit is a part of its own.
    """
    if max_pairs is None:
        parts = [examples]
    else:
        examples = sorted(examples, key=lambda example: example.graph.num_atoms)
        ends = _ends_of_parts(np.array([example.graph.num_atoms for example in examples]), max_pairs)
        parts = [examples[start:end] for start, end in pairwise([0, *ends])]
    ordered = [order_rows(part) for part in parts]
    return [(collate(part), [example.molecule_id for example in part]) for part in ordered]


def _ends_of_parts(sizes: np.ndarray, max_pairs: int) -> list[int]:
    """Where to cut ascending numbers of atoms (M,): the fewest parts, and of these cuts the one with least padding."""
    first, last = np.ogrid[: len(sizes), : len(sizes)]
    pairs = np.where(first <= last, (last - first + 1) * sizes.astype(float) ** 2, np.inf)
    pairs[(pairs > max_pairs) & (first < last)] = np.inf
    least, starts = pairs[0], []  # pairs of all molecules up to each, and where the last part of them starts
    while np.isinf(least[-1]):
        with_one_part_more = np.append(np.inf, least[:-1])[:, None] + pairs
        starts.append(with_one_part_more.argmin(axis=0))
        least = with_one_part_more.min(axis=0)
    ends = [len(sizes)]
    for start in reversed(starts):
        ends.append(int(start[ends[-1] - 1]))
    return ends[::-1]


def make_loader(
    stage: StageConfig, data: TrainingData, config: TrainingConfig, accelerator: Accelerator, start_step: int
) -> DataLoader:
    """The batches of a stage from update `start_step` on; each process gets every so many-th micro-batch."""
    sources = data.examples(stage.sources, "train")
    check_losses_have_rows(stage, sources)
    batches_per_update = config.gradient_accumulation_steps * accelerator.num_processes
    sampler = MixtureBatchSampler(
        sizes=[source.sizes for source in sources],
        shard_lengths=[source.shard_lengths for source in sources],
        weights=[source.weight for source in stage.sources],
        batch_size=config.batch_size,
        num_batches=stage.num_steps * batches_per_update,
        seed=config.seed,
        start_batch=start_step * batches_per_update,
    )
    loader: DataLoader = DataLoader(
        ConcatDataset(sources),  # type: ignore[arg-type]  # it takes any sequence
        batch_sampler=sampler,
        collate_fn=in_few_shapes if config.cuda_graphs else partial(collate_in_parts, max_pairs=config.max_pairs),
        num_workers=config.num_workers,
        worker_init_fn=_outlive_sigterm,
        pin_memory=accelerator.device.type == "cuda",
    )
    accelerator.even_batches = False  # all processes get equally many; older versions of accelerate must be told
    return accelerator.prepare_data_loader(loader)


def _outlive_sigterm(worker: int) -> None:
    """Schedulers send SIGTERM to every process of a job, and workers are needed until the state is saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
