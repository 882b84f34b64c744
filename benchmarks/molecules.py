"""The molecules of the benchmark, kept in molecules.npz: 2,048 of QM9 at random, and n-alkanes of 5 to 101 atoms.

Only NumPy is needed to read them, so that every program reads the same file in its own environment. The file was made
by `python -m benchmarks.molecules QM9PACK_WHEEL` from the PyPI package qm9pack 1.0.3 (seed 0).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

PATH = Path(__file__).parent / "molecules.npz"
NUM_QM9 = 2048
ALKANE_CARBONS = (1, 3, 6, 13, 22, 33)


@dataclass(frozen=True)
class Molecule:
    """A structure with random labels, which serve for timing as well as real ones.

    Attributes:
        mapped_smiles: SMILES with explicit hydrogens, numbered as the arrays are.
        atomic_numbers: (N,) int64.
        positions: (N, 3) float32, angstrom.
        energy: random.
        forces: (N, 3) float32, random.
    """

    mapped_smiles: str
    atomic_numbers: np.ndarray
    positions: np.ndarray
    energy: float
    forces: np.ndarray


def load() -> list[Molecule]:
    """All molecules, QM9 first."""
    with np.load(PATH, allow_pickle=False) as archive:
        data = dict(archive)  # else each look at an array would decompress it anew
    ends = np.cumsum(data["sizes"])
    random = np.random.default_rng(0)
    molecules = []
    for smiles, start, end in zip(data["mapped_smiles"], ends - data["sizes"], ends, strict=True):
        molecules.append(
            Molecule(
                str(smiles),
                data["atomic_numbers"][start:end].astype(np.int64),
                data["positions"][start:end],
                float(random.normal()),
                random.normal(size=(end - start, 3)).astype(np.float32),
            )
        )
    return molecules


def qm9_batch(molecules: list[Molecule], batch_size: int) -> list[Molecule]:
    """A batch from the middle of QM9's sizes, sorted by size as every trainer with bucketing gets it."""
    by_size = sorted(molecules[:NUM_QM9], key=lambda molecule: len(molecule.atomic_numbers))
    start = (NUM_QM9 - batch_size) // 2
    return by_size[start : start + batch_size]


def alkane_batch(molecules: list[Molecule], num_carbons: int, batch_size: int) -> list[Molecule]:
    """`batch_size` copies of one alkane."""
    return [molecules[NUM_QM9 + ALKANE_CARBONS.index(num_carbons)]] * batch_size


def _make(wheel: str) -> None:
    import csv
    import io
    import zipfile

    from rdkit import Chem, RDLogger
    from rdkit.Chem import AllChem

    from modeling_pcbridge.molecular_graph import graph_from_mol
    from modeling_pcbridge.rdkit_molecules import mapped_smiles, mol_from_positions

    RDLogger.DisableLog("rdApp.*")
    csv.field_size_limit(10**7)
    rows = []
    with zipfile.ZipFile(wheel) as archive:
        for part in (1, 2, 3):
            with archive.open(f"qm9pack/data/qm9_part{part}.csv") as file:
                rows += [(row["Elements"], row["XYZ_Ang"]) for row in csv.DictReader(io.TextIOWrapper(file))]
    table = Chem.GetPeriodicTable()
    found = []
    for number in np.random.default_rng(0).permutation(len(rows)):
        elements, xyz = rows[number]
        numbers = [table.GetAtomicNumber(symbol.strip("' ")) for symbol in elements.strip("[]").split(",")]
        positions = np.array([float(x) for x in xyz.replace("[", "").replace("]", "").split(",")]).reshape(-1, 3)
        try:
            mol = mol_from_positions(numbers, positions)
            graph_from_mol(mol)
        except ValueError:
            continue  # a graph that RDKit does not perceive: one in a hundred
        found.append((mapped_smiles(mol), numbers, positions))
        if len(found) == NUM_QM9:
            break
    for num_carbons in ALKANE_CARBONS:
        mol = Chem.AddHs(Chem.MolFromSmiles("C" * num_carbons))
        AllChem.EmbedMolecule(mol, randomSeed=0)
        numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        found.append((mapped_smiles(mol), numbers, mol.GetConformer().GetPositions()))
    np.savez_compressed(
        PATH,
        mapped_smiles=np.array([smiles for smiles, _, _ in found]),
        sizes=np.array([len(numbers) for _, numbers, _ in found], dtype=np.int16),
        atomic_numbers=np.concatenate([numbers for _, numbers, _ in found]).astype(np.uint8),
        positions=np.concatenate([positions for _, _, positions in found]).astype(np.float32),
    )


if __name__ == "__main__":
    import sys

    _make(sys.argv[1])
