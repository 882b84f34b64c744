"""`transformers.pipeline`: what comes out, and in which batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMILES, small_model
from transformers import pipeline

from modeling_pcbridge import PCBridgePipeline

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "consistency"


@pytest.fixture
def pipe(processor) -> PCBridgePipeline:
    return PCBridgePipeline(small_model(), processor=processor, device="cpu")


def sample(pipe, molecules, **options):
    return pipe(molecules, generator=torch.Generator().manual_seed(0), num_inference_steps=4, **options)


def test_structures_with_their_energies_and_forces(pipe, processor):
    results = sample(pipe, SMILES, batch_size=3, num_samples=2)
    for smiles, result in zip(SMILES, results, strict=True):
        num_atoms = len(result["atomic_numbers"])
        assert result["positions"].shape == result["forces"].shape == (2, num_atoms, 3)
        graph = processor([smiles, smiles])
        graph["positions"] = torch.from_numpy(result["positions"])
        expected = pipe.model.predict_energy(**graph)
        assert graph["atomic_numbers"][0].tolist() == result["atomic_numbers"].tolist()
        np.testing.assert_allclose(result["energy"], expected.energy, atol=1e-9)
        np.testing.assert_allclose(result["forces"], expected.forces, atol=1e-9)
        assert result["is_sound"].shape == (2,) and len(result["faults"]) == 2


def test_batches_single_molecules_and_generators_agree(pipe):
    together = sample(pipe, SMILES, batch_size=4)
    lazily = sample(pipe, (smiles for smiles in SMILES), batch_size=len(SMILES))
    for a, b in zip(together, lazily, strict=True):
        np.testing.assert_allclose(a["positions"], b["positions"], atol=1e-9)
    np.testing.assert_allclose(sample(pipe, SMILES[0])["positions"], together[0]["positions"], atol=1e-9)


def test_a_bad_molecule_is_named(pipe):
    with pytest.raises(ValueError, match=r"molecule 2 of 2 \('C\[Si\]'\)"):
        pipe(["CCO", "C[Si]"], batch_size=2)
    with pytest.raises(TypeError, match="num_sample"):
        pipe("CCO", num_sample=2)


def test_no_molecules_and_tuples_of_smiles(pipe):
    assert pipe([]) == [] and pipe(()) == [] and list(pipe(smiles for smiles in ())) == []
    assert len(sample(pipe, ("C", "O"))) == 2


def test_the_registered_task_takes_a_checkpoint():
    pipe = pipeline("molecular-structure", model=str(CHECKPOINT), device="cpu")
    assert isinstance(pipe, PCBridgePipeline)
    (energy,) = pipe("CCO", generator=torch.Generator().manual_seed(0))["energy"]
    assert abs(energy + 4218.5) < 1  # B3LYP/6-31G*, eV


def test_apple_gpus_without_float64_are_left_alone(processor, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr("transformers.pipelines.base.is_torch_mps_available", lambda: True)
    assert PCBridgePipeline(small_model(), processor=processor).device.type == "cpu"
