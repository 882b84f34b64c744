"""One molecule, one graph: every resonance form that RDKit lists, Kekulé or aromatic, SMILES or coordinates."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import random_positions, small_model
from rdkit import Chem
from rdkit.Chem import ResonanceFlags, ResonanceMolSupplier, rdDistGeom
from rdkit.Chem import rdForceFieldHelpers as force_fields

from modeling_pcbridge import PCBridgeConfig, PCBridgeProcessor
from modeling_pcbridge.molecular_graph import PAIR_BONDS, graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from modeling_pcbridge.resonance import CHARGE_UNITS, average_forms

SINGLE, DOUBLE, TRIPLE, AROMATIC = (Chem.BondType.names[n] for n in ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC"))
# With the number of forms that RDKit lists, at least.
RESONANT = {
    "CC(=O)[O-]": 2,
    "CNC(N)=[NH2+]": 3,
    "CC(N)=[NH2+]": 2,
    "Cc1c[nH]c[nH+]1": 2,
    "C[N+](=O)[O-]": 2,
    "Nc1ccc(cc1)[N+](=O)[O-]": 2,
    "CC(=O)[CH-]C(C)=O": 3,
    "CC=C[O-]": 2,
    "c1ccc[cH+]cc1": 6,
    "c1cc[cH-]c1": 4,
    "[O-]c1ccccc1": 4,
    "[O-]c1ccc(cc1)[N+](=O)[O-]": 3,
    "Cc1nnn[n-]1": 4,
    "CN=[N+]=[N-]": 3,
    "[N-]=[N+]=[N-]": 3,
    "C[N-]C#N": 2,
    "N#C[C-](C)C#N": 3,
    "CN(C)C=CC=[N+](C)C": 2,
    "C[n+]1ccn(C)c1": 2,
    "[S-]c1ccccn1": 3,
    "[O-]C(=O)c1ccccc1C(=O)[O-]": 4,
    "[O-]c1nc(N)nc2nc[nH]c12": 3,
    "C=C[CH2+]": 2,
    "CC#C[CH-]C": 2,
    "Cc1no[n+]([O-])c1C": 2,
}
AROMATICS = ["Cc1cccc2ccccc12", "Oc1ccc2cc3ccccc3cc2c1", "c1ccc2[nH]ccc2c1", "Cc1ccco1", "Cn1cnc2c1c(=O)n(C)c(=O)n2C"]


@pytest.fixture(scope="module")
def processor() -> PCBridgeProcessor:
    return PCBridgeProcessor.of_config(PCBridgeConfig.from_preset("drug_like"))


def forms(mol: Chem.Mol, flags: int = 0) -> list[Chem.Mol]:
    found = []
    for form in ResonanceMolSupplier(mol, flags, 100):
        form = Chem.Mol(form)
        Chem.SanitizeMol(form)
        found.append(form)
    return found


@pytest.mark.parametrize("smiles", [*RESONANT, *AROMATICS])
def test_every_form_has_the_same_graph_and_energy(processor, smiles):
    mol = mol_from_smiles(smiles)
    listed = forms(mol) + forms(mol, ResonanceFlags.KEKULE_ALL)
    assert len(listed) >= RESONANT.get(smiles, 1)
    expected = processor(mol)
    for form in listed:
        graph = processor(form)
        assert all(torch.equal(graph[key], expected[key]) for key in expected)
    together = processor([mol, *listed])
    model = small_model(resonance_invariant=True)
    positions = random_positions(together)[:1].expand(len(together["atomic_numbers"]), -1, -1)
    energies = model.predict_energy(**together, positions=positions).energy
    assert (energies - energies[0]).abs().max() < 1e-8


def test_a_graph_of_one_form_does_differ():
    """So the test above can fail."""
    mol = mol_from_smiles("CNC(N)=[NH2+]")
    graphs = [graph_from_mol(form) for form in forms(mol)]
    assert any((graph.pair_types != graphs[0].pair_types).any() for graph in graphs)


@pytest.mark.parametrize(
    ("smiles", "charges", "bonds"),
    [
        ("CC(=O)[O-]", [0, 0, -12, -12], {(0, 1): SINGLE, (1, 2): AROMATIC, (1, 3): AROMATIC}),
        ("NC(N)=[NH2+]", [8, 0, 8, 8], {(0, 1): AROMATIC, (1, 2): AROMATIC, (1, 3): AROMATIC}),
        ("CS(=O)(=O)[O-]", [0, 0, -8, -8, -8], {(0, 1): SINGLE, (1, 2): AROMATIC, (1, 4): AROMATIC}),
        ("CP(=O)([O-])[O-]", [0, 0, -16, -16, -16], {(0, 1): SINGLE, (1, 2): AROMATIC, (1, 4): AROMATIC}),
        ("C[N-]S(C)(=O)=O", [0, -8, 0, 0, -8, -8], {(1, 2): AROMATIC, (2, 3): SINGLE, (2, 4): AROMATIC}),
        ("[S-]C#N", [-12, 0, -12], {(0, 1): AROMATIC, (1, 2): TRIPLE}),
        # What nothing is to be averaged in, however it was drawn.
        ("CC(N)=O", [0, 0, 0, 0], {(0, 1): SINGLE, (1, 2): SINGLE, (1, 3): DOUBLE}),
        ("CC(=[NH2+])[O-]", [0, 0, 0, 0], {(0, 1): SINGLE, (1, 2): SINGLE, (1, 3): DOUBLE}),
        ("C[S+](C)[O-]", [0, 0, 0, 0], {(0, 1): SINGLE, (1, 3): DOUBLE}),
        ("CP(C)(C)=O", [0, 0, 0, 0, 0], {(1, 4): DOUBLE}),
        ("C=CC=C", [0, 0, 0, 0], {(0, 1): DOUBLE, (1, 2): SINGLE, (2, 3): DOUBLE}),
        ("c1ccoc1", [0, 0, 0, 0, 0], {(0, 1): SINGLE, (1, 2): DOUBLE, (2, 3): SINGLE}),
        ("CN(C)C=[OH+]", [0, 12, 0, 0, 12], {(1, 3): AROMATIC, (3, 4): AROMATIC}),
        ("C[NH2+]CC(=O)[O-]", [0, 24, 0, 0, -12, -12], {(0, 1): SINGLE, (3, 4): AROMATIC}),
    ],
)
def test_what_is_averaged(smiles, charges, bonds):
    mol = mol_from_smiles(smiles)
    found, types = average_forms(mol)
    assert found[: len(charges)].tolist() == charges and found[len(charges) :].sum() == 0
    assert {bond: types[bond] for bond in bonds} == bonds


@pytest.mark.parametrize("smiles", ["CC(=O)[O-]", "NC(N)=[NH2+]", "C[N+](=O)[O-]", "[O-]c1ccccc1", "CC(=O)Nc1ccccc1"])
def test_coordinates_give_the_graph_of_the_smiles(processor, smiles):
    mol = mol_from_smiles(smiles)
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0
    force_fields.MMFFOptimizeMolecule(mol, maxIters=2000)
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    read = processor([(numbers, mol.GetConformer().GetPositions(), Chem.GetFormalCharge(mol))])
    expected = processor(smiles)
    for key in ("atomic_numbers", "formal_charges", "pair_types"):
        assert torch.equal(read[key], expected[key])


def test_a_charge_is_never_lost():
    """Not even over 61 atoms; and two states of charge of a skeleton have two energies."""
    long = mol_from_smiles("C=C" * 60 + "[CH2-]")
    charges, _ = average_forms(long)
    assert (charges < 0).sum() == 61 and set(charges.tolist()) == {0, -1}
    model = small_model(resonance_invariant=True)
    neutral, ion = (PCBridgeProcessor(resonance_invariant=True)(s) for s in ("CC(=O)O", "CC(=O)[O-]"))
    positions = random_positions(neutral)
    without = {key: value.clone() for key, value in neutral.items()}
    without["formal_charges"][:, :4] = ion["formal_charges"][:, :4]
    energies = [model.predict_energy(**graph, positions=positions).energy.item() for graph in (neutral, without)]
    assert abs(energies[0] - energies[1]) > 1e-3


def test_shares_of_a_charge_lie_between_whole_ones():
    model, plain = small_model(resonance_invariant=True), small_model()
    whole = PCBridgeProcessor()("[NH3+]CC(=O)[O-]")["formal_charges"]

    def features(model, charges):
        return model.encoder._of_charges(SimpleNamespace(formal_charges=charges))

    torch.testing.assert_close(features(model, whole * CHARGE_UNITS), features(plain, whole), rtol=0, atol=0)
    extreme = torch.tensor([[-200, -4 * CHARGE_UNITS, 4 * CHARGE_UNITS, 200]])
    torch.testing.assert_close(features(model, extreme), features(plain, extreme.clamp(-4, 4)), rtol=0, atol=0)
    half = (features(plain, torch.zeros_like(whole)) + features(plain, -torch.ones_like(whole))) / 2
    torch.testing.assert_close(features(model, torch.full_like(whole, -CHARGE_UNITS // 2)), half)


def test_old_configurations_keep_the_form_that_was_drawn():
    graph = PCBridgeProcessor.of_config(PCBridgeConfig())("CC(=O)[O-]")
    assert graph["formal_charges"][0, :4].tolist() == [0, 0, 0, -1]
    assert graph["pair_types"][0, 1, 2:4].tolist() == [PAIR_BONDS[DOUBLE], PAIR_BONDS[SINGLE]]


def test_numbering_does_not_matter():
    mol = mol_from_smiles("[O-]c1ccc(cc1)[N+](=O)[O-]")
    expected, order = graph_from_mol(mol, True), np.random.default_rng(0).permutation(mol.GetNumAtoms())
    graph = graph_from_mol(Chem.RenumberAtoms(mol, order.tolist()), True)
    assert (graph.pair_types == expected.pair_types[np.ix_(order, order)]).all()
    assert (graph.formal_charges == expected.formal_charges[order]).all()
