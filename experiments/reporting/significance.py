"""Compares two networks by the results of a few seeds each."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two means of independent runs, by Welch's t-test.

    Runs of one seed share the order of examples, but the networks differ, and so do their initial
    weights: their results are not paired.

    Attributes:
      mean: difference of the means.
      low, high: its 95 % interval; NaN if a network has one seed only.
      p: two-sided; NaN if a network has one seed only, or if all its results are equal.
      seeds: number of seeds of the two networks.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: tuple[int, int]


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Compares the results of two networks, whose variances may differ."""
    mean, seeds = float(np.mean(ours) - np.mean(theirs)), (len(ours), len(theirs))
    if min(seeds) < 2:
        return Difference(mean, math.nan, math.nan, math.nan, seeds)
    if np.ptp(ours) == np.ptp(theirs) == 0:
        return Difference(mean, mean, mean, math.nan, seeds)
    test = stats.ttest_ind(ours, theirs, equal_var=False)
    interval = test.confidence_interval(0.95)
    return Difference(mean, float(interval.low), float(interval.high), float(test.pvalue), seeds)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusts the p of several comparisons, so that one wrong finding among all has their level.

    A NaN is no comparison, and stays NaN. Source: S. Holm, "A Simple Sequentially Rejective
    Multiple Test Procedure", 1979.
    """
    adjusted = [math.nan] * len(p)
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=p.__getitem__)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted
