"""The `pcbridge` command as a user types it, with the released checkpoint."""

import csv
import gzip
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import ase.io
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdMolTransforms

from dataset_scripts.collator import example_from_row
from dataset_scripts.options import underscored
from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.constants import KCAL_PER_MOL_TO_EV
from modeling_pcbridge.dispersion import d3bj_energy_and_gradient
from modeling_pcbridge.molecular_graph import graph_from_mol, stereo_is_right
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from modeling_pcbridge.rdkit_structures import rdkit_structures
from pcbridge.app import default_model
from pcbridge.app.command_line import main
from pcbridge.training.config import SourceConfig
from train_accelerate import CONFIGS, parse

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "drug_like"
INPUT = """C[C@H](N)CO\talaninol
# a comment

CC[Si] \t silane of another element
nonsense
O water
[Na+].[Cl-] salt
"""
QUICK = ["--method", "ddim", "--steps", "5"]  # one structure, drawn from noise


@pytest.fixture
def smiles_file(tmp_path) -> str:
    path = tmp_path / "in.smi"
    path.write_text(INPUT)
    return str(path)


def read_sdf(path) -> list[Chem.Mol]:
    return list(Chem.SDMolSupplier(str(path), removeHs=False))


def test_smiles_to_sdf_lists_failures_and_does_the_rest(smiles_file, tmp_path, capsys):
    output, failures = tmp_path / "out.sdf", tmp_path / "failures.csv"
    assert main(["predict", smiles_file, "-o", str(output), "--failures", str(failures), *QUICK]) == 1
    alaninol, water = read_sdf(output)
    assert (alaninol.GetProp("_Name"), water.GetProp("_Name")) == ("alaninol", "water")
    assert stereo_is_right(graph_from_mol(mol_from_smiles("C[C@H](N)CO")), alaninol.GetConformer().GetPositions()[None])
    assert Chem.MolToSmiles(Chem.RemoveHs(alaninol)) == "C[C@H](N)CO"
    errors = capsys.readouterr().err
    assert "line 5: nonsense: RDKit cannot parse the SMILES" in errors
    assert "2 of 5 molecules done, 3 failed; 2 structures" in errors
    rows = list(csv.reader(failures.open()))
    assert rows[0] == ["place", "name", "input", "reason"]
    assert [row[:3] for row in rows[1:]] == [
        ["line 4", "silane of another element", "CC[Si]"],
        ["line 5", "line_5", "nonsense"],
        ["line 7", "salt", "[Na+].[Cl-]"],
    ]
    assert all(reason for *_, reason in rows[1:])


def test_lowest_energy_first_and_relaxed(tmp_path):
    (tmp_path / "in.csv").write_text("id,SMILES,name\n1,OCCO,glycol\n2,,empty\n")
    options = ["--smiles_column", "SMILES", "--num_samples", "4", "--rank_by", "energy", *QUICK]
    for name, more in (("plain", []), ("relaxed", ["--relax"])):
        assert main(["predict", str(tmp_path / "in.csv"), "-o", str(tmp_path / f"{name}.sdf"), *options, *more]) == 1
    mols = {name: read_sdf(tmp_path / f"{name}.sdf") for name in ("plain", "relaxed")}
    for structures in mols.values():
        assert [mol.GetIntProp("sample") for mol in structures] == [0, 1, 2, 3]
        energies = [mol.GetDoubleProp("energy_eV") for mol in structures]
        assert energies == sorted(energies)
    forces = {n: [m.GetDoubleProp("largest_force_eV_per_angstrom") for m in mols[n]] for n in mols}
    assert max(forces["relaxed"]) < 0.025 < min(forces["plain"])  # converged, but for the rounding of positions


def test_dispersion_is_part_of_the_level(tmp_path):
    (tmp_path / "in.smi").write_text("CCCCCCCC octane\n")
    for name, more in (("plain", []), ("d3", ["--dispersion"])):
        command = ["predict", str(tmp_path / "in.smi"), "-o", str(tmp_path / f"{name}.sdf"), "--num_conformers", "1"]
        assert main([*command, *more]) == 0
    [plain], [d3] = (read_sdf(tmp_path / f"{name}.sdf") for name in ("plain", "d3"))
    assert plain.GetProp("level_of_theory") == "PCBridge of B3LYP/6-31G*"
    assert d3.GetProp("level_of_theory") == "PCBridge of B3LYP-D3(BJ)/6-31G*"
    [energy] = d3bj_energy_and_gradient(
        "B3LYP/6-31G*",
        torch.tensor([[atom.GetAtomicNum() for atom in d3.GetAtoms()]]),
        torch.tensor(d3.GetConformer().GetPositions()[None]),
    )[0]
    # Steps on E ended both structures, each on its own: energies differ by a little more than the dispersion of one.
    model, processor = PCBridgeModel.from_pretrained(CHECKPOINT), PCBridgeProcessor.from_pretrained(CHECKPOINT)
    without = model.predict_energy(**processor([d3])).energy.item()
    assert d3.GetDoubleProp("energy_eV") - without == pytest.approx(energy.item(), abs=5e-4)
    assert energy < -0.3
    assert not np.allclose(plain.GetConformer().GetPositions(), d3.GetConformer().GetPositions(), atol=1e-4)


def test_most_central_first(tmp_path):
    (tmp_path / "in.smi").write_text("OCCCO\n")
    for name, options in (("as_drawn", []), ("central", ["--rank_by", "centrality"])):
        command = ["predict", str(tmp_path / "in.smi"), "-o", str(tmp_path / f"{name}.sdf"), "--num_samples", "6"]
        assert main([*command, *options, *QUICK]) == 0
    drawn, ranked = (
        np.array([m.GetConformer().GetPositions() for m in read_sdf(tmp_path / f"{name}.sdf")])
        for name in ("as_drawn", "central")
    )
    distances = np.linalg.norm(drawn[:, :, None] - drawn[:, None], axis=-1)  # (samples, atoms, atoms)
    to_others = np.abs(distances[:, None] - distances[None]).mean((1, 2, 3))
    assert np.ptp(to_others) > 0.01
    np.testing.assert_allclose(ranked, drawn[np.argsort(to_others)])


def test_parquet_has_the_projects_rows(smiles_file, tmp_path):
    main(["predict", smiles_file, "-o", str(tmp_path / "out.parquet"), "--num_samples", "2", *QUICK])
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["molecule_id"], row["sample"]) for row in rows] == [
        ("alaninol", 0), ("alaninol", 1), ("water", 0), ("water", 1)
    ]  # fmt: skip
    model, processor = PCBridgeModel.from_pretrained(CHECKPOINT), PCBridgeProcessor.from_pretrained(CHECKPOINT)
    for row in rows:
        example = example_from_row(row, ["PCBridge of B3LYP/6-31G*"])
        assert example.is_labelled and not example.is_equilibrium
        mol = (row["atomic_numbers"], row["positions"], row["total_charge"])
        assert model.predict_energy(**processor([mol])).energy.item() == pytest.approx(row["energy"], abs=1e-3)


def test_ase_reads_predictions_and_predictions_read_its_files(smiles_file, tmp_path, capsys):
    paths = {kind: str(tmp_path / f"out.{kind}") for kind in ("xyz", "sdf", "parquet")}
    for path in paths.values():
        main(["predict", smiles_file, "--output", path, *QUICK])
    rows = pq.read_table(paths["parquet"]).to_pylist()
    for row, atoms in zip(rows, ase.io.read(paths["xyz"], index=":"), strict=True):
        assert atoms.info["name"] == row["molecule_id"] and atoms.numbers.tolist() == row["atomic_numbers"]
        assert atoms.get_potential_energy() == row["energy"]
        np.testing.assert_allclose(atoms.get_forces(), row["forces"], atol=1e-6)
        np.testing.assert_allclose(atoms.positions, row["positions"], atol=1e-6)
    np.testing.assert_allclose(ase.io.read(paths["sdf"]).positions, rows[0]["positions"], atol=1e-4)
    # Refining starts from these structures, so the conformers stay.
    for kind in ("xyz", "sdf"):
        refined = tmp_path / f"refined_from_{kind}.sdf"
        assert main(["predict", paths[kind], "--method", "refine", "-o", str(refined)]) == 0
        alaninol, _ = read_sdf(refined)
        before = np.linalg.norm(np.array(rows[0]["positions"])[0] - np.array(rows[0]["positions"])[3])
        after = np.linalg.norm(np.subtract(*alaninol.GetConformer().GetPositions()[[0, 3]]))
        assert abs(after - before) < 0.3
    assert main(["predict", smiles_file, "--method", "refine", "-o", str(tmp_path / "none.sdf")]) == 1
    assert "water" not in (tmp_path / "none.sdf").read_text()
    assert "line 6: O: the method starts from a 3D structure" in capsys.readouterr().err


def test_sdf_with_bad_records(tmp_path, capsys):
    good = Chem.MolToMolBlock(Chem.AddHs(Chem.MolFromSmiles("CO")))
    five_bonds = good.replace(" 0999 V2000", " 0999 V2000", 1).replace("  1  2  1  0", "  1  2  3  0")
    (tmp_path / "in.sdf").write_text(f"{five_bonds}$$$$\nnot a MOL block\n$$$$\n{good}")
    assert main(["predict", str(tmp_path / "in.sdf"), "-o", str(tmp_path / "out.sdf"), *QUICK]) == 1
    errors = capsys.readouterr().err
    assert "record 1: " in errors and "valence" in errors and "record 2: not a MOL block" in errors
    assert len(read_sdf(tmp_path / "out.sdf")) == 1


def test_a_bad_frame_of_an_xyz_file_does_not_end_it(tmp_path, capsys):
    water = "3\nname=007\nO 0 0 0\nH .96 0 0\nH -.24 .93 0\n"
    unknown, charged = water.replace("O 0", "Xx 0"), water.replace("name=007", "charge=0.6")
    (tmp_path / "in.xyz").write_text(f"{unknown}{charged}{water}{water[:-20]}")
    output = tmp_path / "out.xyz"
    assert main(["predict", str(tmp_path / "in.xyz"), "-o", str(output), *QUICK]) == 1
    errors = capsys.readouterr().err
    for message in (
        "structure 1: name=007: unparsable (ValueError: Xx is no element)",
        "structure 2: charge=0.6: the charge is no whole number (0.6)",
        "structure 4: : cut short (",
        "1 of 4 molecules done",
    ):
        assert message in errors
    # The name survives another round.
    assert main(["predict", str(output), "-o", str(tmp_path / "out.sdf"), *QUICK]) == 0
    assert read_sdf(tmp_path / "out.sdf")[0].GetProp("_Name") == "007"


def test_a_name_of_several_lines_becomes_one(tmp_path):
    (tmp_path / "in.csv").write_text('name,smiles\n"a\r\n""b""",O\n')
    for kind in ("sdf", "xyz"):
        assert main(["predict", str(tmp_path / "in.csv"), "-o", str(tmp_path / f"out.{kind}"), *QUICK]) == 0
    assert read_sdf(tmp_path / "out.sdf")[0].GetProp("_Name") == 'a "b"'
    assert ase.io.read(tmp_path / "out.xyz").info["name"] == 'a "b"'
    assert main(["predict", str(tmp_path / "out.xyz"), "-o", str(tmp_path / "again.sdf"), *QUICK]) == 0
    assert read_sdf(tmp_path / "again.sdf")[0].GetProp("_Name") == 'a "b"'


def test_same_seed_same_file_whatever_the_batches(smiles_file, tmp_path):
    for name, options in (("a", []), ("b", ["--batch_size", "1"]), ("c", ["--seed", "1"])):
        main(["predict", smiles_file, "-o", str(tmp_path / f"{name}.sdf"), *QUICK, *options])
    a, b, c = ([m.GetConformer().GetPositions() for m in read_sdf(tmp_path / f"{n}.sdf")] for n in "abc")
    for x, y, z in zip(a, b, c, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-3)
        assert np.abs(x - z).max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["in.unknown"], "cannot tell the format of in.unknown"),
        (["missing.smi"], "No such file or directory: 'missing.smi'"),
        (["in.smi", "--output", "nowhere/out.sdf"], "there is no folder nowhere"),
        (["in.smi", "--output_format", "parquet"], "Parquet cannot go to standard output"),
        (["in.smi", "--num_samples", "0"], "a whole number of at least 1, not 0"),
        (["in.smi", "--num_samples", "x"], "a whole number of at least 1, not x"),
        (["in.smi", "--seed", "9" * 30], "--seed must fit into 64 bits"),
        (["in.smi", "--device", "gpu"], "--device gpu"),
        (["in.smi", "--failures", "empty_folder"], "empty_folder is a folder"),
        (["-", "--output", "empty_folder"], "must come from a file"),
        (["in.smi", "--output", "new/", "--failures", "a.csv"], "a folder lists the failures itself"),
        (["missing.smi", "--output", "new/", "--workers", "1"], "No such file or directory: 'missing.smi'"),
        (["empty.smi", "--output", "new/", "--workers", "1"], "there is no molecule in empty.smi"),
        (
            ["in.smi", "--output", "full", "--workers", "1"],
            "full holds other files, note.txt for one",
        ),
        (["in.smi", "--workers", "2"], "--workers needs an --output that is a folder"),
        (["in.smi", "--method", "ddim", "--num_conformers", "2"], "--num_conformers is no option of --method ddim"),
        (["in.smi", "--method", "mean_shift", "--num_samples", "2"], "so all --num_samples would be the same"),
        (["in.smi", "--rank_by", "energy"], "--rank_by is no option of --method conformers"),
        (["in.smi", "--energy_window", "-1"], "a number that is not negative, not -1"),
        (["in.smi", "--method", "ddim", "--steps", "2000"], "--steps: num_inference_steps of ddim must lie in 2..1000"),
        (["in.smi", "--output", "a.sdf", "--failures", "./a.sdf"], "must be different files"),
        (["in.smi", "--failures", "in.smi"], "must be different files"),
        (["in.smi", "--device", "cuda:99"], "--device cuda:99: "),
        (["in.smi", "--output", "/dev/full", "--output_format", "sdf"], "No space left on device"),
        (["in.csv"], "has no column 'smiles'; its columns are a, b"),
        (["empty.smi"], "there is no molecule in empty.smi"),
        (["in.smi", "--model", "empty_folder"], "empty_folder"),
        (["in.smi", "--dispersion", "--level_of_theory", "GFN2-xTB"], "--dispersion is of B3LYP-D3(BJ)/6-31G*"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_sentence(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, text in (("in.smi", "C"), ("in.unknown", "C"), ("in.csv", "a,b\n1,2\n"), ("empty.smi", "\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "empty_folder").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").touch()
    with pytest.raises(SystemExit) as ended:
        main(["predict", *options])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_without_a_released_checkpoint_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(default_model, "_PLACES", (tmp_path,))
    (tmp_path / "in.smi").write_text("C")
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(tmp_path / "in.smi")])
    assert ended.value.code == 2
    assert "carries no released checkpoint drug_like; name one by --model" in capsys.readouterr().err


def test_standard_streams_in_a_process_of_its_own():
    result = subprocess.run(
        [sys.executable, "-m", "pcbridge.app.command_line", "predict", "-", "--output_format", "xyz", *QUICK],
        input="C methane\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 and "1 of 1 molecules done" in result.stderr
    atoms = ase.io.read(io.StringIO(result.stdout), format="extxyz")
    assert atoms.symbols.get_chemical_formula() == "CH4" and atoms.info["name"] == "methane"


def command_in_a_fork(arguments: list[str], **streams: IO[str]) -> multiprocessing.Process:
    """It has the imports already, which take seconds."""

    def command() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
        for name, stream in streams.items():
            setattr(sys, name, stream)
        code = main(arguments)
        sys.stdout.flush()  # as Python does at its end
        sys.exit(code)

    process = multiprocessing.get_context("fork").Process(target=command)
    process.start()
    return process


def test_a_reader_that_has_enough_is_no_error(capfd):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stdout, io.TextIOWrapper(io.BytesIO(b"C\nO\nN\n")) as stdin:
        process = command_in_a_fork(["predict", "-", "--batch_size", "1", *QUICK], stdin=stdin, stdout=stdout)
        process.join()
    errors = capfd.readouterr().err
    assert process.exitcode == 1 and "Traceback" not in errors and "BrokenPipe" not in errors


def test_an_interruption_keeps_what_was_written(tmp_path, capfd):
    source, output = tmp_path / "in.smi", tmp_path / "out.parquet"
    source.write_text("CCCCCCO\n" * 500)
    process = command_in_a_fork(["predict", str(source), "-o", str(output), "--batch_size", "1", *QUICK])
    while not output.exists() or output.stat().st_size < 20_000:
        time.sleep(0.1)
        assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join()
    errors = capfd.readouterr().err
    assert process.exitcode == 130 and "interrupted; what was written is kept" in errors
    assert "Traceback" not in errors
    assert 0 < pq.read_table(output).num_rows < 500


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("pcbridge ")


@pytest.mark.parametrize("port", ["99999", "-1", "http"])
def test_a_port_that_is_none(port, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", f"--port={port}"])
    assert ended.value.code == 2 and "must be a whole number below 65536" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("", "pcbridge predict molecules.smi --output structures.sdf"),
        ("predict", "exit codes: 0 all molecules done"),
        ("evaluate", "--checkpoints"),
        ("train", "--stage2.losses.kT"),
        ("data", "label"),
        ("data fragments", "--max_heavy_atoms"),
        ("data label", "--geometries"),
        ("data prepare", "--on_error"),
        ("data push", "--repo"),
        ("data pack", "--unpack"),
        ("data select", "--exclude"),
        ("data build", "--structures"),
        ("serve", "--port"),
    ],
)
def test_every_command_has_help(command, expected, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert not ended.value.code
    text = capsys.readouterr().out
    assert expected in text and f"usage: pcbridge {command}".strip() in text


def test_options_are_taken_with_hyphens_too():
    given = ["--num-samples=3-4", "--stage1.num-steps", "-5", "a-b", "-o", "--checkpoints.multi-task", "x-y"]
    spelled = ["--num_samples=3-4", "--stage1.num_steps", "-5", "a-b", "-o", "--checkpoints.multi-task", "x-y"]
    assert underscored(given) == spelled
    assert parse(["--batch-size=7", "--stage1.num-steps", "9"]) == parse(["--batch_size=7", "--stage1.num_steps", "9"])


def test_a_list_of_sources_replaces_the_one_before_it(tmp_path):
    before = parse([]).stage1.sources
    assert any(source.only_labelled for source in before)
    names = [f"source_{place}" for place in range(len(before))]
    given = json.dumps([{"name": name} for name in names])
    assert parse([f"--stage1.sources={given}"]).stage1.sources == [SourceConfig(name) for name in names]
    (tmp_path / "second.yaml").write_text(f"stage1: {{sources: {given}}}\n")
    two = ["--config", str(CONFIGS / "mini.yaml"), "--config", str(tmp_path / "second.yaml")]
    assert parse(two).stage1.sources == [SourceConfig(name) for name in names]
    with pytest.raises(SystemExit):
        parse(['--stage1.sources=[{"name": "pm6", "wieght": 2}]'])


def test_conformers_are_those_of_rdkit_refined_lowest_energy_first(tmp_path):
    (tmp_path / "in.smi").write_text("CCCCO butanol\n")
    command = ["predict", str(tmp_path / "in.smi"), "--method", "conformers", "--num-conformers", "4"]
    everything = ["--rmsd-threshold", "0", "--energy-window", "100"]
    assert main([*command, *everything, "-o", str(tmp_path / "all.sdf")]) == 0
    conformers = read_sdf(tmp_path / "all.sdf")
    energies = [mol.GetDoubleProp("energy_eV") for mol in conformers]
    assert len(conformers) == 4 and energies == sorted(energies)
    assert {mol.GetProp("origin") for mol in conformers} == {"RDKit ETKDGv3 + MMFF94, refined by PCBridge"}
    starts = rdkit_structures(mol_from_smiles("CCCCO"), 4, timeout=10)
    moved = [min(np.abs(lengths_of(mol) - lengths_of(start)).max() for start in starts) for mol in conformers]
    assert all(1e-4 < largest < 0.05 for largest in moved)  # refined, and by little
    above = np.array([mol.GetDoubleProp("relative_energy_kcal_per_mol") for mol in conformers])
    np.testing.assert_allclose(above * KCAL_PER_MOL_TO_EV, np.subtract(energies, energies[0]), atol=1e-6)
    weights = np.array([mol.GetDoubleProp("boltzmann_weight") for mol in conformers])
    assert weights.sum() == pytest.approx(1)

    # A window below the second keeps the first.
    options = ["--energy-window", str(above[1] / 2), "-o", str(tmp_path / "lowest.parquet")]
    assert main([*command, *options]) == 0
    (row,) = pq.read_table(tmp_path / "lowest.parquet").to_pylist()
    assert row["energy"] == pytest.approx(energies[0], abs=1e-4) and row["boltzmann_weight"] == 1


def test_a_molecule_that_mmff94_has_no_parameters_for_says_so(tmp_path):
    (tmp_path / "in.smi").write_text("CI(Cl)Cl\n")
    command = ["predict", str(tmp_path / "in.smi"), "--num_conformers", "1", "-o", str(tmp_path / "out.sdf")]
    assert main(command) == 0
    [mol] = read_sdf(tmp_path / "out.sdf")
    assert "MMFF94 has no parameters" in mol.GetProp("origin")


def test_a_given_structure_that_does_not_refine_is_replaced_by_its_mmff94_minimum_which_is_said(tmp_path):
    [mol] = rdkit_structures(mol_from_smiles("CCO"), 1, timeout=10)
    conformer = mol.GetConformer()
    [carbon, oxygen] = conformer.GetPositions()[[1, 2]]
    conformer.SetAtomPosition(2, 2 * oxygen - carbon)  # a bond of twice its length
    Chem.MolToMolFile(mol, str(tmp_path / "in.sdf"))
    command = ["predict", str(tmp_path / "in.sdf"), "--method", "mean_shift", "-o", str(tmp_path / "out.sdf")]
    assert main(command) == 0
    [found] = read_sdf(tmp_path / "out.sdf")
    assert found.GetProp("origin") == "MMFF94 minimum of the given structure, refined by PCBridge"


def test_given_structures_that_end_far_from_a_minimum_are_replaced(tmp_path):
    [mol] = rdkit_structures(mol_from_smiles("CC(=O)Oc1ccccc1C(=O)O"), 1, timeout=10)
    positions, rng = mol.GetConformer().GetPositions(), np.random.default_rng(0)
    with Chem.SDWriter(str(tmp_path / "in.sdf")) as writer:
        for _ in range(16):  # two of them end at forces of 6 and 8 eV/angstrom
            mol.GetConformer().SetPositions(positions + 0.3 * rng.standard_normal(positions.shape))
            writer.write(mol)
    command = ["predict", str(tmp_path / "in.sdf"), "--method", "mean_shift", "-o", str(tmp_path / "out.parquet")]
    assert main(command) == 0
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(rows) == 16
    assert {row["origin"] for row in rows} > {"MMFF94 minimum of the given structure, refined by PCBridge"}
    assert max(np.linalg.norm(row["forces"], axis=-1).max() for row in rows) < 3


def test_one_structure_of_coinciding_atoms_does_not_end_the_run(tmp_path, capsys):
    [good] = rdkit_structures(mol_from_smiles("CCO"), 1, timeout=10)
    bad = Chem.Mol(good)
    bad.GetConformer().SetAtomPosition(1, bad.GetConformer().GetAtomPosition(0))
    with Chem.SDWriter(str(tmp_path / "in.sdf")) as writer:
        for mol in (bad, good):
            writer.write(mol)
    command = ["predict", str(tmp_path / "in.sdf"), "--method", "mean_shift", "-o", str(tmp_path / "out.sdf")]
    assert main(command) == 1
    assert "record 1: " in (said := capsys.readouterr().err) and "do atoms coincide?" in said
    assert len(read_sdf(tmp_path / "out.sdf")) == 1


def test_a_structure_far_from_a_minimum_of_the_models_energy_is_none(tmp_path, capsys):
    (tmp_path / "in.smi").write_text("C1=CC=CC#C1\nCC#N\n")  # benzyne is unlike all that was learned
    assert main(["predict", str(tmp_path / "in.smi"), "-o", str(tmp_path / "out.sdf"), "--num_conformers", "2"]) == 1
    assert "so that no minimum is near" in capsys.readouterr().err
    assert [Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in read_sdf(tmp_path / "out.sdf")] == ["CC#N"]


def test_an_ensemble_is_of_one_stereoisomer_and_says_which(tmp_path):
    (tmp_path / "in.smi").write_text("CC(O)C(N)C(F)C\n")
    options = ["--num_conformers", "8", "--energy_window", "100", "-o", str(tmp_path / "out.sdf")]
    assert main(["predict", str(tmp_path / "in.smi"), *options]) == 0
    conformers = read_sdf(tmp_path / "out.sdf")
    assert len(conformers) > 1 and len({Chem.MolToSmiles(mol) for mol in conformers}) == 1
    assert "no stereo mark at C1, C3, C5, so all are of one isomer" in conformers[0].GetProp("origin")


def test_relaxed_at_the_level_that_energies_are_asked_at(tmp_path):
    (tmp_path / "in.smi").write_text("CC(=O)NC\n")
    command = ["predict", str(tmp_path / "in.smi"), "--num_conformers", "1", "--relax"]
    largest = {}
    for level in ("B3LYP/6-31G*", "GFN2-xTB"):
        assert main([*command, "--level_of_theory", level, "-o", str(tmp_path / "out.sdf")]) == 0
        [mol] = read_sdf(tmp_path / "out.sdf")
        largest[level] = mol.GetDoubleProp("largest_force_eV_per_angstrom")
    assert max(largest.values()) < 0.03, largest


def test_what_takes_rdkit_too_long_is_not_drawn_from_noise(tmp_path, capsys):
    ring = "CC(C)CC1C(=O)NC(CCC)C(=O)NC(C)C(=O)NC(CC)C(=O)NCCCC(=O)N1"
    (tmp_path / "in.smi").write_text(ring + "\n")
    assert main(["predict", str(tmp_path / "in.smi"), "--timeout", "1e-6", "-o", str(tmp_path / "out.sdf")]) == 1
    assert "(RDKit: no conformer within 1e-06 s, see --timeout)" in capsys.readouterr().err


def lengths_of(mol: Chem.Mol) -> np.ndarray:
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    return np.array([rdMolTransforms.GetBondLength(mol.GetConformer(), *bond) for bond in bonds])


def test_compressed_input_is_read_and_a_damaged_one_is_named(tmp_path, capsys):
    packed = gzip.compress(b"O water\n" * 500)
    (tmp_path / "in.smi.GZ").write_bytes(gzip.compress(b"O water\n"))
    assert main(["predict", str(tmp_path / "in.smi.GZ"), "-o", str(tmp_path / "out.sdf"), *QUICK]) == 0
    assert [mol.GetProp("_Name") for mol in read_sdf(tmp_path / "out.sdf")] == ["water"]
    (tmp_path / "cut.smi.gz").write_bytes(packed[:-9])
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path / "cut.smi.gz"), "-o", str(tmp_path / "out.sdf"), *QUICK])
    assert "cut.smi.gz: damaged gzip file" in capsys.readouterr().err
