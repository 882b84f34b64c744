"""Examples from Parquet files: those of the rows, whatever process reads them, and training on them."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate import Accelerator
from conftest import small_model
from test_training import small_config

from dataset_scripts import sharded
from dataset_scripts.bundled import files_of_source, load_bundled
from dataset_scripts.collator import example_from_row
from dataset_scripts.schema import FEATURES
from dataset_scripts.sharded import ShardedExamples
from pcbridge.training.config import SourceConfig, StageConfig, ValidationConfig
from pcbridge.training.data import TrainingData, check_losses_have_rows, load_source, make_loader
from pcbridge.training.run import run
from pcbridge.training.states import TrainingStateError

LEVEL = "B3LYP/6-31G*"


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [load_bundled("pm6", "train")[index] for index in range(0, 3000, 50)]


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory) -> Path:
    """Sixty rows in shards of 25, an empty one among them, and a validation split."""
    folder = tmp_path_factory.mktemp("shards")
    shards = {"train": [rows[:25], [], rows[25:50], rows[50:]], "validation": [rows[:8]]}
    for split, contents in shards.items():
        (folder / split).mkdir()
        for number, content in enumerate(contents):
            table = pa.Table.from_pylist(content, schema=FEATURES.arrow_schema)
            pq.write_table(table, folder / split / f"part-{number}.parquet")
    return folder


def test_rows_are_those_of_the_shards(rows, folder):
    examples = ShardedExamples(files_of_source(str(folder), "train"), [LEVEL])
    assert examples.shard_lengths == [25, 0, 25, 10]
    for got, row in zip(examples, rows, strict=True):
        expected = example_from_row(row, [LEVEL])
        assert (got.molecule_id, got.energy) == (expected.molecule_id, expected.energy)
        np.testing.assert_array_equal(got.positions, expected.positions)
    assert examples.sizes.tolist() == [len(row["atomic_numbers"]) for row in rows]
    assert {smiles for smiles, *_ in examples.molecules(60)} == {row["smiles"] for row in rows}
    every_third = rows[:25:3] + rows[25:50:3] + rows[50::3]
    assert {smiles for smiles, *_ in examples.molecules(20)} == {row["smiles"] for row in every_third}
    elsewhere = pickle.loads(pickle.dumps(examples))  # as a worker process gets it
    assert elsewhere[30].molecule_id == rows[30]["molecule_id"]
    with pytest.raises(IndexError):
        examples[60]


def test_only_rows_that_count(rows, folder):
    labelled = [row["molecule_id"] for row in rows if row["energy"] is not None]
    assert [
        e.molecule_id for e in ShardedExamples(files_of_source(str(folder), "train"), [LEVEL], only_labelled=True)
    ] == labelled
    assert 0 < len(labelled) < 60
    small = ShardedExamples(files_of_source(str(folder), "train"), [LEVEL], max_atoms=12)
    assert [e.graph.num_atoms for e in small] == [n for n in map(len, (r["atomic_numbers"] for r in rows)) if n <= 12]
    assert small.num_too_large == 60 - len(small)
    first = ShardedExamples(files_of_source(str(folder), "train"), [LEVEL], max_rows=30)
    assert [e.molecule_id for e in first] == [row["molecule_id"] for row in rows[:30]]
    assert first.shard_lengths == [25, 0, 5]
    with pytest.raises(ValueError, match=r"has no rows at CCSD\(T\)"):
        load_source(SourceConfig(str(folder), only_labelled=True), "train", ["CCSD(T)"])
    for name, split in (("nowhere", "train"), (str(folder), "test")):
        with pytest.raises(ValueError, match=rf"no data source '{name}': neither a bundled configuration \(pm6"):
            load_source(SourceConfig(name), split, [LEVEL])


def test_without_structures_minima_serve_their_labels_only(folder):
    for name in (str(folder), "fragments"):
        with_them = load_source(SourceConfig(name, max_rows=60), "train", [LEVEL])
        without = load_source(SourceConfig(name, max_rows=60, structures=False), "train", [LEVEL])
        assert any(e.is_equilibrium for e in with_them) and not any(e.is_equilibrium for e in without)
        assert [(e.molecule_id, e.energy, e.level) for e in with_them] == [
            (e.molecule_id, e.energy, e.level) for e in without
        ]
    assert not ShardedExamples(files_of_source(str(folder), "train"), [LEVEL], structures=False).has_structures


def test_examples_in_memory_are_bounded_and_the_same(folder, monkeypatch):
    monkeypatch.setattr(sharded, "_EXAMPLES_IN_MEMORY", 7)
    examples = ShardedExamples(files_of_source(str(folder), "train"), [LEVEL])
    first, second = list(examples), list(examples)
    assert [a is b for a, b in zip(first, second, strict=True)] == [True] * 7 + [False] * 53
    assert [a.molecule_id for a in first] == [b.molecule_id for b in second]


def test_all_rows_parsed_at_once_are_the_same(folder, tmp_path, monkeypatch):
    lazily, at_once = (ShardedExamples(files_of_source(str(folder), "train"), [LEVEL]) for _ in range(2))
    at_once.parse_all(2)
    assert [pickle.dumps(example) for example in at_once] == [pickle.dumps(example) for example in lazily]
    monkeypatch.setattr(at_once, "_parse", None)  # nothing is left to parse
    assert len(list(at_once)) == len(lazily) == 60
    # Training with workers begins with it.
    asked = []
    monkeypatch.setattr(ShardedExamples, "parse_all", lambda self, processes: asked.append(processes))
    for num_workers in (2, 0):
        stage = StageConfig(2, 1e-3, 0, [SourceConfig(str(folder))])
        config = small_config(tmp_path, stage1=stage, num_workers=num_workers)
        make_loader(stage, TrainingData(config, small_model()), config, Accelerator(cpu=True), 0)
    assert asked == [2]


def test_losses_without_rows_are_told(rows, folder, tmp_path, caplog):
    """Structures alone, labels alone, labels at a level that is not the model's; of all rows and of the first ones."""
    bare = {"energy": None, "forces": None, "energy_level_of_theory": None}
    sets = {
        "unlabelled": [row | bare for row in rows[:5]],
        "displaced": load_bundled("pm6_displaced", "train").to_list()[:5],
        "elsewhere": [
            row | {"energy_level_of_theory": "PBE"} for row in load_bundled("pm6_displaced", "train").to_list()[:5]
        ],
    }
    for name, content in sets.items():
        (tmp_path / name / "train").mkdir(parents=True)
        pq.write_table(
            pa.Table.from_pylist(content, schema=FEATURES.arrow_schema), tmp_path / name / "train" / "a.parquet"
        )
    stage = small_config(tmp_path).stage1
    for max_rows in (None, 5):
        sources = {
            name: load_source(SourceConfig(str(tmp_path / name), max_rows=max_rows), "train", [LEVEL]) for name in sets
        }
        assert "labels of 5 rows are at PBE, not at B3LYP/6-31G*" in caplog.text
        check_losses_have_rows(stage, list(sources.values()))
        assert "losses that" not in caplog.text
        check_losses_have_rows(stage, [sources["unlabelled"]])
        assert "trains: energy_weight no energies or forces, force_weight no energies or forces" in caplog.text
        check_losses_have_rows(stage, [sources["displaced"]])
        assert "trains: denoising_weight no minima, optimality_weight no minima, score_weight" in caplog.text
        with pytest.raises(ValueError, match="nothing to train: no row of the stage's sources serves a loss in use"):
            check_losses_have_rows(stage, [sources["elsewhere"]])
        caplog.clear()


def test_training_on_shards_is_training_on_the_rows_and_workers_change_nothing(folder, tmp_path):
    shards = SourceConfig(str(folder))
    histories = []
    for workers in (0, 2):
        config = small_config(
            tmp_path / str(workers),
            num_workers=workers,
            validation=ValidationConfig(every=10, num_pictures=0),
        )
        stage = replace(config.stage1, sources=[shards, SourceConfig("pm6_displaced", max_rows=10)], num_steps=12)
        run(replace(config, stage1=stage))
        metrics = json.loads((tmp_path / str(workers) / "metrics.json").read_text())
        histories.append(metrics["histories"]["stage1"])
    assert histories[0] == histories[1]
    assert all(record["validation_loss"] > 0 for record in histories[0])


def test_a_run_is_not_resumed_with_other_rows(folder, tmp_path):
    data = shutil.copytree(folder, tmp_path / "data")
    config = small_config(tmp_path / "run", validation=None)
    config = replace(config, stage1=replace(config.stage1, sources=[SourceConfig(str(data))], num_steps=4))
    run(config)
    run(replace(config, resume="latest"))  # there is nothing to do
    (data / "train" / "part-3.parquet").unlink()
    with pytest.raises(TrainingStateError, match=f"made with another rows of {data}"):
        run(replace(config, resume="latest"))
