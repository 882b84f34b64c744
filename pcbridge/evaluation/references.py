"""What predictions are compared with: DFT structures, and what classical methods make of the same molecules."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import Example, example_from_row, mol_from_row
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.molecular_graph import MolecularGraph, graph_from_mol
from modeling_pcbridge.rdkit_structures import etkdg_conformers, mmff_minima
from pcbridge.evaluation.config import EvaluationConfig


@dataclass(frozen=True)
class ReferenceMolecule:
    """A molecule with the structure that predictions are compared with."""

    example: Example
    mol: Chem.Mol

    @property
    def positions(self) -> np.ndarray:
        return self.example.positions


def graphs_for(model: PCBridgeModel, references: Sequence[ReferenceMolecule]) -> list[MolecularGraph]:
    """The graphs of the molecules as `model` has learned to read them."""
    return [graph_from_mol(reference.mol, model.config.resonance_invariant) for reference in references]


def load_references(evaluation: EvaluationConfig, elements: Collection[int] | None = None) -> list[ReferenceMolecule]:
    """DFT equilibrium structures of the split, smallest molecules first; of all, or of these elements only.

    Raises:
        InputError: none has these elements only.
    """
    rows = load_bundled("dft_equilibrium", evaluation.split).sort("molecule_id")
    if elements is not None:
        rows = rows.filter(lambda numbers: set(elements).issuperset(numbers), input_columns="atomic_numbers")
        if not len(rows):
            raise InputError(f"no molecule of dft_equilibrium consists of atomic numbers {sorted(elements)}")
    if evaluation.max_molecules is not None:
        # Evenly over the sorted ids, which go from small to large molecules.
        chosen = np.linspace(0, len(rows) - 1, min(evaluation.max_molecules, len(rows))).round().astype(int)
        rows = rows.select(chosen)
    references = [
        ReferenceMolecule(example_from_row(row, [row["energy_level_of_theory"]]), mol_from_row(row)) for row in rows
    ]
    return sorted(references, key=lambda reference: reference.example.graph.num_atoms)


def pm6_structures(evaluation: EvaluationConfig) -> Callable[[ReferenceMolecule], np.ndarray]:
    """The PM6 minima of the bundled data, each from the conformer of its DFT structure."""
    by_id = {row["molecule_id"]: row["positions"] for row in load_bundled("pm6", evaluation.split)}
    return lambda reference: np.array([by_id[reference.example.molecule_id]])


def mmff_structures(num_samples: int, seed: int) -> Callable[[ReferenceMolecule], np.ndarray | None]:
    """ETKDGv3 conformers from the graph with its stereo marks, relaxed with MMFF94."""

    def structures(reference: ReferenceMolecule) -> np.ndarray | None:
        conformers = etkdg_conformers(reference.mol, num_samples, seed)
        return None if conformers is None else mmff_minima(reference.mol, conformers)

    return structures
