from __future__ import annotations

import importlib.util
import itertools
import math
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from frankenstein.compare.statistics.across import (
    aggregate,
    iqm,
    normalised,
    performance_profiles,
    performance_ratios,
    probability_best,
    profile_scores,
    stratified_bootstrap,
)
from frankenstein.compare.statistics.seeds import Interval, bootstrap_mean

# The ends of an interval from 2,000 resamples scatter by about 3 % of its width; ten standard errors would be a third.
MONTE_CARLO_TOLERANCE = 0.1
# A sum over 30,001 points differs from the area under a step function by at most half a cell a step.
GRID_TOLERANCE = 1e-4
# 10,000 resamples estimate a frequency to 0.005.
FREQUENCY_TOLERANCE = 0.02

inf, nan = math.inf, math.nan
costs_strategy = hnp.arrays(
    float, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.sampled_from([0, 1, 2, 3.5, 9, inf])
)


@pytest.fixture
def rliable(monkeypatch):
    """The package rliable; of arch it needs only the bootstrap, and the rest of arch does not import with pandas 3."""
    spec = importlib.util.find_spec("arch")
    arch = types.ModuleType("arch")
    arch.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "arch", arch)
    from rliable import library, metrics

    return types.SimpleNamespace(library=library, metrics=metrics)


def test_aggregates_agree_with_rliable(rliable):
    scores = np.random.default_rng(0).normal(0.7, 0.2, (10, 9)) + np.linspace(0, 0.5, 9)
    ours = aggregate(scores)
    np.random.seed(0)  # noqa: NPY002 -- rliable draws from the global generator
    values, intervals = rliable.library.get_interval_estimates(
        {"ours": scores},
        lambda x: np.array([np.median(x), rliable.metrics.aggregate_iqm(x), rliable.metrics.aggregate_mean(x)]),
        reps=2000,
    )
    for interval, value, (low, high) in zip(ours, values["ours"], intervals["ours"].T, strict=True):
        assert interval.value == pytest.approx(value)
        assert [interval.low, interval.high] == pytest.approx([low, high], abs=MONTE_CARLO_TOLERANCE * (high - low))


def test_strata_narrow_the_interval():
    """Problems that differ do not widen it: only seeds are resampled."""
    scores = np.random.default_rng(1).normal(np.arange(4.0), 0.1, (10, 4))
    stratified = stratified_bootstrap(scores, np.mean)
    pooled = bootstrap_mean(scores.ravel())
    assert stratified.high - stratified.low < (pooled.high - pooled.low) / 5
    assert stratified.value == pytest.approx(pooled.value)


def test_one_problem_is_the_plain_bootstrap():
    scores = np.random.default_rng(2).random(8)
    assert stratified_bootstrap(scores[:, None], np.mean) == pytest.approx(bootstrap_mean(scores))


def test_missing_seeds_are_left_out():
    rng = np.random.default_rng(3)
    long, short = rng.random(6), rng.random(3)
    scores = np.column_stack([long, np.append(short, [nan] * 3), [nan] * 6])
    interval = stratified_bootstrap(scores, np.mean)
    assert interval.value == pytest.approx(np.concatenate([long, short]).mean())
    assert interval == stratified_bootstrap(scores[:, :2], np.mean)


def test_a_missing_seed_may_stand_anywhere():
    scores = np.array([[0.1, 0.9], [0.5, 0.2], [0.3, 0.4]])
    gap_first = np.vstack([[nan, 0.7], scores])
    gap_last = np.vstack([scores, [nan, 0.7]])
    gap_last[:, 1] = gap_first[:, 1]
    assert aggregate(gap_first) == aggregate(gap_last)


def test_one_seed_has_no_width():
    assert aggregate([[0.2, 0.9, 0.4]]).median == Interval(0.4, 0.4, 0.4)


def test_aggregates_are_repeatable():
    scores = np.random.default_rng(4).random((5, 3))
    assert aggregate(scores) == aggregate(scores)
    assert aggregate(scores, seed=1) != aggregate(scores)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([[nan]], "at least one score"), ([[1.0, inf]], "finite"), ([1.0, 2.0], r"2 dimensions; got shape \(2,\)")],
)
def test_aggregates_refuse(scores, message):
    with pytest.raises(ValueError, match=message):
        aggregate(scores)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([7], 7), ([1, 2, 9], 4), ([-50, 4, 6, 90], 5), ([1, 1, 1, 1, 9, 9, 9, 9], 5), ([0, 1, 2, 3, 99], 2)],
)
def test_iqm_leaves_out_the_outer_quarters(scores, expected):
    assert iqm(scores) == expected
    assert iqm(np.array(scores)[None], axis=-1) == [expected]


def test_iqm_of_nothing_and_of_the_unknown():
    with pytest.raises(ValueError, match="at least one score"):
        iqm([])
    assert math.isnan(iqm([1.0, 2.0, 3.0, 4.0, nan]))


def test_normalised_in_both_directions():
    np.testing.assert_allclose(normalised([0.1, 0.55, 1.0, nan], 0.1, 1.0), [0.0, 0.5, 1.0, nan])
    np.testing.assert_allclose(normalised([3.0, 2.0, 1.0, 0.0], 3.0, 1.0), [0.0, 0.5, 1.0, 1.5])
    np.testing.assert_allclose(normalised(np.ones((2, 3, 2)), [0.0, 3.0], [2.0, 1.0])[1, 2], [0.5, 1.0])


@pytest.mark.parametrize(("worst", "target"), [(1.0, 1.0), (inf, 1.0), (0.0, nan)])
def test_normalised_refuses(worst, target):
    with pytest.raises(ValueError, match="must be finite and differ"):
        normalised([0.5], worst, target)


def test_ratios_of_ties_zeros_and_misses():
    costs = [[10, 0, 0, inf, inf, 1e300, 0.5], [10, 0, 7, inf, 3, 1e-300, 0.75]]
    expected = [[1, 1, 1, inf, inf, inf, 1], [1, 1, inf, inf, 1, 1, 1.5]]
    np.testing.assert_array_equal(performance_ratios(costs), expected)


def test_a_problem_not_run_by_all_is_left_out():
    np.testing.assert_array_equal(performance_ratios([[1, nan, 4], [2, 1, 2]]), [[1, 2], [2, 1]])


@pytest.mark.parametrize("costs", [[1, 2], [[1], [-1]], [[nan], [1]], [[], []]])
def test_ratios_refuse(costs):
    with pytest.raises(ValueError, match=r"no negative entry|every optimizer has been run"):
        performance_ratios(costs)


def test_profiles_in_closed_form():
    """Optimizer 0 is best on one problem, misses one; nobody solves the last."""
    costs = [[10, inf, 20, inf], [15, 8, 20, inf]]
    profiles = performance_profiles(costs, taus=[0.9, 1.0, 1.49, 1.5, 1e9])
    np.testing.assert_array_equal(profiles.fractions, [[0, 0.5, 0.5, 0.5, 0.5], [0, 0.5, 0.5, 0.75, 0.75]])
    # 1.5 costs a sixth of the way from 1 to 4.
    np.testing.assert_allclose(profile_scores(costs), [2 / 4, (2 + 5 / 6) / 4])
    np.testing.assert_allclose(profile_scores(costs, tau_max=2), [2 / 4, (2 + 1 / 2) / 4])


def test_profiles_where_all_miss_or_one_runs_alone():
    np.testing.assert_array_equal(profile_scores([[inf, inf], [inf, inf]]), [0, 0])
    np.testing.assert_array_equal(profile_scores([[0, 5, 10]]), [1])
    profiles = performance_profiles([[3]])
    assert (profiles.taus[0], profiles.taus[-1], profiles.fractions.min()) == (1.0, 4.0, 1.0)


@pytest.mark.parametrize("tau_max", [1.0, inf, nan])
def test_profile_scores_refuse(tau_max):
    with pytest.raises(ValueError, match="above 1"):
        profile_scores([[1]], tau_max)


@given(costs_strategy, st.randoms(use_true_random=False))
def test_profiles_hold_for_any_costs(costs, random):
    taus = np.linspace(1, 4, 30_001)
    fractions = performance_profiles(costs, taus).fractions
    assert (np.diff(fractions, axis=1) >= 0).all()
    scores = profile_scores(costs)
    np.testing.assert_allclose(scores, np.trapezoid(fractions, taus, axis=1) / 3, atol=GRID_TOLERANCE)
    order = random.sample(range(len(costs)), len(costs))
    np.testing.assert_array_equal(profile_scores(costs[order]), scores[order])
    np.testing.assert_allclose(profile_scores(costs * 7.0), scores)


def test_the_best_everywhere_is_certain():
    scores = np.random.default_rng(5).random((3, 4, 5))
    scores[1] += 1.0
    np.testing.assert_array_equal(probability_best(scores, [True] * 4), [0, 1, 0])
    scores[1] -= 3.0
    np.testing.assert_array_equal(probability_best(scores, [False] * 4), [0, 1, 0])


def test_probability_best_in_closed_form():
    """Two problems, one won by each of two: both drawn with 1/4 each, one of each (a tie, shared) with 1/2."""
    np.testing.assert_allclose(
        probability_best([[[1.0], [0.0]], [[0.0], [1.0]]], [True, True]), 0.5, atol=FREQUENCY_TOLERANCE
    )
    # A third problem for the first: it wins with two or three of three draws, 3 (2/3)^2 (1/3) + (2/3)^3 = 20/27.
    scores = [[[1.0], [0.0], [1.0]], [[0.0], [1.0], [0.0]]]
    assert probability_best(scores, [True] * 3)[0] == pytest.approx(20 / 27, abs=FREQUENCY_TOLERANCE)
    # One problem, three seeds, the first ahead by 1, 1 and -1.5: it wins with two or three draws of the leads.
    scores = [[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.5]]]
    assert probability_best(scores, [True])[0] == pytest.approx(20 / 27, abs=FREQUENCY_TOLERANCE)


def test_probability_best_by_counting_all_draws_of_problems():
    scores = np.random.default_rng(8).permuted(np.arange(12.0).reshape(3, 4), axis=1).T
    ranks = 4 - np.argsort(np.argsort(scores, axis=0), axis=0)
    expected = np.zeros(4)
    for draw in itertools.product(range(3), repeat=3):
        sums = ranks[:, draw].sum(axis=1)
        expected += (sums == sums.min()) / (sums == sums.min()).sum() / 27
    assert len(set(expected)) > 2
    ours = probability_best(scores[:, :, None], [True] * 3)
    np.testing.assert_allclose(ours, expected, atol=FREQUENCY_TOLERANCE)


def test_seeds_are_drawn_for_all_together():
    """A constant lead is certain, however much the seeds differ."""
    scores = np.random.default_rng(6).normal(size=(1, 1, 10)) + np.array([0.001, 0.0])[:, None, None]
    np.testing.assert_array_equal(probability_best(scores, [True]), [1, 0])


def test_ties_share_and_missing_seeds_are_missed_by_all():
    np.testing.assert_array_equal(probability_best(np.ones((4, 2, 3)), [True, False]), [0.25] * 4)
    scores = np.array([[[0.0, 9.0, 0.0], [5.0, nan, nan]], [[1.0, nan, 1.0], [nan, 4.0, 3.0]]])
    np.testing.assert_array_equal(probability_best(scores, [True, True]), [0, 1])
    with pytest.raises(ValueError, match="a seed that every optimizer has run"):
        probability_best(scores[:, 1:], [True])


def test_probability_best_is_repeatable():
    scores = np.random.default_rng(7).random((3, 4, 5))
    ours = probability_best(scores, [True] * 4)
    np.testing.assert_array_equal(probability_best(scores, [True] * 4), ours)
    assert (probability_best(scores, [True] * 4, seed=1) != ours).any()


@given(
    hnp.arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)), elements=st.integers(0, 3)),
    st.randoms(use_true_random=False),
)
def test_probability_best_does_not_see_the_order(scores, random):
    is_higher_better = [random.random() < 0.5 for _ in range(scores.shape[1])]
    ours = probability_best(scores, is_higher_better, n_resamples=200)
    assert ours.sum() == pytest.approx(1.0)
    order = random.sample(range(len(scores)), len(scores))
    np.testing.assert_allclose(probability_best(scores[order], is_higher_better, n_resamples=200), ours[order])
