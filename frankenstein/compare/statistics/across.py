"""Statistics across problems: aggregate scores, performance profiles, who is best. Conventions: see `statistics.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from frankenstein.compare.statistics.seeds import Interval, as_scores

# Slower than the best by more than this scores nothing; the limit of the AlgoPerf benchmark.
TAU_MAX = 4.0


class Aggregate(NamedTuple):
    """What one optimizer scores over all problems and seeds, each number with its interval."""

    median: Interval
    iqm: Interval
    mean: Interval


class Profiles(NamedTuple):
    """Performance profiles: `fractions` (n_optimizers, n_taus) of the problems solved within each of `taus`."""

    taus: np.ndarray
    fractions: np.ndarray


def normalised(scores: ArrayLike, worst: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Return scores as fractions of the way from the problem's worst score, 0, to its target, 1; higher is better.

    Nothing is cut off: a score beyond the target is above 1. NaN stays NaN.

    Args:
        scores: Shape (..., n_problems), each problem in its own direction; never modified.
        worst: Shape (n_problems,) or a number.
        target: Same; above `worst` if higher is better, below it if lower is.

    Raises:
        ValueError: A problem's worst score is its target, or one of them is not finite.

    Examples:
        >>> normalised([[0.55, 2.0], [1.0, 0.5]], worst=[0.1, 3.0], target=[1.0, 1.0])
        array([[0.5 , 0.5 ], [1.  , 1.25]])
    """
    low, high = np.asarray(worst, dtype=float), np.asarray(target, dtype=float)
    way = high - low
    if not np.isfinite(way).all() or (way == 0.0).any():
        raise ValueError(
            f"worst and target must be finite and differ; got worst {low.tolist()} and target {high.tolist()}"
        )
    fractions: np.ndarray = (np.asarray(scores, dtype=float) - low) / way
    return fractions


def iqm(scores: ArrayLike, axis: int | None = None) -> Any:
    """Return the interquartile mean: the mean without the lowest and the highest quarter.

    It is as robust as the median is to a few runs that failed, and less noisy. Below four scores nothing is left out.

    Args:
        scores: Any shape; never modified. NaN gives NaN.
        axis: The axis to reduce, None for all of them.

    Raises:
        ValueError: There is no score.

    Source: Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice.

    Examples:
        >>> float(iqm([0.0, 4.0, 6.0, 100.0]))
        5.0
    """
    from scipy.stats import trim_mean

    values = np.asarray(scores, dtype=float)
    if values.size == 0:
        raise ValueError("an interquartile mean needs at least one score")
    return trim_mean(values, 0.25, axis=axis)


def stratified_bootstrap(
    scores: ArrayLike,
    statistic: Callable[..., Any],
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return a statistic of all runs of one optimizer with its percentile interval, seeds resampled in each problem.

    The interval is over seeds, the problems being these. Every run counts the same, so a problem with fewer seeds
    weighs less. One seed a problem leaves nothing to resample: the interval has no width.

    Args:
        scores: Shape (n_seeds, n_problems), comparable between problems (`normalised`); never modified. NaN is a seed
            not run: its problem is resampled from the others, and a problem without any is left out.
        statistic: Called as `statistic(runs, axis=-1)`, for instance np.mean, np.median or `iqm`.
        confidence: Of the interval.
        n_resamples: Of the seeds.
        seed: Of the resamples.

    Raises:
        ValueError: There is no score, or one is infinite.

    Source: Agarwal et al. 2021.

    Examples:
        >>> stratified_bootstrap([[0.0, 1.0], [1.0, 1.0]], np.mean)
        Interval(value=0.75, low=0.5, high=1.0)
    """
    values = as_scores(scores, n_dims=2)
    problems = [problem[~np.isnan(problem)] for problem in values.T]
    runs = np.concatenate([[], *problems])
    if runs.size == 0:
        raise ValueError("a stratified bootstrap needs at least one score")
    rng = np.random.default_rng(seed)
    made = [problem for problem in problems if problem.size]
    drawn = [problem[rng.integers(problem.size, size=(n_resamples, problem.size))] for problem in made]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(statistic(np.concatenate(drawn, axis=1), axis=-1), [tail, 1.0 - tail])
    return Interval(float(statistic(runs, axis=-1)), float(low), float(high))


def aggregate(scores: ArrayLike, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0) -> Aggregate:
    """Return median, interquartile mean and mean of all runs of one optimizer, with stratified bootstrap intervals.

    The median is over runs, not over the problems' means.

    Args:
        scores: Shape (n_seeds, n_problems), as for `stratified_bootstrap`, which says what NaN does.
        confidence: Of the intervals.
        n_resamples: Of the seeds.
        seed: Of the resamples.

    Raises:
        ValueError: There is no score, or one is infinite.

    Examples:
        >>> aggregate([[0.0, 4.0, 6.0, 100.0]]).iqm
        Interval(value=5.0, low=5.0, high=5.0)
    """
    return Aggregate(
        *(stratified_bootstrap(scores, f, confidence, n_resamples, seed) for f in (np.median, iqm, np.mean))
    )


def performance_ratios(costs: ArrayLike) -> np.ndarray:
    """Return each optimizer's cost on each problem as a multiple of the best optimizer's cost there.

    Args:
        costs: Shape (n_optimizers, n_problems), for instance steps or seconds to the target; never modified. inf is a
            miss. NaN was not run: that problem is left out for all optimizers, since its best is not known.

    Returns:
        Shape (n_optimizers, n_problems less those left out). The best, and all that tie with it, have 1, also where
        their cost is 0; beside a cost of 0 any other is inf. A miss is inf, so a problem that nobody solved is a
        column of inf.

    Raises:
        ValueError: `costs` has another shape, one is negative, or no problem has been run by all optimizers.

    Source: Dolan and More 2002, Benchmarking optimization software with performance profiles.

    Examples:
        >>> performance_ratios([[10, 0, np.inf], [30, 5, np.inf]])
        array([[ 1.,  1., inf], [ 3., inf, inf]])
    """
    values = np.asarray(costs, dtype=float)
    if values.ndim != 2 or (values < 0.0).any():
        raise ValueError(f"costs need shape (n_optimizers, n_problems) and no negative entry; got shape {values.shape}")
    values = values[:, ~np.isnan(values).any(axis=0)]
    if values.size == 0:
        raise ValueError("performance profiles need a problem that every optimizer has been run on")
    best = values.min(axis=0)
    ratios = np.full(values.shape, np.inf)
    with np.errstate(over="ignore"):  # a ratio beyond the largest number is inf, as it should be
        np.divide(values, best, out=ratios, where=np.isfinite(values) & (best > 0.0))
    ratios[np.isfinite(values) & (values == best)] = 1.0
    return ratios


def performance_profiles(costs: ArrayLike, taus: ArrayLike | None = None) -> Profiles:
    """Return, for each optimizer, the fraction of problems it solves within a factor tau of the best optimizer there.

    At tau = 1 it is the fraction of problems where the optimizer is (or ties for) the best, at large tau the fraction
    it solves at all. A problem that nobody solved counts as unsolved for everyone.

    Args:
        costs: Shape (n_optimizers, n_problems), as for `performance_ratios`, which defines ties, zeros and NaN.
        taus: Shape (n_taus,); None for 301 values from 1 to `TAU_MAX`.

    Raises:
        ValueError: See `performance_ratios`.

    Source: Dolan and More 2002.

    Examples:
        >>> performance_profiles([[10, 40], [20, 10]], taus=[1, 2, 4]).fractions
        array([[0.5, 0.5, 1. ], [0.5, 1. , 1. ]])
    """
    grid = np.linspace(1.0, TAU_MAX, 301) if taus is None else np.asarray(taus, dtype=float)
    ratios = performance_ratios(costs)
    return Profiles(grid, (ratios[:, :, None] <= grid).mean(axis=1))


def profile_scores(costs: ArrayLike, tau_max: float = TAU_MAX) -> np.ndarray:
    """Return the area under each optimizer's performance profile from 1 to `tau_max`, over `tau_max` - 1.

    1 is the best on every problem, 0 never within the factor `tau_max` of the best. The area is exact, no sum over a
    grid. It is relative: it changes when an optimizer joins or leaves.

    Args:
        costs: Shape (n_optimizers, n_problems), as for `performance_ratios`, which defines ties, zeros and NaN.
        tau_max: Above 1.

    Raises:
        ValueError: `tau_max` is not a number above 1; or see `performance_ratios`.

    Source: Dahl et al. 2023, Benchmarking Neural Network Training Algorithms (AlgoPerf).

    Examples:
        >>> profile_scores([[10, 40], [20, 10]]).round(3)
        array([0.5  , 0.833])
    """
    if not (np.isfinite(tau_max) and tau_max > 1.0):
        raise ValueError(f"tau_max must be a finite number above 1; got {tau_max}")
    inside = (tau_max - np.minimum(performance_ratios(costs), tau_max)) / (tau_max - 1.0)
    areas: np.ndarray = inside.mean(axis=1)
    return areas


def probability_best(
    scores: ArrayLike, is_higher_better: ArrayLike, n_resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Return how often each optimizer has the best mean rank when problems, and seeds in each, are resampled.

    It is a bootstrap frequency: how far the winner hangs on these problems and seeds. It is not the probability, given
    the scores, that the optimizer is the best; with a few problems, resampling them is a rough guess at other problems.

    Args:
        scores: Shape (n_optimizers, n_problems, n_seeds), in the problems' own units; never modified. Problems and
            seeds are drawn for all optimizers together. NaN is a seed not run: its problem goes without that seed for
            all optimizers, and a problem without a common seed is left out.
        is_higher_better: Shape (n_problems,).
        n_resamples: Of problems and seeds.
        seed: Of the resamples.

    Returns:
        Shape (n_optimizers,), sum 1; optimizers that tie for the best share that resample. One problem with one seed
        leaves nothing to resample: its best has 1.

    Raises:
        ValueError: `scores` has another shape or an infinite entry, or no problem has a seed that all have run.

    Examples:
        >>> probability_best([[[0.9, 0.8]], [[0.7, 0.8]], [[0.1, 0.1]]], [True], n_resamples=1000).round(2)
        array([0.87, 0.13, 0.  ])
    """
    from scipy.stats import rankdata

    signs = np.where(np.asarray(is_higher_better), -1.0, 1.0)
    values = signs[:, None] * as_scores(scores, n_dims=3)
    shared = [problem[:, ~np.isnan(problem).any(axis=0)] for problem in np.moveaxis(values, 1, 0)]
    problems = [problem for problem in shared if problem.size]
    if not problems:
        raise ValueError("the probability to be best needs a problem with a seed that every optimizer has run")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(problems), size=(n_resamples, len(problems)))
    rank_sums = np.zeros((n_resamples, len(values)))
    for problem_idx, problem in enumerate(problems):
        rows, _ = np.nonzero(drawn == problem_idx)  # a resample that drew the problem twice draws its seeds twice
        seeds = rng.integers(problem.shape[1], size=(len(rows), problem.shape[1]))
        np.add.at(rank_sums, rows, rankdata(problem[:, seeds].mean(axis=-1), axis=0).T)
    is_best = rank_sums == rank_sums.min(axis=1, keepdims=True)
    frequencies: np.ndarray = (is_best / is_best.sum(axis=1, keepdims=True)).mean(axis=0)
    return frequencies
