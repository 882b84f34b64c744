"""Save, load, cast: in this process, and in a fresh one that has only folders: by auto classes and as a pipeline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMILES, random_positions, small_model

from modeling_pcbridge import PCBridgeConfig, PCBridgeModel, PCBridgePipeline, PCBridgeProcessor
from modeling_pcbridge.training_coverage import TrainingCoverage
from pcbridge.app.predict_records import load_pipeline

ROOT = Path(__file__).parents[1]
WATER = ([8, 1, 1], [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]], 0)

FRESH_PROCESS = """
import json, sys, torch
from transformers import AutoModel, AutoProcessor, pipeline
folder, released, saved, again = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
water = ([8, 1, 1], [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]], 0)
energy = model.predict_energy(**processor([water]))
structure = model.predict_structure(**processor(["CCO"]), generator=torch.Generator().manual_seed(0))
results = [energy.energy.tolist(), energy.forces.tolist(), structure.positions.tolist(), structure.beyond_training]
# Its code is links.
processor, model = (auto.from_pretrained(released, trust_remote_code=True) for auto in (AutoProcessor, AutoModel))
assert model.predict_structure(**processor(["CO"]), num_inference_steps=4).positions.shape == (1, 1, 6, 3)
pipe = pipeline(model=saved, trust_remote_code=True)  # the task is in the config
found = pipe(["CCO", "O"], batch_size=2, generator=torch.Generator().manual_seed(0))
results.append([[each[key].tolist() for key in ("positions", "energy", "forces")] for each in found])
pipe.save_pretrained(again)
assert "modeling_pcbridge" not in sys.modules
print(json.dumps(results))
"""


@pytest.fixture
def folder(tmp_path):
    coverage = TrainingCoverage(2, 2, frozenset([0])).to_json()
    model = small_model(dtype=torch.float32, initializer_range=0.1, training_coverage=coverage)
    model.energy_decoder.reference_energies.energies[8] = -2046.123456789
    model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_fresh_process_without_the_package(folder, processor, tmp_path):
    released, saved, again = ROOT / "checkpoints" / "drug_like", tmp_path / "saved", tmp_path / "again"
    model = PCBridgeModel.from_pretrained(folder)
    PCBridgePipeline(model, processor=processor, device="cpu").save_pretrained(saved)
    energy = model.predict_energy(**processor([WATER]))
    structure = model.predict_structure(**processor(["CCO"]), generator=torch.Generator().manual_seed(0))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # -P and another folder: the package is found only if it is installed, and then it must not be imported.
    result = subprocess.run(
        [sys.executable, "-P", "-c", FRESH_PROCESS, *map(str, (folder, released, saved, again))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    fresh_energy, fresh_forces, fresh_positions, fresh_beyond, of_pipeline = json.loads(result.stdout.splitlines()[-1])
    assert fresh_energy == energy.energy.tolist()
    assert fresh_forces == energy.forces.tolist()
    assert fresh_positions == structure.positions.tolist()
    assert fresh_beyond == structure.beyond_training and "3 heavy atoms" in fresh_beyond[0][0]
    ours = PCBridgePipeline(model, processor=processor, device="cpu")(
        ["CCO", "O"], batch_size=2, generator=torch.Generator().manual_seed(0)
    )
    assert of_pipeline == [[each[key].tolist() for key in ("positions", "energy", "forces")] for each in ours]
    assert {file.name for file in saved.iterdir()} == {file.name for file in again.iterdir()}


def test_every_parameter_and_buffer_survives(folder):
    saved = small_model(dtype=torch.float32, initializer_range=0.1)
    saved.energy_decoder.reference_energies.energies[8] = -2046.123456789
    loaded = PCBridgeModel.from_pretrained(folder)
    expected, got = saved.state_dict(), loaded.state_dict()
    assert set(expected) == set(got)
    assert "diffusion.alphas_cumprod" in got and "energy_decoder.reference_energies.energies" in got
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor) and got[name].dtype == tensor.dtype, name


def test_a_model_saved_alone_brings_its_processor(tmp_path):
    small_model(dtype=torch.float32, resonance_invariant=True, supported_elements=[1, 6, 8]).save_pretrained(tmp_path)
    found = [PCBridgeProcessor.from_pretrained(tmp_path)]
    assert load_pipeline(str(tmp_path)).processor.to_dict() == found[0].to_dict()
    (tmp_path / "processor_config.json").unlink()  # as in folders of before
    found.append(PCBridgeProcessor.from_pretrained(tmp_path))
    for processor in found:
        one, other = (processor([smiles])["formal_charges"] for smiles in ("CC(=O)[O-]", "CC([O-])=O"))
        assert torch.equal(one[0, 2:4], other[0, 2:4]) and processor.supported_elements == [1, 6, 8]
    with pytest.raises(TypeError, match="resonance_invarant"):
        PCBridgeProcessor(resonance_invarant=True)


def test_only_safetensors_and_code(folder):
    assert {path.suffix for path in folder.iterdir()} == {".json", ".py", ".safetensors"}


def test_bfloat16_keeps_energies_and_schedule(folder, processor):
    exact = PCBridgeModel.from_pretrained(folder).predict_energy(**processor([WATER]))
    for model in (
        PCBridgeModel.from_pretrained(folder, dtype=torch.bfloat16),
        PCBridgeModel.from_pretrained(folder).to(torch.bfloat16),
    ):
        assert model.dtype == torch.bfloat16
        assert model.diffusion.alphas_cumprod.dtype == torch.float64
        rounded = model.predict_energy(**processor([WATER]))
        assert rounded.energy.dtype == torch.float64 and rounded.forces.dtype == torch.float32
        # bfloat16 has three digits of the network's part; the reference energy of 2,046 eV is not touched.
        assert abs(rounded.energy - exact.energy).item() < 0.02 * abs(exact.energy + 2046.123456789).item() + 0.02
        assert (rounded.forces - exact.forces).abs().max() < 0.05 * exact.forces.abs().max()
        options = {"num_inference_steps": 3, "max_attempts": 1}
        assert model.predict_structure(**processor(SMILES), **options).positions.isfinite().all()


def test_autocast(folder, processor):
    model = PCBridgeModel.from_pretrained(folder)
    graph = dict(processor(SMILES))
    positions = random_positions(graph, dtype=torch.float32)
    exact = model.predict_energy(**graph, positions=positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.predict_energy(**graph, positions=positions)
    assert 0 < (rounded.energy - exact.energy).abs().max() < 0.05 * exact.energy.abs().max()


@pytest.mark.parametrize("name", ["multi-task", "consistency", "qm9"])
def test_checkpoints_from_before_the_cutoff_have_none(name):
    model = PCBridgeModel.from_pretrained(ROOT / "checkpoints" / name)
    assert model.config.attention_cutoff is None and model.energy_decoder.torsions is None


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"attention_cutoff": 0.0}, "attention_cutoff"),
        ({"structure_cutoff": 0.0}, "structure_cutoff"),
        ({"mean_shift_timesteps": [3, 30]}, "mean_shift_timesteps"),
        ({"mean_shift_timesteps": [30]}, "mean_shift_timesteps"),
        ({"mean_shift_timesteps": [1001, 3]}, "mean_shift_timesteps"),
        ({"num_relaxation_steps": -1}, "num_relaxation_steps"),
        ({"hidden_size": 30}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "beta_start"),
        ({"denoising_timestep": 2000}, "denoising_timestep"),
        ({"supported_elements": [0]}, "supported_elements"),
        ({"length_unit": -1.0}, "length_unit"),
    ],
)
def test_config_refuses_nonsense(wrong, name):
    with pytest.raises(ValueError, match=name):
        PCBridgeConfig(**wrong)


def test_presets():
    paper = PCBridgeConfig.from_preset("paper_size")
    assert (paper.num_hidden_layers, paper.hidden_size, paper.num_attention_heads, paper.num_gaussians) == (
        24,
        768,
        32,
        128,
    )
    mini = PCBridgeConfig.from_preset("mini")
    extensive = {"attention_cutoff": 5.0, "torsion_terms": True, "out_of_plane_terms": True}
    assert (
        {name: getattr(mini, name) for name in extensive}
        == extensive
        == {name: getattr(paper, name) for name in extensive}
    )
    assert mini.to_dict() == PCBridgeConfig(**extensive).to_dict()
    with pytest.raises(ValueError, match="no preset 'huge'"):
        PCBridgeConfig.from_preset("huge")
