"""Prepared shards hold every good row once, survive kills and bad input, and nothing is written elsewhere."""

import bz2
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_scripts.archives import iterate_members
from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.bundled import files_of_source
from dataset_scripts.own_data import own_source
from dataset_scripts.prepare import main, prepare
from dataset_scripts.raw_sources import SOURCES, RawSource, stream_source
from dataset_scripts.schema import B3LYP_6_31G2DFP, FEATURES
from dataset_scripts.sharded import ShardedExamples
from dataset_scripts.splits import SPLITS, constitution_of, split_of
from dataset_scripts.tables import write_rows
from modeling_pcbridge.rdkit_molecules import mol_from_smiles

DATA = Path(__file__).parent / "data"
QM9 = SOURCES["qm9"]


@pytest.fixture
def archive(tmp_path) -> Path:
    """Ten real QM9 files and the list of uncharacterised molecules beside them."""
    (tmp_path / "raw").mkdir()
    shutil.copy(DATA / "uncharacterized.txt", tmp_path / "raw")
    return Path(shutil.copy(DATA / "qm9_first10.tar.bz2", tmp_path / "raw"))


def all_rows(output: Path) -> list[dict]:
    return [row for split in SPLITS for path in (output / split).glob("*.parquet") for row in read(path)]


def read(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def rewrite(archive: Path, change) -> None:
    """Write the archive again with `change(members)`, members being (name, content) pairs."""
    with tarfile.open(archive) as tar:
        members = change([(entry.name, tar.extractfile(entry).read()) for entry in tar])
    with tarfile.open(archive, "w:bz2") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def test_shards_hold_the_streamed_rows_by_split(archive, tmp_path):
    summary = prepare(QM9, [archive], tmp_path / "out", records_per_shard=4)
    streamed = {row["molecule_id"]: row for row in stream_source(QM9, [archive])}
    rows = all_rows(tmp_path / "out")
    assert len(rows) == 10 == sum(summary["rows"].values()) and summary["skipped"] == {}
    for split in SPLITS:
        for row in (row for path in (tmp_path / "out" / split).glob("*") for row in read(path)):
            assert split_of(constitution_of(mol_from_smiles(row["smiles"]))) == split
            assert row["mapped_smiles"] == streamed[row["molecule_id"]]["mapped_smiles"]
    assert pq.read_schema(next((tmp_path / "out" / "train").glob("*"))).names == list(FEATURES)
    examples = ShardedExamples(files_of_source(str(tmp_path / "out"), "train"), [B3LYP_6_31G2DFP])
    assert [example.energy is not None for example in examples] == [True] * summary["rows"]["train"]


def test_a_second_run_parses_only_what_is_missing(archive, tmp_path):
    parsed = []

    def parse(record):
        parsed.append(record[0])
        return QM9.parse(record)

    source = RawSource("qm9", QM9.read, parse)
    summary = prepare(source, [archive], tmp_path / "out", records_per_shard=3)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")}
    removed = tmp_path / "out" / "train" / "qm9_first10.tar.bz2-00001.parquet"
    removed.unlink()
    parsed.clear()
    assert prepare(source, [archive], tmp_path / "out", records_per_shard=3) == summary
    assert len(parsed) == 3
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(ValueError, match="was made with"):
        prepare(source, [archive], tmp_path / "out", records_per_shard=4)


def test_a_killed_run_goes_on_without_losing_or_repeating_a_row(archive, tmp_path):
    """The program is stopped by SIGKILL in the middle of its third block."""

    def parse(record):
        if "000008" in record[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return QM9.parse(record)

    arguments = (RawSource("qm9", QM9.read, parse), [archive], tmp_path / "out", "constitution", "raise", 3)
    killed = multiprocessing.get_context("fork").Process(target=prepare, args=arguments)
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert len(all_rows(tmp_path / "out")) == 6
    prepare(QM9, [archive], tmp_path / "out", records_per_shard=3)
    assert sorted(row["molecule_id"] for row in all_rows(tmp_path / "out")) == [f"qm9_{i:06d}" for i in range(1, 11)]


@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_a_run_stopped_between_the_shards_of_a_block_loses_nothing(archive, tmp_path, monkeypatch, call):
    write, calls = write_rows, []

    def stopped(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        write(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("dataset_scripts.prepare.write_rows", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(QM9, [archive], tmp_path / "out", records_per_shard=6)
    prepare(QM9, [archive], tmp_path / "out", records_per_shard=6)
    assert sorted(row["molecule_id"] for row in all_rows(tmp_path / "out")) == [f"qm9_{i:06d}" for i in range(1, 11)]


def test_a_damaged_member_in_the_middle(archive, tmp_path):
    rewrite(archive, lambda members: [(n, c[:100] if "000005" in n else c) for n, c in members])
    with pytest.raises(BadRowError, match=r"000005\.xyz: wrong number of atoms"):
        prepare(QM9, [archive], tmp_path / "out", records_per_shard=2)
    assert len(all_rows(tmp_path / "out")) == 4
    summary = prepare(QM9, [archive], tmp_path / "skipped", on_error="skip", records_per_shard=2)
    assert sum(summary["rows"].values()) == 9 and summary["skipped"] == {"wrong number of atoms": 1}
    assert json.loads((tmp_path / "skipped" / "summary.json").read_text()) == summary


@pytest.mark.parametrize("keep", [0.7, 0.99])
def test_a_truncated_archive_keeps_the_rows_before_the_cut(archive, tmp_path, keep):
    # Incompressible content, so that the cut falls into a late bzip2 block.
    padding = [(f"padding{i}", os.urandom(400_000)) for i in range(4)]
    rewrite(archive, lambda members: [*members[:5], *padding, *members[5:]])
    content = archive.read_bytes()
    archive.write_bytes(content[: int(keep * len(content))])
    summary = prepare(QM9, [archive], tmp_path / "out", on_error="skip", records_per_shard=5)
    assert sum(summary["rows"].values()) == 5 and summary["skipped"] == {"damaged archive": 1}
    assert prepare(QM9, [archive], tmp_path / "out", on_error="skip", records_per_shard=5) == summary
    with pytest.raises(BadRowError, match="damaged archive"):
        list(stream_source(QM9, [archive]))


def test_a_cut_behind_the_last_member_is_noticed(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-4])
    with pytest.raises(BadRowError, match="damaged archive"):
        list(iterate_members(archive, ".xyz"))
    # The end of a tar is padded; an archive cut in its padding has all its members and is still reported.
    with bz2.open(DATA / archive.name) as whole:
        archive.write_bytes(bz2.compress(whole.read() + bytes(100_000))[:-4])
    summary = prepare(QM9, [archive], tmp_path / "out", on_error="skip")
    assert sum(summary["rows"].values()) == 10 and summary["skipped"] == {"damaged archive": 1}


@pytest.mark.parametrize("name", ["/tmp/evil.xyz", "../evil.xyz", "a/../../evil.xyz"])
def test_unsafe_paths_end_the_archive_and_nothing_is_written(archive, tmp_path, name):
    rewrite(archive, lambda members: [*members[:3], (name, b"evil"), *members[3:]])
    with pytest.raises(BadRowError, match="unsafe path in the archive"):
        prepare(QM9, [archive], tmp_path / "out")
    summary = prepare(QM9, [archive], tmp_path / "skipped", on_error="skip")
    assert sum(summary["rows"].values()) == 3 and summary["skipped"] == {"unsafe path in the archive": 1}
    assert not list(tmp_path.rglob("evil*")) and not Path("/tmp/evil.xyz").exists()


def test_a_decompression_bomb_is_refused_without_unpacking_it(archive):
    rewrite(archive, lambda members: [*members[:2], ("bomb.xyz", bytes(65 * 2**20)), *members[2:]])
    assert archive.stat().st_size < 50_000
    seen = []
    with pytest.raises(BadRowError, match="oversized member"):
        seen.extend(name for name, _ in iterate_members(archive, ".xyz"))
    with pytest.raises(ValueError, match="archive"):
        next(iterate_members(archive.with_suffix(".zip"), ".xyz"))


def test_of_duplicated_ids_the_first_is_kept(archive, tmp_path):
    rewrite(archive, lambda members: [*members, members[2], *members[:2]])
    for _ in range(2):  # and the same when the earlier blocks are passed over
        summary = prepare(QM9, [archive], tmp_path / "out", records_per_shard=6)
        assert (
            summary["skipped"] == {"duplicated molecule_id, structure and level": 3}
            and sum(summary["rows"].values()) == 10
        )
        (tmp_path / "out" / "train" / "qm9_first10.tar.bz2-00002.parquet").unlink()
    counts = Counter(row["molecule_id"] for row in all_rows(tmp_path / "out"))
    assert set(counts.values()) == {1}


def test_one_structure_with_labels_at_two_levels_is_two_rows(tmp_path):
    path = tmp_path / "mine.jsonl"
    record = {"molecule_id": "w", "smiles": "O", "positions": [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]}
    levels = [{"energy": e, "energy_level_of_theory": name} for e, name in ((-2079.0, "PBE"), (-2080.0, "B3LYP"))]
    path.write_text("".join(json.dumps(record | level) + "\n" for level in (*levels, levels[0])))
    for _ in range(2):
        summary = prepare(own_source(), [path], tmp_path / "out", split="train", records_per_shard=2)
        assert summary["rows"]["train"] == 2 and summary["skipped"].popitem()[1] == 1
        (tmp_path / "out" / "train" / "mine.jsonl-00001.parquet").unlink()


def test_own_data_in_several_conformations_and_another_run_with_other_levels(tmp_path):
    water = [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]
    record = {"molecule_id": 0, "smiles": "O", "positions": water, "energy": -2079.0}
    bent = record | {"positions": [*water[:2], [-0.1, 0.95, 0.0]]}
    path = tmp_path / "MINE.PARQUET"
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}  # the same size below
    pq.write_table(pa.Table.from_pylist([record, bent, record]), path, **plain)
    source = own_source(energy_level_of_theory="PBE")
    summary = prepare(source, [path], tmp_path / "out", split="train", records_per_shard=1)
    assert summary["rows"]["train"] == 2 and summary["skipped"] == {"duplicated molecule_id, structure and level": 1}
    assert prepare(source, [path], tmp_path / "out", split="train", records_per_shard=1) == summary
    for row in all_rows(tmp_path / "out"):
        assert row["molecule_id"] == "0" and row["energy_level_of_theory"] == "PBE"
    with pytest.raises(ValueError, match=r"was made with source own .*labels: PBE\), not own .*labels: PBE0\)"):
        prepare(own_source(energy_level_of_theory="PBE0"), [path], tmp_path / "out", split="train", records_per_shard=1)
    size = path.stat().st_size
    pq.write_table(pa.Table.from_pylist([record | {"energy": -2078.0}, bent, record]), path, **plain)
    assert path.stat().st_size == size
    with pytest.raises(ValueError, match="was made with input_sha256"):
        prepare(source, [path], tmp_path / "out", split="train", records_per_shard=1)


def test_command_line(archive, tmp_path, monkeypatch, capsys):
    options = ["--input", str(archive), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["prepare", "qm9", *options])
    main()
    assert sum(json.loads(capsys.readouterr().out)["rows"].values()) == 10
    monkeypatch.setattr(sys, "argv", ["prepare", "qm9", "--split", "train", *options[:-1], str(tmp_path / "all")])
    main()
    assert json.loads(capsys.readouterr().out)["rows"] == {"train": 10, "validation": 0, "test": 0}
    monkeypatch.setattr(sys, "argv", ["prepare", "qm9", *options[:2], "nowhere.tar", *options[2:]])
    with pytest.raises(SystemExit):
        main()
    assert "there is no nowhere.tar" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["prepare", "own", *options])
    with pytest.raises(SystemExit):
        main()
    assert "was made with source qm9, not own" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["prepare", "own", *options[:-1], str(tmp_path / "own")])
    with pytest.raises(SystemExit):
        main()
    assert "not one of .sdf" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["prepare", "qm9", "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        main()
    assert "qm9 needs --input" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["jsonl", "csv", "sdf", "xyz", "extxyz", "parquet"])
def test_an_empty_file_is_an_error_that_names_it_and_can_be_filled_later(ending, monkeypatch, capsys, tmp_path):
    empty, output = tmp_path / f"empty.{ending}", tmp_path / "out"
    empty.touch()
    monkeypatch.setattr(sys, "argv", ["prepare", "own", "--input", str(empty), "--output", str(output)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert str(empty) in capsys.readouterr().err
    assert not list(output.glob("*/*.parquet"))


def test_a_file_of_which_no_record_gives_a_row_is_an_error_and_beside_an_empty_one_the_rest_is_done(
    monkeypatch, capsys, tmp_path
):
    head, bad, good = (tmp_path / name for name in ("head.csv", "bad.csv", "good.csv"))
    head.write_text("smiles,positions\n")
    bad.write_text('smiles,positions\nnonsense,"[[0, 0, 0]]"\n')
    good.write_text('smiles,positions\n[He],"[[0, 0, 0]]"\n')
    for inputs, reason in (([bad], "no record of the input gave a row"), ([head, good], f"no record in {head}")):
        output = tmp_path / inputs[-1].stem
        command = ["prepare", "own", "--input", *map(str, inputs), "--output", str(output), "--on_error", "skip"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1 and reason in capsys.readouterr().err
    assert sum(json.loads((output / "summary.json").read_text())["rows"].values()) == 1
