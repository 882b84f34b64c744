"""`pcbridge predict` into a folder: kills at any moment, failures, other settings, several workers, a fatal record."""

import csv
import json
import multiprocessing
import operator
import os
import random
import shutil
import sys
import time
from functools import partial
from itertools import count, islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rdkit import Chem

from dataset_scripts.parallel import results_of
from modeling_pcbridge import PCBridgeModel
from pcbridge.app import cores, predict_library
from pcbridge.app.command_line import main
from pcbridge.app.molecule_files import RawRecord

NAMES = [f"m{k}" for k in range(1, 19)]
SMILES = ["O", "CO", "N", "CC", "nonsense", "C", "CN", "CC[Si]", "C=O"]
BAD = {number: name for number, name in enumerate(NAMES, start=1) if SMILES[(number - 1) % 9] in ("nonsense", "CC[Si]")}
OPTIONS = ["--method", "conformers", "--num_conformers", "2", "--shard_size", "4", "--steps", "2"]


@pytest.fixture
def library(tmp_path) -> Path:
    """18 molecules, of which four cannot be done."""
    lines = [f"{smiles} {name}\n" for smiles, name in zip(2 * SMILES, NAMES, strict=True)]
    path = tmp_path / "library.smi"
    path.write_text("# the first record is in line 2\n" + "".join(lines))
    return path


def command(library: Path, output: Path, *options: str, workers: int = 1) -> list[str]:
    return ["predict", str(library), "--output", f"{output}/", "--workers", str(workers), *OPTIONS, *options]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def failures(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("failures-*.csv")) for row in csv.DictReader(path.open())]


def names_of_sdf(folder: Path) -> list[str]:
    mols = [mol for path in sorted(folder.glob("part-*.sdf")) for mol in Chem.SDMolSupplier(str(path), removeHs=False)]
    return list(dict.fromkeys(mol.GetProp("_Name") for mol in mols))


def test_without_the_packages_for_several_one_process_works(library, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setattr(cores, "num_cores", lambda: 4)
    assert main(["predict", str(library), "--output", f"{tmp_path / 'out'}/", *OPTIONS]) == 1
    assert "one process works; for all cores: pip install 'pcbridge[cluster]'" in capsys.readouterr().err
    assert len(failures(tmp_path / "out")) == len(BAD)


def test_every_record_is_in_its_shard_or_among_its_failures(library, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(command(library, output)) == 1
    assert "14 of 18 molecules done, 4 failed" in capsys.readouterr().err
    assert sorted(path.name for path in output.glob("part-*")) == [f"part-{k:05d}.sdf" for k in range(5)]
    assert names_of_sdf(output) == [name for name in NAMES if name not in BAD.values()]
    rows = failures(output)
    assert {int(row["record"]): row["name"] for row in rows} == BAD
    assert rows[0]["place"] == "line 6" and rows[0]["input"] == "nonsense"
    assert rows[0]["reason"] == "RDKit cannot parse the SMILES"
    assert not (output / "failures-00000.csv").exists()

    # A shard that is missing is made again, and nothing else is touched.
    before = files(output)
    (output / "part-00001.sdf").unlink()
    made = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert main(command(library, output)) == 1
    assert files(output) == before and all(path.stat().st_mtime_ns == when for path, when in made.items())


@pytest.mark.parametrize("num_kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_lose_and_repeat_nothing(library, tmp_path, num_kills):
    """Before the first shard, between shards and within one; the same bytes as of an undisturbed run come out."""
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "out"
    options = ["--output_format", "parquet"]
    start = time.monotonic()
    main(command(library, undisturbed, *options))
    seconds = time.monotonic() - start
    rng, fork = random.Random(num_kills), multiprocessing.get_context("fork")

    def shards() -> list[Path]:
        return sorted(output.glob("part-*.parquet"))

    for _ in range(num_kills):
        if len(shards()) == 5:  # begin again, somewhere
            for path in shards()[rng.randrange(5) :]:
                path.unlink()
        wanted = len(shards()) + rng.randrange(2)
        run = fork.Process(target=main, args=(command(library, output, *options),))
        run.start()
        while len(shards()) < wanted and run.is_alive():
            time.sleep(0.002)
        run.join(rng.uniform(0, seconds / 3))
        run.kill()
        run.join()
        assert len(shards()) >= wanted
        for path in shards():  # whole, whenever the kill came
            pq.read_table(path)
    assert main(command(library, output, *options)) == 1
    assert files(output) == files(undisturbed)
    names = [row["molecule_id"] for path in sorted(output.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert set(names) | set(BAD.values()) == set(NAMES) and not set(names) & set(BAD.values())


def test_another_run_is_refused(library, tmp_path, capsys):
    output, first = tmp_path / "out", tmp_path / "first.smi"
    first.write_text("".join(library.read_text().splitlines(keepends=True)[:3]))
    assert main(command(first, output)) == 0
    before = files(output)
    moved = tmp_path / "moved"
    shutil.copytree(Path(__file__).parents[1] / "checkpoints" / "consistency", moved)
    model = PCBridgeModel.from_pretrained(moved)
    with torch.no_grad():
        next(model.parameters()).mul_(1.001)
    model.save_pretrained(moved)
    other = tmp_path / "other.smi"
    other.write_text(first.read_text().replace("m2", "m3"))
    for path, options, changed in (
        (first, ["--energy_window", "3"], "energy_window 6.0, not 3.0"),
        (first, ["--output_format", "xyz"], "output_format sdf, not xyz"),
        (first, ["--model", str(moved)], "model_sha256"),
        (other, [], "input_sha256"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(command(path, output, *options))
        assert ended.value.code == 2 and f"was begun with {changed}" in capsys.readouterr().err
    assert files(output) == before
    # How fast it goes is no such setting.
    assert main(command(first, output, "--batch_size", "1")) == 0
    assert json.loads(before["run.json"])["num_records"] == 2


def test_tasks_are_read_as_they_are_needed():
    """A library is never whole in memory: an endless one would never begin."""
    endless = ((number,) for number in count())
    assert list(islice(results_of(operator.neg, endless), 3)) == [((0,), 0), ((1,), -1), ((2,), -2)]


@pytest.mark.slow
def test_two_workers_and_a_scheduler_give_the_files_of_one(library, tmp_path):
    distributed = pytest.importorskip("distributed")
    for workers in (1, 2):
        assert main(command(library, tmp_path / str(workers), workers=workers)) == 1
    own_cluster = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**own_cluster) as cluster:
        assert main(command(library, tmp_path / "s", "--scheduler", cluster.scheduler_address)) == 1
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "s")


@pytest.mark.slow
def test_a_record_that_ends_its_worker_is_a_failure_and_the_others_are_done(library, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    of_file = predict_library.raw_records

    def with_a_fatal_record(*arguments):
        for record in of_file(*arguments):
            yield (
                RawRecord(record.place, record.name, record.text, partial(os._exit, 1))
                if record.name == "m2"
                else record
            )

    monkeypatch.setattr(predict_library, "raw_records", with_a_fatal_record)
    library.write_text("O m1\nCO m2\nN m3\n")
    output = tmp_path / "out"
    assert main(command(library, output, workers=2)) == 1
    assert names_of_sdf(output) == ["m1", "m3"]
    (row,) = failures(output)
    assert row["record"] == "2" and "the worker process died" in row["reason"]
