"""The round trip over HTTP against a stand-in hub on the loopback: push, fail, push again, load without the package."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import small_model
from local_hub import FIRST_COMMIT, LocalHub

import train_accelerate
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.hub import HubPushError, push_checkpoint

REPO = "me/pcbridge-test"
CARD = "---\nlicense: mit\n---\n# PCBridge\n\n## Metrics\n\nnone yet\n"

PRIVATE, PICKLED, FROM_TRANSFORMERS = f"{REPO}-private", f"{REPO}-pickled", f"{REPO}-from-transformers"
# Loads the revisions of the first repository; the others, which may be refused; then pushes by transformers itself.
WITHOUT_THE_PACKAGE = """
import json, sys
from transformers import AutoModel, AutoProcessor, pipeline
water = ([8, 1, 1], [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]], 0)
revisions, tokens, (repo, private, pickled, pushed) = map(json.loads, sys.argv[1:])
energies = []
for revision in revisions:
    options = {"trust_remote_code": True, "revision": revision}
    processor, model = (cls.from_pretrained(repo, **options) for cls in (AutoProcessor, AutoModel))
    energies.append(model.predict_energy(**processor([water])).energy.item())
answers = []
for name, token in [*((private, token or False) for token in tokens), (pickled, None)]:
    try:
        AutoModel.from_pretrained(name, trust_remote_code=True, token=token)
        answers.append("loaded")
    except OSError as error:
        answers.append(str(error))
pipe = pipeline(model=repo, trust_remote_code=True)
forces = pipe("CCO")["forces"]
pipe.push_to_hub(pushed + "-pipeline")
pipe.model.push_to_hub(pushed + "-model")
assert "modeling_pcbridge" not in sys.modules
print(json.dumps([energies, answers, forces.shape]))
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


def environment(hub: LocalHub, home: Path) -> dict[str, str]:
    """Of a process with the token of `me`."""
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    kept |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_mine", "HF_HOME": str(home)}
    return kept | {"OMP_NUM_THREADS": "1"}


def run_without_the_package(*arguments: list[str], hub: LocalHub, folder: Path) -> list:
    """What WITHOUT_THE_PACKAGE prints."""
    variables = environment(hub, folder / "home")
    variables.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_THE_PACKAGE, *map(json.dumps, arguments)],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def energy_of_water(folder: Path, processor) -> float:
    water = ([8, 1, 1], [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]], 0)
    return PCBridgeModel.from_pretrained(folder).predict_energy(**processor([water])).energy.item()


def test_round_trip_without_the_package(hub, checkpoint, processor, tmp_path):
    """Revisions, a private repository, pickled weights, and a push by transformers itself, which carries the code."""
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

    push_checkpoint(checkpoint, PRIVATE, private=True)
    pickled = push_checkpoint(checkpoint, PICKLED)
    files = hub.repositories[PICKLED].commits[pickled.oid]
    files["pytorch_model.bin"] = files.pop("model.safetensors")

    repositories = [REPO, PRIVATE, PICKLED, FROM_TRANSFORMERS]
    tokens = ["", "hf_theirs", "hf_wrong", "hf_mine"]
    energies, answers, shape = run_without_the_package(
        ["main", first.oid], tokens, repositories, hub=hub, folder=tmp_path
    )
    assert energies == [second_energy, first_energy] and shape == [1, 9, 3]
    nobody, others, wrong, mine, of_pickled = answers
    assert "If this is a private repository" in nobody and "If this is a private repository" in others
    assert "Invalid username or password" in wrong
    assert mine == "loaded"
    assert "does not appear to have a file named model.safetensors" in of_pickled
    assert not any("pytorch_model.bin" in request for request in hub.requests)
    for suffix, expected in (("pipeline", "pipeline_pcbridge.py"), ("model", "modeling_pcbridge.py")):
        repository = hub.repositories[f"{FROM_TRANSFORMERS}-{suffix}"]
        assert {"model.safetensors", expected} <= set(repository.commits[repository.resolve("main")])


def test_a_push_killed_in_the_upload_shows_nothing_and_can_be_repeated(hub, checkpoint):
    hub.stall = "PUT /lfs/"
    process = multiprocessing.get_context("fork").Process(target=push_checkpoint, args=(checkpoint, REPO))
    process.start()
    assert hub.stalled.wait(120)
    process.kill()
    process.join()
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


def test_the_training_script_pushes_model_card_and_metrics(hub, tmp_path, monkeypatch, caplog, capsys):
    run = tmp_path / "run"
    sources = json.dumps([{"name": "pm6", "only_labelled": True, "max_rows": 8}])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vector_size": 8, "num_attention_heads": 2}
    options = {"stage1.sources": sources, "stage1.num_steps": 2, "stage1.warmup_steps": 1, "stage2": "null"}
    options |= {"evaluation": "null", "batch_size": 4, "model": json.dumps(sizes), "output_dir": run}
    options |= {"push_to_hub": "true", "hub_model_id": REPO, "resume": "latest", "cpu": "true"}
    monkeypatch.setattr(sys, "argv", ["train", *(f"--{name}={value}" for name, value in options.items())])

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SystemExit, match="1"):
        train_accelerate.main()
    assert "Invalid username or password" in capsys.readouterr().err
    assert not list(run.iterdir())  # before any training

    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.refuse = "POST /api/models/.*/commit/"
    with pytest.raises(SystemExit, match="1"):
        train_accelerate.main()
    assert re.search(f"(?s)403.*What was trained is in {run}; run again with --resume latest", capsys.readouterr().err)

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
