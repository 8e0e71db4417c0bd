"""Summaries of all problems -> one standing for each optimizer. What follows from them in words is `verdict.py`.

A run that failed or diverged counts with the problem's worst score, and as a miss of its target. Ranks compare
optimizers on the seeds that all of them have run; only an optimizer with runs on every problem has a rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from frankenstein.compare.results import arrays
from frankenstein.compare.results.summary import ProblemSummary
from frankenstein.compare.statistics.across import (
    iqm,
    normalised,
    performance_profiles,
    probability_best,
    profile_scores,
    stratified_bootstrap,
)
from frankenstein.compare.statistics.seeds import Interval, mean_ranks
from frankenstein.compare.statistics.significance import CriticalDifference, critical_difference, win_tie_loss

N_RESAMPLES = 4000  # for the intervals of scores: their ends are then known to a fiftieth of their width

MANY = 1000


@dataclass(frozen=True)
class Standing:
    """One optimizer over all problems.

    Attributes:
        optimizer: Name.
        title: Name for people.
        mean_rank: Over problems, of the mean tuned score on the seeds that all share; 1 is best, ties share their
            ranks. Where no seed is shared, of the mean over each one's own.
        n_best: Problems on which it is best, or level with the best (`ProblemSummary.best`).
        probability_best: How often its mean rank is the best when problems and seeds are resampled
            (`across.probability_best`).
        score: Interquartile mean over all tuned runs of the normalised score, 0 the problem's worst score and 1 its
            target, with its stratified bootstrap interval.
        median: Their median.
        default_score: The same as `score`, untuned; None unless its default has been run on every problem.
        default_rank: Mean rank of its untuned default among those that have been run on every problem; NaN if it has
            not.
        n_reached: Tuned runs that reached the target.
        n_runs: Tuned runs.
        profile_score: Area under the performance profile of the median steps to the target (`across.profile_scores`).
        time_profile_score: The same, of the median seconds.
        step_cost: Its own seconds per step over those of the cheapest optimizer; median over problems, NaN if unknown.
        bytes_per_param: Bytes of its state per parameter; median over problems, of those with `MANY` parameters where
            there are any (on smaller ones, counters of steps would decide), NaN if unknown.
        half_budget_rank: Mean rank by the validation score that half the trials find (`arrays.best_by_budget`).
        full_budget_rank: The same with all of them.
        lr_width: Decades of learning rate that do nearly as well as the best trial (`arrays.lr_width`); median over
            problems, NaN if unknown.
    """

    optimizer: str
    title: str
    mean_rank: float
    n_best: int
    probability_best: float
    score: Interval
    median: Interval
    default_score: Interval | None
    default_rank: float
    n_reached: int
    n_runs: int
    profile_score: float
    time_profile_score: float
    step_cost: float
    bytes_per_param: float
    half_budget_rank: float
    full_budget_rank: float
    lr_width: float


@dataclass(frozen=True)
class Overall:
    """All optimizers that have a tuned score on every problem, the best mean rank first.

    Attributes:
        standings: One for each optimizer; every array below is in their order.
        left_out: Titles of the optimizers without a tuned score on some problem.
        n_problems: Number of problems.
        n_seeds: Seeds that all optimizers share, on the problem with the fewest.
        n_trials: Trials, of the optimizer and on the problem with the fewest.
        is_budget_equal: Whether on each problem all had as many trials, chosen in the same way.
        wins: Problems on which row i leads column j (`significance.win_tie_loss`), shape (n_optimizers, n_optimizers).
        ties: Problems on which their seeds cannot tell them apart, same shape.
        losses: `wins` transposed.
        critical: Mean ranks, corrected p-values, and groups that cannot be told apart.
        profile_taus: Factors of the performance profiles, shape (n_taus,).
        step_profiles: Fraction of problems solved within each factor of the best, in steps, (n_optimizers, n_taus).
        time_profiles: The same in seconds.
        budgets: Numbers of trials, 1 to `n_trials`, shape (n_budgets,).
        budget_ranks: Mean rank by the validation score that so many trials find, shape (n_optimizers, n_budgets).
    """

    standings: list[Standing]
    left_out: list[str]
    n_problems: int
    n_seeds: int
    n_trials: int
    is_budget_equal: bool
    wins: np.ndarray
    ties: np.ndarray
    losses: np.ndarray
    critical: CriticalDifference
    profile_taus: np.ndarray
    step_profiles: np.ndarray
    time_profiles: np.ndarray
    budgets: np.ndarray
    budget_ranks: np.ndarray

    @property
    def half_budget(self) -> int:
        """Half the trials, rounded down, but at least one."""
        return _half(self.n_trials)


def overall(summaries: list[ProblemSummary]) -> Overall | None:
    """Return the standings; None while no optimizer has a tuned score on every problem."""
    names = arrays.complete(summaries)
    if not names:
        return None
    is_higher_better = [summary.config["is_higher_better"] for summary in summaries]
    rows, means = _ranked(arrays.rows_of(summaries, names), is_higher_better)
    tuned = arrays.settings_of(rows)
    scores = arrays.scores(tuned)
    versus = win_tie_loss(scores, is_higher_better)
    profiles, time_profiles = (performance_profiles(times) for times in _times(tuned))
    budget_ranks = _budget_ranks(rows)
    found = {row.optimizer: row.title for summary in summaries for row in summary.rows}
    return Overall(
        standings=_standings(summaries, rows, budget_ranks),
        left_out=[title for name, title in found.items() if name not in names],
        n_problems=len(summaries),
        n_seeds=int(arrays.n_shared(scores).min()),
        n_trials=budget_ranks.shape[1],
        is_budget_equal=all(len({row.budget for row in on_one}) == 1 for on_one in zip(*rows, strict=True)),
        wins=versus.wins,
        ties=versus.ties,
        losses=versus.losses,
        critical=critical_difference(_normalised(summaries, means)),
        profile_taus=profiles.taus,
        step_profiles=profiles.fractions,
        time_profiles=time_profiles.fractions,
        budgets=np.arange(1, budget_ranks.shape[1] + 1),
        budget_ranks=budget_ranks,
    )


def _ranked(rows: arrays.Rows, is_higher_better: list[bool]) -> tuple[arrays.Rows, np.ndarray]:
    """Return the rows with the best mean rank first, equal ones by title, and their mean scores."""
    means = np.nanmean(arrays.shared(arrays.scores(arrays.settings_of(rows))), axis=-1)
    ranks = mean_ranks(means, is_higher_better)
    order = sorted(range(len(rows)), key=lambda i: (ranks[i], rows[i][0].title, rows[i][0].optimizer))
    return [rows[i] for i in order], means[order]


def _normalised(summaries: list[ProblemSummary], scores: np.ndarray) -> np.ndarray:
    """Return scores (..., n_problems) as fractions of the way from worst to target."""
    worst, target = ([summary.config[name] for summary in summaries] for name in ("worst", "target"))
    return normalised(scores, worst, target)


def _times(settings: arrays.Settings) -> tuple[np.ndarray, np.ndarray]:
    """Return the median steps and seconds to the target, each (n_optimizers, n_problems)."""
    return arrays.each(settings, lambda s: s.steps_to_target), arrays.each(settings, lambda s: s.seconds_to_target)


def _budget_ranks(rows: arrays.Rows) -> np.ndarray:
    """Return the mean rank of each optimizer for each number of trials that all have had."""
    curves = [[arrays.best_by_budget(row) for row in found] for found in rows]
    n_trials = min(len(curve) for found in curves for curve in found)
    losses = np.array([[curve[:n_trials] for curve in found] for found in curves])
    return np.stack([mean_ranks(losses[:, :, n], False) for n in range(n_trials)], axis=1)


def _half(n_trials: int) -> int:
    return max(1, n_trials // 2)


def _standings(summaries: list[ProblemSummary], rows: arrays.Rows, budget_ranks: np.ndarray) -> list[Standing]:
    columns = {
        "optimizer": [found[0].optimizer for found in rows],
        "title": [found[0].title for found in rows],
        "half_budget_rank": budget_ranks[:, _half(budget_ranks.shape[1]) - 1].tolist(),
        "full_budget_rank": budget_ranks[:, -1].tolist(),
        "lr_width": [arrays.median_known(np.array([arrays.lr_width(row) for row in found])) for found in rows],
        **_tuned(summaries, rows),
        **_untuned(summaries, rows),
        **_costs(arrays.settings_of(rows)),
    }
    return [Standing(**{name: values[i] for name, values in columns.items()}) for i in range(len(rows))]


def _tuned(summaries: list[ProblemSummary], rows: arrays.Rows) -> dict[str, list[Any]]:
    is_higher_better = [summary.config["is_higher_better"] for summary in summaries]
    tuned = arrays.settings_of(rows)
    scores = arrays.scores(tuned)
    shared = arrays.shared(scores)
    steps, seconds = (profile_scores(times) for times in _times(tuned))
    return {
        "mean_rank": mean_ranks(np.nanmean(shared, axis=-1), is_higher_better).tolist(),
        "n_best": [sum(found[0].optimizer in summary.best for summary in summaries) for found in rows],
        "probability_best": probability_best(shared, is_higher_better).tolist(),
        "score": [_aggregate(summaries, values, iqm) for values in scores],
        "median": [_aggregate(summaries, values, np.median) for values in scores],
        "n_reached": [sum(setting.n_reached for setting in found) for found in tuned],
        "n_runs": [sum(len(setting.records) for setting in found) for found in tuned],
        "profile_score": steps.tolist(),
        "time_profile_score": seconds.tolist(),
    }


def _untuned(summaries: list[ProblemSummary], rows: arrays.Rows) -> dict[str, list[Any]]:
    """Return score and mean rank of the untuned defaults; None and NaN where one has not been run on every problem."""
    optimizers = [found[0].optimizer for found in rows]
    names = [name for name in arrays.complete(summaries, "default") if name in optimizers]
    values: dict[str, Interval] = {}
    ranks: dict[str, float] = {}
    if names:
        scores = arrays.scores(arrays.settings_of(arrays.rows_of(summaries, names), "default"))
        values = {name: _aggregate(summaries, runs, iqm) for name, runs in zip(names, scores, strict=True)}
        means = np.nanmean(arrays.shared(scores), axis=-1)
        in_order = mean_ranks(means, [summary.config["is_higher_better"] for summary in summaries])
        ranks = dict(zip(names, in_order.tolist(), strict=True))
    return {
        "default_score": [values.get(name) for name in optimizers],
        "default_rank": [ranks.get(name, float("nan")) for name in optimizers],
    }


def _costs(tuned: arrays.Settings) -> dict[str, list[Any]]:
    seconds = arrays.relative_to_least(arrays.each(tuned, lambda s: s.cost("optimizer_seconds_per_step")))
    n_params = arrays.each(tuned, lambda s: s.cost("n_params") or float("nan"))
    state = arrays.each(tuned, lambda s: s.cost("state_bytes")) / n_params
    has_many = np.nan_to_num(n_params) >= MANY
    state = np.where(has_many | ~has_many.any(), state, np.nan)
    return {
        "step_cost": [arrays.median_known(values) for values in seconds],
        "bytes_per_param": [arrays.median_known(values) for values in state],
    }


def _aggregate(summaries: list[ProblemSummary], scores: np.ndarray, statistic: Callable[..., Any]) -> Interval:
    """Return a statistic of the normalised scores of one optimizer, given as (n_problems, n_seeds)."""
    return stratified_bootstrap(_normalised(summaries, scores.T), statistic, n_resamples=N_RESAMPLES)
