"""Models of drug-like molecules against whole molecules at the level that they learned: bundled `large_labelled`.

    python -m experiments.same_level --checkpoints checkpoints/drug_like [MORE ...]

Of these molecules of 12 to 20 heavy atoms no label was trained on. Those with a B3LYP/6-31G* minimum are compared as
`experiments.outside` does it, from the MMFF94 minimum below that structure and from the GFN2-xTB minimum above it.
Tables, a plot and all numbers of each molecule go to experiments/results/same_level.*. `--energies` also computes, by
PySCF, a minute or so for each structure, how far the B3LYP/6-31G* energy of each structure of the first checkpoint is
above that of the minimum: experiments/results/same_level_energies.md.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem.rdForceFieldHelpers import MMFFOptimizeMolecule
from tqdm.auto import tqdm

from dataset_scripts.bundled import load_bundled
from dataset_scripts.quantum_chemistry import b3lyp_energy_and_forces
from dataset_scripts.schema import B3LYP_6_31GD, GFN2_XTB
from experiments.outside import RESULTS, evaluate, structures_of, taken_by
from experiments.outside_report import write_report
from experiments.provenance import written_by
from experiments.structure_errors import Molecule
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import conformer_from_positions, mol_from_smiles


def read() -> list[Molecule]:
    """The molecules with minima at both levels, the smallest first."""
    rows: dict[str, dict[str, dict]] = defaultdict(dict)
    for row in load_bundled("large_labelled", "test"):
        rows[row["molecule_id"]][row["equilibrium_level_of_theory"]] = row
    molecules = []
    for name, minima in rows.items():
        if B3LYP_6_31GD not in minima:
            continue
        mol = mol_from_smiles(minima[B3LYP_6_31GD]["mapped_smiles"])
        reference, gfn2 = (np.array(minima[level]["positions"]) for level in (B3LYP_6_31GD, GFN2_XTB))
        molecules.append(Molecule(name, mol, graph_from_mol(mol), reference, mmff94_minimum(mol, reference), gfn2))
    return sorted(molecules, key=lambda molecule: molecule.graph.num_atoms)


def mmff94_minimum(mol: Chem.Mol, positions: np.ndarray) -> np.ndarray | None:
    """The minimum below `positions` (N, 3), angstrom; None where MMFF94 has none."""
    mol = Chem.Mol(mol)
    mol.RemoveAllConformers()
    mol.AddConformer(conformer_from_positions(positions))
    return mol.GetConformer().GetPositions() if MMFFOptimizeMolecule(mol, maxIters=10_000) == 0 else None


def energies_left(molecules: list[Molecule], checkpoint: str) -> dict[str, list[float]]:
    """By method and molecule, eV above the B3LYP/6-31G* minimum; all with density fitting, as the labels."""
    minima = {
        row["molecule_id"]: row["energy"]
        for row in load_bundled("large_labelled", "test")
        if row["equilibrium_level_of_theory"] == B3LYP_6_31GD
    }
    model = PCBridgeModel.from_pretrained(checkpoint).eval()
    taken, graphs = taken_by(model, molecules)
    structures = {"MMFF94": [m.mmff for m in taken], GFN2_XTB: [m.gfn2 for m in taken]}
    structures |= {name: found for name, (found, _) in structures_of(model, taken, graphs).items()}
    left: dict[str, list[float]] = {name: [] for name in structures}
    for place, molecule in enumerate(tqdm(taken, unit="molecule")):
        charge = Chem.GetFormalCharge(molecule.mol)
        for name, found in structures.items():
            energy, _ = b3lyp_energy_and_forces(molecule.graph.atomic_numbers, found[place], charge)
            left[name].append(energy - minima[molecule.name])
    return left


def report_of_energies(left: dict[str, list[float]], checkpoint: str) -> str:
    """A Markdown table."""
    count = len(next(iter(left.values())))
    lines = [
        "# What is left above the B3LYP/6-31G* minimum",
        "",
        f"B3LYP/6-31G* energy of structures of {count} molecules of `large_labelled` less that of the minimum, eV per "
        f"molecule; models: `{checkpoint}`. {written_by('same_level --energies', checkpoint)}",
        "",
        "| | mean | median | largest |",
        "|---|---|---|---|",
    ]
    for name, values in left.items():
        lines.append(f"| {name} | {np.mean(values):.4f} | {np.median(values):.4f} | {max(values):.4f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="+", default=["checkpoints/drug_like"], help="folders or hub names")
    parser.add_argument("--output", type=Path, default=RESULTS.with_name("same_level"), help="without an ending")
    parser.add_argument("--energies", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    molecules = read()
    title = "Drug-like molecules at the level of the labels, B3LYP/6-31G*"
    introduction = f"{len(molecules)} molecules of `large_labelled`, by `python -m experiments.same_level`."
    write_report(evaluate(molecules, arguments.checkpoints), molecules, title, introduction, arguments.output)
    if arguments.energies:
        text = report_of_energies(energies_left(molecules, arguments.checkpoints[0]), arguments.checkpoints[0])
        arguments.output.with_name(f"{arguments.output.name}_energies.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
