"""The bundled data set: real PM6, GFN2-xTB, B3LYP/6-31G* and DFT-equilibrium labels of small and drug-like molecules.

Eight configurations, split by molecule into train, validation and test, one of them test only (bundled/README.md is the
data card):

- `pm6`: PM6 minima; B3LYP/6-31G* energy and forces at them where computed, null elsewhere.
- `pm6_displaced`: structures displaced from PM6 minima, with B3LYP/6-31G* energy and forces. Not minima.
- `dft_equilibrium`: B3LYP/6-31G(2df,p) minima (QM9). Only evaluation, and fine-tuning on `train`, may see them.
- `pm6_8_heavy_atoms`: PM6 minima of larger molecules, without energies; the ones above
  have up to seven heavy atoms.
- `fragments`: fragments of drug-like molecules, the smallest molecules and ions; B3LYP/6-31G* energies and forces at
  GFN2-xTB minima, torsion scan points, snapshots of dynamics and displaced structures: rows of one `molecule_id`.
- `drug_like`: GFN2-xTB minima and energies of molecules of 8 to 45 heavy atoms, without forces.
- `drug_like_pm6`: PM6 minima, without energies, of the smaller ones of these.
- `large_labelled`: test molecules only, of 12 to 20 heavy atoms; B3LYP/6-31G* energies and forces at GFN2-xTB minima,
  and B3LYP/6-31G* minima.
"""

from pathlib import Path

from datasets import Dataset, load_dataset

from dataset_scripts.schema import FEATURES
from dataset_scripts.splits import SPLITS
from modeling_pcbridge.errors import InputError

SPLITS_OF = {
    "pm6": SPLITS,
    "pm6_displaced": SPLITS,
    "dft_equilibrium": SPLITS,
    "pm6_8_heavy_atoms": SPLITS,
    "fragments": SPLITS,
    "drug_like": SPLITS,
    "drug_like_pm6": SPLITS,
    "large_labelled": ("test",),
}
CONFIG_NAMES = tuple(SPLITS_OF)

_FOLDER = Path(__file__).parent / "bundled"


def parquet_path(name: str, split: str) -> Path:
    """Where the rows of one configuration and split lie.

    Raises:
        ValueError: no such configuration or split.
    """
    if name not in CONFIG_NAMES:
        raise InputError(f"no bundled configuration {name!r}; there are {', '.join(CONFIG_NAMES)}")
    if split not in SPLITS_OF[name]:
        raise InputError(f"{name} has no split {split!r}; it has {', '.join(SPLITS_OF[name])}")
    return _FOLDER / f"{name}-{split}.parquet"


def files_of_source(name: str, split: str) -> list[Path]:
    """The Parquet files of a split of a bundled configuration, or of a folder that `dataset_scripts.prepare` wrote.

    Raises:
        InputError: it is neither, or has no such split.
    """
    if name in CONFIG_NAMES:
        return [parquet_path(name, split)]
    if not (files := sorted(Path(name).glob(f"{split}/*.parquet"))):
        raise InputError(
            f"no data source {name!r}: neither a bundled configuration ({', '.join(CONFIG_NAMES)}) nor a folder with "
            f"shards in {split}/, as dataset_scripts.prepare writes it"
        )
    return files


def load_bundled(name: str, split: str) -> Dataset:
    """One configuration and split, in the columns of `dataset_scripts.schema.FEATURES`."""
    return load_dataset("parquet", data_files=str(parquet_path(name, split)), split="train", features=FEATURES)
