"""DFT structures of small test molecules, to lay over what is predicted for them."""

from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import mol_from_row

from .alignment import best_alignment


@dataclass(frozen=True)
class Reference:
    """A DFT equilibrium structure of the bundled test split: the molecule with its conformer, and its level."""

    mol: Chem.Mol
    level_of_theory: str

    def over(self, predicted: Chem.Mol) -> dict:
        """This structure laid over a predicted one, with its own elements and bonds, for JSON; angstrom."""
        rmsd, transform = best_alignment(self.mol, predicted)
        positions = self.mol.GetConformer().GetPositions() @ transform[:3, :3].T + transform[:3, 3]
        return {
            "symbols": [atom.GetSymbol() for atom in self.mol.GetAtoms()],
            "bonds": [[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), 1] for bond in self.mol.GetBonds()],
            "positions": np.round(positions, 4).tolist(),
            "rmsd": rmsd,
            "rmsd_atoms": "heavy atoms" if predicted.GetNumHeavyAtoms() >= 3 else "all atoms",
        }


def load_references() -> dict[str, Reference]:
    """All references, by canonical SMILES."""
    return {
        canonical_smiles(Chem.MolFromSmiles(row["smiles"])): Reference(mol_from_row(row), row["energy_level_of_theory"])
        for row in load_bundled("dft_equilibrium", "test")
    }


def canonical_smiles(mol: Chem.Mol) -> str:
    """The SMILES without explicit hydrogens by which a molecule is found."""
    return Chem.MolToSmiles(Chem.RemoveHs(mol))
