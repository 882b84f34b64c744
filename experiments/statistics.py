"""Paired comparison of two models over training seeds."""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class PairedComparison:
    """The effect of B against A, one value of each per seed.

    Attributes:
        difference: mean of B - A.
        relative: `difference` over the mean of A.
        low, high: 95% confidence interval of the difference (Student's t).
        p_value: two-sided paired t-test.
    """

    difference: float
    relative: float
    low: float
    high: float
    p_value: float


def compare(baseline: list[float], other: list[float]) -> PairedComparison:
    """Paired t-test of `other` against `baseline`, seed by seed.

    Raises:
        ValueError: the lists differ in length, or there are fewer than two seeds.
    """
    a, b = np.asarray(baseline, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a paired test needs one value of each per seed, not {a.shape} and {b.shape}")
    if len(a) < 2:
        raise ValueError("a paired test needs at least two seeds")
    test = stats.ttest_rel(b, a)
    interval = test.confidence_interval(0.95)
    difference = float((b - a).mean())
    return PairedComparison(
        difference, difference / float(a.mean()), float(interval.low), float(interval.high), float(test.pvalue)
    )
