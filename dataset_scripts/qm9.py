"""QM9 in the forms it is distributed in: B3LYP/6-31G(2df,p) minima and energies of 130,831 molecules.

Energies are U0 minus the zero-point energy: the electronic energy at the structure. The 3,054 molecules of
uncharacterized.txt, whose relaxed graph is not the intended one, are left out by every reader.
"""

import importlib.util
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np

from dataset_scripts.archives import iterate_members
from dataset_scripts.bad_rows import BadRowError, ExcludedRowError, naming
from dataset_scripts.rows import make_row, mol_of_smiles_in_order, mol_of_structure
from dataset_scripts.schema import B3LYP_6_31G2DFP
from dataset_scripts.sdf import mol_of_sdf, read_sdf
from dataset_scripts.tables import read_csv
from modeling_pcbridge.constants import HARTREE_TO_EV
from modeling_pcbridge.errors import InputError

NUM_MOLECULES = 133_885
NUM_TRAIN, NUM_VALIDATION = 110_000, 10_000
PUBLISHED_SPLIT_SEED = 42

# DFT energies of H, C, N, O and F molecules are within this range; the same numbers in hartree are not.
MIN_EV_PER_PROTON, MAX_EV_PER_PROTON = 50.0, 400.0

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
    if package is None or not package.submodule_search_locations:
        raise ImportError("qm9pack is not installed: pip install pcbridge[qm9]")
    folder = Path(package.submodule_search_locations[0]) / "data"
    return [folder / f"qm9_part{part}.csv" for part in (1, 2, 3)]


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


# figshare: dsgdb9nsd.xyz.tar.bz2, with uncharacterized.txt beside it.


def read_uncharacterized(path: Path) -> set[int]:
    """The 1-based indices listed in uncharacterized.txt.

    Raises:
        ValueError: no index in the file.
        FileNotFoundError: the file is not beside the data it belongs to.
    """
    lines = path.read_text().splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("===")]
    indices = {int(line.split()[0]) for line in lines[rules[1] + 1 : rules[2]]} if len(rules) == 3 else set()
    if not indices:
        raise InputError(f"{path} is not QM9's list of uncharacterised molecules")
    return indices


def read_xyz_archive(path: Path) -> Iterator[tuple[str, bytes, bool]]:
    """Name and content of each .xyz file of the archive, and whether the molecule is uncharacterised."""
    uncharacterized = read_uncharacterized(path.with_name("uncharacterized.txt"))
    for name, member in iterate_members(path, ".xyz"):
        with naming(name):
            index = int(Path(name).stem.rpartition("_")[2])
        yield name, member.read(), index in uncharacterized


def row_of_xyz(record: tuple[str, bytes, bool]) -> dict:
    """The row of a file of the archive."""
    name, content, uncharacterized = record
    if uncharacterized:
        raise ExcludedRowError(name, "uncharacterised in QM9")
    with naming(name):
        return _row(**parse_xyz(name, content))


def parse_xyz(name: str, content: bytes) -> dict:
    """One of QM9's xyz files as the arguments of `_row`.

    Lines: N; the index and 15 properties; N times symbol, x, y, z, charge; frequencies; two SMILES (GDB-17, relaxed);
    two InChI. Small numbers are written by Mathematica, as in 2.1997*^-6.

    Raises:
        BadRowError: another layout.
    """
    with naming(name):
        lines = content.decode("ascii").replace("*^", "e").rstrip("\n").split("\n")
        num_atoms = int(lines[0])
        if len(lines) != num_atoms + 5:
            raise BadRowError(name, "wrong number of atoms", f"{num_atoms} announced, {len(lines)} lines")
        properties = lines[1].split()
        symbols, *coordinates = zip(*(line.split()[:4] for line in lines[2 : 2 + num_atoms]), strict=True)
        zero_point_energy, u0 = float(properties[11]), float(properties[12])
        return {
            "index": int(properties[1]),
            "smiles": lines[-2].split(),
            "symbols": list(symbols),
            "positions": np.array(coordinates, dtype=np.float64).T,
            "energy": (u0 - zero_point_energy) * HARTREE_TO_EV,
        }


# MoleculeNet: gdb9.sdf with gdb9.sdf.csv and uncharacterized.txt beside it.


def read_sdf_and_csv(path: Path) -> Iterator[tuple[str, dict[str, str], bool]]:
    """Each record of the SDF, its row of the CSV, and whether the molecule is uncharacterised."""
    uncharacterized = read_uncharacterized(path.with_name("uncharacterized.txt"))
    with path.open("rb") as file:
        blocks = read_sdf(file, str(path))
        for block, properties in zip_longest(blocks, read_csv(path.with_suffix(".sdf.csv"))):
            if block is None or properties is None:
                raise BadRowError(str(path), "SDF and CSV have different lengths")
            yield block, properties, int(properties["mol_id"].removeprefix("gdb_")) in uncharacterized


def row_of_sdf_and_csv(record: tuple[str, dict[str, str], bool]) -> dict:
    """The row of a record; the graph is the SDF's."""
    block, properties, uncharacterized = record
    if uncharacterized:
        raise ExcludedRowError(properties["mol_id"], "uncharacterised in QM9")
    with naming(properties["mol_id"]):
        name = molecule_id(int(properties["mol_id"].removeprefix("gdb_")))
        energy = (float(properties["u0"]) - float(properties["zpve"])) * HARTREE_TO_EV
    mol = mol_of_sdf(name, block)
    positions = mol.GetConformer().GetPositions()
    return make_row(name, mol, positions, B3LYP_6_31G2DFP, energy, None, B3LYP_6_31G2DFP)


# Parquet mirrors on the Hugging Face Hub.


def row_of_hub(record: dict) -> dict:
    """The row of a record of nimashoghi/qm9 (eV, no SMILES) or yairschiff/qm9 (hartree, SMILES).

    Neither carries QM9's index, so uncharacterised molecules go only where their graph is not the SMILES'.

    Raises:
        BadRowError: the record is incomplete, or the energy is not in the mirror's unit.
    """
    name = f"qm9_hub_{record.get('id', record.get('inchi'))}"
    with naming(name):
        if "U_0" in record:
            energy = record["U_0"] - record["ZPVE"]
            atomic_numbers = record["atomic_numbers"]
        else:
            energy = (record["u0"] - record["zpve"]) * HARTREE_TO_EV
            atomic_numbers = [_ATOMIC_NUMBERS[symbol] for symbol in record["atomic_symbols"]]
        positions = np.array(record["pos"], dtype=np.float64).reshape(-1, 3)
        if not MIN_EV_PER_PROTON < -energy / sum(atomic_numbers) < MAX_EV_PER_PROTON:
            raise BadRowError(name, "energy in another unit", f"{energy} eV")
    if "smiles" in record:
        mol = mol_of_smiles_in_order(name, record["smiles"], atomic_numbers, positions)
    else:
        mol = mol_of_structure(name, atomic_numbers, positions)
    return make_row(name, mol, positions, B3LYP_6_31G2DFP, energy, None, B3LYP_6_31G2DFP)


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


def published_split_of_files(paths: list[Path]) -> Callable[[str], str]:
    """`published_split` by the uncharacterized.txt beside the files."""
    uncharacterized = read_uncharacterized(paths[0].with_name("uncharacterized.txt"))
    return published_split(set(range(1, NUM_MOLECULES + 1)) - uncharacterized)
