"""The molecules that speed is measured on: of QM9, drug-like ones of about 45 atoms, and an alkane of 200."""

from dataclasses import replace
from functools import cache

import numpy as np
from rdkit import Chem
from rdkit.Chem import AllChem

from benchmarks import molecules as molecule_file
from benchmarks.molecules import Molecule
from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import Example
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import mapped_smiles, mol_from_smiles, with_structure

_NUM_DIFFERENT = 64
_CARBONS = 66
NAMES = ("QM9", "drug-like", "200 atoms")


@cache
def molecules(name: str) -> list[Molecule]:
    """Different molecules of one kind and of nearly one size, with random labels."""
    if name == "QM9":
        return molecule_file.qm9_batch(molecule_file.load(), _NUM_DIFFERENT)
    random = np.random.default_rng(0)
    if name == "drug-like":
        rows = load_bundled("drug_like", "train").to_list()
        rows = sorted(rows, key=lambda row: abs(len(row["atomic_numbers"]) - 45))[:_NUM_DIFFERENT]
        found = [(row["mapped_smiles"], row["atomic_numbers"], row["positions"]) for row in rows]
    else:
        mol = Chem.AddHs(Chem.MolFromSmiles("C" * _CARBONS))
        AllChem.EmbedMolecule(mol, randomSeed=0, useRandomCoords=True)
        numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        found = [(mapped_smiles(mol), numbers, mol.GetConformer().GetPositions())]
    return [
        Molecule(
            smiles,
            np.array(numbers),
            np.array(positions, dtype=np.float32),
            float(random.normal()),
            random.normal(size=(len(numbers), 3)).astype(np.float32),
        )
        for smiles, numbers, positions in found
    ]


@cache
def _examples(name: str, resonance_invariant: bool) -> list[Example]:
    examples = []
    for number, molecule in enumerate(molecules(name)):
        mol = with_structure(mol_from_smiles(molecule.mapped_smiles), molecule.positions)
        graph = graph_from_mol(mol, resonance_invariant)
        examples.append(Example(str(number), graph, molecule.positions, molecule.energy, molecule.forces, True))
    return examples


def examples(name: str, count: int, resonance_invariant: bool) -> list[Example]:
    """`count` examples, the same ones again and again where there are not so many."""
    different = _examples(name, resonance_invariant)
    return [replace(different[place % len(different)], molecule_id=str(place)) for place in range(count)]


def padded_share(examples: list[Example]) -> float:
    """The share of pairs of atom slots that hold no pair of atoms."""
    sizes = np.array([example.graph.num_atoms for example in examples])
    return float(1 - np.square(sizes).sum() / (len(sizes) * sizes.max() ** 2))
