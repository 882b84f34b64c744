"""The molecules of `large_labelled`: drug-like ones of 12 to 20 heavy atoms that no model may train on.

    python -m dataset_scripts.large_molecules --library drug_like/molecules.smi --exclude excluded_sha256.txt \\
        --output raw_labels/large_molecules.smi

Takes what `drug_like` wrote, and of it the molecules that `splits.split_of` calls test molecules, so that none is in a
training or validation split of any configuration, now or later. Smallest first: a set cut off anywhere is whole up to
some size. Of each size, in turn one with phosphorus, with sulfur, and so on (`_GROUPS`), by a hash of their SMILES.
"""

import argparse
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

from rdkit import Chem, rdBase

from dataset_scripts.command_errors import errors_as_sentences
from dataset_scripts.drug_like import Exclusion
from dataset_scripts.options import underscored
from dataset_scripts.splits import constitution_of, split_of
from dataset_scripts.tables import read_smiles
from dataset_scripts.text_files import open_text

HEAVY_ATOMS = range(12, 21)
MAX_OF_EACH_SIZE = 12
_MAX_CHARGE = 1
# Of the elements of `library.ELEMENTS`, iodine has no 6-31G*.
_GROUPS = tuple(map(Chem.MolFromSmarts, ("[P]", "[#16]", "[+,-]", "[Br]", "[Cl]", "[F]", "[#7]", "[#8]")))
_NEEDED = tuple(map(Chem.MolFromSmarts, ("[R]", "[N,O,n,o]")))  # libraries of drugs and solvents have fatty acids, too
_LEFT_OUT = Chem.MolFromSmarts("[I]")


def choose(smiles: Iterable[str], exclusion: Exclusion) -> list[str]:
    """The chosen of some canonical SMILES, in the order in which they should be labelled."""
    by_size: dict[int, dict[str, Chem.Mol]] = defaultdict(dict)
    for text in smiles:
        mol = Chem.MolFromSmiles(text)
        size = mol.GetNumHeavyAtoms()
        if (
            size in HEAVY_ATOMS
            and abs(Chem.GetFormalCharge(mol)) <= _MAX_CHARGE
            and all(map(mol.HasSubstructMatch, _NEEDED))
            and not mol.HasSubstructMatch(_LEFT_OUT)
            and split_of(constitution_of(mol)) == "test"
            and mol not in exclusion
        ):
            by_size[size][text] = mol
    return [text for size in HEAVY_ATOMS for text in _in_turn(by_size[size])]


def _in_turn(mols: dict[str, Chem.Mol]) -> list[str]:
    """At most `MAX_OF_EACH_SIZE` molecules, in turn one of each group that still has any."""
    waiting = sorted(mols, key=lambda text: hashlib.sha256(text.encode()).digest())
    taken: list[str] = []
    for group in cycle(_GROUPS):
        if not waiting or len(taken) == MAX_OF_EACH_SIZE:
            return taken
        found = next((text for text in waiting if mols[text].HasSubstructMatch(group)), None)
        if found is not None:
            waiting.remove(found)
            taken.append(found)
    raise AssertionError("a cycle has no end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, required=True, help="`SMILES name` a line, as drug_like writes it")
    parser.add_argument("--exclude", type=Path, required=True, help="SHA-256 of SMILES without stereo, one per line")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(underscored(sys.argv[1:]))
    with errors_as_sentences():
        with open_text(arguments.library) as file, rdBase.BlockLogs():
            names = {smiles: name for _, smiles, name in read_smiles(file)}
            chosen = choose(names, Exclusion.of_file(arguments.exclude))
        arguments.output.write_text("".join(f"{smiles} {names[smiles]}\n" for smiles in chosen))
    print(f"{len(chosen)} molecules")


if __name__ == "__main__":
    main()
