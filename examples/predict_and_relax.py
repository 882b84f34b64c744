"""Predict structures of a molecule, take the one of lowest energy, and relax it with ASE on the model's forces.

    python examples/predict_and_relax.py --smiles "OCCO" --num_samples 10 --output glycol.xyz

Needs the `ase` extra. The relaxed structure goes to an extended xyz file.
"""

import argparse

import torch
from ase import Atoms
from ase.optimize import BFGS

from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.ase_calculator import PCBridgeCalculator
from pcbridge.app.default_model import released_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smiles", default="OCCO")
    parser.add_argument("--num_samples", type=int, default=10)
    parser.add_argument("--model", default=str(released_checkpoint()), help="checkpoint folder or hub name")
    parser.add_argument("--output", default="relaxed.xyz")
    options = parser.parse_args()

    # Structures from noise, all of them evaluated by the same model's energy.
    processor, model = (cls.from_pretrained(options.model) for cls in (PCBridgeProcessor, PCBridgeModel))
    inputs = processor(options.smiles)
    structures = model.predict_structure(
        **inputs, num_samples=options.num_samples, generator=torch.Generator().manual_seed(0)
    ).positions[0]  # (num_samples, N, 3), angstrom
    copies = processor([options.smiles] * options.num_samples)
    energies = model.predict_energy(**copies, positions=structures).energy  # (num_samples,), eV
    best = energies.argmin()
    print(f"energies above the lowest (eV): {sorted(round(e, 3) for e in (energies - energies[best]).tolist())}")

    # Down to the nearest minimum of that energy.
    atoms = Atoms(numbers=inputs["atomic_numbers"][0], positions=structures[best].numpy())
    atoms.calc = PCBridgeCalculator(model, molecule=options.smiles)
    before = atoms.get_potential_energy()
    BFGS(atoms, logfile=None).run(fmax=0.02, steps=200)
    largest_force = (atoms.get_forces() ** 2).sum(1).max() ** 0.5
    print(f"relaxed by {before - atoms.get_potential_energy():.3f} eV; largest force {largest_force:.3f} eV/angstrom")
    atoms.write(options.output, format="extxyz")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
