"""Build the bundled data set from the raw label tables; see bundled/README.md for what they are.

    python -m dataset_scripts.build_bundled --exclude tests/data/excluded_sha256.txt \\
        --structures structures.parquet --labels labels.parquet [more.parquet ...]
    python -m dataset_scripts.build_bundled --exclude ... --minima pm6_8_heavy_atoms.jsonl
    python -m dataset_scripts.build_bundled --exclude ... --fragments raw_labels/fragments_b3lyp.parquet \\
        --drug_like drug_like.jsonl --drug_like_pm6 drug_like_pm6.jsonl --large_labelled raw_labels/large_b3lyp.parquet
    python -m dataset_scripts.build_bundled --exclude ... --again

The second adds what `label_generation --level pm6` wrote, the third its lines at levels b3lyp, gfn2_program and pm6,
packed by `packed_labels` or as they are; `--again` takes the rows that are there, for configurations whose raw tables
are not in the repository, and `--add` adds to these what the third has new. Molecules that `--exclude` lists
(`drug_like.Exclusion`) are in no split. Every run also writes the front matter of the card. The output is
deterministic: the same inputs give the same rows in the same order.
"""

import argparse
import hashlib
import json
import logging
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rdkit import Chem, RDLogger

from dataset_scripts.bundled import SPLITS_OF, load_bundled, parquet_path
from dataset_scripts.dataset_card import write_card
from dataset_scripts.drug_like import Exclusion
from dataset_scripts.geometries import check_geometry
from dataset_scripts.label_generation import read_lines
from dataset_scripts.labelling import check_same_molecule
from dataset_scripts.options import underscored
from dataset_scripts.packed_labels import read_packed_labels
from dataset_scripts.rows import row_of_mol
from dataset_scripts.schema import B3LYP_6_31G2DFP, B3LYP_6_31GD, FEATURES, PM6
from dataset_scripts.splits import SPLITS, constitution_of, split_of
from dataset_scripts.tables import write_rows
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.rdkit_molecules import mol_from_positions, mol_from_smiles

logger = logging.getLogger(__name__)

_MINIMA_NAME = "pm6_8_heavy_atoms"
_LABELLED_NAMES = ("pm6", "pm6_displaced", "dft_equilibrium")
# What `label_generation` calls the structures of its lines, in the words of the bundled configurations.
_GEOMETRY_NAMES = {"given": "pm6", "displaced": "pm6_displaced"}
# What `label_generation` calls the levels of its lines, in the configurations that are such lines.
_LEVELS = {
    _MINIMA_NAME: ("pm6",),
    "fragments": ("b3lyp",),
    "drug_like": ("gfn2", "gfn2_program"),
    "drug_like_pm6": ("pm6",),
    "large_labelled": ("b3lyp",),
}
# Minima of these are kept to so many angstrom: less than they are converged to, in three quarters of the room.
_ROUNDED, _POSITION_STEP = ("drug_like", "drug_like_pm6"), 2**-13
_EXCLUDED = "a molecule that models are tested on"
_REPEATED = "a molecule that an earlier row has under another name"
# Of the labels; of the molecules of QM9, ChEMBL's drugs and MOSES.
_LICENSES = ["cc0-1.0", "cc-by-4.0", "cc-by-sa-3.0", "mit"]


def checked_mol(structure: dict) -> Chem.Mol:
    """The molecule of a raw row, with bonds perceived from its DFT structure.

    Raises:
        ValueError: the perceived graph is not the source's SMILES, or PM6 broke a bond or led to another stereoisomer.
    """
    dft = np.stack(structure["qm9_dft_positions"])
    pm6 = np.stack(structure["pm6_positions"])
    mol = mol_from_positions(structure["atomic_numbers"], dft)
    if constitution_of(mol) != constitution_of(Chem.MolFromSmiles(structure["smiles"])):
        raise InputError("graph of the DFT structure differs from the SMILES")
    check_same_molecule(mol, pm6)
    return mol


def rows_of_molecule(structure: dict, mol: Chem.Mol, labels: dict[str, dict]) -> dict[str, dict]:
    """The rows of one molecule, by configuration name; `labels` is keyed by geometry ("pm6", "pm6_displaced")."""

    def row(positions, *labels, **more_labels):
        return row_of_mol(f"qm9_{structure['qm9_index']:06d}", mol, np.stack(positions), *labels, **more_labels)

    def labelled(label):
        return (label["energy_ev"], label["forces_ev_ang"], B3LYP_6_31GD)

    rows = {
        "pm6": row(structure["pm6_positions"], PM6, *(labelled(labels["pm6"]) if "pm6" in labels else ())),
        "dft_equilibrium": row(
            structure["qm9_dft_positions"],
            B3LYP_6_31G2DFP,
            energy=structure["qm9_dft_electronic_energy_ev"],
            energy_level_of_theory=B3LYP_6_31G2DFP,
        ),
    }
    if "pm6_displaced" in labels:
        label = labels["pm6_displaced"]
        rows["pm6_displaced"] = row(label["positions"], None, *labelled(label))
    return rows


def read_labels(path: Path) -> list[dict]:
    """Raw labels from Parquet, or the B3LYP/6-31G* lines of `label_generation` without its failures.

    Raises:
        ValueError: lines of another level.
    """
    if path.suffix != ".jsonl":
        return pq.read_table(path).to_pylist()
    lines = [line for line in read_lines(path) if "error" not in line]
    if any(line["level"] != "b3lyp" for line in lines):
        raise InputError(f"{path} has lines of another level than b3lyp")
    return [
        {
            "qm9_index": int(line["molecule_id"].removeprefix("qm9_")),
            "geometry": _GEOMETRY_NAMES[line["geometry"]],
            "positions": line["positions"],
            "energy_ev": line["energy"],
            "forces_ev_ang": line["forces"],
        }
        for line in lines
    ]


def build(structures_path: Path, label_paths: list[Path], exclusion: Exclusion) -> dict:
    """Write the Parquet files of all molecules with DFT structures and return what is new in bundled/summary.json."""
    labels: dict[int, dict[str, dict]] = {}
    for path in label_paths:
        for label in read_labels(path):
            labels.setdefault(label["qm9_index"], {})[label["geometry"]] = label

    rows: dict[tuple[str, str], list[dict]] = {(name, split): [] for name in _LABELLED_NAMES for split in SPLITS}
    rejected: Counter[str] = Counter()
    for structure in pq.read_table(structures_path).to_pylist():
        try:
            mol = checked_mol(structure)
        except ValueError as error:
            rejected[str(error).split(" (")[0]] += 1
            continue
        split = split_of(constitution_of(mol))
        for name, row in rows_of_molecule(structure, mol, labels.get(structure["qm9_index"], {})).items():
            rows[name, split].append(row)
    return _write(rows, "rejected", rejected, exclusion)


def build_again(exclusion: Exclusion) -> dict:
    """Write all Parquet files from the rows that are in them, and return what is new in bundled/summary.json.

    What was rejected before stays there.
    """
    rows = {(name, split): list(load_bundled(name, split)) for name, splits in SPLITS_OF.items() for split in splits}
    return _write(rows, None, Counter(), exclusion)


def build_lines(name: str, path: Path, exclusion: Exclusion, add: bool = False) -> dict:
    """Write lines of `label_generation` as one of `_LEVELS`, split by constitution, and return as `build` does.

    With `add` after the rows that are there, and without the molecules that these have; each line that failed has to
    be given once only, because what is counted of them has no names. Of a library's minima, which several sources may
    name, one molecule is one row, the first.

    Raises:
        ValueError: lines of a level, or molecules of a split, that do not belong there.
    """
    lines = read_packed_labels(path) if path.suffix == ".parquet" else read_lines(path)
    levels, change = _LEVELS[name], {}
    if name == _MINIMA_NAME:
        lines.sort(key=lambda line: line["molecule_id"])
    if levels == ("pm6",):  # its energies are heats of formation, which the model does not predict
        change = {"energy": None, "energy_level_of_theory": None}
    if others := {line["level"] for line in lines}.difference(levels):
        raise InputError(f"{path} has lines of another level than {' or '.join(levels)}: {others.pop()}")
    title = f"rejected_{name}"
    rows = {(name, split): list(load_bundled(name, split)) if add else [] for split in SPLITS_OF[name]}
    rejected: Counter[str] = Counter(json.loads(_summary_path().read_text()).get(title) if add else None)
    known = {row["molecule_id"] for of_split in rows.values() for row in of_split}
    for line in lines:
        if line["molecule_id"] in known:
            continue
        error = line.get("error") or _broken(line)
        if error:
            rejected[_kind_of_error(error)] += 1
            continue
        split = split_of(constitution_of(Chem.MolFromSmiles(line["smiles"])))
        if split not in SPLITS_OF[name]:
            raise InputError(f"{path}: {line['molecule_id']} is of the split {split}, which {name} does not have")
        rows[name, split].append({key: line[key] for key in FEATURES} | change)
    if name in _ROUNDED:
        for (_, split), of_split in rows.items():
            kept = _without_repeats(of_split, name, split)
            rejected[_REPEATED] += len(of_split) - len(kept)
            of_split[:] = kept
            for row in of_split:
                row["positions"] = (np.round(np.array(row["positions"]) / _POSITION_STEP) * _POSITION_STEP).tolist()
    return _write(rows, title, rejected, exclusion)


def _without_repeats(rows: list[dict], name: str, split: str) -> list[dict]:
    """One row of each molecule of a library, the first; of its PM6 minima those of the rows that `drug_like` has."""
    if name == "drug_like":
        first: dict[str, dict] = {}
        for row in rows:
            first.setdefault(row["smiles"], row)
        return list(first.values())
    known = set(load_bundled("drug_like", split)["molecule_id"])
    return [row for row in rows if row["molecule_id"] in known]


def _broken(line: dict) -> str | None:
    """Why the structure of a line gives no row: labels may be older than the rule."""
    if line["geometry"] in ("given", "minimum"):
        return None
    positions = np.array(line["positions"])
    try:
        check_geometry(mol_from_smiles(line["mapped_smiles"]), positions)
    except InputError as error:
        return str(error)
    return None


def _kind_of_error(error: str) -> str:
    """The error without what it says of one molecule."""
    kind = error.partition(" (")[0]
    if " are bonded, but " in kind:
        return "a bond broke"
    return "folded onto itself" if kind.startswith("folded onto itself") else kind


def _write(
    rows: dict[tuple[str, str], list[dict]], title: str | None, rejected: Counter[str], exclusion: Exclusion
) -> dict:
    """Write rows by configuration and split, the card, and their part of bundled/summary.json, which is returned."""
    files = {}
    for (name, split), split_rows in rows.items():
        kept = [row for row in split_rows if Chem.MolFromSmiles(row["smiles"]) not in exclusion]
        rejected[_EXCLUDED] += len(split_rows) - len(kept)
        path = parquet_path(name, split)
        table = write_rows(path, kept)
        files[path.name] = {
            "rows": table.num_rows,
            "with_energy": table.num_rows - table["energy"].null_count,
            "with_forces": table.num_rows - table["forces"].null_count,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    path = _summary_path()
    before = json.loads(path.read_text())
    new: dict[str, dict] = {"files": files}
    if title is not None:
        new[title] = {reason: count for reason, count in sorted(rejected.items()) if count}
    path.write_text(json.dumps(before | new | {"files": before["files"] | files}, indent=2) + "\n")
    write_bundled_card()
    return new


def _summary_path() -> Path:
    return parquet_path("pm6", "train").with_name("summary.json")


def write_bundled_card() -> None:
    """Write the front matter of bundled/README.md."""
    configurations = {
        name: {split: parquet_path(name, split).name for split in splits} for name, splits in SPLITS_OF.items()
    }
    folder = parquet_path("pm6", "train").parent
    write_card(folder, configurations, "PCBridge: bundled quantum-chemistry data", _LICENSES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=Path)
    parser.add_argument("--labels", type=Path, nargs="+")
    parser.add_argument("--minima", type=Path, dest=_MINIMA_NAME)
    parser.add_argument("--fragments", type=Path)
    parser.add_argument("--drug_like", type=Path)
    parser.add_argument("--drug_like_pm6", type=Path)
    parser.add_argument("--large_labelled", type=Path)
    parser.add_argument("--again", action="store_true", help="from the rows that are there")
    parser.add_argument("--add", action="store_true", help="lines to the rows that are there")
    parser.add_argument("--exclude", type=Path, required=True, help="SHA-256 of SMILES without stereo, one per line")
    arguments = parser.parse_args(underscored(sys.argv[1:]))
    inputs = {name: value for name, value in vars(arguments).items() if name not in ("exclude", "add")}
    if (arguments.structures is None) != (arguments.labels is None) or not any(inputs.values()):
        parser.error("give --structures with --labels, or another option but --exclude, or several")
    RDLogger.DisableLog("rdApp.*")
    exclusion = Exclusion.of_file(arguments.exclude)
    built = []
    if arguments.again:
        built.append(build_again(exclusion))
    if arguments.structures is not None:
        built.append(build(arguments.structures, arguments.labels, exclusion))
    for name in _LEVELS:
        if (path := getattr(arguments, name)) is not None:
            built.append(build_lines(name, path, exclusion, arguments.add))
    print(json.dumps(built, indent=2))


if __name__ == "__main__":
    main()
