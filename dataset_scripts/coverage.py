"""What the rows of a source cover: the sizes, charges and atom environments of its molecules."""

from typing import NamedTuple

from rdkit import Chem

from modeling_pcbridge.atom_environments import environments_of_mol
from modeling_pcbridge.training_coverage import ENVIRONMENT_RADIUS, TrainingCoverage

from .sharded import ShardedExamples

_MOST_ROWS = 200_000  # of a source; five minutes


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


def coverage_of(examples: ShardedExamples) -> SourceCoverage:
    """What `examples` cover: each different SMILES of the rows is read once, which takes less than parsing all rows.

    Of more than `_MOST_ROWS` rows every so many-th: a millisecond for each SMILES, while other processes wait.
    """
    largest_labelled, largest_structure = 0, 0
    charges_labelled, charges_of_structures, environments = set[int](), set[int](), set[int]()
    for smiles, is_labelled, is_structure in examples.molecules(_MOST_ROWS):
        mol = Chem.MolFromSmiles(smiles)
        size, charge = mol.GetNumHeavyAtoms(), Chem.GetFormalCharge(mol)
        if is_labelled:
            largest_labelled = max(largest_labelled, size)
            charges_labelled.add(charge)
            hashes = environments_of_mol(mol, [ENVIRONMENT_RADIUS], examples.resonance_invariant)
            environments.update(hashes[ENVIRONMENT_RADIUS])
        if is_structure:
            largest_structure = max(largest_structure, size)
            charges_of_structures.add(charge)
    by_labels = TrainingCoverage(
        largest_labelled=largest_labelled,
        total_charges=frozenset(charges_labelled),
        labelled_environments=frozenset(environments),
    )
    by_structures = TrainingCoverage(
        largest_structure=largest_structure, total_charges=frozenset(charges_of_structures)
    )
    return SourceCoverage(by_labels, by_structures, examples.has_forces())
