"""From rows of the schema to padded batches: graph features once per row, then stacking and row order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rdkit import Chem

from modeling_pcbridge.errors import InputError
from modeling_pcbridge.graph_batch import pad_graphs, pad_positions
from modeling_pcbridge.loss_terms import LabelRows
from modeling_pcbridge.molecular_graph import MolecularGraph, graph_from_mol
from modeling_pcbridge.rdkit_molecules import atomic_numbers_of, mol_from_smiles, with_structure


@dataclass(frozen=True)
class Example:
    """One row, ready to be batched: its graph as compact integers and its labels, absent ones None.

    Attributes:
        level: of theory of the labels, as its place in the levels that the model learns.
    """

    molecule_id: str
    graph: MolecularGraph
    positions: np.ndarray
    energy: float | None
    forces: np.ndarray | None
    is_equilibrium: bool
    level: int = 0

    @property
    def is_labelled(self) -> bool:
        return self.energy is not None or self.forces is not None


def example_from_row(
    row: dict, levels_of_theory: Sequence[str], resonance_invariant: bool = False, structures: bool = True
) -> Example:
    """The example of a row of `dataset_scripts.schema.FEATURES`.

    Energies and forces of other levels of theory than `levels_of_theory` count as absent. Forces at a minimum of one of
    these levels are zero by definition, and are labels even where the source does not list them. The graph is as the
    model has it, see `graph_from_mol`. Without `structures` a minimum serves its labels only.

    Raises:
        ValueError: the row's graph, positions and labels do not fit each other, or a number is not finite.
    """
    assert not isinstance(levels_of_theory, str)
    name = row["molecule_id"]
    try:
        graph = graph_from_mol(mol_from_row(row), resonance_invariant)
    except ValueError as error:
        raise InputError(f"molecule {name}: {error}") from error
    level, energy, forces = row["energy_level_of_theory"], row["energy"], row["forces"]
    if level not in levels_of_theory:
        level, energy, forces = row["equilibrium_level_of_theory"], None, None
    if forces is None and level in levels_of_theory and row["equilibrium_level_of_theory"] == level:
        forces = np.zeros((graph.num_atoms, 3))
    if energy is not None and not np.isfinite(energy):
        raise InputError(f"molecule {name}: the energy is {energy}; absent labels must be null")
    return Example(
        molecule_id=name,
        graph=graph,
        positions=np.asarray(row["positions"], dtype=np.float32),
        energy=energy,
        forces=None if forces is None else _vectors(forces, graph.num_atoms, f"molecule {name}: forces"),
        is_equilibrium=structures and row["equilibrium_level_of_theory"] is not None,
        level=levels_of_theory.index(level) if level in levels_of_theory else 0,
    )


def mol_from_row(row: dict) -> Chem.Mol:
    """The molecule of a row, in the row's atom order, with its structure and the stereo marks of that structure.

    Raises:
        ValueError: SMILES, elements and positions do not fit each other.
    """
    mol = mol_from_smiles(row["mapped_smiles"])
    if atomic_numbers_of(mol) != list(row["atomic_numbers"]):
        raise InputError("atomic_numbers differ from mapped_smiles")
    return with_structure(mol, _vectors(row["positions"], mol.GetNumAtoms(), "positions"))


def _vectors(values, num_atoms: int, what: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float32)
    if array.shape != (num_atoms, 3):
        raise InputError(f"{what} have shape {array.shape}, not ({num_atoms}, 3)")
    if not np.isfinite(array).all():
        raise InputError(f"{what} are not all finite")
    return array


def order_rows(examples: list[Example]) -> list[Example]:
    """Neither, then labels only, then both, then structure only: the order of the rows of a batch."""
    return sorted(examples, key=lambda example: (example.is_equilibrium, example.is_equilibrium != example.is_labelled))


def collate(examples: list[Example]) -> dict[str, Any]:
    """The keyword arguments of `PCBridgeModel.forward` for these examples.

    Who has which label is decided here: `has_energy`, `has_forces` and `is_equilibrium`; absent labels are zeros that
    do not count. Rows are put in the order of `order_rows`, so that each loss is computed on one slice. Slices are
    never empty: where no row has a label, one masked row keeps every parameter in the graph on every process.
    """
    examples = order_rows(examples)
    batch = pad_graphs([example.graph for example in examples])
    batch_size, num_atoms = batch["atomic_numbers"].shape
    batch["positions"] = pad_positions([example.positions for example in examples])
    batch["energy"] = torch.zeros(batch_size, dtype=torch.float64)
    batch["forces"] = torch.zeros(batch_size, num_atoms, 3)
    batch["has_energy"] = torch.tensor([example.energy is not None for example in examples])
    batch["has_forces"] = torch.tensor([example.forces is not None for example in examples])
    batch["label_levels"] = torch.tensor([example.level for example in examples])
    batch["is_equilibrium"] = torch.tensor([example.is_equilibrium for example in examples])
    for i, example in enumerate(examples):
        if example.energy is not None:
            batch["energy"][i] = example.energy
        if example.forces is not None:
            batch["forces"][i, : example.graph.num_atoms] = torch.from_numpy(example.forces)
    labelled = [place for place, example in enumerate(examples) if example.is_labelled] or [0]
    structures = [place for place, example in enumerate(examples) if example.is_equilibrium] or [batch_size - 1]
    rows = LabelRows(slice(labelled[0], labelled[-1] + 1), slice(structures[0], batch_size))
    return {**batch, "label_rows": rows}
