"""How far B3LYP/6-31G* energies of structures are above those of the minima at that level: bundled `large_labelled`.

    python -m experiments.same_level_energies --checkpoints checkpoints/drug_like [MORE ...]
    python -m experiments.same_level_energies --report            # of what is there

Structures as in `experiments.same_level`: the cheap minima, and after mean shift, after steps on E and relaxed, of each
checkpoint. By PySCF as the labels were, half a minute or more for each; a line each is appended to
experiments/results/same_level_energies.jsonl, the smallest molecules first, and what is there is not done again. The
table is of the molecules that all rows have.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from tqdm.auto import tqdm

from dataset_scripts.bundled import load_bundled
from dataset_scripts.label_generation import read_lines
from dataset_scripts.quantum_chemistry import b3lyp_energy
from dataset_scripts.schema import B3LYP_6_31GD
from experiments import same_level
from experiments.outside import RESULTS, cheap_minima, structures_from_mmff94, taken_by
from experiments.provenance import weights_of
from experiments.structure_errors import Molecule
from modeling_pcbridge import PCBridgeModel

LINES = RESULTS.with_name("same_level_energies.jsonl")
Key = tuple[str, str]  # method, molecule


def structures_by_method(molecules: list[Molecule], checkpoints: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Of each method the structures (N, 3), angstrom, by the names of the molecules."""
    found = {
        method: {m.name: s for m, s in zip(molecules, structures, strict=True) if s is not None}
        for method, structures in cheap_minima(molecules).items()
    }
    for checkpoint in checkpoints:
        model = PCBridgeModel.from_pretrained(checkpoint).eval()
        taken, graphs = taken_by(model, molecules)
        name = f"{'/'.join(Path(checkpoint).parts[-2:])} ({weights_of(checkpoint)})"
        for method, (structures, _) in structures_from_mmff94(model, taken, graphs).items():
            found[f"{name}, {method}"] = {m.name: s for m, s in zip(taken, structures, strict=True)}
    return found


def report(energies: dict[Key, float]) -> str:
    """A Markdown table."""
    by_method: dict[str, dict[str, float]] = defaultdict(dict)
    for (method, molecule), energy in energies.items():
        by_method[method][molecule] = energy
    common = set.intersection(*map(set, by_method.values()))
    lines = [
        "# What is left above the B3LYP/6-31G* minimum",
        "",
        f"B3LYP/6-31G* energies of structures of {len(common)} molecules of `large_labelled` less those of the minima, "
        "eV per molecule. Starts are the MMFF94 minima below the DFT structures. In brackets the first digits of the "
        "SHA-256 of the weights. Written by `python -m experiments.same_level_energies`.",
        "",
        "| | mean | median | largest |",
        "|---|---|---|---|",
    ]
    for method, of_molecules in by_method.items():
        values = [of_molecules[molecule] for molecule in common]
        lines.append(f"| {method} | {np.mean(values):.4f} | {np.median(values):.4f} | {max(values):.4f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="+", default=["checkpoints/drug_like"], help="folders or hub names")
    parser.add_argument("--report", action="store_true", help="compute nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    energies: dict[Key, float] = {(line["method"], line["molecule"]): line["energy"] for line in read_lines(LINES)}
    if not arguments.report:
        molecules = same_level.read()
        minima = {
            row["molecule_id"]: row["energy"]
            for row in load_bundled("large_labelled", "test")
            if row["equilibrium_level_of_theory"] == B3LYP_6_31GD
        }
        structures = structures_by_method(molecules, arguments.checkpoints)
        wanted = [(method, m) for m in molecules for method in structures if m.name in structures[method]]
        for method, molecule in tqdm(wanted, unit="structure"):
            if (method, molecule.name) in energies:
                continue
            charge, positions = Chem.GetFormalCharge(molecule.mol), structures[method][molecule.name]
            energy = b3lyp_energy(molecule.graph.atomic_numbers, positions, charge)
            above = energies[method, molecule.name] = round(energy - minima[molecule.name], 6)
            with LINES.open("a") as lines:
                lines.write(json.dumps({"method": method, "molecule": molecule.name, "energy": above}) + "\n")
    LINES.with_suffix(".md").write_text(text := report(energies))
    print(text)


if __name__ == "__main__":
    main()
