"""What is installed: a wheel in an environment of its own, each extra alone, and an import that stays light."""

import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from rdkit import Chem

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What needs each extra: the project's module, and what the extra brings for it.
MODULES_OF_EXTRAS = {
    "ase": ["modeling_pcbridge.ase_calculator"],
    "cluster": ["distributed", "dataset_scripts.label_generation"],
    "docs": ["mkdocs", "material", "mkdocstrings_handlers.python"],
    "qc": ["pyscf", "dataset_scripts.quantum_chemistry"],
    "qm9": ["qm9pack", "dataset_scripts.qm9"],
    "serve": ["uvicorn", "pcbridge_app.web.server"],
    "spice": ["h5py", "dataset_scripts.spice"],
    "test": ["pytest", "hypothesis", "scipy", "tensorboard", "httpx", "selenium", "ase", "starlette", "h5py", "mypy"],
    "xtb": ["tblite.interface", "ase", "dataset_scripts.quantum_chemistry"],
}
# Of the extras, and what only some commands need.
HEAVY = {"ase", "dask", "datasets", "diffusers", "h5py", "matplotlib", "pandas", "pyscf", "starlette", "tblite"}


def run(*command, cwd: Path) -> str:
    """Output of a command that must succeed, run away from the clone."""
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_importing_the_package_is_light():
    code = "import sys, modeling_pcbridge; print(*{name.split('.')[0] for name in sys.modules})"
    imported = set(run(sys.executable, "-c", code, cwd=ROOT).split())
    assert "modeling_pcbridge" in imported and not imported & HEAVY


def test_every_extra_has_its_modules_tested():
    assert set(PROJECT["optional-dependencies"]) == set(MODULES_OF_EXTRAS)


def test_least_versions_are_the_lower_bounds():
    least = dict(line.split("==") for line in (ROOT / "constraints-least.txt").read_text().splitlines() if "==" in line)
    bounds = list(chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()))
    bounds = dict(bound.replace("[signatures]", "").split(">=") for bound in bounds if ">=" in bound)
    del least["torch"], bounds["torch"]  # see constraints-least.txt
    for name, version in least.items():
        bound = bounds[name].split(".")
        assert version.split(".")[: len(bound)] == bound, name


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def environment(distributions, tmp_path_factory) -> Path:
    """A virtual environment with the wheel and no extra."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    (wheel,) = distributions.glob("*.whl")
    run(folder / "bin/pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    return folder


@pytest.mark.slow
def test_the_wheel_has_what_is_read_at_run_time(distributions):
    (wheel,) = distributions.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    places = {"configs": "pcbridge_app/configs", "checkpoints/consistency": "pcbridge_app/released_checkpoint"}
    folders = ("modeling_pcbridge", "dataset_scripts", "pcbridge_app", *places)
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
    assert "pcbridge_app/configs" in run(pcbridge, "train", "--help", cwd=tmp_path)
    options = ["--stage1.num_steps=20", "--stage2=null", "--evaluation=null", "--output_dir=out"]
    run(pcbridge, "train", *options, cwd=tmp_path)
    assert (tmp_path / "out/stage1/model.safetensors").exists()
    assert (tmp_path / "out/stage1/README.md").read_text() == (ROOT / "modeling_pcbridge/model_card.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("extra", MODULES_OF_EXTRAS)
def test_each_extra_alone(environment, distributions, tmp_path, extra):
    """In an environment on top of that of the wheel, so that torch is unpacked once only."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "on_top", cwd=tmp_path)
    packages = next((tmp_path / "on_top/lib").glob("python*/site-packages"))
    (packages / "environment.pth").write_text(str(next((environment / "lib").glob("python*/site-packages"))))
    python = tmp_path / "on_top/bin/python"
    (wheel,) = distributions.glob("*.whl")
    pip = [environment / "bin/pip", "--python", python, "install", "-q", "-c", ROOT / "constraints.txt"]
    run(*pip, f"{wheel}[{extra}]", cwd=tmp_path)
    run(python, "-c", "import " + ", ".join(MODULES_OF_EXTRAS[extra]), cwd=tmp_path)
