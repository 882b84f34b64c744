"""Training and inference run on CUDA tensors, and the host waits for nothing: what can be seen of it without a GPU."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import ROOT
from test_training_engine import ENVIRONMENT


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> dict[str, str | None]:
    """What was wrong in each case of `run_on_fake_cuda.py`."""
    if shutil.which("g++") is None or sys.platform != "linux" or torch.version.cuda is not None:
        pytest.skip("needs g++, Linux, and a torch without CUDA of its own")
    library = tmp_path_factory.mktemp("fake_cuda") / "fake_cuda.so"
    torch_folder = Path(torch.__file__).parent
    linked = (f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch_folder / 'lib'}")
    compiler = ("g++", "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{torch_folder / 'include'}")
    subprocess.run([*compiler, str(ROOT / "tests" / "fake_cuda.cpp"), *linked, "-o", str(library)], check=True)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "run_on_fake_cuda.py")],
        cwd=ROOT,
        env={**ENVIRONMENT, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_operation_is_one_of_the_gpu_alone(findings):
    """Updates with five sets of losses, in three precisions; sampling, mean shift, relaxation; energies and forces."""
    wrong = {name: finding for name, finding in findings.items() if finding and not name.startswith("mistake")}
    assert wrong == {}
    assert sum(name.startswith("update") for name in findings) == 9
    assert sum(name.startswith("sample") for name in findings) == 5


def test_planted_mistakes_are_found(findings):
    found = {name.removeprefix("mistake: "): finding for name, finding in findings.items() if "mistake" in name}
    for name, finding in {
        ".item() in a loss": "_local_scalar_dense",
        "boolean index in a mean": "nonzero",
        "table on the CPU": "uploads an operand",
        "noise on the CPU": "by a generator of cuda",
        "generator of the CPU": "a copy from cpu to cuda:0 waits",
        "numbers of the host": "a copy from cpu to cuda:0 waits",
        "zero of the host": "uploads an operand",
        "two precisions in a product": "bfloat16",
        "a question about the gradient": "_local_scalar_dense",
        "lists of neighbours": "_local_scalar_dense",  # which is why CUDA graphs have none
    }.items():
        assert finding in (found[name] or ""), name
