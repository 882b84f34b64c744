"""The processor on what people have, and on what they get wrong."""

import re

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom

from modeling_pcbridge import PCBridgeConfig, PCBridgeModel, PCBridgeProcessor

WATER = ([8, 1, 1], [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def test_smiles_in_the_order_of_add_hs(processor):
    batch = processor(["CCO", "O"])
    assert batch["atomic_numbers"].tolist() == [[6, 6, 8, 1, 1, 1, 1, 1, 1], [8, 1, 1, 0, 0, 0, 0, 0, 0]]
    assert batch["atom_mask"].sum(1).tolist() == [9, 3]
    assert "positions" not in batch
    assert (batch["pair_types"][1, 3:] == 0).all() and (batch["pair_types"][1, :, 3:] == 0).all()


def test_one_molecule_is_a_batch_of_one(processor):
    assert processor("CCO")["atomic_numbers"].shape == (1, 9)
    assert processor(WATER)["positions"].shape == (1, 3, 3)


def test_rdkit_molecule_with_a_conformer_keeps_order_and_positions(processor):
    mol = Chem.AddHs(Chem.MolFromSmiles("OC"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    mol = Chem.RenumberAtoms(mol, [5, 1, 0, 2, 3, 4])
    batch = processor([mol])
    assert batch["atomic_numbers"].tolist() == [[1, 6, 8, 1, 1, 1]]
    expected = torch.tensor(mol.GetConformer().GetPositions(), dtype=torch.float32)
    torch.testing.assert_close(batch["positions"][0], expected)


def test_rdkit_molecule_without_a_conformer_gets_hydrogens(processor):
    assert processor([Chem.MolFromSmiles("CO")])["atomic_numbers"].shape == (1, 6)


def test_elements_positions_and_charge(processor):
    hydroxide = ([8, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]], -1)
    batch = processor([WATER, hydroxide])
    assert batch["formal_charges"].tolist() == [[0, 0, 0], [-1, 0, 0]]
    assert (batch["positions"][1, 2] == 0).all()


def test_save_and_load(processor, tmp_path):
    PCBridgeProcessor(supported_elements=[1, 8]).save_pretrained(tmp_path)
    loaded = PCBridgeProcessor.from_pretrained(tmp_path)
    assert loaded.supported_elements == [1, 8]
    with pytest.raises(ValueError, match="unsupported element C"):
        loaded(["CO"])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", "empty"),
        ("C(", "cannot parse"),
        ("CCÖ", "not ASCII"),
        ("C.C", "disconnected"),
        ("[CH3]", "radical"),
        ("CS", "unsupported element S; this model knows H, C, N, O, F"),
        ("[F-]", "a single atom has no structure"),
        (([9], [[0.0, 0.0, 0.0]], -1), "a single atom has no structure"),
        ((*WATER[:1], [[0.0, 0.0, np.nan], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]), "not all finite"),
        ((*WATER[:1], WATER[1][:2]), r"shape \(2, 3\)"),
        (([], []), "no atoms"),
        (([26, 1], WATER[1][:2]), "unsupported element Fe"),
        ((WATER[0], WATER[1], 1), "total charge 1"),
        ((*WATER, None), "total charge must be a whole number, not None"),
        ((*WATER, 0.5), "total charge must be a whole number, not 0.5"),
        ((["O", "H", "H"], WATER[1]), "atomic numbers must be numbers"),
        (17, "expected a SMILES"),
        (Chem.MolFromSmarts("CCO"), "a query .SMARTS."),
    ],
)
def test_bad_molecules_are_named_with_the_reason(processor, bad, reason):
    with pytest.raises(ValueError, match=f"molecule 2 of 2 .*{reason}"):
        processor(["CCO" if isinstance(bad, str) else WATER, bad])


def test_mixed_positions_and_empty_lists(processor):
    with pytest.raises(ValueError, match="molecule 1 has positions but molecule 2"):
        processor([WATER, "CCO"])
    with pytest.raises(ValueError, match="no molecules"):
        processor([])


def test_conformer_with_implicit_hydrogens(processor):
    mol = Chem.MolFromSmiles("CC")
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    with pytest.raises(ValueError, match="implicit hydrogens"):
        processor([mol])


def test_energy_without_positions_says_what_to_do(processor, model):
    with pytest.raises(ValueError, match="needs positions"):
        model.predict_energy(**processor(["CCO"]))


@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 4, 3), (3, 3), (2, 3, 3)])
def test_positions_that_do_not_fit_the_graph_are_refused(processor, model, shape):
    water, positions = processor(["O"]), torch.zeros(shape)
    with pytest.raises(ValueError, match=r"the graphs are for \(1, 3, 3\)"):
        model.predict_energy(**water, positions=positions)
    with pytest.raises(ValueError, match=r"the graphs are for \(1, 3, 3\)"):
        model.predict_structure(**water, positions=positions, method="refine")
    with pytest.raises(ValueError, match=r"the graphs are for \(1, 3, 3\)"):
        model(**water, positions=positions)


def test_one_molecule_has_one_graph_however_its_aromatic_bonds_are_written(processor):
    aromatic = Chem.AddHs(Chem.MolFromSmiles("c1ccoc1"))
    kekulized = Chem.Mol(aromatic)
    Chem.Kekulize(kekulized, clearAromaticFlags=True)
    expected, batch = processor([aromatic]), processor([kekulized])
    assert all(torch.equal(batch[key], expected[key]) for key in expected)
    assert not kekulized.GetBondWithIdx(0).GetIsAromatic()  # the caller's molecule is left alone


def test_a_drawing_is_no_structure(processor):
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDepictor.Compute2DCoords(mol)
    with pytest.raises(ValueError, match="drawing in two dimensions"):
        processor([mol])


def test_map_numbers_of_heavy_atoms_only_mean_nothing(processor):
    expected = processor(["CO"])
    assert torch.equal(processor(["[CH3:1][OH:2]"])["pair_types"], expected["pair_types"])


@pytest.mark.parametrize(
    ("smiles", "plain"),
    [
        ("[CH3:1][C@H](O)[CH3:2]", "CC(O)C"),
        ("[CH3:1][C@H:3](O)[CH2:2]C", "C[C@H](O)CC"),
        ("[H:4][C@:1]([F:2])([H:3])[H:5]", "FC"),
        (r"[CH3:1]/[CH:2]=[C:3](/[CH3:4])[CH3:5]", "CC=C(C)C"),
    ],
)
def test_marks_that_only_map_numbers_make_are_none(processor, smiles, plain):
    found, expected = processor([smiles]), processor([plain])
    for key in ("stereo_quadruples", "stereo_pair_types"):
        assert found[key].shape == expected[key].shape and (found[key] > 0).sum() == (expected[key] > 0).sum()


def test_any_iterable_of_molecules_and_no_unknown_options(processor):
    assert processor(smiles for smiles in ("C", "O"))["atomic_numbers"].shape == (2, 5)
    assert processor(("C", "O"))["atomic_numbers"].shape == (2, 5)
    with pytest.raises(TypeError, match="total_charge"):
        processor(WATER, total_charge=-1)


def test_charges_that_the_model_has_not_learned_are_named(tmp_path):
    PCBridgeProcessor.of_config(PCBridgeConfig.from_preset("drug_like")).save_pretrained(tmp_path)
    processor = PCBridgeProcessor.from_pretrained(tmp_path)
    assert processor.resonance_invariant and processor.supported_total_charges == [-2, -1, 0, 1, 2]
    taken = ["[O-]C(=O)CC(=O)[O-]", "C[NH3+]", "[NH3+]CC(=O)[O-]", "COP(=O)(O)O", "CS(=O)(=O)NBr", "FC(Cl)I"]
    assert processor(taken)["formal_charges"].shape[0] == len(taken)
    hydroxide = ([8, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]], -1)
    citrate = "OC(CC(=O)[O-])(CC(=O)[O-])C(=O)[O-]"
    message = r"unsupported total charge -3; this model knows -2, -1, 0, \+1, \+2"
    with pytest.raises(ValueError, match=rf"molecule 2 of 2 \('{re.escape(citrate)}'\): {message}"):
        processor(["CO", citrate])
    neutral_only = PCBridgeProcessor([1, 6, 7, 8], supported_total_charges=[0])
    for ion in ("C[NH3+]", hydroxide):
        with pytest.raises(ValueError, match=r"unsupported total charge [+-]1; this model knows 0"):
            neutral_only(ion)
    assert PCBridgeProcessor()(citrate)["formal_charges"].sum() == -3  # as before the field: nothing is known
    with pytest.raises(ValueError, match="unsupported element Si; this model knows H, C, N, O, F, P, S, Cl, Br, I"):
        processor("C[SiH3]")
    with pytest.raises(ValueError, match="at least one charge"):
        PCBridgeConfig(supported_total_charges=[])


def test_untrained_energies_of_rare_elements_are_of_the_size_of_others():
    """Nothing about an element or a charge is larger at the start because it is rare."""
    config = PCBridgeConfig.from_preset("drug_like")
    torch.manual_seed(0)
    model, processor = PCBridgeModel(config).eval(), PCBridgeProcessor.of_config(config)
    mols = []
    for smiles in (
        "CF",
        "CCl",
        "CBr",
        "CI",
        "CS",
        "CP",
        "CO",
        "CS(C)(=O)=O",
        "COP(=O)(O)O",
        "C[NH3+]",
        "CS(=O)(=O)[O-]",
    ):
        mols.append(Chem.AddHs(Chem.MolFromSmiles(smiles)))
        rdDistGeom.EmbedMolecule(mols[-1], randomSeed=1)
    found = model.predict_energy(**processor(mols))
    per_atom = found.energy / torch.tensor([mol.GetNumAtoms() for mol in mols])
    forces = found.forces.norm(dim=-1).amax(-1)
    assert per_atom.abs().max() < 3 and forces.max() < 8 * forces.min()
