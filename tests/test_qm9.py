"""QM9 in all its forms gives the same rows, and all of it loads offline from qm9pack."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem

from dataset_scripts.bad_rows import BadRowError, ExcludedRowError
from dataset_scripts.bundled import load_bundled
from dataset_scripts.prepare import prepare
from dataset_scripts.qm9 import parse_xyz, published_split, read_uncharacterized, row_of_qm9pack
from dataset_scripts.raw_sources import SOURCES, stream_source
from dataset_scripts.splits import SPLITS
from modeling_pcbridge.constants import HARTREE_TO_EV

DATA = Path(__file__).parent / "data"
# Water as qm9pack has it, "0." included.
WATER = {
    "XYZ_file": "dsgdb9nsd_000003.xyz",
    "Index": "3",
    "SMILES": "O",
    "Elements": "['O','H','H']",
    "XYZ_Ang": "[[-0.0343604951,0.9775395708,0.0076015923],[0.0647664923,0.0205721989,0.0015346341],"
    "[0.8717903737,1.3007924048,0.0006931336]]",
    "ZPVE_au": "0.021375",
    "InternalEnergy_0K_au": "-76.404702",
}


@pytest.fixture(scope="module")
def bundled() -> dict[str, dict]:
    rows = (row for split in SPLITS for row in load_bundled("dft_equilibrium", split))
    return {row["molecule_id"]: row for row in rows}


@pytest.fixture
def archive(tmp_path) -> Path:
    """Ten real files and the list of uncharacterised molecules beside them."""
    shutil.copy(DATA / "uncharacterized.txt", tmp_path)
    return Path(shutil.copy(DATA / "qm9_first10.tar.bz2", tmp_path))


def assert_same_row(row: dict, expected: dict) -> None:
    assert row.keys() == expected.keys()
    np.testing.assert_allclose(row["positions"], expected["positions"], atol=1e-6)
    assert row["energy"] == pytest.approx(expected["energy"], abs=1e-6)
    for name in row.keys() - {"positions", "energy"}:
        assert row[name] == expected[name], name


def test_qm9pack_record_is_the_bundled_row(bundled):
    assert_same_row(row_of_qm9pack(WATER), bundled["qm9_000003"])


def test_real_xyz_files_are_the_bundled_rows(archive, bundled):
    rows = list(stream_source(SOURCES["qm9"], [archive]))
    assert [row["molecule_id"] for row in rows] == [f"qm9_{index:06d}" for index in range(1, 11)]
    for row in rows:
        assert_same_row(row, bundled[row["molecule_id"]])


def test_moleculenet_files_are_the_bundled_rows(tmp_path, bundled):
    """By the layout: gdb9.sdf with explicit hydrogens, energies in hartree in gdb9.sdf.csv."""
    shutil.copy(DATA / "uncharacterized.txt", tmp_path)
    names = ["qm9_000001", "qm9_000003", "qm9_000010"]
    with Chem.SDWriter(str(tmp_path / "gdb9.sdf")) as writer, (tmp_path / "gdb9.sdf.csv").open("w") as csv:
        csv.write("mol_id,zpve,u0\n")
        for name in [*names, "qm9_000058"]:
            row = bundled.get(name, bundled["qm9_000003"])
            mol = Chem.MolFromSmiles(row["mapped_smiles"], sanitize=False)
            mol = Chem.RenumberAtoms(mol, np.argsort([atom.GetAtomMapNum() for atom in mol.GetAtoms()]).tolist())
            conformer = Chem.Conformer(mol.GetNumAtoms())
            conformer.SetPositions(np.array(row["positions"], dtype=np.float64))
            mol.AddConformer(conformer)
            writer.write(mol)
            csv.write(f"gdb_{int(name[-6:])},0.02,{row['energy'] / HARTREE_TO_EV + 0.02:.9f}\n")
    rows = list(stream_source(SOURCES["qm9_sdf"], [tmp_path / "gdb9.sdf"]))
    assert [row["molecule_id"] for row in rows] == names  # 58 is uncharacterised
    for row in rows:
        np.testing.assert_allclose(row["positions"], bundled[row["molecule_id"]]["positions"], atol=1e-4)
        assert row["energy"] == pytest.approx(bundled[row["molecule_id"]]["energy"], abs=1e-6)
        assert row["smiles"] == bundled[row["molecule_id"]]["smiles"]


def test_hub_mirrors_in_both_units(tmp_path, bundled):
    water = bundled["qm9_000003"]
    common = {"pos": water["positions"]}
    in_ev = common | {"id": 3, "atomic_numbers": [8, 1, 1], "U_0": water["energy"] + 0.5, "ZPVE": 0.5}
    in_hartree = common | {
        "inchi": "InChI=1S/H2O/h1H2",
        "atomic_symbols": ["O", "H", "H"],
        "smiles": "O",
        "u0": water["energy"] / HARTREE_TO_EV + 0.02,
        "zpve": 0.02,
    }
    for record in (in_ev, in_hartree):
        pq.write_table(pa.Table.from_pylist([record]), tmp_path / "mirror.parquet")
        (row,) = stream_source(SOURCES["qm9_hub"], [tmp_path / "mirror.parquet"])
        assert_same_row(row | {"molecule_id": "qm9_000003"}, water)
    with pytest.raises(BadRowError, match="energy in another unit"):
        SOURCES["qm9_hub"].parse(in_ev | {"U_0": in_hartree["u0"]})


def test_uncharacterised_molecules_are_left_out(archive):
    text = (archive.parent / "uncharacterized.txt").read_text()
    assert {58, 61, 80} <= read_uncharacterized(archive.parent / "uncharacterized.txt")
    (archive.parent / "uncharacterized.txt").write_text(text.replace("      58 ", "       4 "))
    names = [row["molecule_id"] for row in stream_source(SOURCES["qm9"], [archive])]
    assert len(names) == 9 and "qm9_000004" not in names
    (archive.parent / "uncharacterized.txt").write_text("404 not found")
    with pytest.raises(ValueError, match="not QM9's list"):
        list(stream_source(SOURCES["qm9"], [archive]))


def xyz_text(symbols, coordinates, number) -> bytes:
    """A file by QM9's layout, with numbers as Mathematica writes them."""

    def text(value: float) -> str:
        return f"{value:.10g}".replace("e-0", "*^-").replace("e-", "*^-")

    lines = [str(len(symbols)), f"gdb {number}\t" + "\t".join(["1."] * 9 + ["0.1", "-40.", "0.", "0.", "0."]) + "\t"]
    lines += [f"{s}\t" + "\t".join(map(text, xyz)) + "\t1.*^-6" for s, xyz in zip(symbols, coordinates, strict=True)]
    return "\n".join([*lines, "1.\t2.", "C\tC\t", "InChI=1\tInChI=1"]).encode() + b"\n"


coordinate = st.floats(-20, 20).filter(lambda x: x == 0 or abs(x) > 1e-12)
atom = st.tuples(st.sampled_from("HCNOF"), st.tuples(coordinate, coordinate, coordinate))


@given(st.lists(atom, min_size=1, max_size=29), st.integers(1, 133_885))
def test_any_molecule_passes_through_the_xyz_layout(atoms, number):
    symbols, coordinates = zip(*atoms, strict=True)
    parsed = parse_xyz("a.xyz", xyz_text(symbols, coordinates, number))
    assert parsed["index"] == number and parsed["symbols"] == list(symbols)
    np.testing.assert_allclose(parsed["positions"], coordinates, rtol=1e-9)
    assert parsed["energy"] == pytest.approx(-40.1 * HARTREE_TO_EV)


@given(st.binary(max_size=300) | st.integers(0, 400).map(lambda cut: xyz_text("CHHHH", [(0, 0, 1e-6)] * 5, 1)[:cut]))
def test_any_damaged_xyz_file_is_a_named_bad_row(content):
    try:
        SOURCES["qm9"].parse(("dsgdb9nsd_000001.xyz", content, False))
    except (BadRowError, ExcludedRowError) as error:
        assert "000001" in str(error)


def test_wrong_atom_counts_and_non_finite_numbers_are_named(archive):
    records = {name: content for name, content, _ in SOURCES["qm9"].read(archive)}
    water = records["dsgdb9nsd_000003.xyz"]
    for damaged, reason in [
        (b"4" + water[1:], "wrong number of atoms"),
        (water.replace(b"0.9775395708", b"NaN"), "positions not finite"),
        (water.replace(b"-76.404702", b"Indeterminate"), "unparsable"),
        (water.replace(b"O\t", b"Xx\t", 1), "unparsable"),
    ]:
        assert damaged != water
        with pytest.raises(BadRowError, match=f"0003.*: {reason}"):
            SOURCES["qm9"].parse(("dsgdb9nsd_000003.xyz", damaged, False))


def test_published_split_has_the_published_sizes_and_is_fixed():
    indices = set(range(1, 130_832))
    split = published_split(indices)
    splits = [split(f"qm9_{index:06d}") for index in sorted(indices)]
    assert [splits.count(name) for name in SPLITS] == [110_000, 10_000, 10_831]
    assert [index for index, name in enumerate(splits, 1) if name == "test"][:5] == [56, 61, 67, 78, 113]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("qm9pack") is None, reason="needs the qm9 extra")
def test_all_of_qm9_from_qm9pack(tmp_path):
    source = SOURCES["qm9pack"]
    summary = prepare(source, source.default_inputs(), tmp_path)
    assert sum(summary["rows"].values()) == 130_828
    assert summary["skipped"] == {"graph of the structure differs from the SMILES": 3}
