"""The fragments of a library of molecules that are worth labelling: small, and with the surroundings of its atoms.

    python -m dataset_scripts.fragments library.smi --output fragments.smi --num 1500 --workers 8

DFT of a drug-like molecule takes minutes to hours, of its fragments seconds, and what an atom contributes to energy
and forces depends on what is near it. So every molecule is cut into fragments (`chopping`), the environments of its
atoms (`modeling_pcbridge.atom_environments`) are counted, and fragments are chosen greedily by how many atoms they
cover (`fragment_choice`).

Output: a SMILES file in the order of choice, so that the first ones of it are the best set of that size; beside it a
report (.json) with counts, coverage and what failed, and a picture of it (.png). Names come from the fragments
themselves, so that those of two libraries can be labelled into one file.

The library (`library.read_library`) is read once and may be of any size: fragments and environments are counted in
tables of bounded length, from which the rarest go first (`library_counts`).
"""

import argparse
import importlib
import itertools
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rdkit import Chem

from dataset_scripts.command_errors import errors_as_sentences
from dataset_scripts.fragment_choice import choose_fragments
from dataset_scripts.fragment_report import as_text, write_fragments
from dataset_scripts.library import ELEMENTS, LibraryRecord, read_library, sample_records
from dataset_scripts.library_counts import count_library
from dataset_scripts.options import underscored
from modeling_pcbridge.errors import InputError

logger = logging.getLogger(__name__)

MAX_HEAVY_ATOMS = 9  # of a fragment
RADII = (1, 2)  # bonds, of the environments that count as covered, one after the other


def make_fragments(
    library: Sequence[Path],
    output: Path,
    max_heavy_atoms: int = MAX_HEAVY_ATOMS,
    num: int = 1500,
    radius: Sequence[int] = RADII,
    sample: int | None = None,
    seed: int = 0,
    elements: Sequence[str] = ELEMENTS,
    workers: int = 1,
) -> dict:
    """The command (see its options): write the fragments, the report and the picture; return the report.

    Raises:
        ValueError: a wrong option, a file that cannot be read, or a library without a single good molecule.
    """
    for option, value in (("max_heavy_atoms", max_heavy_atoms), ("num", num), ("workers", workers), ("sample", sample)):
        if value is not None and value < 1:
            raise InputError(f"{option} must be at least 1, not {value}")
    if not radius or min(radius) < 0 or len(set(radius)) < len(radius):
        raise InputError(f"radius must be different numbers of at least 0, not {list(radius)}")
    known = {Chem.GetPeriodicTable().GetElementSymbol(number) for number in range(1, 119)}
    if unknown := [element for element in elements if element not in known]:
        raise InputError(f"no element {unknown[0]!r}")
    if output.resolve() in [path.resolve() for path in library]:
        raise InputError(f"{output} is the library itself")
    if not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent}")
    if output.is_dir():
        raise InputError(f"{output} is a folder; name the SMILES file in it")
    if output.suffix in (".json", ".png"):
        raise InputError(f"{output} would be written over by the report beside it; name a .smi file")
    records: Iterable[LibraryRecord] = itertools.chain.from_iterable(map(read_library, library))
    if sample is not None:
        records = sample_records(records, sample, seed)
    counts = count_library(records, max_heavy_atoms, radius, elements, workers)
    for reason, count in counts.failures.most_common():
        logger.warning("left out %d molecules: %s (%s)", count, reason, counts.failure_examples[reason][0])
    if not counts.num_molecules:
        raise InputError(f"no molecule of {', '.join(map(str, library))} can be used")
    chosen = choose_fragments(counts, num)
    return write_fragments(counts, chosen, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, nargs="+", help=".smi, .csv, .sdf (each also as .gz), .parquet files")
    parser.add_argument("--output", type=Path, required=True, help="SMILES file; .json and .png are written beside it")
    parser.add_argument(
        "--max_heavy_atoms", type=int, default=MAX_HEAVY_ATOMS, help="of a fragment (default: %(default)s)"
    )
    parser.add_argument("--num", type=int, default=1500, help="fragments at most (default: %(default)s)")
    parser.add_argument("--radius", type=int, nargs="+", default=RADII, help="one after the other (default: 1 2)")
    parser.add_argument("--sample", type=int, help="take only so many records of the library, by chance")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--elements", nargs="+", default=ELEMENTS, help=f"(default: {' '.join(ELEMENTS)})")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    arguments = parser.parse_args(underscored(sys.argv[1:]))
    with errors_as_sentences():
        report = make_fragments(**vars(arguments))
    print(as_text(report))


if __name__ == "__main__":
    # Through the module, so that workers find its functions there and not in __main__.
    importlib.import_module("dataset_scripts.fragments").main()
