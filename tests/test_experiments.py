"""The statistics of the evidence on worked numbers."""

import pytest

from experiments.statistics import compare


def test_paired_comparison_on_worked_numbers():
    # differences -1, -2, -3: mean -2, standard error 1 / sqrt(3), t = -2 sqrt(3) with two degrees of freedom
    effect = compare([10.0, 12.0, 14.0], [9.0, 10.0, 11.0])
    assert effect.difference == pytest.approx(-2.0)
    assert effect.relative == pytest.approx(-2.0 / 12.0)
    assert effect.p_value == pytest.approx(0.0741799, abs=1e-6)
    assert (effect.low, effect.high) == pytest.approx((-4.4841377, 0.4841377), abs=1e-6)


def test_seeds_must_pair():
    with pytest.raises(ValueError, match="one value of each a seed"):
        compare([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least two seeds"):
        compare([1.0], [2.0])
