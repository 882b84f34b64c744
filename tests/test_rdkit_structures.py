"""RDKit's structures: seeds, and an interruption that RDKit would keep to itself."""

import os
import signal
import threading

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

import modeling_pcbridge.rdkit_structures
from modeling_pcbridge import PCBridgeProcessor
from modeling_pcbridge.molecular_graph import graph_from_mol, stereo_is_right
from modeling_pcbridge.rdkit_molecules import mol_from_smiles, unmarked_stereo
from modeling_pcbridge.rdkit_structures import etkdg_conformers, rdkit_structures

MACROLIDE = (  # erythromycin
    "CC[C@H]1OC(=O)[C@H](C)[C@@H](O[C@H]2C[C@@](C)(OC)[C@@H](O)[C@H](C)O2)[C@H](C)[C@@H](O[C@@H]2O[C@H](C)C[C@@H]"
    "([C@H]2O)N(C)C)[C@](C)(O)C[C@@H](C)C(=O)[C@H](C)[C@@H](O)[C@]1(C)O"
)
RING = "CC(C)CC1C(=O)NC(CCC)C(=O)NC(C)C(=O)NC(CC)C(=O)NCCCC(=O)N1"
IMPOSSIBLE = "[C@H]12C3[C@@H]1[C@]23C"  # no arrangement of atoms has these marks


def test_ctrl_c_ends_an_embedding():
    """Pressed until it is heard: what RDKit gets while it looks for patterns, a small part of its time, is lost."""
    mol, ended = mol_from_smiles(RING), threading.Event()

    def press() -> None:
        while not ended.wait(0.5):
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        try:
            etkdg_conformers(mol, 2000, seed=0, timeout=60)
        finally:
            ended.set()


def test_what_cannot_be_embedded_is_no_interruption():
    assert etkdg_conformers(mol_from_smiles(IMPOSSIBLE), 2, seed=0, timeout=10) is None
    with pytest.raises(ValueError, match=r"molecule 2 of 2 .*: RDKit finds no conformer of it"):
        PCBridgeProcessor()(["CC", IMPOSSIBLE], embed=True)


def test_conformers_found_before_a_timeout_are_kept_and_are_those_of_rdkits_loop():
    mol = mol_from_smiles(RING)
    found = etkdg_conformers(mol, 2000, seed=3, timeout=1)
    assert 1 <= len(found) < 2000
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = 4
    few = min(len(found), 3)
    rdDistGeom.EmbedMultipleConfs(mol, few, parameters)
    np.testing.assert_array_equal(found[:few], [conformer.GetPositions() for conformer in mol.GetConformers()])


def test_a_molecule_that_takes_longer_than_the_timeout_has_few_structures_or_none():
    """How many depends on the machine; RDKit's own loop would take minutes, and drop all at its timeout."""
    assert len(rdkit_structures(mol_from_smiles(MACROLIDE), 1000, timeout=1)) < 100


def test_seeds_of_any_size_give_other_conformers():
    mol = mol_from_smiles("CCCCCC")
    a, again, b, huge = (
        rdkit_structures(mol, 3, timeout=10, seed=seed)[2].GetConformer().GetPositions() for seed in (0, 0, 1, 2**62)
    )
    np.testing.assert_array_equal(a, again)
    assert np.abs(a - b).max() > 0.1 and np.abs(huge - b).max() > 0.1


def test_the_processor_embeds_what_has_no_positions():
    [given] = rdkit_structures(mol_from_smiles("CCO"), 1, timeout=10, seed=5)
    inputs = PCBridgeProcessor()([given, "c1ccccc1"], embed=True)
    np.testing.assert_allclose(inputs["positions"][0, :9], given.GetConformer().GetPositions(), atol=1e-5)
    ring = inputs["positions"][1, :6].numpy()
    np.testing.assert_allclose(np.linalg.norm(ring - np.roll(ring, 1, axis=0), axis=-1), 1.39, atol=0.02)


@pytest.mark.parametrize(
    ("smiles", "unmarked"),
    [
        ("CC(O)C(N)F", ["C1", "C3"]),
        ("C[C@H](O)C(N)F", ["C3"]),
        ("CC=CC(C)O", ["C3", "C1=C2"]),
        ("CP(CC)C(F)Cl", ["P1", "C4"]),  # RDKit perceives no handedness of these two in a structure
        ("CC1CN1C", ["C1", "N3"]),
        ("CP=C", []),
        ("FC=C=CF", []),
        ("CCO", []),
    ],
)
def test_all_structures_are_of_one_stereoisomer(smiles, unmarked):
    mol = mol_from_smiles(smiles)
    assert unmarked_stereo(mol) == unmarked
    structures = rdkit_structures(mol, 8, timeout=10)
    assert len(structures) == 8 and len({Chem.MolToSmiles(structure) for structure in structures}) == 1
    assert unmarked_stereo(structures[0]) == []
    graph = graph_from_mol(structures[0])
    assert all(stereo_is_right(graph, structure.GetConformer().GetPositions()[None]) for structure in structures)
    if unmarked:  # without the marks they would be of several
        assert not stereo_is_right(graph, etkdg_conformers(mol, 8, seed=0)).all()


def test_a_crossed_double_bond_is_of_one_isomer_too():
    mol = mol_from_smiles("OC(=O)C=CC(=O)O")
    mol.GetBondBetweenAtoms(3, 4).SetStereo(Chem.BondStereo.STEREOANY)
    assert unmarked_stereo(mol) == ["C3=C4"]
    assert len({Chem.MolToSmiles(structure) for structure in rdkit_structures(mol, 6, timeout=10)}) == 1


def test_unmarked_molecules_keep_the_timeout_and_their_first_conformer(monkeypatch):
    asked = []

    def embed(mol, number, seed, timeout):
        asked.append((number, timeout))
        return etkdg_conformers(mol, 1, seed) if len(asked) == 1 else None

    monkeypatch.setattr(modeling_pcbridge.rdkit_structures, "etkdg_conformers", embed)
    assert len(rdkit_structures(mol_from_smiles("CC(O)C(N)F"), 5, timeout=10)) == 1
    assert [number for number, _ in asked] == [1, 4] and asked[1][1] < asked[0][1] == 10


@pytest.mark.parametrize("smiles", ["C1CN2CCC1CC2", "C1N2CN3CN1CN(C2)C3"])
def test_bridgeheads_of_symmetric_cages_are_no_centres(smiles):
    assert unmarked_stereo(mol_from_smiles(smiles)) == []


def test_long_chains_get_conformers_from_random_coordinates():
    """POPC, a lipid, of which ETKDGv3 finds none in its own way."""
    popc = "CCCCCCCCCCCCCCCC(=O)OC[C@H](COP(=O)([O-])OCC[N+](C)(C)C)OC(=O)CCCCCCC/C=C\\CCCCCCCC"
    found = etkdg_conformers(mol_from_smiles(popc), 1, seed=0)
    assert found is not None and found.shape == (1, 134, 3)
