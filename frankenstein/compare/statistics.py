"""Statistics of scores: pure functions on arrays, which know nothing of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# Fewer paired seeds than this say nothing about a difference: their bootstrap has too few distinct resamples.
MIN_SEEDS = 3


class Interval(NamedTuple):
    """An estimate with its interval."""

    value: float
    low: float
    high: float


def bootstrap_mean(scores: ArrayLike, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the mean of `scores` (n_seeds,) and its percentile bootstrap interval.

    The interval is over seeds: it says nothing about other data. With ten seeds it is a little too narrow (it holds the
    mean of a normal sample in about 90 % of cases), with one it has no width.

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
    options = {"confidence_level": confidence, "n_resamples": n_resamples, "method": "percentile", "rng": rng}
    interval = bootstrap((values,), np.mean, **options).confidence_interval
    return Interval(mean, float(interval.low), float(interval.high))


def are_level(scores: ArrayLike, others: ArrayLike) -> bool:
    """Say whether two optimizers cannot be told apart: the interval of their mean paired difference holds 0.

    Args:
        scores: Shape (n_seeds,).
        others: Same shape; the same seeds in the same order, so that start and batches are shared.

    Examples:
        >>> are_level([0.9, 0.8, 0.7], [0.8, 0.7, 0.6]), are_level([0.9, 0.8, 0.7], [0.8, 0.9, 0.7])
        (False, True)
    """
    differences = np.asarray(scores, dtype=float) - np.asarray(others, dtype=float)
    if differences.size < MIN_SEEDS:
        return True
    interval = bootstrap_mean(differences)
    return interval.low <= 0.0 <= interval.high


def median_with_misses(steps: Sequence[int | None]) -> float:
    """Return the median number of steps to a target, where None is a run that never reached it: inf if half missed.

    Examples:
        >>> median_with_misses([30, None, 50]), median_with_misses([30, None, None])
        (50.0, inf)
    """
    return float(np.median([np.inf if n is None else n for n in steps])) if steps else float("nan")


def mean_ranks(scores: ArrayLike, is_higher_better: ArrayLike) -> np.ndarray:
    """Return each optimizer's mean rank over problems; 1 is best, ties share their ranks.

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
