"""Loading what is not a sound checkpoint gives one error that says what is wrong, and never reads a pickle."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from conftest import small_model
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors.torch import load_file, save_file

from modeling_pcbridge import PCBridgeConfig, PCBridgeModel

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    small_model(dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "copy"))


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def test_the_undamaged_copy_loads(folder):
    loaded = PCBridgeModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in load_file(folder / WEIGHTS).items())


@pytest.mark.parametrize("keep", [slice(0, 4), slice(0, 5000), slice(0, -1)], ids=["size", "header", "last byte"])
def test_truncated_weights(folder, keep):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[keep])
    with pytest.raises(ValueError, match="copy are damaged"):
        PCBridgeModel.from_pretrained(folder)


def test_tampered_header(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[content.index(b"data_offsets") + len(b'data_offsets":[')] = ord("9")
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match="copy are damaged"):
        PCBridgeModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("diffusion.alphas_cumprod"), r"diffusion.alphas_cumprod \(1 in all\) are missing"),
        (lambda w: w.update(extra=torch.ones(1)), r"extra \(1 in all\) are not of this model"),
        (lambda w: w["structure_decoder.displacement.weight"].fill_(float("nan")), "displacement.weight .* not finite"),
    ],
    ids=["missing", "left over", "not finite"],
)
def test_other_weights(folder, change, message):
    change_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        PCBridgeModel.from_pretrained(folder)


def test_weights_of_another_shape(folder):
    change_config(folder, num_gaussians=20)
    with pytest.raises(ValueError, match="have another shape than the config says"):
        PCBridgeModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hiden_size": 96}, "PCBridgeConfig has no field hiden_size"),
        ({"transformers_weights": "weights.bin"}, "PCBridgeConfig has no field transformers_weights"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be at least 1"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be positive and finite"),
        ({"max_distance": float("inf")}, "max_distance must be positive and finite"),
    ],
)
def test_config_out_of_range(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        PCBridgeModel.from_pretrained(folder)


@pytest.mark.parametrize("changes", [{"hidden_size": "32"}, {"num_gaussians": 16.0}, {"supported_elements": "HCNO"}])
def test_config_of_another_type(folder, changes):
    change_config(folder, **changes)
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(changes))):
        PCBridgeModel.from_pretrained(folder)


def test_config_that_is_not_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(OSError, match="not a valid JSON"):
        PCBridgeModel.from_pretrained(folder)


class _Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("pickle_was_read"),))


@pytest.mark.parametrize("options", [{}, {"use_safetensors": False}])
def test_pickled_weights_are_refused(folder, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        PCBridgeModel.from_pretrained(folder, **options)
    assert not Path("pickle_was_read").exists()


def test_pickled_shards_behind_a_safetensors_index_are_refused(folder):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "shard.bin")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, "shard.bin")}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match=r"shard\.bin is not a safetensors file"):
        PCBridgeModel.from_pretrained(folder)


def test_a_misspelt_field_is_refused_when_made():
    with pytest.raises(ValueError, match=r"no field num_hidden_layer$"):
        PCBridgeConfig.from_preset("mini", num_hidden_layer=2)
