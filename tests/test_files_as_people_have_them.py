"""Files in the dialects that people have: each record is read, or named with a reason, and none stops the others."""

import gzip
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.own_data import own_source
from dataset_scripts.raw_sources import stream_source
from dataset_scripts.tables import read_smiles
from dataset_scripts.xyz import charge_of_frame
from modeling_pcbridge import PCBridgePipeline, PCBridgeProcessor, extras
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import atomic_numbers_of, mol_from_positions, mol_from_smiles
from modeling_pcbridge.rdkit_structures import rdkit_structures
from pcbridge.app.command_line import main
from pcbridge.app.default_model import find_model
from pcbridge.app.molecule_files import Failure, Molecule, read_records

DATA = Path(__file__).parent / "data"
WATER = [("O", "0 0 0"), ("H", ".96 0 0"), ("H", "-.24 .93 0")]
B3LYP = "B3LYP/6-31G*"
# Beside a ring with S, and as an ion whose charge the groups share.
NITRO = ("O=[N+]([O-])c1cccs1", "O=[N+]([O-])c1nccs1", "O=[N+]([O-])[N-][N+](=O)[O-]")


def frame(comment: str = "", elements=("O", "H", "H"), more: str = "", below: str = "") -> str:
    lines = [f"{element} {xyz}{more}\n" for element, (_, xyz) in zip(elements, WATER, strict=True)]
    return f"3\n{comment}\n{''.join(lines)}{below}"


def read(folder: Path, name: str, content: str | bytes) -> list:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_records(str(path), path.suffix[1:]))


def is_water(record) -> bool:
    return isinstance(record, Molecule) and Chem.MolToSmiles(Chem.RemoveHs(record.mol)) == "O"


@pytest.mark.parametrize(
    "text",
    [
        frame(elements=("8", "1", "1")),
        frame(elements=("O1", "H2", "H_a")),
        frame(elements=("o", "D", "T")),
        frame("gdb 3\t157.7\t1.85", more="\t-.4", below="1.0\t2.0\nO\tO\nInChI=1S/H2O\tInChI=1S/H2O\n"),
        frame("frame 1", below=">\n"),
        frame("Properties=id:I:1:Z:I:1:pos:R:3", elements=("1 8", "2 1", "3 1")),
        frame().replace("0 0 0", "0.0D+00 0 1*^-6").replace("\n", "\r\n"),
        "\ufeff" + frame(),
    ],
)
def test_dialects_of_xyz(text, tmp_path):
    """Twice in a file, so that each is known to end where it does; without ASE."""
    found = read(tmp_path, "in.xyz", text.removeprefix("\ufeff") * 2 if "\ufeff" not in text else text)
    assert found and all(map(is_water, found)), found


def test_a_single_atom_and_what_is_no_element(tmp_path):
    single, unknown = read(tmp_path, "in.xyz", "1\ncharge=-1\nF 0 0 0\n" + frame(elements=("Xx", "H", "H")))
    assert Chem.GetFormalCharge(single.mol) == -1
    assert isinstance(unknown, Failure) and "Xx is no element" in unknown.error


@pytest.mark.parametrize(
    ("comment", "charge"),
    [
        ("", 0),
        ("charge=-1", -1),
        ("name=a total_charge=-1", -1),
        ("charge: 2 mult: 1", 2),
        ("charge 0 mult 1", 0),
        ("charge -1", -1),
        ('charge="1" x=2', 1),
        ("no charge here", 0),
        ("charge", 0),
        ("recharge=3 charged 2", 0),
    ],
)
def test_the_one_rule_of_charges(comment, charge):
    assert charge_of_frame("a", frame(comment)) == charge


@pytest.mark.parametrize("comment", ["charge=.5", "charge=yes", "charge=1 total_charge=2"])
def test_charges_that_are_none(comment):
    with pytest.raises(BadRowError, match=r"no whole number|two total charges"):
        charge_of_frame("a", frame(comment))


def test_an_ion_without_its_charge_gets_a_hint(tmp_path):
    (ion,) = read(tmp_path, "in.xyz", "4\n\nO 0 0 0\nH .97 0 0\nH -.49 .84 0\nH -.49 -.84 0\n")
    assert "if it is an ion, state its total charge" in ion.error


def test_bytes_that_are_not_utf8_are_replaced_record_by_record(tmp_path, capsys):
    first, second, third = read(tmp_path, "in.smi", b"CCO ethanol\nCC(=O)O caf\xe9\nC\xe9 broken\n")
    assert (first.note, second.name, second.note) == ("", "caf\ufffd", third.note)
    assert "not UTF-8" in second.note and isinstance(second, Molecule) and isinstance(third, Failure)
    assert is_water(read(tmp_path, "in.xyz", frame("25 \u00b0C").encode("latin-1"))[0])
    assert main(["predict", str(tmp_path / "in.smi"), "-o", str(tmp_path / "out.sdf"), "--steps", "4"]) == 1
    assert "line 2: bytes that are not UTF-8" in capsys.readouterr().err
    (tmp_path / "mine.xyz").write_bytes(frame("25 \u00b0C").encode("latin-1"))
    with pytest.warns(UserWarning, match="record 1: bytes that are not UTF-8"):
        assert len(list(stream_source(own_source(), [tmp_path / "mine.xyz"]))) == 1


@pytest.mark.parametrize(
    ("file_format", "lines"),
    [("csv", b"\xef\xbb\xbfsmiles,name\r\nO,caf\xe9\r\n"), ("smi", b"\xef\xbb\xbfO caf\xe9\n")],
)
def test_standard_input_with_marks_and_bytes(file_format, lines, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    (water,) = read_records("-", file_format)
    assert is_water(water) and water.name == "caf\ufffd"


def test_sdf_without_dimension_code_with_marks_and_blank_lines(tmp_path):
    (benzene,) = read(tmp_path, "in.sdf", (DATA / "planar_without_dimension_code.sdf").read_text())
    assert benzene.mol.GetNumConformers() == 1
    block = Chem.MolToMolBlock(benzene.mol)
    marked, blank, drawn = read(
        tmp_path,
        "in.sdf",
        "\ufeffname" + block + "$$$$\n" + block.replace("M  END", "\nM  END") + "$$$$\n"
        + Chem.MolToMolBlock(Chem.AddHs(Chem.MolFromSmiles("CO"))),
    )  # fmt: skip
    assert marked.name == "name" and isinstance(blank, Molecule) and drawn.mol.GetNumConformers() == 0


def test_extensions_of_smiles_are_no_names(tmp_path):
    lines = ["CCO |$_AV:a;b;c$| ethanol", "CC |(0,0,;1,0,)|", "C[C@H](O)F |o1:1| racemic alcohol", "C methane"]
    assert [name for _, _, name in read_smiles(lines)] == ["ethanol", "", "racemic alcohol", "methane"]
    found = read(tmp_path, "in.smi", "\n".join(lines))
    assert all(isinstance(record, Molecule) and record.mol.GetNumConformers() == 0 for record in found)
    (radical,) = read(tmp_path, "in.smi", "CC |^1:0| ethyl")
    with pytest.raises(ValueError, match="radical"):
        PCBridgeProcessor()(radical.mol)


def test_smiles_that_rdkit_refuses_come_with_its_reason():
    with pytest.raises(ValueError, match="Can't kekulize mol"):
        mol_from_smiles("c1cccn1")
    with pytest.raises(ValueError, match="valence"):
        mol_from_smiles("C(C)(C)(C)(C)C")


def test_nitro_groups_of_any_number_are_perceived():
    lines = (DATA / "mannitol_hexanitrate.xyz").read_text().splitlines()[2:]
    numbers = [Chem.GetPeriodicTable().GetAtomicNumber(line.split()[0]) for line in lines]
    mol = mol_from_positions(numbers, np.array([line.split()[1:] for line in lines], dtype=float), timeout=2)
    assert len(mol.GetSubstructMatches(Chem.MolFromSmarts("O[N+](=O)[O-]"))) == 6
    for smiles in ("Cc1c([N+](=O)[O-])cc([N+](=O)[O-])cc1[N+](=O)[O-]", "O=[N+]([O-])c1cccc([N+](=O)[O-])c1", *NITRO):
        [drawn] = rdkit_structures(mol_from_smiles(smiles), 1, timeout=10)
        numbers, positions = atomic_numbers_of(drawn), drawn.GetConformer().GetPositions()
        found = mol_from_positions(numbers, positions, Chem.GetFormalCharge(drawn))
        graph, expected = graph_from_mol(found, resonance_invariant=True), graph_from_mol(drawn, True)
        np.testing.assert_array_equal(graph.pair_types, expected.pair_types)
        np.testing.assert_array_equal(graph.formal_charges, expected.formal_charges)


def test_bond_perception_ends_in_time():
    [drawn] = rdkit_structures(mol_from_smiles("C(N=[N+]=[N-])" * 10 + "C"), 1, timeout=10)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"were not found within 0.5 s; give a SMILES"):
        mol_from_positions(atomic_numbers_of(drawn), drawn.GetConformer().GetPositions(), timeout=0.5)
    assert time.monotonic() - start < 3


def test_an_xyz_file_that_names_its_molecule_is_of_that_molecule(tmp_path):
    (tmp_path / "in.smi").write_text("C[NH2+]CC(=O)[O-] zwitterion\n")
    assert main(["predict", str(tmp_path / "in.smi"), "--num_conformers", "1", "-o", str(tmp_path / "out.xyz")]) == 0
    [read] = read_records(str(tmp_path / "out.xyz"), "xyz")
    assert Chem.MolToSmiles(Chem.RemoveHs(read.mol)) == "C[NH2+]CC(=O)[O-]" and read.mol.GetNumConformers() == 1
    (tmp_path / "charged.xyz").write_text((tmp_path / "out.xyz").read_text().replace("charge=0", "charge=1"))
    [read] = read_records(str(tmp_path / "charged.xyz"), "xyz")
    assert isinstance(read, Failure) and "a charge of +1, but a SMILES of +0" in read.error
    # A SMILES of another molecule is not believed.
    text = (tmp_path / "out.xyz").read_text()
    assert "C[NH2+]CC(=O)[O-]" in text
    (tmp_path / "other.xyz").write_text(text.replace("C[NH2+]CC(=O)[O-]", "CCC"))
    [read] = read_records(str(tmp_path / "other.xyz"), "xyz")
    assert read.mol.GetNumHeavyAtoms() == 6


def test_periodic_structures_are_refused(tmp_path):
    for pbc, is_refused in (("", True), (' pbc="T T F"', True), (' pbc="F F F"', False), (' pbc="0 0 0"', False)):
        comment = f'Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3{pbc}'
        (tmp_path / "in.xyz").write_text(f"3\n{comment}\nO 0 0 0\nH .96 0 0\nH -.24 .93 0\n")
        [read] = read_records(str(tmp_path / "in.xyz"), "xyz")
        assert isinstance(read, Failure) == is_refused
        assert not is_refused or "it is periodic (Lattice)" in read.error


def test_utf16_packed_streams_and_columns_in_capitals(tmp_path, monkeypatch):
    (tmp_path / "in.smi").write_bytes("CCO ethanol\n".encode("utf-16"))
    assert [record.name for record in read_records(str(tmp_path / "in.smi"), "smi")] == ["ethanol"]
    (tmp_path / "in.csv").write_text("Name,SMILES\nethanol,CCO\n")
    assert [(record.name, record.text) for record in read_records(str(tmp_path / "in.csv"), "csv")] == [
        ("ethanol", "CCO")
    ]
    packed = io.BufferedReader(io.BytesIO(gzip.compress(b"CCO ethanol\n")))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(packed))
    assert [record.name for record in read_records("-", "smi")] == ["ethanol"]


def test_extras_are_asked_for_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(extras, "find_spec", lambda package: None)
    for command, what in (
        (["predict", "missing.smi", "-o", "out.xyz"], "xyz output needs ase, which is not installed: pip install"),
        (["serve"], "pcbridge[serve]"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 2 and what in capsys.readouterr().err


def test_released_models_are_found_from_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("qm9", "checkpoints/qm9", "checkpoints/qm9/"):
        assert Path(find_model(name), "model.safetensors").exists() and Path(find_model(name)).name == "qm9"
    assert find_model("me/mine") == "me/mine"
    (tmp_path / "qm9").mkdir()
    assert find_model("qm9") == "qm9"
    (tmp_path / "qm9").rmdir()
    for typo in ("drug-like", "checkpoints/nowhere"):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match=f"no folder {typo}"):
            find_model(typo)
    (tmp_path / "in.smi").write_text("CCO\n")
    with pytest.raises(SystemExit) as ended:
        main(["predict", "in.smi", "--model", "qm9", "--relax"])
    assert ended.value.code == 2 and "--relax needs forces" in capsys.readouterr().err
    forced = ["--relax", "--allow_unlearned_forces", "-o", "out.sdf", "--steps", "4"]
    main(["predict", "in.smi", "--model", "qm9", *forced])
    assert "--relax needs forces" not in capsys.readouterr().err


def row(energy, **more) -> dict:
    positions = [[float(x) for x in xyz.split()] for _, xyz in WATER]
    return {"smiles": "O", "positions": positions, "energy": energy, **more}


@pytest.mark.parametrize(("energy", "unit"), [(-76.4, "hartree"), (-47900.0, "kcal/mol"), (-200500.0, "kJ/mol")])
def test_energies_in_other_units_are_refused_in_every_format(energy, unit, tmp_path):
    mol = mol_from_smiles("O")
    mol.AddConformer(Chem.Conformer(3))
    mol.GetConformer().SetPositions(np.array(row(0)["positions"]))
    mol.GetConformer().Set3D(True)
    texts = {
        "a.jsonl": json.dumps(row(energy)) + "\n",
        "a.xyz": frame(f"energy={energy}"),
        "a.sdf": Chem.MolToMolBlock(mol) + f">  <energy>  (1) \n{energy}\n\n$$$$\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(BadRowError, match=f"looks like one in {unit}"):
            list(stream_source(own_source(energy_level_of_theory=B3LYP), [tmp_path / name]))
        (tmp_path / name).write_text(text.replace(str(energy), "-2078.5"))
        (taken,) = stream_source(own_source(energy_level_of_theory=B3LYP), [tmp_path / name])
        assert taken["energy"] == -2078.5
    (tmp_path / "a.sdf").write_text(texts["a.sdf"].replace("<energy>", "<SCF Energy>"))
    with pytest.raises(BadRowError, match="labels under names that are not read: SCF Energy"):
        list(stream_source(own_source(), [tmp_path / "a.sdf"]))
    (tmp_path / "a.xyz").write_text(frame(more=" 0.1 0.2 0.3"))
    with pytest.raises(BadRowError, match="columns without a name"):
        list(stream_source(own_source(), [tmp_path / "a.xyz"]))


def test_a_column_of_a_table_is_a_list_of_molecules(processor):
    from conftest import small_model

    pandas = pytest.importorskip("pandas")
    pipe = PCBridgePipeline(small_model(), processor=processor, device="cpu")
    assert len(pipe(pandas.Series(["CO", "O"]), num_inference_steps=4, max_attempts=1)) == 2


def test_a_molecule_alone_has_no_number(processor):
    with pytest.raises(ValueError, match=r"^the molecule \('CS'\): unsupported element S"):
        processor("CS")
