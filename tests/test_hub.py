"""The round trip over HTTP against a stand-in hub on the loopback: push, fail, push again, load without the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import small_model
from local_hub import FIRST_COMMIT, LocalHub

import train_accelerate
from modeling_pcbridge import PCBridgeModel, PCBridgePipeline
from modeling_pcbridge.hub import HubPushError, push_checkpoint

REPO = "me/pcbridge-test"
CARD = "---\nlicense: mit\n---\n# PCBridge\n\n## Metrics\n\nnone yet\n"

LOAD = """
import json, sys
from transformers import AutoModel, AutoProcessor, pipeline
water = ([8, 1, 1], [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]], 0)
repo, *revisions = sys.argv[1:]
energies = []
for revision in revisions:
    options = {"trust_remote_code": True, "revision": revision}
    processor, model = (cls.from_pretrained(repo, **options) for cls in (AutoProcessor, AutoModel))
    energies.append(model.predict_energy(**processor([water])).energy.item())
assert "modeling_pcbridge" not in sys.modules
forces = pipeline(model=repo, trust_remote_code=True)("CCO")["forces"]
print(json.dumps([energies, forces.shape]))
"""
LOAD_WITH_TOKENS = """
import json, sys
from transformers import AutoModel
repo, *tokens = sys.argv[1:]
results = []
for token in tokens:
    try:
        AutoModel.from_pretrained(repo, trust_remote_code=True, token=token or False)
        results.append("loaded")
    except OSError as error:
        results.append(str(error))
print(json.dumps(results))
"""
PUSH = "import sys; from modeling_pcbridge.hub import push_checkpoint; push_checkpoint(*sys.argv[1:])"
PUSH_FROM_TRANSFORMERS = """
import sys
from transformers import pipeline
pipe = pipeline(model=sys.argv[1], trust_remote_code=True)
pipe.push_to_hub(sys.argv[2] + "-pipeline")
pipe.model.push_to_hub(sys.argv[2] + "-model")
"""


@pytest.fixture
def checkpoint(tmp_path, processor) -> Path:
    """Saved without its code, as checkpoints/ are in this repository."""
    folder = tmp_path / "checkpoint"
    small_model(dtype=torch.float32).save_pretrained(folder)
    processor.save_pretrained(folder)
    for code in folder.glob("*.py"):
        code.unlink()
    (folder / "README.md").write_text(CARD)
    return folder


def environment(hub: LocalHub, token: str | None) -> dict[str, str]:
    names = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")
    kept = {k: v for k, v in os.environ.items() if k not in names}
    kept |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    return kept | ({"HF_TOKEN": token} if token else {})


def run_without_the_package(code: str, *arguments: str, hub: LocalHub, home: Path, token: str | None = None):
    variables = environment(hub, token) | {"HF_HOME": str(home)}
    variables.pop("PYTHONPATH", None)
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=home.parent,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def energy_of_water(folder: Path, processor) -> float:
    water = ([8, 1, 1], [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]], 0)
    return PCBridgeModel.from_pretrained(folder).predict_energy(**processor([water])).energy.item()


def test_round_trip_with_revisions(hub, checkpoint, processor, tmp_path):
    (tmp_path / "metrics.json").write_text('{"mae": 0.1}')
    first = push_checkpoint(checkpoint, REPO, metrics_dir=tmp_path)
    first_energy = energy_of_water(checkpoint, processor)
    files = hub.repositories[REPO].commits[first.oid]
    assert list(hub.repositories[REPO].commits) == [FIRST_COMMIT, first.oid]  # one commit for everything
    code = {"modeling_pcbridge.py", "processing_pcbridge.py", "pipeline_pcbridge.py", "configuration_pcbridge.py"}
    assert code | {"config.json", "processor_config.json", "metrics.json"} < set(files)
    assert files["README.md"].decode() == CARD and json.loads(files["metrics.json"]) == {"mae": 0.1}
    assert files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()

    small_model(seed=1, dtype=torch.float32).save_pretrained(checkpoint)
    push_checkpoint(checkpoint, REPO)
    second_energy = energy_of_water(checkpoint, processor)
    assert first_energy != second_energy
    result = run_without_the_package(LOAD, REPO, "main", first.oid, hub=hub, home=tmp_path / "home")
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == [[second_energy, first_energy], [1, 9, 3]]


def test_a_push_killed_in_the_upload_shows_nothing_and_can_be_repeated(hub, checkpoint):
    hub.stall = "PUT /lfs/"
    process = subprocess.Popen(
        [sys.executable, "-c", PUSH, str(checkpoint), REPO], env=environment(hub, "hf_mine"), stderr=subprocess.DEVNULL
    )
    assert hub.stalled.wait(120)
    process.kill()
    process.wait()
    assert list(hub.repositories[REPO].commits) == [FIRST_COMMIT] and not hub.objects
    hub.stall = "(?!)"
    commit = push_checkpoint(checkpoint, REPO)
    assert "model.safetensors" in hub.repositories[REPO].commits[commit.oid]


def test_large_files_that_arrived_are_not_sent_again(hub, checkpoint):
    hub.refuse = "POST /api/models/.*/commit/"
    with pytest.raises(HubPushError, match=rf"the push to {REPO} failed, nothing of it is visible there: .*403"):
        push_checkpoint(checkpoint, REPO)
    assert list(hub.repositories[REPO].commits) == [FIRST_COMMIT] and len(hub.objects) == 1
    hub.refuse = "(?!)"
    push_checkpoint(checkpoint, REPO)
    assert sum(request.startswith("PUT") for request in hub.requests) == 1
    assert len(hub.repositories[REPO].commits) == 2


@pytest.mark.parametrize(
    ("token", "reason"), [("hf_wrong", "Invalid username or password"), ("hf_theirs", "403 Forbidden: You may not")]
)
def test_wrong_tokens_are_refused(hub, checkpoint, monkeypatch, token, reason):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubPushError, match=rf"cannot create or write to {REPO} on the hub: (?s:.*){reason}"):
        push_checkpoint(checkpoint, REPO)
    assert not hub.repositories and not hub.objects


def test_a_damaged_checkpoint_is_not_pushed(hub, checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="are damaged"):
        push_checkpoint(checkpoint, REPO)
    assert not hub.requests


def test_private_repositories_need_the_token(hub, checkpoint, tmp_path):
    push_checkpoint(checkpoint, REPO, private=True)
    tokens = ("", "hf_theirs", "hf_wrong", "hf_mine")
    result = run_without_the_package(LOAD_WITH_TOKENS, REPO, *tokens, hub=hub, home=tmp_path / "home")
    assert result.returncode == 0, result.stderr[-3000:]
    nobody, others, wrong, mine = json.loads(result.stdout.splitlines()[-1])
    assert "If this is a private repository" in nobody and "If this is a private repository" in others
    assert "Invalid username or password" in wrong
    assert mine == "loaded"


def test_pickled_weights_on_a_hub_are_refused_without_asking_others(hub, checkpoint, tmp_path):
    commit = push_checkpoint(checkpoint, REPO)
    files = hub.repositories[REPO].commits[commit.oid]
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    result = run_without_the_package(LOAD, REPO, "main", hub=hub, home=tmp_path / "home")
    assert result.returncode == 1 and "does not appear to have a file named model.safetensors" in result.stderr
    assert not any("pytorch_model.bin" in request for request in hub.requests)


def test_transformers_own_push_carries_code_too(hub, tmp_path, processor):
    pipe = PCBridgePipeline(small_model(dtype=torch.float32), processor=processor, device="cpu")
    pipe.save_pretrained(tmp_path / "saved")
    arguments = (str(tmp_path / "saved"), REPO)
    result = run_without_the_package(
        PUSH_FROM_TRANSFORMERS, *arguments, hub=hub, home=tmp_path / "home", token="hf_mine"
    )
    assert result.returncode == 0, result.stderr[-3000:]
    for suffix, expected in (("pipeline", "pipeline_pcbridge.py"), ("model", "modeling_pcbridge.py")):
        repository = hub.repositories[f"{REPO}-{suffix}"]
        assert {"model.safetensors", expected} <= set(repository.commits[repository.resolve("main")])


def test_the_training_script_pushes_model_card_and_metrics(hub, tmp_path, monkeypatch, caplog):
    run = tmp_path / "run"
    sources = json.dumps([{"name": "pm6", "only_labelled": True, "max_rows": 8}])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vector_size": 8, "num_attention_heads": 2}
    options = {"stage1.sources": sources, "stage1.num_steps": 2, "stage1.warmup_steps": 1, "stage2": "null"}
    options |= {"evaluation": "null", "batch_size": 4, "model": json.dumps(sizes), "output_dir": run}
    options |= {"push_to_hub": "true", "hub_model_id": REPO, "resume": "latest", "cpu": "true"}
    monkeypatch.setattr(sys, "argv", ["train", *(f"--{name}={value}" for name, value in options.items())])

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SystemExit, match="Invalid username or password"):
        train_accelerate.main()
    assert not list(run.iterdir())  # before any training

    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.refuse = "POST /api/models/.*/commit/"
    with pytest.raises(SystemExit, match=f"(?s)403.*What was trained is in {run}; run again with --resume latest"):
        train_accelerate.main()

    hub.refuse = "(?!)"
    with caplog.at_level("INFO"):
        train_accelerate.main()
    repository = hub.repositories[REPO]
    commit = repository.resolve("main")
    assert "resumed at update 2" in caplog.text and f"pushed to {hub.url}/{REPO}/commit/{commit}" in caplog.text
    files = repository.commits[commit]
    assert json.loads(files["metrics.json"])["histories"]["stage1"]
    assert b"library_name: transformers" in files["README.md"]
    assert files["model.safetensors"] == (run / "stage1" / "model.safetensors").read_bytes()
    coverage = json.loads(files["config.json"])["training_coverage"]
    assert coverage["largest_structure"] > 0 and coverage["labelled_environments"]


def test_pushing_needs_a_name():
    with pytest.raises(ValueError, match="push_to_hub needs hub_model_id"):
        train_accelerate.parse(["--push_to_hub=true"])
