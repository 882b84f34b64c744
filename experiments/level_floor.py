"""How far apart are the level that the models learned and that of the outside structures? What no model can do better.

    python -m experiments.level_floor flexisol_validation.parquet --count 12  # ten minutes of a core for each molecule
    python -m experiments.level_floor flexisol_validation.parquet --count 0   # only the table, of what is there

The file is that of `experiments.outside`, with r2SCAN-3c minima. Of its molecules of up to 12 heavy atoms, all of H, C,
N, O, F, S and Cl, the smallest first, PySCF and geomeTRIC find the B3LYP/6-31G* minimum below the r2SCAN-3c one. Its
own errors against r2SCAN-3c are the floor; the structures of a checkpoint are compared with both. Lines go to
experiments/results/level_floor.jsonl, the table beside it; molecules that are there are not done again.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem

from dataset_scripts.label_generation import read_lines
from dataset_scripts.quantum_chemistry import b3lyp_minimum
from experiments.figures import bar_plot
from experiments.outside import REFINED, RELAXED, read, structures_of, taken_by
from experiments.provenance import written_by
from experiments.structure_errors import METRICS, Molecule, mean_cells, measured
from modeling_pcbridge import PCBridgeModel

LINES = Path(__file__).parent / "results" / "level_floor.jsonl"
_MAX_HEAVY_ATOMS = 12
_ELEMENTS = {1, 6, 7, 8, 9, 16, 17}
_SHOWN = (REFINED, RELAXED)
_METRICS = {key: METRICS[key] for key in ("bonds", "bonds_centred", "one_three", "angles")}
_DRAWN = ("bonds", "angles")


def chosen(molecules: Sequence[Molecule]) -> list[Molecule]:
    """Those that B3LYP/6-31G* takes some minutes for, the smallest first."""
    small = [
        m
        for m in molecules
        if m.mol.GetNumHeavyAtoms() <= _MAX_HEAVY_ATOMS and _ELEMENTS.issuperset(m.graph.atomic_numbers.tolist())
    ]
    return sorted(small, key=lambda m: (m.graph.num_atoms, m.name))


def optimise(molecules: Sequence[Molecule], path: Path) -> None:
    """Append the missing minima to the lines at `path`: name, positions in angstrom and energy in eV."""
    done = {line["name"] for line in read_lines(path)}
    for molecule in molecules:
        if molecule.name in done:
            continue
        charge = Chem.GetFormalCharge(molecule.mol)
        positions, energy = b3lyp_minimum(molecule.graph.atomic_numbers.tolist(), molecule.reference, charge)
        line = {"name": molecule.name, "positions": np.round(positions, 6).tolist(), "energy": energy}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(molecule.name, flush=True)


def report(molecules: Sequence[Molecule], minima: dict[str, np.ndarray], checkpoint: str) -> tuple[str, dict]:
    """A table: each structure against r2SCAN-3c, and against the B3LYP/6-31G* minimum; and what of it is drawn."""
    model = PCBridgeModel.from_pretrained(checkpoint).eval()
    taken, graphs = taken_by(model, [m for m in molecules if m.name in minima])
    by_method = {"MMFF94": [m.mmff for m in taken], "GFN2-xTB": [m.gfn2 for m in taken]}
    found = structures_of(model, taken, graphs)
    by_method |= {f"{Path(checkpoint).name}, {name}": found[name][0] for name in _SHOWN}
    by_method["B3LYP/6-31G*"] = [minima[m.name] for m in taken]
    own = [replace(m, reference=minima[m.name]) for m in taken]
    text = [
        "# How far apart two levels of theory are",
        "",
        f"{len(taken)} outside molecules of up to {_MAX_HEAVY_ATOMS} heavy atoms ({', '.join(m.name for m in taken)}): "
        "errors against their r2SCAN-3c minima / against the B3LYP/6-31G* minima below these; means over molecules. "
        "The last row is what a perfect model of B3LYP/6-31G* would have. Starts of the models are MMFF94 minima. "
        f"{written_by('level_floor', checkpoint)}",
        "",
        "| | " + " | ".join(title for title, _ in _METRICS.values()) + " |",
        "|---" * (len(_METRICS) + 1) + "|",
    ]
    panels: dict[str, dict[str, dict[str, float]]] = {_METRICS[key][0]: {} for key in _DRAWN}
    for name, structures in by_method.items():
        sets = [list(measured(of, structures, None)["records"].values()) for of in (taken, own)]
        cells = [" / ".join(both) for both in zip(*(mean_cells(records, _METRICS) for records in sets), strict=True)]
        text.append(f"| {name} | {' | '.join(cells)} |")
        for key in _DRAWN:
            means = (float(np.mean([record[key] for record in records])) for records in sets)
            panels[_METRICS[key][0]][name] = dict(zip(("r2SCAN-3c", "B3LYP/6-31G*"), means, strict=True))
    text += ["", "Bonds (angstrom) and angles (degrees) of each molecule against its B3LYP/6-31G* minimum:", ""]
    shown = [f"{Path(checkpoint).name}, {name}" for name in _SHOWN]
    text += [
        f"| | {' | '.join(f'{name}, {what}' for name in shown for what in ('bonds', 'angles'))} |",
        "|---" * 5 + "|",
    ]
    records = [measured(own, by_method[name], None)["records"] for name in shown]
    for molecule in own:
        cells = [f"{r[molecule.name]['bonds']:.4f} | {r[molecule.name]['angles']:.2f}" for r in records]
        text.append(f"| {molecule.name} | {' | '.join(cells)} |")
    return "\n".join([*text, ""]), panels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=12, help="molecules to have minima of")
    parser.add_argument("--checkpoint", default="checkpoints/drug_like")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    molecules = chosen(read(arguments.file))
    optimise(molecules[: arguments.count], LINES)
    minima = {line["name"]: np.array(line["positions"]) for line in read_lines(LINES)}
    text, panels = report(molecules, minima, arguments.checkpoint)
    LINES.with_suffix(".md").write_text(text)
    print(text)
    bar_plot(LINES.with_suffix(".png"), panels)


if __name__ == "__main__":
    main()
