"""Models of drug-like molecules against whole molecules at the level that they learned: bundled `large_labelled`.

    python -m experiments.same_level --checkpoints checkpoints/drug_like [MORE ...]

Of these molecules of 12 to 20 heavy atoms no label was trained on. Those with a B3LYP/6-31G* minimum are compared as
`experiments.outside` does it, from the MMFF94 minimum below that structure and from the GFN2-xTB minimum above it.
Tables, a plot and all numbers of each molecule go to experiments/results/same_level.*. What their energies are by
B3LYP/6-31G*: experiments/same_level_energies.py.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem.rdForceFieldHelpers import MMFFOptimizeMolecule

from dataset_scripts.bundled import load_bundled
from dataset_scripts.schema import B3LYP_6_31GD, GFN2_XTB
from experiments.outside import RESULTS, evaluate
from experiments.outside_report import write_report
from experiments.structure_errors import Molecule
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="+", default=["checkpoints/drug_like"], help="folders or hub names")
    parser.add_argument("--output", type=Path, default=RESULTS.with_name("same_level"), help="without an ending")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    molecules = read()
    title = "Drug-like molecules at the level of the labels, B3LYP/6-31G*"
    introduction = f"{len(molecules)} molecules of `large_labelled`, by `python -m experiments.same_level`."
    write_report(evaluate(molecules, arguments.checkpoints), molecules, title, introduction, arguments.output)


if __name__ == "__main__":
    main()
