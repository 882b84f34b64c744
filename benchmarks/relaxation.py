"""The batched relaxer beside ASE's BFGS, molecule by molecule, on the same energies, from the same starts, one thread.

    python -m benchmarks.relaxation [--checkpoint FOLDER] [--outside FILE.parquet] [--count 48] [--xtb 8]

Energies: a checkpoint, MMFF94 (RDKit) and GFN2-xTB (tblite). Starts: bundled DFT minima, bundled structures displaced
by .04 to .08 angstrom a coordinate, and, from a Parquet file with the columns `mapped_smiles`, `mmff` and `gfn2`, the
MMFF94 minima of drug-like molecules (GFN2-xTB minima for MMFF94). Writes a Markdown table to standard output.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.optimize import BFGS
from rdkit import Chem, RDLogger
from rdkit.Chem import ChemicalForceFields as force_fields
from torch import Tensor

from dataset_scripts.bundled import load_bundled
from dataset_scripts.quantum_chemistry import gfn2_energy_and_forces
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.constants import KCAL_PER_MOL_TO_EV
from modeling_pcbridge.graph_batch import GraphBatch, pad_graphs, pad_positions
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles, with_structure
from modeling_pcbridge.relaxation import Potential, relax

MAX_FORCE, MAX_EVALUATIONS = 0.02, 100
# Where minima are compared: at the threshold above, soft torsions are still some tenths of an angstrom away.
TIGHT_FORCE, TIGHT_EVALUATIONS, SAME_ENERGY = 0.002, 500, 1e-3


@dataclass
class Case:
    """Molecules with a start each, and an energy: a `Potential` of the rows that a batch comes from."""

    name: str
    mols: list[Chem.Mol]
    starts: list[np.ndarray]
    potential_of: Callable[[list[Chem.Mol]], Potential]
    dtype: torch.dtype = torch.float64


def one_by_one(energy_and_forces: Callable[[int, np.ndarray], tuple[float, np.ndarray]]) -> Potential:
    """A potential from a function of (row, positions); `formal_charges` of the first atom carry the row."""

    def potential(graph: GraphBatch, positions: Tensor) -> tuple[Tensor, Tensor]:
        energies, forces = [], torch.zeros_like(positions)
        for k, (row, mask) in enumerate(zip(graph.formal_charges[:, 0].tolist(), graph.atom_mask, strict=True)):
            energy, force = energy_and_forces(row, positions[k][mask].numpy().astype(np.float64))
            energies.append(energy)
            forces[k, mask] = torch.as_tensor(force, dtype=forces.dtype)
        return torch.tensor(energies, dtype=positions.dtype), forces

    return potential


def mmff94(mols: list[Chem.Mol]) -> Potential:
    parameters = [force_fields.MMFFGetMoleculeProperties(mol) for mol in mols]
    fields = [
        force_fields.MMFFGetMoleculeForceField(mol, p, nonBondedThresh=1e3)
        for mol, p in zip(mols, parameters, strict=True)
    ]

    def energy_and_forces(row: int, positions: np.ndarray):
        x = positions.flatten().tolist()
        energy = fields[row].CalcEnergy(x)  # first: RDKit's gradient takes the distances of the last energy
        gradient = np.array(fields[row].CalcGrad(x)).reshape(-1, 3)
        return energy * KCAL_PER_MOL_TO_EV, -gradient * KCAL_PER_MOL_TO_EV

    return one_by_one(energy_and_forces)


def gfn2(mols: list[Chem.Mol]) -> Potential:
    def energy_and_forces(row: int, positions: np.ndarray):
        numbers = [atom.GetAtomicNum() for atom in mols[row].GetAtoms()]
        return gfn2_energy_and_forces(numbers, positions, Chem.GetFormalCharge(mols[row]))

    return one_by_one(energy_and_forces)


class _OneMolecule(Calculator):
    implemented_properties = ["energy", "forces"]  # noqa: RUF012, as ASE declares it

    def __init__(self, potential: Potential, graph: GraphBatch, dtype: torch.dtype):
        super().__init__()
        self.potential, self.graph, self.dtype = potential, graph, dtype

    def calculate(self, atoms=None, properties=None, system_changes=None):
        energy, forces = self.potential(self.graph, torch.as_tensor(atoms.positions, dtype=self.dtype)[None])
        self.results = {"energy": energy.item(), "forces": forces[0].double().numpy()}


def measure(case: Case) -> str:
    """A row of the table."""
    mols = [with_structure(mol, start) for mol, start in zip(case.mols, case.starts, strict=True)]
    graph = GraphBatch(**pad_graphs([graph_from_mol(mol) for mol in mols]))
    potential = case.potential_of(mols)
    if case.dtype == torch.float64:  # not the model's: its charges are not read
        graph.formal_charges[:, 0] = torch.arange(len(mols))
    starts = pad_positions(case.starts).to(case.dtype)
    sizes = graph.atom_mask.sum(1)

    def by_ase(max_force: float, max_evaluations: int):
        converged, evaluations, energies, structures = [], [], [], []
        for row, n in enumerate(sizes.tolist()):
            atoms = Atoms(graph.atomic_numbers[row, :n].numpy(), starts[row, :n].double().numpy())
            atoms.calc = _OneMolecule(potential, graph[row : row + 1].truncated(n), case.dtype)
            optimizer = BFGS(atoms, logfile=None)
            converged.append(optimizer.run(fmax=max_force, steps=max_evaluations - 1))
            evaluations.append(optimizer.nsteps + 1)
            energies.append(atoms.get_potential_energy())
            structures.append(torch.as_tensor(atoms.positions))
        return np.array(converged), np.array(evaluations), np.array(energies), structures

    begin = time.perf_counter()
    ours = relax(potential, graph, starts, MAX_FORCE, MAX_EVALUATIONS)
    our_seconds = (time.perf_counter() - begin) / len(mols)
    begin = time.perf_counter()
    converged, evaluations, _, _ = by_ase(MAX_FORCE, MAX_EVALUATIONS)
    their_seconds = (time.perf_counter() - begin) / len(mols)
    start_energy = torch.cat([potential(graph[row : row + 1], starts[row : row + 1])[0] for row in range(len(mols))])
    rise = (ours.energy - start_energy).max().item()

    tight = relax(potential, graph, starts, TIGHT_FORCE, TIGHT_EVALUATIONS)
    their_tight, _, energies, structures = by_ase(TIGHT_FORCE, TIGHT_EVALUATIONS)
    both = tight.converged.numpy() & their_tight
    same = both & (np.abs(tight.energy.double().numpy() - energies) < SAME_ENERGY)
    apart = []
    for row in np.flatnonzero(same):
        x = tight.positions[row, : sizes[row]].double()
        apart.append((torch.cdist(x, x) - torch.cdist(structures[row], structures[row])).square().mean().sqrt().item())
    distances = f"{np.median(apart):.4f} / {np.quantile(apart, 0.95):.4f}" if apart else ""
    our_evaluations = ours.num_evaluations.double()
    cells = [
        case.name,
        f"{len(mols)} ({int(sizes.median())})",
        f"{ours.converged.double().mean():.0%} / {converged.mean():.0%}",
        f"{our_evaluations.mean():.0f} / {evaluations.mean():.0f}",
        f"{our_evaluations.quantile(0.95):.0f} / {np.quantile(evaluations, 0.95):.0f}",
        f"{1e3 * our_seconds:.0f} / {1e3 * their_seconds:.0f}",
        f"{max(rise, 0.0):.0e}",
        f"{same.sum()} of {both.sum()}",
        distances,
    ]
    return "| " + " | ".join(cells) + " |"


def bundled(name: str, count: int) -> tuple[list[Chem.Mol], list[np.ndarray]]:
    rows = list(load_bundled(name, "test"))
    rows = rows[:: max(len(rows) // count, 1)][:count]
    return [mol_from_smiles(row["mapped_smiles"]) for row in rows], [np.array(row["positions"]) for row in rows]


def outside(path: Path, start: str, elements: set[int] | None, count: int) -> tuple[list[Chem.Mol], list[np.ndarray]]:
    rows = [
        row
        for row in pq.read_table(path).to_pylist()
        if row[start] is not None and (elements is None or set(row["atomic_numbers"]) <= elements)
    ]
    rows = rows[:: max(len(rows) // count, 1)][:count]
    return [mol_from_smiles(row["mapped_smiles"]) for row in rows], [np.array(row[start]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="checkpoints/consistency")
    parser.add_argument("--outside", type=Path)
    parser.add_argument("--count", type=int, default=48, help="molecules of each set")
    parser.add_argument("--xtb", type=int, default=0, help="molecules relaxed on GFN2-xTB")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]

    model = PCBridgeModel.from_pretrained(arguments.checkpoint).eval()
    name = Path(arguments.checkpoint).name

    def of_model(mols: list[Chem.Mol]) -> Potential:
        return model.detached_energy_and_forces

    count = arguments.count
    cases = [
        Case(f"{name}, DFT minima", *bundled("dft_equilibrium", count), of_model, torch.float32),
        Case(f"{name}, displaced", *bundled("pm6_displaced", count), of_model, torch.float32),
        Case("MMFF94, displaced", *bundled("pm6_displaced", count), mmff94),
    ]
    if arguments.xtb:
        cases.append(Case("GFN2-xTB, displaced", *bundled("pm6_displaced", arguments.xtb), gfn2))
    if arguments.outside:
        known = set(model.config.supported_elements)
        cases += [
            Case(f"{name}, drug-like", *outside(arguments.outside, "mmff", known, count), of_model, torch.float32),
            Case("MMFF94, drug-like", *outside(arguments.outside, "gfn2", None, count), mmff94),
        ]
        if arguments.xtb:
            cases.append(Case("GFN2-xTB, drug-like", *outside(arguments.outside, "mmff", None, arguments.xtb), gfn2))
    print(f"To {MAX_FORCE} eV/angstrom within {MAX_EVALUATIONS} evaluations; ours, batched / ASE's BFGS, one by one.\n")
    print(
        "| energy, starts | molecules (atoms) | converged | evaluations | of 95% | ms per molecule | highest rise, eV ",
        end="",
    )
    print(f"| same minimum at {TIGHT_FORCE} | distances there, angstrom: median / 95% |")
    print("|---" * 9 + "|")
    for case in cases:
        print(measure(case), flush=True)


if __name__ == "__main__":
    main()
