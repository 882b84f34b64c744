"""QM9 in the forms it is distributed in: B3LYP/6-31G(2df,p) minima and energies of 130,831 molecules.

Energies are U0 minus the zero-point energy: the electronic energy at the structure. The 3,054 molecules of
uncharacterized.txt, whose relaxed graph is not the intended one, are left out by every reader.
"""

import csv
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dataset_scripts.bad_rows import ExcludedRowError, naming
from dataset_scripts.rows import make_row, mol_of_smiles_in_order
from dataset_scripts.schema import B3LYP_6_31G2DFP
from modeling_pcbridge.constants import HARTREE_TO_EV

NUM_MOLECULES = 133_885
NUM_TRAIN, NUM_VALIDATION = 110_000, 10_000
PUBLISHED_SPLIT_SEED = 42

_ATOMIC_NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}


def molecule_id(index: int) -> str:
    """The identifier of QM9's 1-based index."""
    return f"qm9_{index:06d}"


def _row(index: int, smiles: list[str], symbols: list[str], positions: np.ndarray, energy: float) -> dict:
    """`smiles` are alternatives; the first one that the structure has counts. `energy` in eV."""
    name = molecule_id(index)
    atomic_numbers = [_ATOMIC_NUMBERS[symbol] for symbol in symbols]
    for alternative in smiles:
        try:
            mol = mol_of_smiles_in_order(name, alternative, atomic_numbers, positions)
            break
        except ExcludedRowError as error:
            mismatch = error
    else:
        raise mismatch
    return make_row(name, mol, positions, B3LYP_6_31G2DFP, energy, None, B3LYP_6_31G2DFP)


# The PyPI package qm9pack: three CSV files in a wheel.


def qm9pack_files() -> list[Path]:
    """The CSV files of the installed package; its code is not run, it needs the retired pkg_resources.

    Raises:
        ImportError: qm9pack is not installed.
    """
    package = importlib.util.find_spec("qm9pack")
    if package is None:
        raise ImportError("qm9pack is not installed: pip install pcbridge[qm9]")
    folder = Path(package.submodule_search_locations[0]) / "data"
    return [folder / f"qm9_part{part}.csv" for part in (1, 2, 3)]


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """The records of a CSV file with a header, as texts."""
    with path.open(newline="") as file:
        yield from csv.DictReader(file)


def row_of_qm9pack(record: dict[str, str]) -> dict:
    """The row of a record of qm9pack."""
    with naming(f"qm9pack {record.get('XYZ_file')}"):
        # Lists are printed with numbers like "0.", which JSON does not have.
        coordinates = record["XYZ_Ang"].replace("[", "").replace("]", "").split(",")
        energy = float(record["InternalEnergy_0K_au"]) - float(record["ZPVE_au"])
        return _row(
            index=int(record["Index"]),
            smiles=[record["SMILES"]],
            symbols=record["Elements"].strip("[]").replace("'", "").split(","),
            positions=np.array(coordinates, dtype=np.float64).reshape(-1, 3),
            energy=energy * HARTREE_TO_EV,
        )


# Splits.


def published_split(indices: set[int]) -> Callable[[str], str]:
    """The split of the conformation benchmarks: 110,000 / 10,000 / the rest, drawn at random from all molecules.

    They publish sizes but no lists. Ours are a permutation of the sorted indices by NumPy's frozen `RandomState`.

    Args:
        indices: of all characterised molecules, 1-based.

    Returns:
        From a molecule id to its split.
    """
    order = np.random.RandomState(PUBLISHED_SPLIT_SEED).permutation(sorted(indices))
    train, validation, test = np.split(order, [NUM_TRAIN, NUM_TRAIN + NUM_VALIDATION])
    splits = {
        molecule_id(index): split
        for split, members in (("train", train), ("validation", validation), ("test", test))
        for index in members
    }
    return splits.__getitem__


def published_split_of_qm9pack(paths: list[Path]) -> Callable[[str], str]:
    """`published_split`; the package leaves the uncharacterised molecules out."""
    return published_split({int(record["Index"]) for path in qm9pack_files() for record in read_csv(path)})
