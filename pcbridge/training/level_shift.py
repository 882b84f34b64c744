"""Labels of other levels of theory than the model's, shifted to its level by reference energies of the elements."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from dataset_scripts.bundled import CONFIG_NAMES, parquet_path
from dataset_scripts.reference_energies import EnergyByElement, at_level_of_theory, fit_to_files


def level_shift(
    sources: Iterable[str], level_of_theory: str, own_references: EnergyByElement
) -> Callable[[dict], dict]:
    """What gives rows of the schema labels at `level_of_theory` (`at_level_of_theory`).

    The reference energies of each level are fitted to the training splits of all `sources` of a run together, so they
    are the same for every source and split, on every process and on resume. If no source has minima at the level, as
    when a checkpoint is trained further on other data only, the model's `own_references` are taken.
    """
    names = sorted(set(sources))
    paths = [path for name in names if name not in CONFIG_NAMES for path in sorted(Path(name).glob("train/*.parquet"))]
    if set(names) & set(CONFIG_NAMES):
        # All of it, so that displaced structures have their minima beside them.
        paths += [parquet_path(name, "train") for name in CONFIG_NAMES]
    references = {level_of_theory: own_references} | fit_to_files(paths, level_of_theory)
    return partial(at_level_of_theory, level_of_theory=level_of_theory, references=references)
