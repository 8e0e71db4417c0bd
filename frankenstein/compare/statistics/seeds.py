"""Statistics of one problem's scores, trials and steps to target: pure functions on arrays.

They know nothing of what was measured. `across.py` puts problems together; `significance.py` compares optimizers.

Conventions, there too: NaN is a run that was not made. A run that diverged was made: it has the problem's worst score,
so no score is infinite. A time to a target may be infinite: that run missed it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# Fewer paired seeds than this say nothing about a difference: their bootstrap has too few distinct resamples.
MIN_SEEDS = 3
# A bound that is 0 comes out as a few units of rounding; relative to the largest difference.
ROUNDING = 1e-14
# Rows that are resampled at a time: 10,000 means of 256 rows take 20 MB.
N_ROWS = 256


class Interval(NamedTuple):
    """An estimate with its interval."""

    value: float
    low: float
    high: float


def as_scores(scores: ArrayLike, n_dims: int) -> np.ndarray:
    """Return `scores` as a new float array of `n_dims` dimensions.

    Raises:
        ValueError: It has another number of dimensions, or a score is infinite.

    Examples:
        >>> as_scores([[1, 0]], n_dims=2)
        array([[1., 0.]])
    """
    values = np.array(scores, dtype=float)
    if values.ndim != n_dims:
        raise ValueError(f"scores need {n_dims} dimensions; got shape {values.shape}")
    if np.isinf(values).any():
        raise ValueError("scores must be finite, or NaN for a run not made; give a run that diverged the worst score")
    return values


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
    (low,), (high,) = _bootstrap_means(values[None], confidence, n_resamples, seed)
    return Interval(mean, float(low), float(high))


def _bootstrap_means(rows: np.ndarray, confidence: float, n_resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return low and high (n_rows,) of the mean of each row (n_rows, n_seeds); all rows share the resamples."""
    n_seeds = rows.shape[1]
    drawn = np.random.default_rng(seed).integers(n_seeds, size=(n_resamples, n_seeds))
    drawn += n_seeds * np.arange(n_resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n_seeds).reshape(n_resamples, n_seeds)
    weights = counts.T / n_seeds  # a mean of a resample is a weighted mean of the row
    tail = (1.0 - confidence) / 2.0
    limits = np.empty((2, len(rows)))
    for start in range(0, len(rows), N_ROWS):
        part = slice(start, start + N_ROWS)
        limits[:, part] = np.quantile(rows[part] @ weights, [tail, 1.0 - tail], axis=1)
    return limits[0], limits[1]


def leads(
    scores: ArrayLike, others: ArrayLike, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Say in which pairs `scores` is higher (1), lower (-1) or cannot be told apart (0).

    A pair is level if the percentile bootstrap interval of its mean paired difference holds 0. All pairs share the
    resamples, so that thousands take a second or two.

    Args:
        scores: Shape (..., n_seeds); never modified. NaN is a seed not run: the pair goes without it.
        others: Same shape; the same seeds in the same order, so that start and batches are shared.
        confidence: Of each interval by itself; nothing is corrected for the number of pairs.
        n_resamples: Of the seeds.
        seed: Of the resamples.

    Returns:
        Integers, shape (...). A pair with fewer than `MIN_SEEDS` seeds in common is level.

    Raises:
        ValueError: The shapes differ, or a score is infinite.

    Examples:
        >>> leads([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]], [[0.8, 0.7, 0.6], [0.8, 0.9, 0.7]])
        array([1, 0])
    """
    ours, theirs = (as_scores(values, np.ndim(values)) for values in (scores, others))
    if ours.shape != theirs.shape:
        raise ValueError(f"paired scores need one shape; got {ours.shape} and {theirs.shape}")
    differences = (ours - theirs).reshape(math.prod(ours.shape[:-1]), ours.shape[-1])
    is_paired = ~np.isnan(differences)
    n_paired = is_paired.sum(axis=1)
    ahead = np.zeros(len(differences), dtype=int)
    for n in np.unique(n_paired[n_paired >= MIN_SEEDS]):
        chosen = n_paired == n
        rows = differences[chosen][is_paired[chosen]].reshape(-1, n)
        low, high = _bootstrap_means(rows, confidence, n_resamples, seed)
        rounding = ROUNDING * np.abs(rows).max(axis=1)
        ahead[chosen] = (low > rounding).astype(int) - (high < -rounding)
    return ahead.reshape(ours.shape[:-1])


def are_level(scores: ArrayLike, others: ArrayLike) -> bool:
    """Say whether two optimizers cannot be told apart: the interval of their mean paired difference holds 0.

    Args:
        scores: Shape (n_seeds,); NaN is a seed not run.
        others: Same shape; the same seeds in the same order, so that start and batches are shared.

    Raises:
        ValueError: The shapes differ, or a score is infinite.

    Examples:
        >>> are_level([0.9, 0.8, 0.7], [0.8, 0.7, 0.6]), are_level([0.9, 0.8, 0.7], [0.8, 0.9, 0.7])
        (False, True)
    """
    return not leads(scores, others).item()


def median_with_misses(steps: Sequence[int | None]) -> float:
    """Return the median number of steps to a target, where None is a run that never reached it: inf if half missed.

    Examples:
        >>> median_with_misses([30, None, 50]), median_with_misses([30, None, None])
        (50.0, inf)
    """
    return float(np.median([np.inf if n is None else n for n in steps])) if steps else float("nan")


def fraction_reached(times: Iterable[float | None], confidence: float = 0.95) -> Interval:
    """Return the fraction of runs that reached the target, with its Wilson interval (Wilson 1927).

    The interval keeps a width where every run reached it, or none: ten of ten is not certainty.

    Args:
        times: Steps or seconds, one a run. None or inf is a run that missed; NaN is a run not made, and left out.
        confidence: Of the interval.

    Raises:
        ValueError: No run was made.

    Examples:
        >>> [round(x, 3) for x in fraction_reached([30, 40, None, 50])]
        [0.75, 0.301, 0.954]
    """
    from scipy.stats import binomtest

    values = _made(times)
    test = binomtest(int(np.isfinite(values).sum()), len(values))
    interval = test.proportion_ci(confidence, method="wilson")
    return Interval(float(test.statistic), float(interval.low), float(interval.high))


def restricted_mean(
    times: Iterable[float | None],
    budget: float,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the restricted mean time to a target, the mean of min(time, budget), with its bootstrap interval.

    Unlike the median it is finite when most runs missed, and it moves with every run; it is the area under the curve of
    "fraction not there yet" up to the budget (Royston and Parmar 2013). Optimizers compare at equal budgets only.

    Args:
        times: Steps or seconds, one a run. None or inf is a run that missed; NaN is a run not made, and left out.
        budget: In the unit of `times`. Later than it counts as it.
        confidence: Of the interval.
        n_resamples: Of the runs.
        seed: Of the resamples.

    Raises:
        ValueError: No run was made, or the budget is not a positive number.

    Examples:
        >>> restricted_mean([30, None, 60, 90], budget=100).value, restricted_mean([None, None], budget=100)
        (70.0, Interval(value=100.0, low=100.0, high=100.0))
    """
    if not (np.isfinite(budget) and budget > 0):
        raise ValueError(f"a restricted mean needs a finite budget above 0; got {budget}")
    return bootstrap_mean(np.minimum(_made(times), budget), confidence, n_resamples, seed)


def _made(times: Iterable[float | None]) -> np.ndarray:
    """Return the times of the runs that were made, inf where one missed."""
    values = np.array([np.inf if time is None else time for time in times], dtype=float)
    values = values[~np.isnan(values)]
    if values.size == 0:
        raise ValueError("times to a target need at least one run that was made")
    return values


def expected_best_curve(scores: ArrayLike, is_higher_better: bool = True) -> np.ndarray:
    """Return the expected best of n of the trials that were made, for every n at once.

    It answers what a smaller tuning budget would have found. The n trials are drawn without replacement, since a search
    that stops earlier still never tries a setting twice: of N trials, sorted, the i-th is the best of n with
    probability C(i-1, n-1) / C(N, n). Drawing with replacement (Dodge et al. 2019) would spend part of the budget on
    repeats: it is too low by what they cost, and short of the best trial even at n = N.

    Args:
        scores: Shape (N,), in any order; never modified. NaN is a trial not made, and left out.
        is_higher_better: Direction of the scores.

    Returns:
        Shape (N,) less the trials not made: entry n - 1 is for n trials. The first is the mean, the last the best.

    Raises:
        ValueError: No trial was made, or a score is infinite.

    Examples:
        >>> expected_best_curve([1.0, 3.0, 2.0]).round(3)
        array([2.   , 2.667, 3.   ])
    """
    values = as_scores(scores, n_dims=1)
    values = values[~np.isnan(values)]
    n_trials = len(values)
    if n_trials == 0:
        raise ValueError("an expected best needs at least one trial that was made")
    ordered = np.sort(values) if is_higher_better else np.sort(values)[::-1]
    place = np.arange(1, n_trials + 1)
    chances = np.full(n_trials, 1.0 / n_trials)  # that the i-th is the best of one
    curve = np.empty(n_trials)
    for n in range(1, n_trials):
        curve[n - 1] = chances @ ordered
        # The ratio of the probability above at n + 1 to that at n: no factorials, so no overflow.
        chances *= np.maximum(place - n, 0) * (n + 1) / (n * (n_trials - n))
    curve[-1] = ordered[-1]
    return curve


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
