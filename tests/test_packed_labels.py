"""Packed labels come back as they were, grow, and refuse what contradicts them."""

import json
from pathlib import Path

import pytest

import dataset_scripts
from dataset_scripts.label_generation import read_lines, read_molecules
from dataset_scripts.labelling import fingerprint
from dataset_scripts.packed_labels import main, pack_labels, read_packed_labels, unpack_labels

RAW_LABELS = Path(dataset_scripts.__file__).parent / "raw_labels"
LINE = {
    "molecule_id": "water",
    "geometry": "displaced",
    "level": "b3lyp",
    "input": "00ff",
    "smiles": "O",
    "mapped_smiles": "[O:1]([H:2])[H:3]",
    "atomic_numbers": [8, 1, 1],
    "total_charge": 0,
    "positions": [[0.000001, -11.123456, 0.0], [0.1, 0.2, 0.3], [1.0, 2.345678, -3.0]],
    "equilibrium_level_of_theory": None,
    "energy": -2079.123456789012,
    "forces": [[0.0, 0.123457, -123.456789], [0.5, 0.25, 0.125], [-1.0, -2.0, 3.0]],
    "energy_level_of_theory": "B3LYP/6-31G*",
}
FAILED = {"molecule_id": "water", "geometry": "torsion", "level": "b3lyp", "input": "00ff", "error": "no bond to turn"}
MINIMUM = LINE | {"geometry": "minimum", "level": "gfn2", "forces": None}


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_lines_come_back_as_they_were(tmp_path):
    lines, packed, again = (tmp_path / name for name in ("a.jsonl", "a.parquet", "b.jsonl"))
    write(lines, LINE, FAILED, MINIMUM)
    assert pack_labels([lines], packed) == 3
    assert read_packed_labels(packed) == read_lines(lines)
    assert unpack_labels(packed, again) == 3
    assert again.read_text() == lines.read_text()
    with pytest.raises(ValueError, match=r"b\.jsonl exists"):
        unpack_labels(packed, again)


def test_a_packed_file_grows_by_what_is_new(tmp_path):
    lines, packed = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    write(lines, LINE)
    pack_labels([lines], packed)
    before = packed.read_bytes()
    assert pack_labels([lines], packed) == 0 and packed.read_bytes() == before
    write(lines, LINE, FAILED)
    lines.write_text(lines.read_text() + '{"molecule_id": "cut sh')  # a run is writing to it
    assert pack_labels([lines], packed) == 1
    assert read_packed_labels(packed) == [LINE, FAILED]
    retried = LINE | {"geometry": "torsion"}
    assert pack_labels([write(lines, LINE, FAILED, retried)], packed) == 0
    assert read_packed_labels(packed) == [LINE, retried]
    assert pack_labels([write(lines, FAILED)], packed) == 0 and read_packed_labels(packed) == [LINE, retried]


def test_what_contradicts_or_is_no_label_is_refused(tmp_path, monkeypatch, capsys):
    lines, packed = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    pack_labels([write(lines, LINE)], packed)
    before = packed.read_bytes()
    with pytest.raises(ValueError, match=r"line 1: .*a\.parquet has another label of 'water'"):
        pack_labels([write(lines, LINE | {"energy": -1.0})], packed)
    with pytest.raises(ValueError, match=r"line 2: no geometry"):
        pack_labels([write(lines, LINE, {"molecule_id": "a"})], packed)
    with pytest.raises(ValueError, match=r"there is no .*nothing\.jsonl"):
        pack_labels([tmp_path / "nothing.jsonl"], packed)
    assert packed.read_bytes() == before
    monkeypatch.setattr("sys.argv", ["pack", "--unpack", str(lines), str(tmp_path / "c.jsonl")])
    with pytest.raises(SystemExit):
        main()
    assert "no file of packed labels" in capsys.readouterr().err


def test_labels_go_on_from_packed_minima(tmp_path):
    """What is kept packed can be continued: its labels name the structures that are kept beside them."""
    for minima, labels in (("fragments_gfn2_minima", "fragments_b3lyp"), ("large_gfn2_minima", "large_b3lyp")):
        unpack_labels(RAW_LABELS / f"{minima}.parquet", tmp_path / f"{minima}.jsonl")
        inputs = {molecule["molecule_id"]: molecule for molecule in read_molecules(tmp_path / f"{minima}.jsonl")}
        lines = [line for line in read_packed_labels(RAW_LABELS / f"{labels}.parquet") if line["geometry"] != "minimum"]
        strange = {line["molecule_id"] for line in lines if line["input"] != fingerprint(inputs[line["molecule_id"]])}
        assert len(lines) > 50 and not strange


def test_a_zero_has_no_sign(tmp_path):
    """Packed coordinates are whole numbers, so -0.0 comes back as 0.0, and is the same structure."""
    minimum = MINIMUM | {"positions": [[-0.0, 0.1, -0.0], [0.0, -0.05, 0.2], [-1.0, -0.0, -0.01]]}
    write(tmp_path / "a.jsonl", minimum)
    pack_labels([tmp_path / "a.jsonl"], tmp_path / "a.parquet")
    unpack_labels(tmp_path / "a.parquet", tmp_path / "b.jsonl")
    before, after = (read_molecules(tmp_path / name)[0] for name in ("a.jsonl", "b.jsonl"))
    assert json.dumps(before) != json.dumps(after) and fingerprint(before) == fingerprint(after)
    assert fingerprint(before) != fingerprint(
        before | {"positions": [[0.0, 0.1, 0.0], [0.0, 0.05, 0.2], [-1.0, 0.0, -0.01]]}
    )
