"""Structures away from the minimum: what turns and by how much, what is held, what counts as broken, the same twice."""

import importlib.util
from itertools import pairwise

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdMolTransforms

from dataset_scripts import geometries as module
from dataset_scripts.geometries import bonds_to_turn, check_geometry, displaced, make_geometry, parse_geometry, twisted
from dataset_scripts.label_generation import generate, read_lines
from dataset_scripts.labelling import label, starting_structure
from modeling_pcbridge.rdkit_molecules import with_structure

needs_tblite = pytest.mark.skipif(importlib.util.find_spec("tblite") is None, reason="needs the extra xtb")


def structure(smiles: str) -> Chem.Mol:
    return starting_structure({"smiles": smiles})


@pytest.fixture
def rigid(monkeypatch) -> list[list[int]]:
    """Turned bonds without relaxation; the atoms that would have been held."""
    held = []

    def stay(_, positions, __, atoms, ___):
        held.append(list(atoms))
        return positions

    monkeypatch.setattr(module, "gfn2_relaxed", stay)
    return held


def test_geometries_have_names_and_numbers():
    assert parse_geometry("torsion") == ("torsion", 1) and parse_geometry("dynamics_12") == ("dynamics", 12)
    for name in ("torsion_1", "torsion_0", "given_2", "minimum_2", "twist", "", "torsion_", "torsion_02"):
        with pytest.raises(ValueError, match=f"no geometry '{name}'; there are given, minimum, displaced, torsion"):
            parse_geometry(name)


@pytest.mark.parametrize(
    ("smiles", "kinds"),
    [
        ("C=C", ["double"]),
        ("C=C=C", ["double", "double"]),
        ("CC#CC", ["single", "single"]),
        ("C#CC", []),  # the other side is in line
        ("NC=O", ["amide"]),
        ("CC(=O)OC", ["amide", "single", "single"]),
        ("CS(=O)(=O)NC", ["sulfonamide", "single", "single"]),
        ("CSSC", ["heteroatoms", "single", "single"]),
        ("C=CC=C", ["double", "double", "conjugated"]),
        ("c1ccccc1-c1ccccc1", ["conjugated"]),
        ("COC", ["single", "single"]),
        ("C1CCCCC1", []),
        ("O", []),
        ("[H][H]", []),
        ("CO", ["single"]),
    ],
)
def test_bonds_that_turn_come_in_the_order_of_their_barriers(smiles, kinds):
    assert [kind for kind, _, _ in bonds_to_turn(structure(smiles), "a")] == kinds


def test_methyl_groups_come_last():
    mol = structure("CCOCC(F)(F)F")
    *first, last, one_but_last = (sorted(bond[1:]) for bond in bonds_to_turn(mol, "a"))
    assert sorted([last, one_but_last]) == [[0, 1], [3, 4]] and sorted(first) == [[1, 2], [2, 3]]


@pytest.mark.parametrize(
    ("smiles", "torsion", "least", "most"),
    [("C/C=C/C", (0, 1, 2, 3), 15, 60), ("CNC(=O)C", (0, 1, 2, 3), 30, 180), ("CSSC", (0, 1, 2, 3), 30, 180)],
)
def test_a_bond_turns_by_the_stated_angle_and_nothing_else_moves(smiles, torsion, least, most, rigid):
    mol = structure(smiles)
    before = mol.GetConformer()
    turns = []
    for name in map(str, range(60)):
        try:
            positions = twisted(mol, name)
        except ValueError:
            continue
        after = with_structure(mol, positions).GetConformer()
        turn = rdMolTransforms.GetDihedralDeg(after, *torsion) - rdMolTransforms.GetDihedralDeg(before, *torsion)
        turns.append(abs((turn + 180) % 360 - 180))
        for bond in mol.GetBonds():
            ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            lengths = [rdMolTransforms.GetBondLength(c, *ends) for c in (before, after)]
            assert lengths[0] == pytest.approx(lengths[1], abs=1e-6)
        for atom in mol.GetAtoms():
            around = [n.GetIdx() for n in atom.GetNeighbors()]
            for i, j in pairwise(around):
                angles = [rdMolTransforms.GetAngleDeg(c, i, atom.GetIdx(), j) for c in (before, after)]
                assert angles[0] == pytest.approx(angles[1], abs=1e-4)
    assert least - 0.01 <= min(turns) < least + 10 and most - 15 < max(turns) <= most + 0.01


def test_the_ends_of_the_turned_bond_are_held_also_past_atoms_in_line(rigid):
    twisted(structure("CCC(=O)NCC"), "a")
    [held] = rigid
    assert {1, 2, 3, 4, 5} <= set(held) and not {0, 6} & set(held)  # and the amide's hydrogen
    rigid.clear()
    positions = twisted(structure("C=C=C"), "a")
    assert not rigid  # every atom says how far it is turned: nothing is left to relax
    normals = [np.cross(positions[i] - positions[0], positions[j] - positions[0]) for i, j in ((3, 4), (5, 6))]
    cosine = abs(normals[0] @ normals[1]) / np.prod(np.linalg.norm(normals, axis=1))
    assert cosine > np.cos(np.radians(76))  # 90 degrees at the minimum


def test_numbers_give_the_next_bond_and_another_angle_and_names_the_same_again(rigid):
    mol = structure("CSSC")
    first, second, again = (twisted(mol, "a", number) for number in (1, 2, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 0.1 and np.abs(first - twisted(mol, "b")).max() > 0.1
    with pytest.raises(ValueError, match="no bond to turn"):
        twisted(structure("O"), "a")
    positions = np.zeros((20, 3))
    assert (displaced(positions, "a", 1) == displaced(positions, "a")).all()
    assert (displaced(positions, "a", 2) != displaced(positions, "a")).any()


def test_what_broke_folded_or_became_an_isomer_is_refused():
    mol = structure("CCCCC[C@H](F)O")
    positions = mol.GetConformer().GetPositions()
    check_geometry(mol, positions)
    check_geometry(mol, positions + np.random.default_rng(0).normal(scale=0.03, size=positions.shape))
    with pytest.raises(ValueError, match="are bonded, but"):
        check_geometry(mol, positions * 1.5)
    chain = structure("CCCCCCC")  # rolled up, its bonds and angles as they are
    for start in range(4):
        rdMolTransforms.SetDihedralDeg(chain.GetConformer(), *range(start, start + 4), 0.0)
    with pytest.raises(ValueError, match=r"folded onto itself: C0 and [CH]\d+ are \d\.\d\d angstrom apart"):
        check_geometry(chain, chain.GetConformer().GetPositions())
    pressed = positions.copy()
    hydrogen = next(n.GetIdx() for n in mol.GetAtomWithIdx(0).GetNeighbors() if n.GetAtomicNum() == 1)
    pressed[hydrogen] = positions[0] + 0.65 * (positions[hydrogen] - positions[0])
    with pytest.raises(ValueError, match=rf"folded onto itself: C0 and H{hydrogen} are 0\.7\d angstrom apart"):
        check_geometry(mol, pressed)
    with pytest.raises(ValueError, match="another stereoisomer"):
        check_geometry(mol, positions * [1, 1, -1])


@needs_tblite
def test_a_turned_bond_costs_what_chemistry_says_and_the_rest_relaxes():
    ethene = label({"molecule_id": "a", "smiles": "C=C"}, "minimum", "gfn2")
    molecule = ethene | {"smiles": ethene["mapped_smiles"]}
    turned = [label(molecule | {"molecule_id": str(i)}, "torsion", "gfn2") for i in range(8)]
    raised = [line["energy"] - ethene["energy"] for line in turned]
    assert min(raised) > 0.05 and 1.0 < max(raised) < 1.9  # 1.76 eV at 60 degrees
    assert {line["equilibrium_level_of_theory"] for line in turned} == {None}
    mol = structure("CCCCNC(=O)CCC")
    relaxed = twisted(mol, "a")
    moved = np.linalg.norm(relaxed - mol.GetConformer().GetPositions(), axis=1)
    assert moved.max() > 0.5


@needs_tblite
def test_dynamics_moves_by_what_the_temperature_says():
    """The potential energy of a harmonic molecule at T is kT/2 for each of its 3N - 6 vibrations, on average."""
    start = label({"molecule_id": "a", "smiles": "CO"}, "minimum", "gfn2")
    molecule = start | {"smiles": start["mapped_smiles"]}
    lines = [label(molecule | {"molecule_id": str(i)}, "dynamics", "gfn2") for i in range(12)]
    energies = [line["energy"] - start["energy"] for line in lines if "error" not in line]
    expected = np.mean([300, 600, 1000]) * 8.617e-5 / 2 * 12
    assert len(energies) > 8 and 0.4 * expected < np.mean(energies) < 2 * expected
    mol = starting_structure(molecule)
    again = make_geometry(mol, "0", "dynamics")
    np.testing.assert_allclose(again, lines[0]["positions"], atol=2e-6)


@needs_tblite
def test_geometries_are_labelled_in_order_and_a_run_goes_on(tmp_path):
    molecules, output = tmp_path / "a.smi", tmp_path / "a.jsonl"
    molecules.write_text("O water\nCO methanol\nC=C ethene\n")
    options = {"level": "gfn2", "inputs": [molecules], "output": output, "in_order": True}
    counts = generate(**options, geometries=["given", "torsion", "displaced_2"])
    assert counts == {"done": 8, "no bond to turn": 1}
    keys = [(line["molecule_id"], line["geometry"]) for line in read_lines(output)]
    assert keys[:4] == [
        ("water", "given"),
        ("water", "torsion"),
        ("water", "displaced_2"),
        ("methanol", "given"),
    ]
    whole = output.read_bytes()
    output.write_bytes(whole[: whole.rfind(b'{"molecule_id": "ethene"') + 20])
    assert generate(**options, geometries=["given", "torsion", "displaced_2"]) == {"done": 1}
    assert output.read_bytes() == whole
    with pytest.raises(ValueError, match="no geometry 'wobble'"):
        generate(**options, geometries=["wobble"])
    with pytest.raises(ValueError, match="pm6 cannot compute geometry 'torsion_2'"):
        generate(**options | {"level": "pm6"}, geometries=["torsion_2"])
