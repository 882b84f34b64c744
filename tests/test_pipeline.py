"""`transformers.pipeline`: what comes out, in which batches, and from a folder in a process without the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMILES, small_model
from transformers import pipeline

from modeling_pcbridge import PCBridgeModel, PCBridgePipeline, PCBridgeProcessor

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "consistency"

FRESH_PROCESS = """
import json, sys, torch
from transformers import pipeline
pipe = pipeline(model=sys.argv[1], trust_remote_code=True)  # the task is in the config
assert "modeling_pcbridge" not in sys.modules
results = pipe(["CCO", "O"], batch_size=2, generator=torch.Generator().manual_seed(0))
print(json.dumps([[r["positions"].tolist(), r["energy"].tolist(), r["forces"].tolist()] for r in results]))
pipe.save_pretrained(sys.argv[2])
"""


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


@pytest.fixture
def saved(processor, tmp_path) -> Path:
    pipe = PCBridgePipeline(small_model(dtype=torch.float32, initializer_range=0.1), processor=processor, device="cpu")
    pipe.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_the_registered_task_takes_a_checkpoint():
    pipe = pipeline("molecular-structure", model=str(CHECKPOINT), device="cpu")
    assert isinstance(pipe, PCBridgePipeline)
    (energy,) = pipe("CCO", generator=torch.Generator().manual_seed(0))["energy"]
    assert abs(energy + 4218.5) < 1  # B3LYP/6-31G*, eV


def test_fresh_process_without_the_package_and_saved_again_by_it(saved, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-P", "-c", FRESH_PROCESS, str(saved), str(tmp_path / "again")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    fresh = json.loads(result.stdout.splitlines()[-1])
    ours = PCBridgePipeline(
        PCBridgeModel.from_pretrained(saved), processor=PCBridgeProcessor.from_pretrained(saved), device="cpu"
    )(["CCO", "O"], batch_size=2, generator=torch.Generator().manual_seed(0))
    for (positions, energy, forces), expected in zip(fresh, ours, strict=True):
        assert positions == expected["positions"].tolist()
        assert energy == expected["energy"].tolist()
        assert forces == expected["forces"].tolist()
    assert {file.name for file in saved.iterdir()} == {file.name for file in (tmp_path / "again").iterdir()}


def test_apple_gpus_without_float64_are_left_alone(processor, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr("transformers.pipelines.base.is_torch_mps_available", lambda: True)
    assert PCBridgePipeline(small_model(), processor=processor).device.type == "cpu"
