"""The molecules of the bundled drug-like sets, chosen from public libraries.

    python -m dataset_scripts.drug_like --library train.csv.gz --more chembl_approved_drugs.parquet freesolv.csv \\
        --exclude excluded_sha256.txt --output drug_like/

Writes to the output folder, each file in the order in which it should be labelled:

- library.smi: `--sample` molecules of the library and all of the others, as they are drawn and as pH 7.4 makes them;
- fragments.smi, .json, .png: the fragments of these that cover most atoms (`fragments`);
- to_label.smi: `--first`, then those fragments and the most frequent ones, small and common ones first;
- molecules.smi: molecules of 8 to 45 heavy atoms as pH 7.4 makes them, those of `--more` spread among the others.

What `--exclude` lists, in any state of protonation, is in none of them. raw_labels/README.md has the whole recipe.
"""

import argparse
import json
import logging
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from rdkit import Chem, rdBase
from rdkit.Chem.MolStandardize import rdMolStandardize

from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.command_errors import errors_as_sentences
from dataset_scripts.fragment_choice import ChosenFragment, choose_fragments, name_of
from dataset_scripts.fragment_report import write_fragments
from dataset_scripts.library import (
    ELEMENTS,
    LibraryRecord,
    constitution_hash,
    library_mol,
    read_library,
    sample_records,
)
from dataset_scripts.library_counts import LibraryCounts, count_library
from dataset_scripts.options import underscored
from dataset_scripts.protonation import charged_form
from modeling_pcbridge.errors import InputError

logger = logging.getLogger(__name__)

MAX_FRAGMENT_ATOMS = 9  # heavy ones
MOLECULE_ATOMS = (8, 45)  # heavy ones, least and most
_MAX_FREQUENT_ATOMS = 7  # heavy ones of a fragment that is chosen for its frequency alone
_LEAST_FREQUENCY = 5  # molecules
_OPEN_SHELLS = {"O=O"}  # what SMILES draws as closed shells


class Exclusion:
    """The molecules that may not be trained on, by `constitution_hash`, whatever their state of protonation."""

    def __init__(self, hashes: Iterable[str]):
        self._hashes = frozenset(hashes)
        self._uncharger = rdMolStandardize.Uncharger()

    @classmethod
    def of_file(cls, path: Path | None) -> "Exclusion":
        """The hashes of a text file, one per line; nothing is excluded without a file.

        Raises:
            ValueError: a line is no SHA-256 in hexadecimal.
        """
        lines = path.read_text().split() if path else []
        for line in lines:
            if len(line) != 64 or set(line) - set("0123456789abcdef"):
                raise InputError(f"{path}: {line!r} is no SHA-256")
        return cls(lines)

    def __contains__(self, mol: Chem.Mol) -> bool:
        """Whether the molecule (hydrogens implicit), or its neutral or charged form, is listed."""
        forms = (mol, self._uncharger.uncharge(mol), charged_form(mol))
        return any(constitution_hash(form) in self._hashes for form in forms)


def forms_of(record: LibraryRecord, exclusion: Exclusion) -> Iterator[Chem.Mol]:
    """The molecule of a record as it is drawn, and as pH 7.4 makes it where that differs; nothing if it is excluded.

    Raises:
        BadRowError: the record has no molecule that can be used.
    """
    mol = library_mol(record)
    if mol in exclusion:
        return
    yield mol
    charged = charged_form(mol)
    if Chem.MolToSmiles(charged) != Chem.MolToSmiles(mol):
        yield charged


def label_order(chosen: Sequence[ChosenFragment], counts: LibraryCounts, exclusion: Exclusion, num: int) -> list[str]:
    """SMILES of at most `num` fragments: in turn the next chosen and the next most frequent one.

    Both by rank times how much more a larger one costs, so that small ones come earlier than their rank.
    """

    def cost(num_heavy_atoms: int) -> float:
        return (num_heavy_atoms / MAX_FRAGMENT_ATOMS) ** 2.5

    by_coverage = sorted(enumerate(chosen, start=1), key=lambda ranked: ranked[0] * cost(ranked[1].num_heavy_atoms))
    frequent = [
        (rank, smiles, Chem.MolFromSmiles(smiles).GetNumHeavyAtoms())
        for rank, (smiles, count) in enumerate(counts.fragments.most_common(20 * num), start=1)
        if count >= _LEAST_FREQUENCY
    ]
    by_frequency = sorted(
        (item for item in frequent if item[2] <= _MAX_FREQUENT_ATOMS), key=lambda item: item[0] * cost(item[2])
    )
    columns = ([fragment.smiles for _, fragment in by_coverage], [smiles for _, smiles, _ in by_frequency])
    longest = max(map(len, columns))
    in_turn = chain.from_iterable(zip(*(column + [None] * (longest - len(column)) for column in columns), strict=True))
    unique = dict.fromkeys(smiles for smiles in in_turn if smiles and smiles not in _OPEN_SHELLS)
    return [smiles for smiles in unique if Chem.MolFromSmiles(smiles) not in exclusion][:num]


def select(
    library: Path,
    more: Sequence[Path],
    output: Path,
    first: Path | None = None,
    exclude: Path | None = None,
    sample: int = 20_000,
    num: int = 1500,
    seed: int = 0,
    workers: int = 1,
) -> dict:
    """The command (see its options); returns the counts of each file.

    Raises:
        ValueError: a file that cannot be read, or not a single good molecule that is not excluded.
    """
    exclusion = Exclusion.of_file(exclude)
    sampled = sample_records(read_library(library), sample, seed)
    random.Random(seed).shuffle(sampled)
    others = [record for path in more for record in read_library(path)]

    forms: dict[str, str] = {}  # of fragments' library: SMILES to name
    molecules: list[dict[str, str]] = []  # of the sample, of the others
    failures: dict[str, list[BadRowError]] = {}
    for records in (sampled, others):
        found: dict[str, str] = {}
        for record in records:
            try:
                mols = list(forms_of(record, exclusion))
            except BadRowError as error:
                failures.setdefault(error.reason, []).append(error)
                continue
            forms.update((Chem.MolToSmiles(mol), record.name) for mol in mols)
            if mols and MOLECULE_ATOMS[0] <= mols[-1].GetNumHeavyAtoms() <= MOLECULE_ATOMS[1]:
                found[Chem.MolToSmiles(mols[-1])] = record.name
        molecules.append(found)
    for reason, errors in failures.items():
        logger.warning("left out %d molecules: %s (%s)", len(errors), reason, errors[0])
    if not forms:
        raise InputError(f"no molecule of {', '.join(map(str, (library, *more)))} can be used")
    output.mkdir(parents=True, exist_ok=True)
    _write(output / "library.smi", forms)

    drawn = (LibraryRecord(name, smiles) for smiles, name in forms.items())
    counts = count_library(drawn, MAX_FRAGMENT_ATOMS, (1, 2), ELEMENTS, workers)
    chosen = [f for f in choose_fragments(counts, num) if Chem.MolFromSmiles(f.smiles) not in exclusion]
    write_fragments(counts, chosen, output / "fragments.smi")

    named = [(r.text, r.name) for r in read_library(first)] if first else []
    known = {Chem.CanonSmiles(smiles) for smiles, _ in named}
    fragments = [smiles for smiles in label_order(chosen, counts, exclusion, 2 * num) if smiles not in known]
    to_label = {smiles: name for smiles, name in named if Chem.MolFromSmiles(smiles) not in exclusion}
    to_label |= {smiles: name_of("fragment", smiles) for smiles in fragments}
    _write(output / "to_label.smi", to_label)

    spread = _spread([list(found) for found in molecules])
    _write(output / "molecules.smi", {smiles: name_of("molecule", smiles) for smiles in dict.fromkeys(spread)})
    return {
        "records_left_out": sum(map(len, failures.values())),
        "library": len(forms),
        "fragments": len(chosen),
        "to_label": len(to_label),
        "molecules": len(set(spread)),
    }


def _write(path: Path, molecules: dict[str, str]) -> None:
    path.write_text("".join(f"{smiles} {name}\n" for smiles, name in molecules.items()))


def _spread(lists: list[list[str]]) -> list[str]:
    """All items, those of each list in their order and evenly spread over the whole."""
    places = [(i / len(items), item) for items in lists for i, item in enumerate(items)]
    return [item for _, item in sorted(places)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, required=True, help="a large file, of which a sample is taken")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="files that are taken whole")
    parser.add_argument("--first", type=Path, help="SMILES file of what is labelled before any fragment")
    parser.add_argument("--exclude", type=Path, help="SHA-256 of SMILES without stereo, one per line")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--sample", type=int, default=20_000, help="(default: %(default)s)")
    parser.add_argument("--num", type=int, default=1500, help="fragments by coverage (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="(default: %(default)s)")
    arguments = parser.parse_args(underscored(sys.argv[1:]))
    with errors_as_sentences(), rdBase.BlockLogs():
        print(json.dumps(select(**vars(arguments)), indent=1))


if __name__ == "__main__":
    main()
