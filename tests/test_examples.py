"""The scripts of examples/ as a user runs them, and the pages that show them."""

import subprocess
import sys
from pathlib import Path

import ase.io
import pytest

from modeling_pcbridge import PCBridgeModel

ROOT = Path(__file__).parent.parent


def example(name: str, *options: str, cwd: Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *options]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_predict_and_relax(tmp_path):
    printed = example("predict_and_relax.py", "--smiles", "CO", "--num_samples", "2", cwd=tmp_path)
    assert "written to relaxed.xyz" in printed
    atoms = ase.io.read(tmp_path / "relaxed.xyz")
    assert atoms.symbols.get_chemical_formula() == "CH4O"
    assert (atoms.get_forces() ** 2).sum(1).max() ** 0.5 <= 0.02


def test_fine_tune_on_csv_ends_with_a_checkpoint(tmp_path):
    printed = example("fine_tune_on_csv.py", "--quick", cwd=tmp_path)
    assert "fine-tuned checkpoint: outputs/fine_tuned/stage1" in printed
    tuned = PCBridgeModel.from_pretrained(tmp_path / "outputs/fine_tuned/stage1").state_dict()
    start = PCBridgeModel.from_pretrained(ROOT / "checkpoints/consistency").state_dict()
    assert any((tuned[name] != start[name]).any() for name in start)


def test_reproduce_mini_table(tmp_path):
    printed = example("reproduce_mini_table.py", "--quick", cwd=tmp_path)
    assert "consistency: generated, DDIM" in printed and "multi-task: generated, DDIM" in printed
    assert (tmp_path / "outputs/mini/results.md").read_text() in printed


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_the_documentation_shows_every_example(path):
    assert f'--8<-- "examples/{path.name}"' in (ROOT / "docs/examples.md").read_text()
