from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from frankenstein.compare.statistics import Interval, are_level, bootstrap_mean, mean_ranks, median_with_misses

# 10,000 resamples estimate a percentile of a mean of 200 to about one per cent of its width.
BOOTSTRAP_TOLERANCE = 0.02


def test_bootstrap_agrees_with_the_normal_interval():
    scores = np.random.default_rng(0).normal(3.0, 2.0, 200)
    interval = bootstrap_mean(scores)
    half = stats.norm.ppf(0.975) * scores.std() / math.sqrt(200)
    assert interval.value == pytest.approx(scores.mean())
    assert interval.low == pytest.approx(scores.mean() - half, abs=BOOTSTRAP_TOLERANCE * 2 * half * 2)
    assert interval.high == pytest.approx(scores.mean() + half, abs=BOOTSTRAP_TOLERANCE * 2 * half * 2)


@pytest.mark.parametrize(("n_seeds", "low", "high"), [(10, 0.86, 0.94), (40, 0.92, 0.98)])
def test_bootstrap_covers(n_seeds, low, high):
    """The docstring's claim: about 95 % of the intervals hold the mean of a normal sample, about 90 % at ten seeds."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        interval = bootstrap_mean(rng.normal(1.0, 1.0, n_seeds), n_resamples=1000)
        hits += interval.low <= 1.0 <= interval.high
    assert low <= hits / 400 <= high


def test_bootstrap_is_repeatable():
    scores = np.random.default_rng(2).random(9)
    assert bootstrap_mean(scores) == bootstrap_mean(scores)
    assert bootstrap_mean(scores, seed=1) != bootstrap_mean(scores)


@pytest.mark.parametrize("scores", [[0.7], [0.7, 0.7, 0.7]])
def test_bootstrap_of_no_spread_has_no_width(scores):
    assert bootstrap_mean(scores) == Interval(pytest.approx(0.7), pytest.approx(0.7), pytest.approx(0.7))


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf]])
def test_bootstrap_refuses(scores):
    with pytest.raises(ValueError, match="at least one score, all finite"):
        bootstrap_mean(scores)


def test_level_compares_seed_by_seed():
    """A small but constant lead counts, however much the seeds differ; the same scores, shuffled, are no lead."""
    rng = np.random.default_rng(3)
    scores = rng.normal(0.9, 0.05, 10)
    assert not are_level(scores, scores - 0.001)
    assert not are_level(scores - 0.001, scores)
    assert are_level(scores, rng.permutation(scores) - 0.001)
    assert are_level(scores, scores)


def test_level_agrees_with_the_paired_t_test():
    rng = np.random.default_rng(4)
    agree = 0
    for _ in range(200):
        a, b = rng.normal(0, 1, 30), rng.normal(0.3, 1, 30)
        agree += are_level(a, b) == (stats.ttest_rel(a, b).pvalue > 0.05)
    assert agree > 180  # they differ only near the limit


@pytest.mark.parametrize("n_seeds", [0, 1, 2])
def test_few_seeds_tell_nothing(n_seeds):
    assert are_level([0.9] * n_seeds, [0.1] * n_seeds)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [([30, 10, 20], 20), ([30, 10], 20), ([None, 10, 20], 20), ([None, None, 20], math.inf), ([None], math.inf)],
)
def test_median_counts_misses_as_never(steps, expected):
    assert median_with_misses(steps) == expected


def test_median_of_nothing():
    assert math.isnan(median_with_misses([]))


def test_ranks_share_ties_and_know_the_direction():
    scores = [[0.9, 5.0], [0.9, 1.0], [0.1, 3.0]]
    np.testing.assert_allclose(mean_ranks(scores, [True, False]), [(1.5 + 3) / 2, (1.5 + 1) / 2, (3 + 2) / 2])
    order = [2, 0, 1]
    shuffled = mean_ranks([scores[i] for i in order], [True, False])
    np.testing.assert_allclose(shuffled, mean_ranks(scores, [True, False])[order])
