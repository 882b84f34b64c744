"""The scripts of examples/ as a user runs them, and the pages that show them."""

import json
import runpy
import sys
from pathlib import Path

import ase.io
import pytest
from datasets import load_dataset
from rdkit import Chem

from dataset_scripts.label_generation import generate
from dataset_scripts.schema import FEATURES
from modeling_pcbridge import PCBridgeModel

ROOT = Path(__file__).parent.parent


@pytest.fixture
def example(tmp_path, monkeypatch, capsys, fresh_accelerate):
    """Runs one with options in an empty folder, in this process, where torch is already; returns what it prints."""

    def run(name: str, *options: str) -> str:
        path = str(ROOT / "examples" / name)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [path, *options])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


def test_predict_and_relax(example, tmp_path):
    printed = example("predict_and_relax.py", "--smiles", "CO", "--num_samples", "2")
    assert "written to relaxed.xyz" in printed
    atoms = ase.io.read(tmp_path / "relaxed.xyz")
    assert atoms.symbols.get_chemical_formula() == "CH4O"
    assert (atoms.get_forces() ** 2).sum(1).max() ** 0.5 <= 0.02


def test_map_dataset(example, tmp_path):
    printed = example("map_dataset.py").splitlines()
    assert printed[0].startswith("C[C@H](N)C(=O)O: 13 atoms, ") and "RDKit cannot parse" in printed[1]
    assert printed[-2:] == [
        "[Na+].[Cl-]: the molecule is disconnected (several fragments)",
        "None: the SMILES is empty",
    ]
    rows = load_dataset("parquet", data_files=str(tmp_path / "predicted.parquet"), split="train")
    assert [row["positions"] is None for row in rows] == [False, True, False, True, True]


def test_fine_tune_on_csv_ends_with_a_checkpoint(example, tmp_path):
    printed = example("fine_tune_on_csv.py", "--quick")
    assert "fine-tuned checkpoint: outputs/fine_tuned/stage1" in printed
    tuned = PCBridgeModel.from_pretrained(tmp_path / "outputs/fine_tuned/stage1").state_dict()
    start = PCBridgeModel.from_pretrained(ROOT / "checkpoints/drug_like").state_dict()
    assert any((tuned[name] != start[name]).any() for name in start)


def test_reproduce_mini_table(example, tmp_path):
    printed = example("reproduce_mini_table.py", "--quick")
    assert "consistency: generated, DDIM" in printed and "multi-task: generated, DDIM" in printed
    assert (tmp_path / "outputs/mini/results.md").read_text() in printed


def test_own_library(example, tmp_path):
    pytest.importorskip("tblite")
    options = ("--num", "8", "--num_steps", "20", "--output_dir", "out")
    printed = example("own_library.py", *options)
    out = tmp_path / "out"
    assert "left out unreadable: RDKit cannot parse it" in printed and "element Si is not asked for" in printed
    report = json.loads((out / "report.json").read_text())
    assert (report["molecules"], report["fragments"], report["level"]) == (50, 8, "GFN2-xTB")
    refined = list(Chem.SDMolSupplier(str(out / "refined.sdf"), removeHs=False))
    assert [mol.GetProp("_Name") for mol in refined] == list(report["refined"]) and len(refined) == 50
    assert Chem.MolToSmiles(Chem.RemoveHs(refined[3])) == Chem.CanonSmiles("CCN(CC)CC(=O)Nc1c(C)cccc1C")  # of a salt
    assert report["coverage"] == sorted(report["coverage"]) and 0.3 < report["coverage"][-1] < 0.8
    shares = {name: each["covered"] for name, each in report["refined"].items()}
    assert 0 <= min(shares.values()) < 0.5 < max(shares.values()) <= 1
    assert set(report["seconds"]) == {"fragments", "labels", "training", "refinement"}
    assert (out / "steps.svg").read_text().startswith("<?xml")
    # What it trained on is a data set of the Hub, and labels are not made again.
    rows = load_dataset(str(out / "data"), split="train", cache_dir=tmp_path / "cache")
    assert len(rows) == report["labels"] >= 16 and rows.features == FEATURES
    before = (out / "gfn2.jsonl").read_bytes()
    assert generate("gfn2", [out / "minima.jsonl"], out / "gfn2.jsonl", ["displaced", "torsion"]).total() == 0
    assert (out / "gfn2.jsonl").read_bytes() == before


@pytest.mark.slow
def test_own_library_with_b3lyp_labels(example, tmp_path):
    pytest.importorskip("pyscf")
    library = tmp_path / "library.smi"
    library.write_text("CO methanol\nCI iodomethane\nC1CC broken\n[Na+].[Cl-] salt\n")
    options = ("--library", str(library), "--level", "b3lyp", "--num", "2", "--num_steps", "10", "--output_dir", "out")
    printed = example("own_library.py", *options)
    assert "'6-31G* has no I': 2" in printed and "count as absent" not in printed
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["level"] == "B3LYP/6-31G*" and set(report["refined"]) == {"methanol", "iodomethane"}
    config = json.loads((tmp_path / "out/training/consistency/config.json").read_text())
    assert config["energy_levels_of_theory"] == ["B3LYP/6-31G*", "GFN2-xTB"]


def test_an_empty_library_ends_the_example_with_one_sentence(example, tmp_path, capsys):
    (tmp_path / "empty.smi").write_text("")
    with pytest.raises(SystemExit) as stopped:
        example("own_library.py", "--library", "empty.smi")
    assert stopped.value.code == 1 and capsys.readouterr().err.endswith("empty.smi has no molecules\n")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_the_documentation_shows_every_example(path):
    assert f'--8<-- "examples/{path.name}"' in (ROOT / "docs/examples.md").read_text()
