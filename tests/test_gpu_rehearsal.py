"""The benchmark of GPUs, rehearsed on the CPU: everything runs, what fails is told, and what was measured is kept."""

import argparse
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_training import ROOT

from benchmarks.gpu import check, speed
from benchmarks.gpu.__main__ import run_part
from benchmarks.gpu.options import Options, add_arguments, options_of
from benchmarks.gpu.results import Results
from modeling_pcbridge.errors import CalculationError


def rehearsal(output: Path) -> list[str]:
    return ["--device=cpu", "--quick", f"--output={output}"]


def options(*arguments: str) -> Options:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return options_of(parser.parse_args(arguments), 4.0)


def results(output: Path) -> dict[str, dict]:
    """Of each part."""
    return {path.stem: json.loads(path.read_text()) for path in output.glob("*.json")}


def test_check_and_speed_run(tmp_path, fresh_accelerate):
    for part in (check, speed):
        fresh_accelerate()
        part.main(options(*rehearsal(tmp_path)))
    parts = results(tmp_path)
    assert all(part["finished"] for part in parts.values())
    tables = parts["check"]["tables"]
    rows = tables["consistency: device and CPU in float32"]
    assert len(rows) > 20 and all(row["passed"] for row in rows)
    assert {row["what"] for row in tables["Waits for the device"]} >= {"update, stage 1", "update, stage 2"}
    assert all(row["error"] > 0 for row in tables["consistency: bf16 on the device against float64"])
    speeds = {row["case"]: row for row in parts["speed"]["tables"]["Molecules per second"]}
    # What docs/cost.md predicts from; more would make a GPU wait longer for the host.
    most = {"stage 1": 4100, "stage 2": 8500, "energy and forces": 600, "one denoising step": 700}
    assert {case: row["launches"] <= most[case] for case, row in speeds.items()} == dict.fromkeys(most, True)
    text = (tmp_path / "results.md").read_text()
    assert "## check" in text and "## speed" in text


def test_the_run_on_a_gpu_has_an_update_of_each_stage():
    assert set(options().stages) == {"stage 1", "stage 2"}


def test_a_part_is_a_process_with_a_limit(tmp_path, capfd):
    part = "results"  # which does nothing
    assert run_part(part, options(*rehearsal(tmp_path)), 1.0)
    assert not run_part(part, options(*rehearsal(tmp_path)), 1e-4)
    assert f"{part}: stopped after 0.0001 minutes" in capfd.readouterr().out
    assert not run_part("none", options(*rehearsal(tmp_path)), 1.0)


@pytest.mark.slow
def test_train_goes_on_and_processes_agree(tmp_path):
    def rehearse(output: Path, *options: str) -> dict[str, dict]:
        command = [sys.executable, "-m", "benchmarks.gpu", *rehearsal(output), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        return results(output)

    first = rehearse(tmp_path / "first", "--parts", "train", "ddp", "--train_minutes=0.6")
    assert all(row["passed"] for row in first["ddp"]["tables"]["Two processes and one"])
    (checkpoint,) = first["train"]["tables"]["Checkpoint"]
    assert checkpoint["passed"]
    assert "model.safetensors" in zipfile.ZipFile(tmp_path / "first" / "checkpoint.zip").namelist()
    state = tmp_path / "first" / "training_state_stage1.zip"
    second = rehearse(tmp_path / "second", "--parts", "train", "--train_minutes=0.6", f"--states={state}")
    assert second["train"]["tables"]["Checkpoint"][0]["updates"] > checkpoint["updates"]


def test_what_fails_is_told_and_the_rest_is_done(tmp_path):
    results = Results(tmp_path, "part", "cpu")
    with results.whatever_happens("Table", what="first"):
        raise ValueError("wrong | shape\nand more")
    results.add("Table", what="second", passed=True)
    rows = json.loads((tmp_path / "part.json").read_text())["tables"]["Table"]  # also if it were cut here
    assert rows == [{"what": "first", "failure": "ValueError: wrong | shape"}, {"what": "second", "passed": True}]
    with pytest.raises(CalculationError, match="1 failed"):
        results.finish()
    assert "| first | ValueError: wrong / shape |  |" in (tmp_path / "results.md").read_text()
