"""PubChemQC, PCQM4Mv2, SPICE and a user's own data, on real samples or files written by the documented layouts."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem

from dataset_scripts.bad_rows import BadRowError, ExcludedRowError
from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import mol_from_row
from dataset_scripts.own_data import own_source
from dataset_scripts.pcqm4mv2 import read_split_dict
from dataset_scripts.raw_sources import SOURCES, stream_source
from dataset_scripts.schema import B3LYP_6_31GD, PM6, WB97M_D3BJ_DEF2_TZVPPD
from modeling_pcbridge.constants import BOHR_TO_ANGSTROM, HARTREE_TO_EV
from modeling_pcbridge.rdkit_molecules import conformer_from_positions, mol_from_smiles

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Five real molecules, one with charged atoms."""
    rows = [row for row in load_bundled("pm6", "train") if row["energy"] is not None]
    charged = next(row for row in rows if "+" in row["smiles"])
    return [*rows[10:14], charged]


def bonds_of(row: dict) -> list[tuple[int, int]]:
    return [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol_from_row(row).GetBonds()]


def cjson(row: dict, cid: int, method: str, **properties) -> dict:
    """A file of RIKEN's archives; bonds 1-based, energies in eV."""
    calculation = {
        "atoms": {
            "elements": {"number": list(row["atomic_numbers"])},
            "coords": {"3d": np.ravel(row["positions"]).tolist()},
        },
        "bonds": {"connections": {"index": (np.ravel(bonds_of(row)) + 1).tolist()}},
        "properties": {"charge": 0, "multiplicity": 1, "energy": {"total": row["energy"]}} | properties,
    }
    return {"pubchem": {"cid": cid, "Isomeric SMILES": row["smiles"], method: calculation}}


def hub_record(row: dict, cid: int, **changes) -> dict:
    record = {
        "cid": cid,
        "state": "S0",
        "pubchem-isomeric-smiles": row["smiles"],
        "atomic-numbers": list(row["atomic_numbers"]),
        "coordinates": np.ravel(row["positions"]).tolist(),
        "connection-indices": (np.ravel(bonds_of(row)) + 1).tolist(),
        "charge": 0,
        "multiplicity": 1,
        "total-energy": row["energy"],
        "orbital-energies": [[-1.0, {"nested": []}]],
    }
    return record | changes


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def assert_same_molecule(row: dict, expected: dict) -> None:
    for name in ("smiles", "mapped_smiles", "atomic_numbers", "total_charge"):
        assert row[name] == expected[name]
    np.testing.assert_allclose(row["positions"], expected["positions"], atol=1e-4)


@pytest.mark.parametrize(("source", "method"), [("pubchemqc_b3lyp", "B3LYP@PM6"), ("pubchemqc_pm6", "PM6")])
def test_pubchemqc_archive(tmp_path, rows, source, method):
    members = {}
    for cid, row in enumerate(rows, 1):
        name = f"Compound_000000001_000025000/{cid:09d}/{cid:09d}.{method}"
        members[f"{name}.S0.json"] = json.dumps(cjson(row, cid, method)).encode()
        members[f"{name}.S0.xyz"] = b"not read"
        members[f"{name}.T0.json"] = b"another state, not even parsed"
    path = write_tar(tmp_path / "Compound_000000001_000025000.tar.xz", members)
    streamed = list(stream_source(SOURCES[source], [path]))
    assert [row["molecule_id"] for row in streamed] == [f"pubchemqc_{cid:09d}" for cid in range(1, 6)]
    for row, expected in zip(streamed, rows, strict=True):
        assert_same_molecule(row, expected)
        assert row["equilibrium_level_of_theory"] == PM6 and row["forces"] is None
        # The unit of PM6 energies is not documented: absent.
        assert row["energy"] == (None if method == "PM6" else expected["energy"])
        assert row["energy_level_of_theory"] == (None if method == "PM6" else B3LYP_6_31GD)


def test_pubchemqc_hub_shard_with_nan_and_a_damaged_record(tmp_path, rows):
    records = [hub_record(row, cid) for cid, row in enumerate(rows, 1)]
    records[1]["dipole-moment"] = float("nan")
    text = json.dumps(records, indent=4).replace('"cid": 3,', '"cid": 3 oops,')
    path = tmp_path / "000000001-000253696.json"
    path.write_text(text)
    streamed = list(stream_source(SOURCES["pubchemqc_b3lyp_hub"], [path], on_error="skip"))
    assert [int(row["molecule_id"][-9:]) for row in streamed] == [1, 2, 4, 5]
    assert_same_molecule(streamed[-1], rows[-1])
    with pytest.raises(BadRowError, match="record 2: unparsable"):
        list(stream_source(SOURCES["pubchemqc_b3lyp_hub"], [path]))
    path.write_text(text[: -len(text) // 3])
    with pytest.raises(BadRowError, match="cut short"):
        list(SOURCES["pubchemqc_b3lyp_hub"].read(path))
    for cut in (json.dumps(records), ""):
        path.write_text(cut)
        with pytest.raises(BadRowError, match="cut short"):
            list(SOURCES["pubchemqc_b3lyp_hub"].read(path))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": "cation"}, "not the state S0"),
        ({"total-energy": None}, "missing or non-negative energy"),
        ({"total-energy": 0.5}, "missing or non-negative energy"),
        ({"total-energy": float("nan")}, "missing or non-negative energy"),
        ({"multiplicity": 2}, "the molecule is a radical"),
        ({"pubchem-isomeric-smiles": "[CH2]"}, "graph of the structure differs"),
        ({"pubchem-isomeric-smiles": "CN(C)(C)(C)C"}, "unparsable SMILES"),
        ({"pubchem-isomeric-smiles": "O.O"}, "the molecule is disconnected"),
        ({"charge": 1}, "charge of the calculation"),
    ],
)
def test_pubchemqc_filters(rows, changes, reason):
    record = json.dumps(hub_record(rows[0], 1, **changes)).encode()
    with pytest.raises(ExcludedRowError, match=reason):
        SOURCES["pubchemqc_b3lyp_hub"].parse(("record 0", record))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
hub_keys = st.sampled_from(["cid", "state", "coordinates", "atomic-numbers", "connection-indices", "total-energy"])


@given(hub_keys, json_values)
def test_any_wrong_value_in_a_hub_record_is_a_named_row_error(key, value):
    row = load_bundled("pm6", "test")[3]
    record = hub_record(row, 1) | {"total-energy": -100.0, key: value}
    try:
        parsed = SOURCES["pubchemqc_b3lyp_hub"].parse(("record 0", json.dumps(record).encode()))
    except (BadRowError, ExcludedRowError):
        return
    assert np.isfinite(parsed["positions"]).all() and len(parsed["positions"]) == len(row["atomic_numbers"])


@given(st.lists(st.dictionaries(st.text(max_size=5), json_values, min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_json_array_is_cut_into_its_records(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("hub") / "shard.json"
    path.write_text(json.dumps(records, indent=4))
    cut = [json.loads(content) for _, content in SOURCES["pubchemqc_b3lyp_hub"].read(path)]
    assert repr(cut) == repr(records)


def write_pcqm4mv2(folder: Path, rows: list[dict], smiles: list[str], remove_hydrogens: bool = False) -> Path:
    blocks = [Chem.MolToMolBlock(mol_from_row(row)) for row in rows]
    if remove_hydrogens:
        blocks = [Chem.MolToMolBlock(Chem.RemoveHs(mol_from_row(row))) for row in rows]
    with gzip.open(folder / "data.csv.gz", "wt") as file:
        file.write("idx,smiles,homolumogap\n" + "".join(f"{i},{s},5.5\n" for i, s in enumerate([*smiles, "C"])))
    sdf = "".join(block + "$$$$\n" for block in blocks).encode()
    return write_tar(folder / "pcqm4m-v2-train.sdf.tar.gz", {"pcqm4m-v2-train.sdf": sdf})


def test_pcqm4mv2(tmp_path, rows):
    smiles = [row["smiles"] for row in rows]
    path = write_pcqm4mv2(tmp_path, rows, [*smiles[:3], "CCCCC", smiles[4]])
    streamed = list(stream_source(SOURCES["pcqm4mv2"], [path]))
    assert [row["molecule_id"] for row in streamed] == [f"pcqm4mv2_{i:07d}" for i in (0, 1, 2, 4)]
    for row, expected in zip(streamed, [*rows[:3], rows[4]], strict=True):
        assert_same_molecule(row, expected)
        assert row["equilibrium_level_of_theory"] == B3LYP_6_31GD
        assert row["energy"] is None and row["energy_level_of_theory"] is None
    write_pcqm4mv2(tmp_path, rows, smiles, remove_hydrogens=True)
    with pytest.raises(BadRowError, match="no explicit hydrogens"):
        list(stream_source(SOURCES["pcqm4mv2"], [path]))


def test_split_dict_is_read_and_a_pickle_with_code_is_not_run(tmp_path):
    splits = {"train": np.arange(3), "valid": np.array([3]), "test-dev": np.array([4]), "test-challenge": np.array([5])}
    for new_format in (True, False):
        path = tmp_path / "split_dict.pt"
        torch.save(splits, path, _use_new_zipfile_serialization=new_format)
        read = read_split_dict(path)
        assert {name: indices.tolist() for name, indices in read.items()} == {
            name: indices.tolist() for name, indices in splits.items()
        }
    split = SOURCES["pcqm4mv2"].published_split([path])
    assert [split(f"pcqm4mv2_{i:07d}") for i in (0, 3, 4, 5)] == ["train", "validation", "test", "test"]

    class Malicious:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "code_was_run",))

    torch.save({"train": Malicious()}, path)
    with pytest.raises(pickle.UnpicklingError):
        read_split_dict(path)
    assert not (tmp_path / "code_was_run").exists()


def test_spice_release():
    path = DATA / "spice_2_molecules.hdf5"
    streamed = list(stream_source(SOURCES["spice"], [path]))
    assert [row["molecule_id"] for row in streamed] == [f"spice_103147721_{i}" for i in range(3)]
    with h5py.File(path) as file:
        group = file["103147721"]
        for number, row in enumerate(streamed):
            assert row["smiles"] == "C[C@H]([NH3+])C1CCCCC1" and row["total_charge"] == 1
            assert row["atomic_numbers"] == group["atomic_numbers"][()].tolist()
            positions = group["conformations"][number] * BOHR_TO_ANGSTROM
            np.testing.assert_allclose(row["positions"], positions, atol=1e-5)
            assert row["energy"] == pytest.approx(group["dft_total_energy"][number] * HARTREE_TO_EV)
            forces = -group["dft_total_gradient"][number] * HARTREE_TO_EV / BOHR_TO_ANGSTROM
            np.testing.assert_allclose(row["forces"], forces, atol=1e-5)
            assert row["energy_level_of_theory"] == WB97M_D3BJ_DEF2_TZVPPD
            assert row["equilibrium_level_of_theory"] is None
    assert len(list(stream_source(SOURCES["spice_pubchem"], [path]))) == 3
    with pytest.raises(ExcludedRowError, match="another subset"):
        SOURCES["spice_pubchem"].parse((path, "C#C.[Na+]", 0))


def test_spice_input_geometries_in_nanometres_are_refused():
    with pytest.raises(ValueError, match="holds input geometries"):
        list(stream_source(SOURCES["spice"], [DATA / "spice_input_geometries.hdf5"], on_error="skip"))


def test_damaged_spice_groups_are_named_and_the_others_kept(tmp_path):
    content = (DATA / "spice_2_molecules.hdf5").read_bytes()
    path = tmp_path / "damaged.hdf5"
    path.write_bytes(content)
    with h5py.File(path, "a") as file:
        file["103147721/conformations"][1, 0, 0] = np.nan
        del file["C#C.[Na+]/dft_total_gradient"]
    assert len(list(stream_source(SOURCES["spice"], [path], on_error="skip"))) == 2
    with pytest.raises(BadRowError, match="spice_103147721_1: positions not finite"):
        list(stream_source(SOURCES["spice"], [path]))
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(content[:3000])
    with pytest.raises(BadRowError, match="damaged HDF5 file"):
        list(stream_source(SOURCES["spice"], [cut]))


def test_own_data_in_every_format_gives_the_same_molecules(tmp_path, rows):
    import ase.io
    from ase.calculators.singlepoint import SinglePointCalculator

    tables = [
        {"smiles": row["smiles"], **{k: row[k] for k in ("atomic_numbers", "positions", "energy", "forces")}}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(tables), tmp_path / "mine.parquet")
    with (tmp_path / "mine.csv").open("w") as file:
        file.write("smiles;positions;energy".replace(";", ",") + "\n")
        for row in rows:
            file.write(f'"{row["mapped_smiles"]}","{json.dumps(row["positions"])}",{row["energy"]!r}\n')
    frames = []
    for row in rows:
        frame = ase.Atoms(row["atomic_numbers"], row["positions"], info={"smiles": row["smiles"]})
        frame.calc = SinglePointCalculator(frame, energy=row["energy"], forces=np.array(row["forces"]))
        frames.append(frame)
    ase.io.write(tmp_path / "mine.extxyz", frames)
    with Chem.SDWriter(str(tmp_path / "mine.sdf")) as writer:
        for row in rows:
            writer.write(mol_from_row(row))
    for ending in ("parquet", "csv", "extxyz", "sdf"):
        source = own_source(equilibrium_level_of_theory=PM6, energy_level_of_theory=B3LYP_6_31GD)
        streamed = list(stream_source(source, [tmp_path / f"mine.{ending}"]))
        assert [row["molecule_id"] for row in streamed] == [f"mine_{i:06d}" for i in range(5)]
        for row, expected in zip(streamed, rows, strict=True):
            assert_same_molecule(row, expected)
            assert row["equilibrium_level_of_theory"] == PM6
            assert row["energy"] == (None if ending == "sdf" else pytest.approx(expected["energy"]))
            if ending in ("parquet", "extxyz"):
                np.testing.assert_allclose(row["forces"], expected["forces"], atol=1e-6)


def test_mistakes_in_own_data_are_named(tmp_path):
    path = tmp_path / "mine.csv"
    water = "[[0,0,0],[0.96,0,0],[-0.24,0.93,0]]"
    for line, reason in [
        ('C(,"[[0,0,0]]",', "mine_000000: .*cannot parse"),
        ("O,,", "mine_000000: no positions"),
        ('O,"[[0,0,0]]",', "wrong number of positions"),
        (f'O,"{water}",NaN', "energy not finite"),
        (f'O,"{water}",-2000', "labels without a level of theory"),
        (f'[CH2],"{water}",', "radical"),
        (f',"{water}",', "no smiles"),
        (f'O,"{water}",true', "the energy is no number"),
        (f'O,"{water}",low', "the energy is no number"),
        ('O,"[[0.96,0,0],[0,0,0],[-0.24,0.93,0]]",', "H2 and H1 are only 0.96 angstrom apart, but not bonded"),
        ('O,"[[0,0,0],[0.96,0,0],[0.96,0,0.1]]",', "H1 and H2 are only 0.10 angstrom apart"),
        ('O,"[[0,0,0],[0.96,0,0],[9,0,0]]",', "O0 and H2 are bonded, but 9.00 angstrom apart"),
    ]:
        path.write_text(f"smiles,positions,energy\n{line}\n")
        with pytest.raises(BadRowError, match=reason):
            list(stream_source(own_source(), [path]))
    mol = mol_from_smiles("CCO")
    mol.AddConformer(conformer_from_positions(np.arange(3 * mol.GetNumAtoms(), dtype=float).reshape(-1, 3)))
    Chem.MolToMolFile(mol, str(tmp_path / "mine.sdf"))
    with pytest.raises(BadRowError, match=r"C0 and .* are bonded, but .* angstrom apart"):
        list(stream_source(own_source(), [tmp_path / "mine.sdf"]))
    path.write_text(f'smiles,positions,DFT_energy\nO,"{water}",-2000\n')
    with pytest.raises(BadRowError, match="labels under names that are not read: DFT_energy"):
        list(stream_source(own_source(energy_level_of_theory=PM6), [path]))
    path.write_text(f'smiles,positions,energy,energy_level_of_theory\nO,"{water}",-2000,{B3LYP_6_31GD}\n')
    with pytest.raises(BadRowError, match=r"its energy_level_of_theory is B3LYP/6-31G\*, but PM6 was stated"):
        list(stream_source(own_source(energy_level_of_theory=PM6), [path]))
    [row] = stream_source(own_source(), [path])
    assert row["energy"] == -2000 and row["energy_level_of_theory"] == B3LYP_6_31GD
    path.write_text(f'smiles,positions,equilibrium_level_of_theory\nO,"{water}",\n')
    with pytest.raises(BadRowError, match="its equilibrium_level_of_theory is empty, but PM6 was stated"):
        list(stream_source(own_source(equilibrium_level_of_theory=PM6), [path]))
    [row] = stream_source(own_source(), [path])
    assert row["equilibrium_level_of_theory"] is None
    with pytest.raises(ValueError, match="not one of"):
        list(stream_source(own_source(), [tmp_path / "mine.mol2"]))
    frame = tmp_path / "mine.xyz"
    frame.write_text("3\nProperties=species:S:1:pos:R:3 REF_energy=-1.0\nO 0 0 0\nH .96 0 0\nH -.24 .93 0\n")
    with pytest.raises(BadRowError, match="labels under names that are not read: REF_energy"):
        list(stream_source(own_source(energy_level_of_theory=PM6), [frame]))
    frame.write_text(frame.read_text().replace("REF_energy", "free_energy"))
    with pytest.raises(BadRowError, match="labels under names that are not read: free_energy"):
        list(stream_source(own_source(energy_level_of_theory=PM6), [frame]))
    atoms = "".join(f"{atom} 0 0 1\n" for atom in ("O 0 0 0", "H .96 0 0", "H -.24 .93 0"))
    frame.write_text(f"3\nProperties=species:S:1:pos:R:3:dft_forces:R:3 energy=-1.0\n{atoms}")
    with pytest.raises(BadRowError, match="labels under names that are not read: dft_forces"):
        list(stream_source(own_source(energy_level_of_theory=PM6), [frame]))
    frame.write_text(frame.read_text().replace("dft_forces", "velocities").replace("energy", "forcefield=UFF energy"))
    (row,) = stream_source(own_source(energy_level_of_theory=PM6), [frame])
    assert row["energy"] == -1 and row["forces"] is None


def test_extended_xyz_frame_by_frame(tmp_path):
    path = tmp_path / "mine.xyz"
    good = "2\nsmiles=F\nF 0 0 0\nH 0 0 .92\n"
    path.write_text(f"{good}2\n\nXx 0 0 0\nH 0 0 1\n\n{good}2\ncharge=.6\nF 0 0 0\nH 0 0 1\n{good}")
    source = own_source()
    rows = list(stream_source(source, [path], on_error="skip"))
    assert [(row["molecule_id"], row["smiles"]) for row in rows] == [(f"mine_00000{i}", "F") for i in (0, 2, 4)]
    with pytest.raises(BadRowError, match="mine_000001: unparsable"):
        list(stream_source(source, [path]))
    for text, reason in (
        (good[:-10], "structure 1: cut short"),
        (f"{good}F 0 0 0\n", "structure 2: no number of atoms"),
        ("2\ncharge=0.6\nF 0 0 0\nH 0 0 1\n", "mine_000000: the charge is no whole number"),
    ):
        path.write_text(text)
        with pytest.raises(BadRowError, match=reason):
            list(stream_source(source, [path]))


def test_csv_as_spreadsheets_save_it(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('smiles,positions\nO,"[[0,0,0],[0.96,0,0],[-0.24,0.93,0]]"\n', encoding="utf-8-sig")
    assert [row["smiles"] for row in stream_source(own_source(), [path])] == ["O"]
