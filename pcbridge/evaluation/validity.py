"""Validity of structures by a tool that shares nothing with this project, PoseBusters (extra `validity`).

    pcbridge check structures.sdf        # or python -m pcbridge.evaluation.validity structures.sdf

The checks are those of its configuration "mol" (Buttenschoen et al., Chem. Sci. 2024, 15, 3130): chemistry, bond
lengths, angles, clashes, flat rings and double bonds, and a UFF energy of at most a hundred times that of conformers.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from rdkit import Chem, RDLogger

from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.command_errors import errors_as_sentences
from dataset_scripts.sdf import mol_of_sdf, read_sdf
from dataset_scripts.text_files import open_binary
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.extras import require_extra


def checks(mols: Sequence[Chem.Mol]) -> list[dict[str, bool]]:
    """For each structure whether it passes each check of PoseBusters, by its name there.

    A check that PoseBusters cannot make, such as an energy where UFF lacks parameters, is left out.

    Args:
        mols: with explicit hydrogens and one conformer each; structures of one molecule share its conformers.

    Raises:
        InputError: PoseBusters is not installed.
    """
    if not mols:
        return []
    table = _posebusters().bust([Chem.Mol(mol) for mol in mols])
    return [{name: bool(passed) for name, passed in row.dropna().items()} for _, row in table.iterrows()]


@cache
def _posebusters():
    require_extra("validity", "posebusters", "this check")
    from posebusters import PoseBusters

    buster = PoseBusters("mol")
    # Its file has the energies twice, the first time for no result.
    modules = [module for module in buster.config["modules"] if "chosen_binary_test_output" in module]
    for module in modules:
        if module["function"] == "energy_ratio":
            module["parameters"]["num_threads"] = 1
    buster.config["modules"] = modules
    return buster


def shares(found: Sequence[dict[str, bool]]) -> dict[str, float]:
    """Of each check the share of structures that pass, of those that it could judge; "all_checks": that fail none."""
    names = dict.fromkeys(name for one in found for name in one)
    passed = {name: [one[name] for one in found if name in one] for name in names}
    passed["all_checks"] = [all(one.values()) for one in found]
    return {name: sum(values) / len(values) for name, values in passed.items() if values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="SDF with explicit hydrogens")
    arguments = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    with errors_as_sentences():
        _posebusters()
        found = []
        for path in arguments.files:
            found += _of_file(path)
        if not found:
            raise InputError(f"there is no structure in {', '.join(map(str, arguments.files))}")
    print(f"| check | passed by, of {len(found)} |\n|---|---|")
    for name, share in shares(found).items():
        print(f"| {name.replace('_', ' ')} | {100 * share:.1f}% |")


def _of_file(path: Path) -> list[dict[str, bool]]:
    """The checks of every readable record; the others, and structures that fail, are named on standard error."""
    found = []
    with open_binary(path) as file:
        for number, record in enumerate(read_sdf(file, path.name), 1):
            name = f"{path}, record {number} ({record.partition(chr(10))[0].strip()})"
            try:
                [one] = checks([mol_of_sdf(name, record)])
            except BadRowError as error:
                print(error, file=sys.stderr)
                continue
            if failed := [check.replace("_", " ") for check, passed in one.items() if not passed]:
                print(f"{name}: {', '.join(failed)}", file=sys.stderr)
            found.append(one)
    return found


if __name__ == "__main__":
    main()
