"""Rows of summaries -> arrays (n_optimizers, n_problems, ...) for the statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from frankenstein.compare.comparison import losses
from frankenstein.compare.results.summary import ProblemSummary, Row, Setting
from frankenstein.compare.statistics.across import normalised
from frankenstein.compare.statistics.seeds import expected_best_curve
from frankenstein.compare.tuning import Optuna

Rows = list[list[Row]]  # rows[i][j] is optimizer i on problem j
Settings = Sequence[Sequence[Setting]]  # likewise

# A trial does nearly as well as the best one if this much of the way from the worst score to the target is between.
TOLERANCE = 0.05


def complete(summaries: list[ProblemSummary], kind: str = "tuned") -> list[str]:
    """Return the optimizers that have a "tuned" or a "default" score on every problem."""
    names = dict.fromkeys(row.optimizer for summary in summaries for row in summary.rows)
    rows = {name: [summary.row(name) for summary in summaries] for name in names}
    return [name for name, found in rows.items() if all(getattr(row, kind, None) for row in found)]


def rows_of(summaries: list[ProblemSummary], optimizers: list[str]) -> Rows:
    """Return the optimizers' rows; each has one on every problem."""
    table = [[summary.row(name) for summary in summaries] for name in optimizers]
    return [[row for row in rows if row] for rows in table]


def settings_of(rows: Rows, kind: str = "tuned") -> list[list[Setting]]:
    """Return the "tuned" or "default" setting of each row."""
    return [[getattr(row, kind) for row in found] for found in rows]


def each(settings: Settings, value: Callable[[Setting], float]) -> np.ndarray:
    """Return a number for each setting, shape (n_optimizers, n_problems)."""
    return np.array([[value(setting) for setting in found] for found in settings], dtype=float)


def scores(settings: Settings) -> np.ndarray:
    """Return the scores (n_optimizers, n_problems, n_seeds); NaN is a seed not run."""
    seeds = sorted({record["seed"] for found in settings for setting in found for record in setting.records})
    place = {seed: i for i, seed in enumerate(seeds)}
    values = np.full((len(settings), len(settings[0]), len(seeds)), np.nan)
    for i, found in enumerate(settings):
        for j, setting in enumerate(found):
            for record in setting.records:
                values[i, j, place[record["seed"]]] = record["score"]
    return values


def n_shared(values: np.ndarray) -> np.ndarray:
    """Return the number of seeds that all optimizers have run, shape (n_problems,), of scores as `scores` returns."""
    counts: np.ndarray = (~np.isnan(values).any(axis=0)).sum(axis=-1)
    return counts


def shared(values: np.ndarray) -> np.ndarray:
    """Return the scores with only those seeds of each problem that all optimizers have run; the others are NaN.

    Where no seed is shared, the mean of each optimizer's own seeds stands as the score of one.
    """
    paired = np.full(values.shape, np.nan)
    is_common = ~np.isnan(values).any(axis=0)
    for j, common in enumerate(is_common):
        if common.any():
            paired[:, j, common] = values[:, j, common]
        else:
            paired[:, j, 0] = np.nanmean(values[:, j], axis=-1)
    return paired


def best_by_budget(row: Row) -> np.ndarray:
    """Return the validation loss (lower is better) that 1, 2, ... trials would have found, shape (n_trials,).

    It is the expected best of so many of the trials (`expected_best_curve`); where each trial followed from the ones
    before it, they cannot be drawn in another order, and it is the best of the first so many.
    """
    found = list(losses(row.trials).values())
    if row.trials[0]["tuner"] == Optuna.name:
        return np.minimum.accumulate(found)
    return expected_best_curve(found, is_higher_better=False)


def lr_width(row: Row) -> float:
    """Return how many decades of learning rate do nearly as well as the best trial.

    Every learning rate tried stands for the part of the searched interval that is nearer to it, in decades, than to any
    other. The width is the sum of the parts whose trial is nearly as good as the best: at most `TOLERANCE` behind, as a
    normalised score, and better than the problem's worst score. Nothing is fitted, so it means the same for evenly
    spread trials and for a search that crowds around its best; a second setting that is searched too is averaged over,
    so an optimizer that needs it right is narrower. With n trials it is known to about 4 / n decades.

    Returns:
        From 0 (no trial beat the worst score) to the decades searched; NaN unless two learning rates have been tried.
    """
    by_loss = losses(row.trials)
    first = {record["trial"]: record for record in reversed(row.trials)}
    config = row.trials[0]["problem_config"]
    sign = -1.0 if config["is_higher_better"] else 1.0
    values = normalised([sign * loss for loss in by_loss.values()], config["worst"], config["target"])
    is_good = (values >= values.max() - TOLERANCE) & (values > 0.0)
    low, high = row.trials[0]["space"]["lr"][:2]
    rates = np.log10(np.clip([first[trial]["settings"]["lr"] for trial in by_loss], low, high))
    places, idx = np.unique(rates, return_inverse=True)
    if len(places) < 2:
        return float("nan")
    edges = np.concatenate([[np.log10(low)], (places[1:] + places[:-1]) / 2.0, [np.log10(high)]])
    good_share = np.bincount(idx, weights=is_good) / np.bincount(idx)
    return float(good_share @ np.diff(edges))


def relative_to_least(costs: np.ndarray) -> np.ndarray:
    """Return costs (n_optimizers, n_problems) over the least on each problem; NaN where that is 0 or not known."""
    known = np.where(costs > 0.0, costs, np.inf)
    least = known.min(axis=0)
    ratios: np.ndarray = np.where(np.isfinite(known), known, np.nan) / least
    return ratios


def median_known(values: np.ndarray) -> float:
    """Return the median of those that are not NaN; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else float("nan")
