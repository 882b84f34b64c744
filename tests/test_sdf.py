"""SDF and SMILES files mean the same wherever the project reads them."""

from io import BytesIO
from pathlib import Path

import pytest
from rdkit import Chem

from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.label_generation import read_molecules
from dataset_scripts.labelling import starting_structure
from dataset_scripts.own_data import own_source
from dataset_scripts.raw_sources import stream_source
from dataset_scripts.sdf import mol_of_sdf, read_sdf, sdf_record
from pcbridge.app import molecule_files
from pcbridge.app.molecule_files import Failure, Molecule


@pytest.fixture(scope="module")
def record() -> str:
    """Glycine as a zwitterion: its charges stand in the last line before M  END."""
    mol = starting_structure({"smiles": "[NH3+]CC(=O)[O-]"})
    return sdf_record(mol, "glycine", {"score": -1.5})


def sdf(folder: Path, text: str) -> Path:
    path = folder / "in.sdf"
    path.write_text(text)
    return path


@pytest.mark.parametrize("ending", ["", "\r\n\n"])
def test_a_last_record_without_end_mark_is_read_everywhere(record, tmp_path, ending):
    last = record.removesuffix("$$$$\n").rstrip() + "\n" + ending
    path = sdf(tmp_path, record + last)
    assert [row["smiles"] for row in stream_source(own_source(), [path])] == ["[NH3+]CC(=O)[O-]"] * 2
    assert [molecule["molecule_id"] for molecule in read_molecules(path)] == ["glycine"] * 2
    found = list(molecule_files.read_records(str(path), "sdf"))
    assert all(isinstance(r, Molecule) for r in found)
    assert [(r.place, r.name) for r in found] == [(f"record {i}", "glycine") for i in (1, 2)]


def test_a_record_cut_off_anywhere_in_its_mol_block_is_refused(record, tmp_path):
    block = record[: record.index("M  END")]
    for length in range(1, len(block), 7):
        *_, last = read_sdf(BytesIO((record + block[:length]).encode()), "cut.sdf")
        with pytest.raises(BadRowError, match="unparsable SDF record"):
            mol_of_sdf("cut", last)
    path = sdf(tmp_path, record + block)
    with pytest.raises(BadRowError, match="in_000001: unparsable SDF record"):
        list(stream_source(own_source(), [path]))
    with pytest.raises(ValueError, match="cannot parse"):
        starting_structure(read_molecules(path)[1])
    good, bad = molecule_files.read_records(str(path), "sdf")
    assert isinstance(good, Molecule) and isinstance(bad, Failure) and "cannot read" in bad.error


def test_records_keep_name_properties_and_structure(record):
    mol = mol_of_sdf("glycine", record)
    supplier = Chem.SDMolSupplier()
    supplier.SetData(record, removeHs=False)
    [again] = supplier
    assert (again.GetProp("_Name"), again.GetDoubleProp("score")) == ("glycine", -1.5)
    assert again.GetConformer().Is3D() and Chem.GetFormalCharge(again) == 0
    assert Chem.MolToSmiles(again) == Chem.MolToSmiles(mol)


def test_comments_in_smiles_files(tmp_path):
    path = tmp_path / "in.smi"
    path.write_text("# two alcohols\nCO methyl alcohol\n\nCCO\n")
    assert [(m["smiles"], m["molecule_id"]) for m in read_molecules(path)] == [
        ("CO", "methyl alcohol"),
        ("CCO", "in_000002"),
    ]
    assert [record.place for record in molecule_files.read_records(str(path), "smi")] == ["line 2", "line 4"]
