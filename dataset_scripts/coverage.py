"""What the rows of a source cover: the sizes, charges and atom environments of its molecules."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from rdkit import Chem

from modeling_pcbridge.atom_environments import environments_of_graph, environments_of_mol
from modeling_pcbridge.molecular_graph import total_charge_of
from modeling_pcbridge.training_coverage import ENVIRONMENT_RADIUS, TrainingCoverage

from .collator import Example
from .sharded import ShardedExamples


class SourceCoverage(NamedTuple):
    """What a source can teach.

    Attributes:
        by_labels: by its rows with an energy or forces.
        by_structures: by its minima.
        has_forces: whether forces are among the labels, others than the zeros of minima.
    """

    by_labels: TrainingCoverage
    by_structures: TrainingCoverage
    has_forces: bool


class _Molecule(NamedTuple):
    """Of some rows: heavy atoms, total charge, hashes of environments, whether labelled, whether a minimum."""

    num_heavy_atoms: int
    total_charge: int
    environments: list[int]
    is_labelled: bool
    is_minimum: bool


def coverage_of(examples: Sequence[Example], resonance_invariant: bool) -> SourceCoverage:
    """What `examples` cover, whose graphs are `resonance_invariant` or not.

    Of shards, which would take long to parse, each different SMILES is read once instead.
    """
    if isinstance(examples, ShardedExamples):
        has_forces = examples.has_forces()
        molecules = list(_of_smiles(examples.molecules(), resonance_invariant))
    else:
        has_forces = any(example.forces is not None and example.forces.any() for example in examples)
        molecules = list(_of_examples(examples, resonance_invariant))
    labelled = [molecule for molecule in molecules if molecule.is_labelled]
    minima = [molecule for molecule in molecules if molecule.is_minimum]
    by_labels = TrainingCoverage(
        largest_labelled=max((molecule.num_heavy_atoms for molecule in labelled), default=0),
        total_charges=frozenset(molecule.total_charge for molecule in labelled),
        labelled_environments=frozenset(each for molecule in labelled for each in molecule.environments),
    )
    by_structures = TrainingCoverage(
        largest_structure=max((molecule.num_heavy_atoms for molecule in minima), default=0),
        total_charges=frozenset(molecule.total_charge for molecule in minima),
    )
    return SourceCoverage(by_labels, by_structures, has_forces)


def _of_smiles(molecules: Iterable[tuple[str, bool, bool]], resonance_invariant: bool) -> Iterator[_Molecule]:
    for smiles, is_labelled, is_minimum in molecules:
        mol = Chem.MolFromSmiles(smiles)
        hashes = environments_of_mol(mol, [ENVIRONMENT_RADIUS], resonance_invariant) if is_labelled else {}
        yield _Molecule(
            mol.GetNumHeavyAtoms(),
            Chem.GetFormalCharge(mol),
            hashes.get(ENVIRONMENT_RADIUS, []),
            is_labelled,
            is_minimum,
        )


def _of_examples(examples: Iterable[Example], resonance_invariant: bool) -> Iterator[_Molecule]:
    for example in examples:
        graph = example.graph
        hashes = environments_of_graph(graph, [ENVIRONMENT_RADIUS]) if example.is_labelled else {}
        yield _Molecule(
            int((graph.atomic_numbers > 1).sum()),
            total_charge_of(graph, resonance_invariant),
            hashes.get(ENVIRONMENT_RADIUS, []),
            example.is_labelled,
            example.is_equilibrium,
        )
