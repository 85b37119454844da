"""Compares two networks by the results of a few seeds."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Paired:
    """The differences of two networks, seed by seed.

    Attributes:
      mean: mean difference.
      low, high: 95 % interval of the mean by Student's t; NaN for one seed.
      t_test: two-sided p of the paired t-test; NaN for one seed, or if all differences are equal.
      permutation: two-sided p of the exact test that exchanges the two networks within seeds; with
        n seeds it is 2 / 2**n or more.
      seeds: number of seeds.
    """

    mean: float
    low: float
    high: float
    t_test: float
    permutation: float
    seeds: int


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Compares two networks by their results for the same seeds, in the same order."""
    differences = np.subtract(ours, theirs)
    n, mean = len(differences), float(np.mean(differences))
    low = high = t_test = float('nan')
    if n > 1:
        error = float(np.std(differences, ddof=1)) / n**0.5
        half = float(stats.t.ppf(0.975, n - 1)) * error
        low, high = mean - half, mean + half
        if error > 0:
            t_test = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Paired(mean, low, high, t_test, _permutation(differences), n)


def _permutation(differences: np.ndarray) -> float:
    if np.isnan(differences).any():
        return float('nan')
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    sums = np.abs(signs @ differences)
    # Rounding must not separate a sum from the same sum in another order.
    return float(np.mean(sums >= abs(differences.sum()) * (1 - 1e-9)))
