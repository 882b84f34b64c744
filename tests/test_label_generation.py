"""The command: input of every kind, failures, interruptions, several workers; lines read back as data."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rdkit import Chem
from rdkit.Chem import ChemicalForceFields

from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.build_bundled import read_labels
from dataset_scripts.bundled import SPLITS, load_bundled, parquet_path
from dataset_scripts.geometries import displaced
from dataset_scripts.label_generation import generate, read_lines, read_molecules
from dataset_scripts.labelling import check_same_molecule, label, starting_structure
from dataset_scripts.own_data import own_source
from dataset_scripts.prepare import prepare
from dataset_scripts.schema import FEATURES
from modeling_pcbridge import rdkit_structures
from modeling_pcbridge.rdkit_molecules import mol_from_smiles, with_structure

RAW_LABELS = parquet_path("pm6", "test").parents[1] / "raw_labels" / "b3lyp_7_heavy_atoms.jsonl"

# A user's own level: every atom bound to the origin by 1 eV/angstrom^2. For the command, not for chemistry.
SPRINGS = """
import os, signal, time
from dataset_scripts.labelling import Level

def springs(atomic_numbers, positions, total_charge):
    if 9 in atomic_numbers:
        raise RuntimeError("no fluorine here")
    if 17 in atomic_numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    if 7 in atomic_numbers:
        time.sleep(0.05)
    return 0.5 * (positions**2).sum(), -positions

LEVEL = Level("springs", springs)
"""


@pytest.fixture
def springs(tmp_path, monkeypatch) -> str:
    (tmp_path / "springs.py").write_text(SPRINGS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return "springs:LEVEL"


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _keys(path: Path) -> list[tuple[str, str]]:
    return sorted((line["molecule_id"], line["geometry"]) for line in read_lines(path))


def bundled_rows(name: str) -> dict[str, dict]:
    return {row["molecule_id"]: row for split in SPLITS for row in load_bundled(name, split)}


@pytest.mark.parametrize("molecule_id", ["qm9_000002", "qm9_000003", "qm9_000005"])
@pytest.mark.parametrize("name", ["pm6", "pm6_displaced"])
def test_b3lyp_labels_agree_with_the_bundled_ones(molecule_id, name):
    pytest.importorskip("pyscf")
    row = bundled_rows(name)[molecule_id]
    found = label(row | {"smiles": row["mapped_smiles"]}, "given", "b3lyp")
    assert found["equilibrium_level_of_theory"] == row["equilibrium_level_of_theory"]
    assert found["energy"] == pytest.approx(row["energy"], abs=1e-3)
    np.testing.assert_allclose(found["forces"], row["forces"], atol=1e-2)
    assert found["mapped_smiles"] == row["mapped_smiles"]


def test_displacements_are_those_of_the_raw_labels():
    minima = bundled_rows("pm6")
    lines = [line for line in read_lines(RAW_LABELS) if line["geometry"] == "displaced"]
    assert len(lines) > 100
    for line in lines[:20]:
        moved = displaced(np.array(minima[line["molecule_id"]]["positions"]), line["molecule_id"])
        np.testing.assert_allclose(moved, line["positions"], atol=1e-5)


def test_displacements_are_the_same_on_every_run_and_of_a_stated_width():
    positions = np.zeros((200, 3))
    assert (displaced(positions, "a") == displaced(positions, "a")).all()
    assert (displaced(positions, "a") != displaced(positions, "b")).any()
    widths = [displaced(positions, f"molecule {i}").std() for i in range(30)]
    assert {min((0.03, 0.06, 0.1), key=lambda w: abs(w - width)) for width in widths} == {0.03, 0.06, 0.1}
    assert all(min(abs(w - width) for w in (0.03, 0.06, 0.1)) < 0.008 for width in widths)


def test_molecules_are_read_from_every_kind_of_file(tmp_path):
    water = starting_structure({"smiles": "O"})
    block, flat = Chem.MolToMolBlock(water), Chem.MolToMolBlock(Chem.MolFromSmiles("C1CCCCC1"))
    sdf = _write(
        tmp_path / "a.sdf", f"named{block}$$$$\n{block}>  <P>\n1\n\n$$$$\n{flat}$$$$\nbroken\n\n\nno atoms\n$$$$\n"
    )
    molecules = read_molecules(sdf)
    assert [m["molecule_id"] for m in molecules] == ["named", "a_000002", "a_000003", "broken"]
    for molecule in molecules[:2]:
        positions = starting_structure(molecule).GetConformer().GetPositions()
        np.testing.assert_allclose(positions, water.GetConformer().GetPositions(), atol=1e-4)
    header = "\n  a program\n\n"  # that says of no record that it is 3D
    planar = {"mol_block": header + block.split("\n", 3)[3], "molecule_id": "planar"}
    positions = starting_structure(planar).GetConformer().GetPositions()
    np.testing.assert_allclose(positions, water.GetConformer().GetPositions(), atol=1e-4)
    ring = starting_structure(molecules[2])  # drawn flat: hydrogens and a structure are made
    assert np.linalg.matrix_rank(np.cov(ring.GetConformer().GetPositions()[:6].T), tol=0.01) == 3
    with pytest.raises(ValueError, match="cannot parse the SDF record"):
        starting_structure(molecules[3])

    smiles = read_molecules(_write(tmp_path / "a.smi", "O water, pure\n\nCC\n"))
    assert [(m["smiles"], m["molecule_id"]) for m in smiles] == [("O", "water, pure"), ("CC", "a_000002")]
    row = read_molecules(parquet_path("pm6", "test"))[0]
    np.testing.assert_allclose(starting_structure(row).GetConformer().GetPositions(), row["positions"], atol=1e-6)
    with pytest.raises(ValueError, match=r"a\.csv: not one of"):
        read_molecules(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("smiles", "positions", "reason"),
    [
        ("C1", None, "cannot parse"),
        ("[CH3]", None, "radical"),
        ("[Na+].CC(=O)[O-]", None, "several fragments"),
        ("O", [[0.0, 0.0, 0.0]] * 2, "for 3 atoms"),
        ("O", [[0.0, 0.0, np.nan]] * 3, "not numbers"),
        ("O", [[0.0, 0.0, 0.0], [0.096, 0.0, 0.0], [-0.024, 0.093, 0.0]], "only 0.10 angstrom apart"),  # nanometres
    ],
)
def test_bad_molecules_are_lines_with_the_reason(smiles, positions, reason, springs):
    found = label({"molecule_id": "a", "smiles": smiles, "positions": positions}, "given", springs)
    assert reason in found["error"] and "energy" not in found


def test_failures_are_recorded_and_tried_again_only_when_asked(tmp_path, springs):
    molecules, output = _write(tmp_path / "a.smi", "CF f\nO o\n"), tmp_path / "a.jsonl"
    options = {"level": springs, "inputs": [molecules], "output": output}
    assert generate(**options, geometries=["given", "displaced"]) == {"done": 2, "no fluorine here": 2}
    before = output.read_bytes()
    assert not generate(**options, geometries=["given", "displaced"])
    assert output.read_bytes() == before
    assert generate(**options, retry_failed=True) == {"no fluorine here": 1}

    rows = [line for line in read_lines(output) if "error" not in line]
    assert [row["molecule_id"] for row in rows] == ["o", "o"] and set(rows[0]) > set(FEATURES)
    assert rows[0]["energy"] == pytest.approx(0.5 * np.square(rows[0]["positions"]).sum(), abs=1e-5)
    assert rows[0]["energy_level_of_theory"] == "springs" and rows[0]["equilibrium_level_of_theory"] is None


def test_only_labels_that_are_there_are_left_out_and_other_molecules_are_refused(tmp_path, springs, caplog):
    molecules, given, more = _write(tmp_path / "a.smi", "CCO\nO\n"), tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert generate(springs, [molecules], given) == {"done": 2}
    assert not generate(springs, [given], more)
    assert "2 structures of the input are labelled at springs already" in caplog.text
    assert generate(springs, [given], more, geometries=["given", "displaced"], max_molecules=1) == {"done": 1}
    assert generate(springs, [given], more, geometries=["given", "displaced"]) == {"done": 1}
    assert {key[1] for key in _keys(more)} == {"displaced"}
    # Molecules without names are numbered: another file of that name has others.
    _write(molecules, "CCO\nN\n")
    with pytest.raises(ValueError, match="holds labels of another molecule 'a_000002' than the input's"):
        generate(springs, [molecules], given)


def test_lines_become_training_data(tmp_path, springs):
    """What was generated is prepared as it is: failures counted, both geometries kept, a cut line named."""
    molecules, output = _write(tmp_path / "a.smi", "CF f\nC[C@H](N)O o\n[OH-] h\n"), tmp_path / "a.JSONL"
    generate(springs, [molecules], output, geometries=["given", "displaced"])
    summary = prepare(own_source(), [output], tmp_path / "own", split="train")
    assert summary == {
        "rows": {"train": 4, "validation": 0, "test": 0},
        "skipped": {"the label could not be computed": 2},
    }
    (shard,) = (tmp_path / "own" / "train").glob("*.parquet")
    expected = {(row["molecule_id"], row["energy"]): row for row in read_lines(output) if "error" not in row}
    for row in pq.read_table(shard).to_pylist():
        line = expected[row["molecule_id"], row["energy"]]
        assert row["mapped_smiles"] == line["mapped_smiles"] and row["energy_level_of_theory"] == "springs"
        np.testing.assert_array_equal(row["positions"], np.float32(line["positions"]))
        np.testing.assert_array_equal(row["forces"], np.float32(line["forces"]))
    cut = _write(tmp_path / "cut.jsonl", output.read_text()[:-20])
    with pytest.raises(BadRowError, match="cut_000005: unparsable"):
        prepare(own_source(), [cut], tmp_path / "cut", split="train")


def test_what_cannot_be_done_is_one_clear_error(tmp_path):
    molecules, output = _write(tmp_path / "a.smi", "# none\n"), tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match=r"there is no molecule in .*a\.smi"):
        generate("gfn2", [molecules], output)
    molecules.write_text("O o\nC o\n")
    with pytest.raises(ValueError, match="'o' is there more than once"):
        generate("gfn2", [molecules], output)
    with pytest.raises(ValueError, match="no level 'ccsd'; there are mmff94, pm6, b3lyp"):
        generate("ccsd", [molecules], output)
    with pytest.raises(ValueError, match="pm6 cannot compute geometry 'displaced'"):
        generate("pm6", [molecules], output, geometries=["displaced"])
    with pytest.raises(ValueError, match=r"'dumps' of module 'json' is no labelling\.Level"):
        generate("json:dumps", [molecules], output)
    for option, value in (("workers", 0), ("max_molecules", -1)):
        with pytest.raises(ValueError, match=f"{option} must be at least 1"):
            generate("gfn2", [molecules], output, **{option: value})
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({"molecule_id": ["o"], "smiles": ["O"]}), table)
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: no mapped_smiles"):
        generate("gfn2", [table], output)
    table.write_bytes(b"")
    with pytest.raises(BadRowError, match=r"a\.parquet: damaged Parquet file"):
        generate("gfn2", [table], output)
    output.write_text('{"molecule_id": "a", "geometry": "given", "level": "gfn2"}\n')
    molecules.write_text("O o\n")
    with pytest.raises(ValueError, match="holds labels of level gfn2"):
        generate("pm6", [molecules], output)
    with output.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is writing"):
            generate("gfn2", [molecules], output)


def test_a_changed_molecule_is_told_from_an_optimised_one():
    mol = starting_structure({"smiles": "C[C@H](F)O"})
    positions = mol.GetConformer().GetPositions()
    check_same_molecule(mol, positions * 1.1)
    with pytest.raises(ValueError, match="another stereoisomer"):
        check_same_molecule(mol, positions * [1, 1, -1])
    positions[2] *= 3  # fluorine
    with pytest.raises(ValueError, match=r"broke a bond \(C1 and F2 are bonded, but"):
        check_same_molecule(mol, positions)


def test_a_line_cut_short_by_a_kill_is_left_out_and_made_again(tmp_path, springs):
    molecules, output = _write(tmp_path / "a.smi", "O a\nCC b\nCCC c\n"), tmp_path / "a.jsonl"
    generate(springs, [molecules], output)
    whole = output.read_bytes()
    output.write_bytes(whole[:-9])
    assert len(read_lines(output)) == 2 and output.read_bytes() == whole[:-9]  # reading changes nothing
    assert generate(springs, [molecules], output) == {"done": 1}
    assert output.read_bytes() == whole
    assert read_lines(tmp_path / "absent.jsonl") == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_without_losing_or_repeating_a_line(tmp_path, workers, springs):
    if workers > 1:
        pytest.importorskip("distributed")
    molecules, output = _write(tmp_path / "a.smi", "".join(f"{'C' * i}N {i}\n" for i in range(1, 61))), tmp_path / "o"
    options = ["--level", springs, "--inputs", molecules, "--output", output, "--workers", str(workers)]
    command = [sys.executable, "-m", "dataset_scripts.label_generation", *map(str, options)]
    process = subprocess.Popen(command, start_new_session=True)
    while not output.exists() or output.read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 5 <= len(read_lines(output)) < 60
    subprocess.run(command, check=True)
    assert _keys(output) == sorted((str(i), "given") for i in range(1, 61))


@pytest.mark.slow
def test_several_workers_give_the_lines_of_one_and_a_running_scheduler_outlives_a_crash(tmp_path, springs):
    distributed = pytest.importorskip("distributed")
    molecules = _write(tmp_path / "a.smi", "CF f\nO o\nCC cc\nCN n\nC1 bad\n")
    for workers in (1, 2):
        generate(springs, [molecules], tmp_path / str(workers), workers=workers)
    serial, parallel = (sorted((tmp_path / n).read_text().splitlines()) for n in "12")
    assert len(serial) == 5 and serial == parallel

    molecules.write_text("CCl kills_its_worker\nO o\nCC cc\n")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        counts = generate(springs, [molecules], tmp_path / "crash", scheduler=cluster.scheduler_address)
    assert counts["done"] == 2 and [reason for reason in counts if "worker process died" in reason]


def test_generated_lines_are_read_as_labels_of_the_bundle(tmp_path):
    path = tmp_path / "labels.jsonl"
    line = {"molecule_id": "qm9_000042", "geometry": "displaced", "level": "b3lyp"}
    good = {**line, "energy": -1.0, "forces": [[0.0] * 3], "positions": [[1.0] * 3]}
    path.write_text("".join(json.dumps(line) + "\n" for line in (good, {**line, "error": "did not converge"})))
    expected = {"qm9_index": 42, "geometry": "pm6_displaced", "energy_ev": -1.0}
    assert read_labels(path) == [{**expected, "forces_ev_ang": [[0.0] * 3], "positions": [[1.0] * 3]}]
    path.write_text(json.dumps({**good, "level": "gfn2"}) + "\n")
    with pytest.raises(ValueError, match="another level than b3lyp"):
        read_labels(path)


def test_mmff94_gives_minima_without_energies(monkeypatch):
    line = label({"molecule_id": "ester", "smiles": "CCOC(C)=O"}, "minimum", "mmff94")
    assert line["equilibrium_level_of_theory"] == "MMFF94"
    assert (line["energy"], line["forces"], line["energy_level_of_theory"]) == (None, None, None)
    mol = with_structure(mol_from_smiles(line["mapped_smiles"]), np.array(line["positions"]))
    properties = ChemicalForceFields.MMFFGetMoleculeProperties(mol)
    field = ChemicalForceFields.MMFFGetMoleculeForceField(mol, properties)
    assert np.abs(field.CalcGrad()).max() < 0.05  # kcal/mol/angstrom
    assert "MMFF94 has no parameters" in label({"molecule_id": "b", "smiles": "CB(C)C"}, "minimum", "mmff94")["error"]
    monkeypatch.setattr(rdkit_structures, "_MAX_MMFF_STEPS", 2)
    assert "no MMFF94 minimum in 2 steps" in label({"molecule_id": "c", "smiles": "CCOC"}, "minimum", "mmff94")["error"]
