"""What is installed: a wheel in an environment of its own, each extra alone, and an import that stays light."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from rdkit import Chem

import modeling_pcbridge

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What needs each extra: the project's module, and what the extra brings for it.
USES_OF_EXTRAS = {
    "ase": "import modeling_pcbridge.ase_calculator",
    "bench": "import h5py, dataset_scripts.spice",
    "cluster": "import distributed, dataset_scripts.label_generation",
    "dispersion": "import tad_dftd3, modeling_pcbridge.dispersion",
    "docs": "import mkdocs, material, mkdocstrings_handlers.python",
    "qc": "import pyscf, geometric, dataset_scripts.quantum_chemistry",
    "qm9": "import dataset_scripts.qm9 as qm9; assert all(path.exists() for path in qm9.qm9pack_files())",
    "serve": "import uvicorn, pcbridge.app.web.server",
    "spice": "import h5py, dataset_scripts.spice",
    "test": "import pytest, hypothesis, scipy, tensorboard, httpx, selenium, ase, starlette, h5py, mypy",
    "torch-sim": "import modeling_pcbridge.torch_sim_model",
    "validity": "import posebusters, pcbridge.evaluation.validity",
    "xtb": "import tblite.interface, ase, dataset_scripts.quantum_chemistry",
}
# Of the extras, and what only some commands need.
HEAVY = {"ase", "dask", "datasets", "diffusers", "h5py", "matplotlib", "pandas", "pyscf", "starlette", "tblite"}


def run(*command, cwd: Path) -> str:
    """Output of a command that must succeed, run away from the clone."""
    # A PYTHONPATH would lead back to it, and PYTHONDONTWRITEBYTECODE have every command compile torch anew.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(part) for part in command]
    result = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_importing_the_package_is_light():
    """Nothing slow before something is used, and nothing optional after."""
    code = "import sys; {}; print(*{{name.split('.')[0] for name in sys.modules}})"
    package = set(run(sys.executable, "-c", code.format("import modeling_pcbridge"), cwd=ROOT).split())
    assert "modeling_pcbridge" in package and not package & (HEAVY | {"torch", "transformers", "rdkit"})
    model = set(run(sys.executable, "-c", code.format("from modeling_pcbridge import PCBridgeModel"), cwd=ROOT).split())
    assert "torch" in model and not model & HEAVY


def test_the_package_lists_and_gives_its_names():
    assert set(modeling_pcbridge.__all__) <= set(dir(modeling_pcbridge))
    assert all(getattr(modeling_pcbridge, name).__name__ == name for name in modeling_pcbridge.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = modeling_pcbridge.no_such_name


def test_every_extra_has_its_modules_tested():
    assert set(PROJECT["optional-dependencies"]) == set(USES_OF_EXTRAS)


def test_a_space_gets_every_folder_that_the_package_is_made_of():
    """space/README.md copies them; without one of them the package cannot be installed there."""
    [copied] = re.findall(r"^cp -r ((?:.|\n)*?) space-repository/", (ROOT / "space/README.md").read_text(), re.M)
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {setuptools["package-dir"].get(name, name.split(".")[0]) for name in setuptools["packages"]}
    assert folders <= set(copied.split()) and {f"{name}.py" for name in setuptools["py-modules"]} <= set(copied.split())


def test_least_versions_are_the_lower_bounds():
    least = dict(line.split("==") for line in (ROOT / "constraints-least.txt").read_text().splitlines() if "==" in line)
    bounds = list(chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()))
    bounds = dict(bound.replace("[signatures]", "").split(">=") for bound in bounds if ">=" in bound)
    del least["torch"], bounds["torch"]  # see constraints-least.txt
    for name, version in least.items():
        bound = bounds[name].split(".")
        assert version.split(".")[: len(bound)] == bound, name


def install(environment: Path, requirement: str) -> None:
    """Into a virtual environment that needs no pip; without compiling, since most of torch is never imported."""
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin/python", "install", "-q", "--no-compile"]
    run(*pip, "-c", ROOT / "constraints.txt", requirement, cwd=environment)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def environment(distributions, tmp_path_factory) -> Iterator[Path]:
    """A virtual environment with the wheel and no extra."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (wheel,) = distributions.glob("*.whl")
    install(folder, str(wheel))
    yield folder
    shutil.rmtree(folder)  # 1.4 GB, which pytest would keep for three sessions


@pytest.mark.slow
def test_the_wheel_has_what_is_read_at_run_time(distributions):
    (wheel,) = distributions.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    places = {"configs": "pcbridge/configs", "checkpoints": "pcbridge/released_checkpoints"}
    folders = ("modeling_pcbridge", "dataset_scripts", "pcbridge", *places)
    not_shipped = ":!dataset_scripts/raw_labels"  # what the bundled data was built from
    tracked = run("git", "ls-files", *folders, not_shipped, cwd=ROOT).split()
    for path in tracked:
        for source, place in places.items():
            path = path.replace(f"{source}/", f"{place}/") if path.startswith(source) else path
        assert path in files


@pytest.mark.slow
def test_the_wheel_predicts_and_trains_without_the_clone(environment, tmp_path):
    pcbridge = environment / "bin/pcbridge"
    (tmp_path / "in.smi").write_text("CCO ethanol\n")
    run(pcbridge, "predict", "in.smi", "--output", "out.sdf", "--steps", "5", cwd=tmp_path)
    (mol,) = Chem.SDMolSupplier(str(tmp_path / "out.sdf"), removeHs=False)
    assert mol.GetNumAtoms() == 9
    few = '--stage1.sources=[{"name": "pm6", "only_labelled": true, "max_rows": 40}]'  # the rest is configs/mini.yaml
    run(pcbridge, "train", few, "--stage1.num_steps=20", "--stage2=null", "--evaluation=null", cwd=tmp_path)
    trained = tmp_path / "outputs/mini/stage1"
    assert (trained / "model.safetensors").exists()
    assert "from `pm6` (weight" in (trained / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("extra", USES_OF_EXTRAS)
def test_each_extra_alone(environment, distributions, tmp_path, extra):
    """In an environment on top of that of the wheel, so that torch is unpacked once only."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path, cwd=tmp_path)
    packages = next((tmp_path / "lib").glob("python*/site-packages"))
    (packages / "environment.pth").write_text(str(next((environment / "lib").glob("python*/site-packages"))))
    (wheel,) = distributions.glob("*.whl")
    install(tmp_path, f"{wheel}[{extra}]")
    run(tmp_path / "bin/python", "-c", USES_OF_EXTRAS[extra], cwd=tmp_path)
