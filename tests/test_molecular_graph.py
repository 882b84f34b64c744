"""The graph of real molecules, its stereo marks against an independent embedding, and clear refusals."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from modeling_pcbridge.molecular_graph import PAIR_PATH_OF_2, graph_from_mol, signed_volumes, stereo_is_right
from modeling_pcbridge.rdkit_molecules import mapped_smiles, mol_from_positions, mol_from_smiles, with_structure

STEREO_SMILES = [
    "C[C@H](N)C(=O)O",
    "C[S@](=O)CC",
    "C[C@@H]1O[C@H]1C",
    "C[N@]1C[C@H]1F",
    "CC[P@](C)c1ccccc1",
    "F/C=C/Cl",
    "F/C=C\\Cl",
    "C/C(Cl)=C(/F)Br",
    "C/C=N/O",
]


def embedded(mol: Chem.Mol, count: int = 3) -> np.ndarray:
    """ETKDG honours stereo marks by code of its own: an oracle for ours."""
    mol = Chem.Mol(mol)
    conformers = rdDistGeom.EmbedMultipleConfs(mol, count, randomSeed=1)
    return np.array([mol.GetConformer(i).GetPositions() for i in conformers])


@pytest.mark.parametrize("smiles", STEREO_SMILES)
def test_stereo_marks_agree_with_embedded_structures(smiles):
    mol = mol_from_smiles(smiles)
    graph, structures = graph_from_mol(mol), embedded(mol)
    assert len(graph.stereo_quadruples) == smiles.replace("@@", "@").count("@")
    assert stereo_is_right(graph, structures).all()
    if len(graph.stereo_quadruples):
        mirrored = structures * np.array([-1.0, 1.0, 1.0])
        assert not stereo_is_right(graph, mirrored).any()
        assert (signed_volumes(structures, graph.stereo_quadruples) > 1.0).all()
    else:
        assert graph.stereo_pair_types.any()
        other = graph_from_mol(mol_from_smiles({"F/C=C/Cl": "F/C=C\\Cl"}.get(smiles, smiles.replace("/", "\\", 1))))
        assert not stereo_is_right(other, structures).any()


def test_pair_types_of_propane():
    graph = graph_from_mol(mol_from_smiles("CCC"))
    assert graph.pair_types[0, 1] == 2 and graph.pair_types[0, 2] == PAIR_PATH_OF_2
    assert (graph.pair_types == graph.pair_types.T).all() and (np.diag(graph.pair_types) == 1).all()
    hydrogen_of_first, hydrogen_of_last = 3, 10
    assert graph.atomic_numbers[[hydrogen_of_first, hydrogen_of_last]].tolist() == [1, 1]
    assert graph.pair_types[hydrogen_of_first, hydrogen_of_last] == PAIR_PATH_OF_2 + 2


@pytest.mark.parametrize("smiles", STEREO_SMILES)
def test_mapped_smiles_keep_the_order(smiles):
    mol = mol_from_smiles(smiles)
    order = np.random.default_rng(0).permutation(mol.GetNumAtoms())
    shuffled = Chem.RenumberAtoms(mol, order.tolist())
    again = mol_from_smiles(mapped_smiles(shuffled))
    first, second = graph_from_mol(shuffled), graph_from_mol(again)
    assert (first.atomic_numbers == second.atomic_numbers).all()
    assert (first.pair_types == second.pair_types).all()
    assert (first.stereo_pair_types == second.stereo_pair_types).all()


def test_marks_that_depend_on_each_other_come_from_the_structure():
    """cis-3-methylcyclobutanol: SMILES writes its two marks as an equivalent pair that numbered atoms tell apart."""
    mol = mol_from_smiles("C[C@H]1C[C@@H](O)C1")
    for structure in embedded(mol):
        assert stereo_is_right(graph_from_mol(with_structure(mol, structure)), structure[None]).all()


def test_bonds_and_charges_from_positions():
    mol = mol_from_smiles("[NH3+]CC(=O)[O-]")
    structure = embedded(mol, 1)[0]
    elements = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    found = graph_from_mol(mol_from_positions(elements, structure, 0))
    assert (found.pair_types == graph_from_mol(mol).pair_types).all()
    assert found.formal_charges.tolist() == graph_from_mol(mol).formal_charges.tolist()


@pytest.mark.parametrize(
    ("smiles", "positions"),
    [
        ("O=S=O", [[1.24, 0.73, 0], [0, 0, 0], [-1.24, 0.73, 0]]),
        ("S=C=S", [[1.56, 0, 0], [0, 0, 0], [-1.56, 0, 0]]),
    ],
)
def test_sulfur_is_perceived_without_charges(smiles, positions):
    elements = [atom.GetAtomicNum() for atom in Chem.MolFromSmiles(smiles).GetAtoms()]
    assert Chem.MolToSmiles(mol_from_positions(elements, np.array(positions), 0)) == smiles


@pytest.mark.parametrize(
    ("mol", "reason"),
    [
        (Chem.MolFromSmiles("CC"), "implicit"),
        (Chem.AddHs(Chem.MolFromSmiles("C.C")), "disconnected"),
        (Chem.AddHs(Chem.MolFromSmiles("[CH3]")), "radical"),
        (Chem.AddHs(Chem.MolFromSmiles("*C")), "dummy"),
        (Chem.Mol(), "no atoms"),
        (Chem.AddHs(Chem.MolFromSmiles("C[P@TB1](F)(Cl)(N)O")), "a stereo mark of P1 is not supported"),
        (Chem.MolFromSmarts("CCO"), "a query .SMARTS."),
    ],
)
def test_graphs_that_are_refused(mol, reason):
    with pytest.raises(ValueError, match=reason):
        graph_from_mol(mol)
