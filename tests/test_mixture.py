"""Mixing sources into batches: shares, order by seed, no loss, exact resume, little padding."""

from collections import Counter

import numpy as np
import pytest

from dataset_scripts.mixture import BATCHES_PER_WINDOW, SHARDS_AT_ONCE, MixtureBatchSampler, rows_per_batch

SIZES = [list(range(3, 23)) * 5, list(range(3, 13))]


def sampler(**changes) -> MixtureBatchSampler:
    arguments = {"sizes": SIZES, "weights": [3, 1], "batch_size": 8, "num_batches": 200, "seed": 0}
    return MixtureBatchSampler(**{**arguments, **changes})


def test_rows_per_batch_by_largest_remainder():
    assert rows_per_batch([3, 1], 8) == [6, 2]
    assert rows_per_batch([1, 1, 1], 8) == [3, 3, 2]
    assert rows_per_batch([1, 0], 4) == [4, 0]


@pytest.mark.parametrize("weights", [[-1, 2], [0, 0], [1000, 1]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        rows_per_batch(weights, 4)
    with pytest.raises(ValueError, match="number 1 is empty"):
        sampler(sizes=[[3], []])


def test_every_batch_has_its_shares():
    batches = list(sampler())
    assert len(batches) == 200
    for batch in batches:
        assert len(batch) == 8 and sum(index >= 100 for index in batch) == 2


def test_each_epoch_visits_every_row_once():
    """100 rows, 6 per batch: 50 batches are three epochs; windows cut evenly at 16 batches, so count 48 = 288 rows."""
    counts = Counter(index for batch in list(sampler())[:48] for index in batch if index < 100)
    assert set(counts) == set(range(100))
    assert set(counts.values()) == {2, 3} and sum(counts.values()) == 288


def test_the_rows_of_a_few_shards_are_mixed():
    """Each window of 96 of 1,000 rows has of every shard about its share."""
    lengths, windows = [300, 0, 450, 250], 20
    some = sampler(sizes=[[5] * 1000, [3]], shard_lengths=[lengths, [1]], num_batches=BATCHES_PER_WINDOW * windows)
    batches = list(some)
    rows = np.array(batches).reshape(windows, -1)
    of_first = rows[rows < 1000].reshape(windows, 96)
    counts = [
        np.bincount(np.searchsorted(np.cumsum(lengths), window, side="right"), minlength=4) for window in of_first
    ]
    share = np.array(counts) / 96
    assert (np.abs(share - np.array(lengths) / 1000) < 0.2).all()
    assert set(Counter(of_first.ravel()[: 96 * 10].tolist()).values()) == {1}  # each row once in an epoch
    start = 77
    again = sampler(sizes=[[5] * 1000, [3]], shard_lengths=[lengths, [1]], num_batches=len(batches), start_batch=start)
    assert list(again) == batches[start:]


@pytest.mark.parametrize("num_rows", [20, 100])
def test_a_batch_has_different_rows_of_a_small_source(num_rows):
    small = sampler(sizes=[SIZES[0][:num_rows], [3]], weights=[6, 1], batch_size=7)
    of_small = [[index for index in batch if index < num_rows] for batch in small]
    distinct = [len(set(rows)) for rows in of_small]
    assert min(distinct) >= 3 and np.mean(distinct) > 5.7  # some batches begin another epoch


def test_of_many_shards_few_are_in_use():
    shards, length = 5 * SHARDS_AT_ONCE + 3, 100
    num_windows = shards * length // 96
    many = sampler(
        sizes=[[5] * shards * length, [3]],
        shard_lengths=[[length] * shards, [1]],
        num_batches=BATCHES_PER_WINDOW * num_windows,
    )
    windows = np.array(list(many)).reshape(num_windows, -1)
    used = [{index // length for index in window.tolist() if index < shards * length} for window in windows]
    assert all(len(of_window) <= 2 * SHARDS_AT_ONCE for of_window in used)
    assert min(map(len, used)) > 5 and set().union(*used) == set(range(shards))  # groups are alike in size


def test_order_depends_on_the_seed_only():
    assert list(sampler()) == list(sampler())
    assert list(sampler(seed=1)) != list(sampler())


@pytest.mark.parametrize("start", [1, BATCHES_PER_WINDOW, 77])
def test_resume_continues_exactly(start):
    assert list(sampler(start_batch=start)) == list(sampler())[start:]


def test_batches_hold_similar_sizes():
    sizes = np.array(SIZES[0] + SIZES[1])

    def padded_share(batches) -> float:
        padded = sum(len(batch) * sizes[batch].max() for batch in batches)
        return 1 - sum(sizes[batch].sum() for batch in batches) / padded

    rng = np.random.default_rng(0)
    shuffled = [rng.integers(0, len(sizes), 8) for _ in range(200)]
    assert padded_share(list(sampler())) < 0.6 * padded_share(shuffled)
