"""At which cheap level should a library be? Consistency from MMFF94, PM6 and GFN2-xTB minima of the same molecules.

    python -m experiments.cheap_levels flexisol_validation.parquet    # half an hour of one core; trains what is missing

From one checkpoint a short round with the structures of one level, bundled `drug_like_pm6` and the minima of the same
molecules at the two others: "multi-task" denoises them (Eq. 7), "consistency" relaxes them on E in the step
(`distillation_weight`, as in the evidence), labels are alike and all bundled. The file is that of
`experiments.outside`, B3LYP/6-31G* references are those of `experiments.same_level`; the starts are MMFF94 minima.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from dataset_scripts.bundled import load_bundled
from dataset_scripts.schema import GFN2_XTB
from dataset_scripts.tables import write_rows
from experiments import same_level
from experiments.drug_like_arms import ALL, WAYS, errors_of, train_round
from experiments.figures import bar_plot
from experiments.outside import RESULTS, ROOT, read
from experiments.provenance import write_results, written_by
from experiments.structure_errors import METRICS
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from pcbridge.training.run import CONSISTENCY, MULTI_TASK

OUTPUT = RESULTS.with_name("cheap_levels.json")
LEVELS = ("MMFF94", "PM6", GFN2_XTB)
ARMS = {  # as much weight on structures in both; PM6 and the like are not taken at their word below .1 angstrom
    MULTI_TASK: {"denoising_weight": 0.3},
    CONSISTENCY: {
        "denoising_weight": 0.03,
        "data_precision": 0.1,
        "distillation_weight": 0.3,
        "relaxation_steps": 3,
        "distillation_trains_encoder": True,
    },
}
_LABELS = [
    {"name": "fragments", "weight": 8, "structures": False},
    {"name": "pm6", "weight": 2, "only_labelled": True, "structures": False},
    {"name": "pm6_displaced", "weight": 2, "structures": False},
]
_LIBRARY_WEIGHT = 12
_SPLITS = ("train", "validation")


def write_libraries(folder: Path) -> None:
    """Rows of the same molecules at each level, `folder`/LEVEL/SPLIT/rows.parquet, unless they are there."""
    for split in _SPLITS:
        paths = {level: folder / level / split / "rows.parquet" for level in LEVELS}
        if all(path.exists() for path in paths.values()):
            continue
        gfn2 = {row["molecule_id"]: row for row in load_bundled("drug_like", split)}
        rows: dict[str, list[dict]] = {level: [] for level in LEVELS}
        for row in tqdm(load_bundled("drug_like_pm6", split), unit="molecule"):
            mol = mol_from_smiles(row["mapped_smiles"])
            minimum = same_level.mmff94_minimum(mol, np.array(row["positions"]))
            if minimum is None:
                continue
            at_mmff94 = {"positions": minimum.round(6).tolist(), "equilibrium_level_of_theory": "MMFF94"}
            of_levels = (row | at_mmff94, row, gfn2[row["molecule_id"]])
            for level, of_level in zip(LEVELS, of_levels, strict=True):
                rows[level].append(of_level | dict.fromkeys(("energy", "forces", "energy_level_of_theory")))
        for level, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_rows(path, rows[level])


def report(values: dict, sets: dict[str, str], introduction: str) -> str:
    """A table for each set of references: rows are levels and arms, by each of `WAYS`."""
    lines = ["# Consistency from libraries at three cheap levels", "", introduction]
    for name, title in sets.items():
        lines += ["", f"## {title}", "", "| library | | " + " | ".join(t for t, _ in METRICS.values()) + " |"]
        lines.append("|---" * (2 + len(METRICS)) + "|")
        for arm in values:
            for way in WAYS:
                for level in LEVELS:
                    of = values[arm][level][name][way][ALL]
                    cells = " | ".join(f"{of[key]:.{digits}f}" for key, (_, digits) in METRICS.items())
                    lines.append(f"| {level} | {arm}, {way} | {cells} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--start", type=Path, default=ROOT / "checkpoints" / "drug_like", help="checkpoint")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "cheap_levels", help="of the runs")
    parser.add_argument("--num_steps", type=int, default=500, help="updates of each run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write_libraries(arguments.folder / "libraries")
    molecules = {"outside": read(arguments.file), "same level": same_level.read()}
    sets = {
        "outside": f"{len(molecules['outside'])} molecules of {arguments.file.name} (r2SCAN-3c)",
        "same level": f"{len(molecules['same level'])} molecules of large_labelled (B3LYP/6-31G*)",
    }
    values: dict[str, dict] = {arm: {} for arm in ARMS}
    for level in LEVELS:
        library = {"name": str((arguments.folder / "libraries" / level).resolve()), "weight": _LIBRARY_WEIGHT}
        for arm, losses in ARMS.items():
            stage2 = {"num_steps": arguments.num_steps, "sources": [*_LABELS, library], "losses": losses}
            output = arguments.folder / f"{arm}-{level}-{arguments.seed}"
            checkpoint = train_round(output, arguments.seed, arguments.start, stage2)
            values[arm][level] = {name: errors_of(checkpoint, some) for name, some in molecules.items()}
    introduction = (
        f"Each row: {arguments.num_steps} updates from `{arguments.start.name}`, seed {arguments.seed}, with the "
        "structures of the same molecules at one level; refined from MMFF94 minima. "
        + written_by("cheap_levels FILE", arguments.start)
    )
    write_results(OUTPUT, values, report(values, sets, introduction))
    bonds = {
        f"bonds, angstrom, {name}": {
            arm: {level: values[arm][level][name][WAYS[0]][ALL]["bonds"] for level in LEVELS} for arm in ARMS
        }
        for name in sets
    }
    bar_plot(OUTPUT.with_suffix(".png"), bonds)


if __name__ == "__main__":
    main()
