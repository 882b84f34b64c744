"""Labels of other levels of theory than the model's, shifted to its level by reference energies of the elements."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from dataset_scripts.bundled import CONFIG_NAMES, parquet_path
from dataset_scripts.reference_energies import EnergyByElement, at_level_of_theory, fit_to_files
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from pcbridge.training.config import SourceConfig


def level_shift(model: PCBridgeModel, sources: Sequence[SourceConfig]) -> Callable[[dict], dict]:
    """What gives rows of the schema labels at the model's level of theory (`at_level_of_theory`).

    The reference energies of each level are fitted to the training splits of all `sources` of a run together, so they
    are the same for every source and split, on every process and on resume. If no source has minima at the model's
    level, as when a checkpoint is trained further on other data only, the model's own reference energies are taken.
    """
    level = model.config.energy_level_of_theory
    names = tuple(sorted({source.name for source in sources}))
    own: tuple[tuple[int, float], ...] = ()
    if level not in _fitted_references(names, level):
        energies = model.energy_decoder.reference_energies.energies.tolist()
        own = tuple((atomic_number, energy) for atomic_number, energy in enumerate(energies) if energy != 0)
    return _shift(names, level, own)


@cache
def _shift(names: tuple[str, ...], level: str, own: tuple[tuple[int, float], ...]) -> Callable[[dict], dict]:
    """The same function for the same arguments, so that whatever is cached by it is found again."""
    references = {level: dict(own)} | _fitted_references(names, level)
    return partial(at_level_of_theory, level_of_theory=level, references=references)


@cache
def _fitted_references(names: tuple[str, ...], level: str) -> dict[str, EnergyByElement]:
    paths = [path for name in names if name not in CONFIG_NAMES for path in sorted(Path(name).glob("train/*.parquet"))]
    if set(names) & set(CONFIG_NAMES):
        # All of it, so that displaced structures have their minima beside them.
        paths += [parquet_path(name, "train") for name in CONFIG_NAMES]
    return fit_to_files(paths, level)
