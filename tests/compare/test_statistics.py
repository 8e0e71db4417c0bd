from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from frankenstein.compare.statistics.seeds import (
    Interval,
    are_level,
    bootstrap_mean,
    expected_best_curve,
    fraction_reached,
    leads,
    mean_ranks,
    median_with_misses,
    restricted_mean,
)

inf, nan = math.inf, math.nan

# 10,000 resamples estimate a percentile of a mean of 200 to about one per cent of its width.
BOOTSTRAP_TOLERANCE = 0.02
# A weighted sum and a mean of the same resample differ by rounding only.
ROUNDING_TOLERANCE = 1e-12


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


@pytest.mark.parametrize(("n_seeds", "confidence"), [(2, 0.95), (10, 0.95), (31, 0.5)])
def test_bootstrap_is_that_of_scipy(n_seeds, confidence):
    scores = np.random.default_rng(5).normal(size=n_seeds)
    expected = stats.bootstrap(
        (scores,),
        np.mean,
        confidence_level=confidence,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    ours = bootstrap_mean(scores, confidence, n_resamples=2000, seed=7)
    assert ours[1:] == pytest.approx(tuple(expected), abs=ROUNDING_TOLERANCE)


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


@given(st.lists(st.sampled_from([10, 20, 30, 40, None]), min_size=1, max_size=9).filter(lambda x: len(x) % 2))
def test_median_is_that_of_kaplan_and_meier(steps):
    """The first time at which at most half are not there yet; with an even number, numpy goes between two."""
    times = [50 if n is None else n for n in steps]
    data = stats.CensoredData.right_censored(times, [n is None for n in steps])
    survival = stats.ecdf(data).sf
    there = survival.quantiles[survival.probabilities <= 0.5]
    median = there[0] if there.size and there[0] < 50 else inf
    assert median_with_misses(steps) == median


def test_ranks_share_ties_and_know_the_direction():
    scores = [[0.9, 5.0], [0.9, 1.0], [0.1, 3.0]]
    np.testing.assert_allclose(mean_ranks(scores, [True, False]), [(1.5 + 3) / 2, (1.5 + 1) / 2, (3 + 2) / 2])
    order = [2, 0, 1]
    shuffled = mean_ranks([scores[i] for i in order], [True, False])
    np.testing.assert_allclose(shuffled, mean_ranks(scores, [True, False])[order])


def test_leads_are_those_of_single_pairs():
    rng = np.random.default_rng(6)
    scores, others = rng.normal(size=(2, 40, 3, 10))
    scores += 0.7
    scores[rng.random(scores.shape) < 0.2] = nan
    ahead = leads(scores, others)
    assert ahead.shape == (40, 3) and set(ahead.ravel()) == {0, 1}
    np.testing.assert_array_equal(leads(others, scores), -ahead)
    for pair in np.ndindex(ahead.shape):
        both = ~np.isnan(scores[pair])
        interval = bootstrap_mean((scores[pair] - others[pair])[both])
        assert ahead[pair] == (interval.low > 0) - (interval.high < 0)
        assert are_level(scores[pair], others[pair]) == (ahead[pair] == 0)


def test_leads_do_not_depend_on_their_company():
    """More rows than are resampled at a time."""
    scores = np.random.default_rng(7).normal(0.6, 1.0, (600, 10))
    ahead = leads(scores, np.zeros_like(scores))
    assert 0 < ahead.sum() < 600
    np.testing.assert_array_equal(leads(scores[400:], np.zeros((200, 10))), ahead[400:])


def test_a_bound_of_nought_is_level():
    """The lower bound is three losses of 2 and two leads of 3: 0, which rounding must not make a lead."""
    unit = np.linspace(0.1, 1.0, 91)[:, None]
    scores = np.array([-2, 3, 3, 3, 3]) * unit
    assert not leads(scores, np.zeros_like(scores)).any()
    assert leads(scores + 1e-9, np.zeros_like(scores)).all()


def test_a_seed_not_run_is_no_score():
    scores = [0.9, 0.8, nan, 0.7]
    assert not are_level(scores, [0.8, 0.7, 5.0, 0.6])
    assert are_level(scores, [0.8, nan, 0.7, 0.6])
    assert leads([scores], [[0.8, nan, nan, 0.6]]).tolist() == [0]


@pytest.mark.parametrize(
    ("scores", "others", "message"), [([1.0, inf], [0.0, 1.0], "finite"), ([1.0], [1.0, 2.0], "one shape")]
)
def test_leads_refuse(scores, others, message):
    with pytest.raises(ValueError, match=message):
        leads(scores, others)


@pytest.mark.parametrize(
    ("times", "value"), [([1, 2], 1.0), ([None, inf], 0.0), ([5, None, nan], 0.5), (iter([5.0, 6.0, None, None]), 0.5)]
)
def test_fraction_reached(times, value):
    assert fraction_reached(times).value == value


def test_fraction_by_the_formula_of_wilson():
    """Seven of ten, written out; and the interval of ten of ten is not a point."""
    z, p, n = stats.norm.ppf(0.95), 0.7, 10
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    ours = fraction_reached([1] * 7 + [None] * 3, confidence=0.9)
    assert ours == pytest.approx((0.7, (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)))
    assert fraction_reached([1] * 10).low == pytest.approx(1 / (1 + stats.norm.ppf(0.975) ** 2 / 10))


def test_restricted_mean_counts_misses_as_the_budget():
    interval = restricted_mean([30, None, 130, nan], budget=100)
    assert interval == bootstrap_mean([30, 100, 100])
    assert restricted_mean([None], budget=100) == Interval(100, 100, 100)


def test_restricted_mean_is_the_area_under_kaplan_and_meier():
    steps = [10, 35, 35, 60, None, None, 80]
    data = stats.CensoredData.right_censored([100 if n is None else n for n in steps], [n is None for n in steps])
    grid = np.arange(100) + 0.5
    area = stats.ecdf(data).sf.evaluate(grid).sum()
    assert restricted_mean(steps, budget=100).value == pytest.approx(area)


@pytest.mark.parametrize("budget", [0, -1, inf, nan])
def test_restricted_mean_refuses(budget):
    with pytest.raises(ValueError, match="finite budget above 0"):
        restricted_mean([1], budget)


@pytest.mark.parametrize("times", [[], [nan]])
def test_times_of_no_run(times):
    with pytest.raises(ValueError, match="at least one run"):
        fraction_reached(times)
    with pytest.raises(ValueError, match="at least one run"):
        restricted_mean(times, budget=1)


trials = st.lists(st.one_of(st.integers(0, 3), st.floats(-100, 100)), min_size=1, max_size=7)


@given(trials, st.booleans())
def test_expected_best_is_the_mean_over_all_choices(scores, is_higher_better):
    best = max if is_higher_better else min
    expected = [
        np.mean([best(choice) for choice in itertools.combinations(scores, n)]) for n in range(1, len(scores) + 1)
    ]
    ours = expected_best_curve(scores, is_higher_better)
    np.testing.assert_allclose(ours, expected, atol=ROUNDING_TOLERANCE)
    np.testing.assert_allclose(expected_best_curve(scores[::-1], is_higher_better), ours, atol=ROUNDING_TOLERANCE)


def test_expected_best_of_many_trials():
    """Of the numbers 1 to N, the expected largest of n is n (N + 1) / (n + 1); factorials of 3,000 would overflow."""
    n = np.arange(1, 3001)
    np.testing.assert_allclose(expected_best_curve(n), n * 3001 / (n + 1))


def test_repeats_would_waste_trials():
    """Drawn with replacement (Dodge et al. 2019) the best of n is lower, at n = N too."""
    scores = np.sort(np.random.default_rng(8).random(10))
    n, share = np.arange(1, 11)[:, None], np.arange(11) / 10
    with_replacement = np.diff(share**n, axis=1) @ scores
    ours = expected_best_curve(scores)
    assert ours[0] == pytest.approx(with_replacement[0])
    assert (ours[1:] > with_replacement[1:]).all()
    assert ours[-1] == scores.max()


def test_a_trial_not_made_is_left_out():
    np.testing.assert_array_equal(expected_best_curve([2.0, nan, 1.0]), [1.5, 2.0])
    for scores, message in (([nan], "at least one trial"), ([inf, 1.0], "finite")):
        with pytest.raises(ValueError, match=message):
            expected_best_curve(scores)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6), st.randoms(use_true_random=False)
)
def test_ranks_do_not_see_the_order(scores, random):
    order = random.sample(range(len(scores)), len(scores))
    ranks = mean_ranks(scores, [True, False])
    np.testing.assert_array_equal(mean_ranks([scores[i] for i in order], [True, False]), ranks[order])
