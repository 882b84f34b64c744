"""D3(BJ) is added exactly, at the model's own level, and is no part of what labels are compared with."""

import pytest
import torch
from conftest import SMILES, small_model
from rdkit.Chem import rdDistGeom

from modeling_pcbridge import LossSettings, PCBridgeConfig
from modeling_pcbridge.dispersion import d3bj_energy, with_d3bj
from modeling_pcbridge.graph_batch import GraphBatch
from modeling_pcbridge.rdkit_molecules import mol_from_smiles

pytest.importorskip("tad_dftd3")
OWN, CORRECTED = "B3LYP/6-31G*", "B3LYP-D3(BJ)/6-31G*"
# s-dftd3 1.7.0: RationalDampingParam(method="b3lyp", atm=False), CODATA 2018 units. Methane and hydrogen chloride,
# their heavy atoms 4 angstrom apart: elements, positions (angstrom), energy (eV).
METHANE_AND_HCL = (
    [6, 1, 1, 1, 1, 17, 1],
    [
        *([0.0, 0.0, 0.0], [0.63, 0.63, 0.63], [-0.63, -0.63, 0.63], [-0.63, 0.63, -0.63], [0.63, -0.63, -0.63]),
        *([4.0, 0.0, 0.0], [5.28, 0.0, 0.0]),
    ],
    -0.09267602376448324,
)


@pytest.fixture
def inputs(processor) -> dict:
    mols = [mol_from_smiles(smiles) for smiles in SMILES]
    for mol in mols:
        rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    inputs = dict(processor(mols))
    return inputs | {"positions": inputs["positions"].double()}


def test_values_of_the_reference_program():
    numbers, positions, energy = METHANE_AND_HCL
    found = d3bj_energy(OWN, torch.tensor([numbers]), torch.tensor([positions], dtype=torch.float64))
    assert found.item() == pytest.approx(energy, abs=1e-8)


def test_energy_and_forces_have_it_and_its_name_says_so(inputs):
    model = small_model(dispersion="d3bj")
    assert model.config.energy_level_of_theory == CORRECTED
    plain, corrected = (model.predict_energy(**inputs, level_of_theory=level) for level in (OWN, CORRECTED))
    assert torch.equal(model.predict_energy(**inputs).energy, corrected.energy)
    dispersion = d3bj_energy(OWN, inputs["atomic_numbers"], inputs["positions"])
    torch.testing.assert_close(corrected.energy - plain.energy, dispersion, rtol=0, atol=1e-9)
    assert (dispersion < -1e-3).all()
    # Forces are its gradient: along a random direction.
    direction = torch.randn(inputs["positions"].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction *= inputs["atom_mask"].unsqueeze(-1)
    ends = [inputs | {"positions": inputs["positions"] + sign * 1e-4 * direction} for sign in (1, -1)]
    up, down = (model.predict_energy(**end).energy for end in ends)
    torch.testing.assert_close(-(corrected.forces * direction).sum((1, 2)), (up - down) / 2e-4, rtol=1e-5, atol=1e-5)


def test_it_relaxes_and_teaches_but_labels_are_without_it(inputs):
    """The same weights with and without: another relaxed structure, the same loss of labels."""
    plain, corrected = small_model(), small_model(dispersion="d3bj")
    graph = GraphBatch.of_inputs({k: v for k, v in inputs.items() if k != "positions"})
    moved = [model.quasi_newton_steps(graph, inputs["positions"], 2) for model in (plain, corrected)]
    assert (moved[0] - moved[1]).abs().max() > 1e-4
    labels = {"energy": torch.zeros(len(SMILES), dtype=torch.float64), "forces": torch.zeros_like(inputs["positions"])}
    settings = LossSettings().only(energy_weight=1.0, force_weight=1.0)
    losses = [model(**inputs, **labels, loss_settings=settings).loss for model in (plain, corrected)]
    assert losses[0] == losses[1]


def test_levels_without_parameters_are_refused():
    assert with_d3bj(OWN) == CORRECTED
    with pytest.raises(ValueError, match="parameters for B3LYP, not for GFN2-xTB"):
        PCBridgeConfig(dispersion="d3bj", energy_levels_of_theory=["GFN2-xTB"])
    with pytest.raises(ValueError, match="only at B3LYP-D3"):
        PCBridgeConfig(dispersion="d3bj").find_level_of_theory("PBE")
