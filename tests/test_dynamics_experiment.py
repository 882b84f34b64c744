"""What experiments.dynamics calls a turn, and a broken bond."""

from itertools import pairwise

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdMolTransforms
from rdkit.Chem.rdDistGeom import EmbedMolecule

from dataset_scripts.bundled import load_bundled
from experiments.dynamics import Watched, has_broken_bond, turns, watched
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.structure_checks import StructureChecks


@pytest.fixture(scope="module")
def molecule() -> Watched:
    mol = Chem.AddHs(Chem.MolFromSmiles("CNC(C)=O"))
    EmbedMolecule(mol, randomSeed=7)
    amide = np.array([[0, 1, 2, 4]])  # C-N-C=O
    return Watched("N-methylacetamide", mol, StructureChecks(graph_from_mol(mol)), amide)


@pytest.mark.parametrize("degrees", [35.0, -150.0, 180.0])
def test_a_turn_is_that_of_the_torsion(molecule, degrees):
    start = molecule.mol.GetConformer().GetPositions()
    mol = Chem.Mol(molecule.mol)
    torsion = molecule.torsions[0].tolist()
    before = rdMolTransforms.GetDihedralDeg(mol.GetConformer(), *torsion)
    rdMolTransforms.SetDihedralDeg(mol.GetConformer(), *torsion, before + degrees)
    found = turns(mol.GetConformer().GetPositions(), start, molecule.torsions)
    assert found == pytest.approx([abs(degrees)], abs=1e-4)


def test_a_bond_is_broken_and_a_turn_is_none(molecule):
    positions = molecule.mol.GetConformer().GetPositions()
    assert not has_broken_bond(molecule, positions)
    far = positions.copy()
    far[-1] += 1.5 * (far[-1] - positions[molecule.mol.GetAtomWithIdx(len(far) - 1).GetNeighbors()[0].GetIdx()])
    assert has_broken_bond(molecule, far)


def test_each_stiff_bond_is_watched_once():
    found = watched(load_bundled("drug_like", "test"))
    assert len(found) == 10
    for molecule in found:
        axes = [frozenset(torsion[1:3].tolist()) for torsion in molecule.torsions]
        assert len(axes) == len(set(axes)) > 0
        for torsion in molecule.torsions.tolist():
            for i, j in pairwise(torsion):
                assert molecule.mol.GetBondBetweenAtoms(i, j) is not None
            assert not molecule.mol.GetBondBetweenAtoms(*torsion[1:3]).IsInRing()
