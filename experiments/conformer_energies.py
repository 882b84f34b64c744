"""How well E ranks conformers: of flexible molecules that no training set has, against B3LYP-D3(BJ)/6-31G*.

    pcbridge predict experiments/conformer_molecules.smi --num_conformers 40 --energy_window 15 --rmsd_threshold 0.7 \\
        --output all.sdf
    python -m experiments.conformer_energies --select all.sdf --output chosen.sdf
    python -m dataset_scripts.label_generation --level b3lyp --geometries given --in_order --inputs chosen.sdf \\
        --output b3lyp.jsonl
    python -m dataset_scripts.packed_labels b3lyp.jsonl experiments/results/conformer_b3lyp.parquet
    python -m experiments.conformer_energies            # the table, from the committed labels

Six conformers of each molecule, spread over those found by energy, as PCBridge refined them. B3LYP/6-31G* takes
half a minute of one core for each of 10 heavy atoms, one and a half for 16. What is compared is r2 (squared Pearson
correlation) within each molecule, as published comparisons do, and the mean absolute error of energies above the mean
of the molecule. D3(BJ) is added exactly to B3LYP and to E (`--dispersion`); MMFF94 and GFN2-xTB have dispersion by
their definition.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers

from dataset_scripts.collator import mol_from_row
from dataset_scripts.packed_labels import read_packed_labels
from dataset_scripts.quantum_chemistry import gfn2_energy_and_forces
from dataset_scripts.schema import B3LYP_6_31GD
from experiments.figures import bar_plot
from experiments.provenance import write_results, written_by
from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.constants import KCAL_PER_MOL_TO_EV
from modeling_pcbridge.dispersion import d3bj_energy

CONFORMERS = 6
_LEAST_CONFORMERS = 4  # of fewer a correlation says little
_LEAST_LARGE = 12  # heavy atoms
_REFERENCE = "B3LYP-D3(BJ)/6-31G*"
RESULTS = Path(__file__).parent / "results"
LABELS = RESULTS / "conformer_b3lyp.parquet"


def select(ensembles: Path, output: Path) -> None:
    """Of each molecule `CONFORMERS` records, evenly spread over those that the file has, lowest energy first."""
    by_name: dict[str, list[Chem.Mol]] = defaultdict(list)
    for mol in Chem.SDMolSupplier(str(ensembles), removeHs=False):
        by_name[mol.GetProp("_Name")].append(mol)
    with Chem.SDWriter(str(output)) as writer:
        for name, mols in by_name.items():
            for k, place in enumerate(np.linspace(0, len(mols) - 1, min(CONFORMERS, len(mols))).round().astype(int)):
                mols[place].SetProp("_Name", f"{name}_{k}")
                writer.write(mols[place])


def labelled() -> dict[str, list[dict]]:
    """The labelled conformers of each molecule."""
    by_molecule: dict[str, list[dict]] = defaultdict(list)
    for line in read_packed_labels(LABELS):
        if line.get("energy") is not None:
            by_molecule[line["molecule_id"].rsplit("_", 1)[0]].append(line)
    return {name: lines for name, lines in by_molecule.items() if len(lines) >= _LEAST_CONFORMERS}


def energies(model: PCBridgeModel, lines: list[dict]) -> dict[str, np.ndarray]:
    """Of conformers of one molecule, kcal/mol: `_REFERENCE` and what is compared with it."""
    mols = [mol_from_row(line) for line in lines]
    processor = PCBridgeProcessor.of_config(model.config)
    numbers = torch.tensor(np.array([line["atomic_numbers"] for line in lines]))
    positions = torch.tensor(np.array([line["positions"] for line in lines]))
    dispersion = d3bj_energy(B3LYP_6_31GD, numbers, positions).numpy()
    of = {_REFERENCE: np.array([line["energy"] for line in lines]) + dispersion}
    of["PCBridge"] = model.predict_energy(**processor(mols)).energy.numpy() + dispersion
    of["GFN2-xTB"] = np.array(
        [gfn2_energy_and_forces(line["atomic_numbers"], line["positions"], line["total_charge"])[0] for line in lines]
    )
    in_kcal = {name: values / KCAL_PER_MOL_TO_EV for name, values in of.items()}
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mols[0])
    fields = [rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties) for mol in mols]
    return in_kcal | {"MMFF94": np.array([field.CalcEnergy() for field in fields])}


def compare(of: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """r2 within the molecule, and mean absolute error relative to its mean, kcal/mol, of each method."""
    relative = {name: values - values.mean() for name, values in of.items()}
    reference = relative.pop(_REFERENCE)
    return {
        name: (float(np.corrcoef(values, reference)[0, 1] ** 2), float(np.abs(values - reference).mean()))
        for name, values in relative.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--select", type=Path, help="ensembles (SDF), of which conformers are chosen")
    parser.add_argument("--output", type=Path, help="of --select, SDF")
    parser.add_argument("--checkpoint", default="checkpoints/drug_like")
    arguments = parser.parse_args()
    if arguments.select:
        select(arguments.select, arguments.output)
        return
    torch.set_num_threads(1)
    model = PCBridgeModel.from_pretrained(arguments.checkpoint).eval()
    conformers = labelled()
    found = {name: compare(energies(model, lines)) for name, lines in conformers.items()}
    sizes = {name: sum(z > 1 for z in lines[0]["atomic_numbers"]) for name, lines in conformers.items()}
    methods = list(next(iter(found.values())))
    introduction = f"{len(found)} molecules. The module says what is compared. "
    introduction += written_by("conformer_energies", arguments.checkpoint)
    lines = [f"# Energies of conformers against {_REFERENCE}", "", introduction, ""]
    lines += ["| | heavy atoms | " + " | ".join(f"{method}, r2 | error, kcal/mol" for method in methods) + " |"]
    lines += ["|---" * (2 + 2 * len(methods)) + "|"]

    def row(name: str, size: str, of: dict[str, tuple[float, float]]) -> str:
        return f"| {name} | {size} | " + " | ".join(f"{of[m][0]:.2f} | {of[m][1]:.2f}" for m in methods) + " |"

    lines += [row(name, str(sizes[name]), of) for name, of in found.items()]
    medians = {}
    small = {name for name in found if sizes[name] < _LEAST_LARGE}
    groups = {f"up to {_LEAST_LARGE - 1}": small, f"{_LEAST_LARGE} and more": set(found) - small, "all": set(found)}
    for title, names in groups.items():
        some = [found[name] for name in names]
        if some:
            median = {method: tuple(np.median([of[method] for of in some], axis=0)) for method in methods}
            medians[f"{title} heavy atoms"] = median
            lines.append(row(f"**median of {len(some)}**", title, median))
    write_results(RESULTS / "conformer_energies.json", found, "\n".join([*lines, ""]))
    quantities = ("median r2 within a molecule", "median error, kcal/mol")
    panels = {
        quantity: {method: {size: of[method][place] for size, of in medians.items()} for method in methods}
        for place, quantity in enumerate(quantities)
    }
    bar_plot(RESULTS / "conformer_energies.png", panels)


if __name__ == "__main__":
    main()
