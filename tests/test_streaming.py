"""Shards are streamed without loss or repetition, in an order fixed by the seed, and resume exactly."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from dataset_scripts.bundled import load_bundled
from dataset_scripts.schema import FEATURES
from dataset_scripts.streaming import mix, stream_shards


def write_shards(folder, name: str, num_shards: int, rows_per_shard: int):
    """Shards of one real molecule under different names."""
    row = load_bundled("pm6", "test")[0]
    (folder / "train").mkdir(parents=True)
    for shard in range(num_shards):
        rows = [row | {"molecule_id": f"{name}_{shard}_{i}"} for i in range(rows_per_shard)]
        table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
        pq.write_table(table, folder / "train" / f"{shard:03d}.parquet")
    return folder


def ids(rows) -> list[str]:
    return [row["molecule_id"] for row in rows]


@pytest.mark.parametrize("num_shards", [8, 7])
def test_two_nodes_with_two_workers_see_every_row_once(tmp_path, num_shards):
    folder = write_shards(tmp_path, "a", num_shards, 5)
    dataset = stream_shards(folder, "train", seed=0, num_epochs=2)
    seen = []
    for rank in range(2):
        node = split_dataset_by_node(dataset, rank, 2)
        seen += ids(DataLoader(node, batch_size=None, num_workers=2))
    assert sorted(seen) == sorted(2 * [f"a_{shard}_{i}" for shard in range(num_shards) for i in range(5)])


def test_order_depends_on_seed_and_epoch_only(tmp_path):
    folder = write_shards(tmp_path, "a", 4, 6)
    order = ids(stream_shards(folder, "train", seed=1, num_epochs=2))
    assert order == ids(stream_shards(folder, "train", seed=1, num_epochs=2))
    assert order != ids(stream_shards(folder, "train", seed=2, num_epochs=2))
    assert sorted(order[:24]) == sorted(order[24:]) and order[:24] != order[24:]
    first_shard = [name for name in order[:24] if name.startswith(order[0][:4])]
    assert first_shard == order[:6] and first_shard != sorted(first_shard)
    assert first_shard != [name for name in order[24:] if name.startswith(order[0][:4])]


@pytest.mark.parametrize("stop", [1, 17, 40])
def test_saved_state_gives_exactly_the_remaining_rows(tmp_path, stop):
    folders = [write_shards(tmp_path / name, name, 3, 10) for name in "ab"]

    def dataset():
        mixed = mix([stream_shards(folder, "train", seed=0, num_epochs=2) for folder in folders], [3, 1], seed=0)
        return split_dataset_by_node(mixed, 0, 1)

    whole = ids(dataset())
    started = dataset()
    iterator = iter(started)
    head = [next(iterator)["molecule_id"] for _ in range(stop)]
    state = json.loads(json.dumps(started.state_dict()))
    resumed = dataset()
    resumed.load_state_dict(state)
    assert head + ids(resumed) == whole


@pytest.mark.parametrize(("shards_of_a", "shards_of_b"), [(8, 4), (8, 1), (5, 5)])
def test_mixing_keeps_the_weights_and_loses_no_row_on_two_nodes_with_two_workers(tmp_path, shards_of_a, shards_of_b):
    rows_a, rows_b = 160 // shards_of_a, 160 // shards_of_b
    folders = {
        "a": write_shards(tmp_path / "a", "a", shards_of_a, rows_a),
        "b": write_shards(tmp_path / "b", "b", shards_of_b, rows_b),
    }
    mixed = mix([stream_shards(folder, "train", seed=0) for folder in folders.values()], [3, 1], seed=0)
    seen = []
    for rank in range(2):
        seen += ids(DataLoader(split_dataset_by_node(mixed, rank, 2), batch_size=None, num_workers=2))
    assert {name for name in seen if name[0] == "a"} == {
        f"a_{s}_{i}" for s in range(shards_of_a) for i in range(rows_a)
    }
    assert {name for name in seen if name[0] == "b"} == {
        f"b_{s}_{i}" for s in range(shards_of_b) for i in range(rows_b)
    }
    # b ends last and is seen once; a starts again meanwhile.
    from_b = [name for name in seen if name[0] == "b"]
    assert len(from_b) == 160
    assert 2 < (len(seen) - 160) / 160 < 4.5


def test_rows_pass_unchanged(tmp_path):
    folder = write_shards(tmp_path, "a", 1, 1)
    row = next(iter(stream_shards(folder, "train", seed=0)))
    assert row == load_bundled("pm6", "test")[0] | {"molecule_id": "a_0_0"}


def test_bad_weights_and_empty_folders_are_refused(tmp_path):
    dataset = stream_shards(write_shards(tmp_path, "a", 1, 1), "train", seed=0)
    for weights in ([], [-1.0], [0.0], [1.0, 1.0]):
        with pytest.raises(ValueError, match="need as many"):
            mix([dataset], weights, seed=0)
    with pytest.raises(ValueError, match="no Parquet shards in"):
        stream_shards(tmp_path, "test", seed=0)
