"""Mixing sources into batches: shares, order by seed, no loss, exact resume, little padding."""

from collections import Counter

import numpy as np
import pytest

from dataset_scripts.mixture import BATCHES_PER_WINDOW, MixtureBatchSampler, rows_per_batch

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


def test_a_source_in_shards_is_walked_through_shard_by_shard():
    lengths = [30, 0, 45, 25]
    batches = list(sampler(shard_lengths=[lengths, [10]]))
    assert batches != list(sampler())
    places = [index for batch in batches for index in batch if index < 100]
    assert Counter(places[:96]) <= Counter(range(100)) and set(places[:192]) == set(range(100))
    shards = np.searchsorted(np.cumsum(lengths), places, side="right")
    # A window of 96 rows of 100 touches every shard; with longer shards it touches two at most.
    assert set(shards) == {0, 2, 3}
    long = sampler(sizes=[[5] * 10_000, [3]], shard_lengths=[[1000] * 10, [1]], num_batches=BATCHES_PER_WINDOW * 5)
    windows = np.array(list(long)).reshape(5, -1)
    assert all(len({index // 1000 for index in window if index < 10_000}) <= 2 for window in windows)
    assert list(sampler(shard_lengths=[lengths, [10]], start_batch=77)) == batches[77:]


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
