"""Statistics of scores: pure functions on arrays, which know nothing of what was measured."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Interval(NamedTuple):
    """An estimate with its interval."""

    value: float
    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Say whether the two intervals have a point in common."""
        return self.low <= other.high and other.low <= self.high


def bootstrap_mean(scores: ArrayLike, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the mean of `scores` (n_seeds,) and its percentile bootstrap interval.

    One score gives an interval of no width: nothing is known of the spread, and the caller should say so.

    Raises:
        ValueError: There is no score, or one is not finite.

    Examples:
        >>> bootstrap_mean([0.25, 0.5, 0.75])
        Interval(value=0.5, low=0.25, high=0.75)
    """
    values = np.asarray(scores, dtype=float)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"bootstrap_mean needs at least one score, all finite; got {values.tolist()}")
    mean = float(values.mean())
    if values.size == 1 or np.ptp(values) == 0.0:
        return Interval(mean, mean, mean)
    from scipy.stats import bootstrap

    rng = np.random.default_rng(seed)
    result = bootstrap(
        (values,), np.mean, confidence_level=confidence, n_resamples=n_resamples, method="percentile", rng=rng
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))


def median_with_misses(steps: list[int | None]) -> float:
    """Return the median number of steps to a target, where None is a run that never reached it: inf if half missed.

    Examples:
        >>> median_with_misses([30, None, 50]), median_with_misses([30, None, None])
        (50.0, inf)
    """
    return float(np.median([np.inf if n is None else n for n in steps])) if steps else float("nan")


def mean_ranks(scores: ArrayLike, is_higher_better: ArrayLike) -> np.ndarray:
    """Return each optimizer's mean rank over problems; ties share their ranks.

    Args:
        scores: Shape (n_optimizers, n_problems).
        is_higher_better: Shape (n_problems,).

    Examples:
        >>> mean_ranks([[0.9, 1.0], [0.8, 1.0]], [True, False])
        array([1.25, 1.75])
    """
    from scipy.stats import rankdata

    values = np.where(np.asarray(is_higher_better), -1.0, 1.0) * np.asarray(scores, dtype=float)
    ranks: np.ndarray = rankdata(values, axis=0).mean(axis=1)
    return ranks
