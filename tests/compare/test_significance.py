from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scikit_posthocs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from statsmodels.stats.multitest import multipletests

from frankenstein.compare.statistics.seeds import are_level
from frankenstein.compare.statistics.significance import (
    critical_difference,
    friedman,
    holm,
    level_groups,
    wilcoxon_pairs,
    win_tie_loss,
)

nan = math.nan
shapes = st.tuples(st.integers(1, 5), st.integers(1, 7))
# A few whole numbers, so that ties are common.
tables = hnp.arrays(float, shapes, elements=st.integers(0, 4))


def noisy(n_optimizers: int, n_problems: int, n_seeds: int) -> np.ndarray:
    """Scores whose leads are about as large as their noise, a tenth of them missing."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(n_optimizers, n_problems, n_seeds)) + 0.5 * np.arange(n_optimizers)[:, None, None]
    scores[rng.random(scores.shape) < 0.1] = nan
    return scores


def test_wins_are_those_of_the_paired_comparison():
    scores, is_higher_better = noisy(5, 4, 10), [True, False, True, True]
    table = win_tie_loss(scores, is_higher_better)
    for i in range(5):
        for j in range(5):
            ties = [are_level(scores[i, k], scores[j, k]) for k in range(4)]
            means = [np.nanmean(scores[i, k] - scores[j, k]) * (1 if is_higher_better[k] else -1) for k in range(4)]
            assert table.ties[i, j] == sum(ties)
            assert table.wins[i, j] == sum(not tie and mean > 0 for tie, mean in zip(ties, means, strict=True))
    assert 0 < table.ties[0, 1] < 4
    np.testing.assert_array_equal(table.wins + table.ties + table.losses, 4)
    np.testing.assert_array_equal(table.losses, table.wins.T)


def test_few_seeds_tie_and_none_are_not_counted():
    scores = np.array([[[5.0, 5, nan], [5, nan, nan]], [[1, 1, 1], [nan, 1, 1]]])
    table = win_tie_loss(scores, [True, True])
    np.testing.assert_array_equal(table.wins, [[0, 0], [0, 0]])
    np.testing.assert_array_equal(table.ties, [[2, 1], [1, 2]])


def test_one_optimizer_ties_with_itself():
    table = win_tie_loss(np.ones((1, 3, 4)), [True] * 3)
    assert [part.tolist() for part in table] == [[[0]], [[3]], [[0]]]


@given(
    hnp.arrays(
        float,
        st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 5)),
        elements=st.sampled_from([0, 1, 2, nan]),
    ),
    st.randoms(use_true_random=False),
)
def test_wins_do_not_see_the_order(scores, random):
    is_higher_better = [True, False][: scores.shape[1]]
    order = random.sample(range(len(scores)), len(scores))
    ours, shuffled = (win_tie_loss(x, is_higher_better, n_resamples=100) for x in (scores, scores[order]))
    for part, moved in zip(ours, shuffled, strict=True):
        np.testing.assert_array_equal(moved, part[np.ix_(order, order)])


@pytest.mark.parametrize(
    "p_values",
    [
        [0.3],
        [0.01, 0.04, 0.03],
        [0.01, 0.01, 0.02, 0.02],
        [1.0, 0.0, 0.5, 0.9, 0.9],
        np.random.default_rng(9).random(30) ** 4,
    ],
)
def test_holm_agrees_with_statsmodels(p_values):
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1], atol=1e-15)


def test_holm_of_nothing_and_nonsense():
    assert holm([]).shape == (0,)
    for p_values in ([nan], [1.5], [-0.1], [[0.1]]):
        with pytest.raises(ValueError, match="from 0 to 1"):
            holm(p_values)


@pytest.mark.parametrize("n_problems", [1, 2, 5, 9, 30])
def test_wilcoxon_agrees_with_scipy(n_problems):
    """Without ties, where scipy is exact up to 50."""
    a, b = np.random.default_rng(1).normal([[0.0], [0.4]], 1.0, (2, n_problems))
    assert wilcoxon_pairs([a, b])[0, 1] == pytest.approx(stats.wilcoxon(a, b).pvalue)


@pytest.mark.parametrize("differences", [[1, 1, -2, 3, 3, 3], [0, 0, 1, 2, 2, -1], [0, 5, 5], [-1, -1, -1, -1, 0, 0]])
@pytest.mark.parametrize("zero_method", ["zsplit", "pratt"])
def test_wilcoxon_with_ties_agrees_with_all_signs(differences, zero_method):
    expected = stats.wilcoxon(differences, zero_method=zero_method, method=stats.PermutationMethod()).pvalue
    assert wilcoxon_pairs([differences, np.zeros(len(differences))])[0, 1] == pytest.approx(expected)


def test_wilcoxon_where_nothing_can_be_said():
    np.testing.assert_array_equal(wilcoxon_pairs([[1, 2, 3], [1, 2, 3]]), np.ones((2, 2)))
    np.testing.assert_array_equal(wilcoxon_pairs([[1], [2]]), np.ones((2, 2)))
    np.testing.assert_array_equal(wilcoxon_pairs([[1, 2]]), [[1]])


def test_a_problem_with_a_gap_is_left_out_for_all():
    scores = np.random.default_rng(2).random((4, 8))
    gap = scores.copy()
    gap[2, 5] = nan
    without = np.delete(scores, 5, axis=1)
    np.testing.assert_array_equal(wilcoxon_pairs(gap), wilcoxon_pairs(without))
    assert friedman(gap) == friedman(without)
    assert critical_difference(gap).smallest_p == critical_difference(without).smallest_p


@pytest.mark.parametrize("function", [wilcoxon_pairs, friedman, critical_difference])
@pytest.mark.parametrize(
    ("scores", "message"),
    [([[nan], [1]], "every optimizer has been run"), ([[math.inf]], "finite"), ([1, 2], "2 dimensions")],
)
def test_tests_refuse(function, scores, message):
    with pytest.raises(ValueError, match=message):
        function(scores)


def test_corrected_pairs_agree_with_scikit_posthocs():
    scores = np.random.default_rng(3).normal(size=(4, 12)) + np.array([[0.0], [0.2], [1.0], [1.5]])
    theirs = scikit_posthocs.posthoc_wilcoxon(list(scores), p_adjust="holm")
    np.testing.assert_allclose(critical_difference(scores).p_values, theirs)


def test_friedman_by_its_formula():
    """Without ties: 12 n / (k (k + 1)) * sum of (mean rank - (k + 1) / 2)^2, chi-square with k - 1."""
    scores = np.random.default_rng(4).normal(size=(5, 9)) + np.arange(5)[:, None] / 3
    ranks = critical_difference(scores).mean_ranks
    chi_square = 12 * 9 / (5 * 6) * ((ranks - 3) ** 2).sum()
    assert friedman(scores) == pytest.approx(stats.chi2.sf(chi_square, 4))


@pytest.mark.parametrize("scores", [[[1, 2, 3], [3, 2, 1]], [[1], [2], [3]], np.ones((4, 5))])
def test_friedman_is_not_defined(scores):
    assert math.isnan(friedman(scores))


@pytest.mark.parametrize(
    ("pairs", "order", "expected"),
    [
        ([], [0, 1, 2], []),
        ([(0, 1)], [0, 1, 2], [(0, 1)]),
        ([(0, 1), (1, 2)], [0, 1, 2], [(0, 1), (1, 2)]),  # overlap: being level does not carry over
        ([(0, 1), (1, 2), (0, 2)], [2, 0, 1], [(2, 0, 1)]),  # the short ones lie in the long one
        ([(0, 2)], [0, 1, 2], []),  # level, but somebody stands between who differs
        ([(0, 1), (1, 2), (0, 2), (1, 3), (2, 3)], [0, 1, 2, 3], [(0, 1, 2), (1, 2, 3)]),
        ([(0, 1), (2, 3)], [0, 1, 2, 3], [(0, 1), (2, 3)]),
        ([(2, 3)], [0, 1, 2, 3], [(2, 3)]),
        ([], [0], []),
    ],
)
def test_groups_by_hand(pairs, order, expected):
    is_level = np.eye(len(order), dtype=bool)
    for i, j in pairs:
        is_level[i, j] = is_level[j, i] = True
    assert level_groups(is_level, order) == expected


def test_critical_difference_tells_two_camps_apart():
    """Two good and two bad optimizers; in each camp the lead changes from problem to problem."""
    flip = np.resize([0.01, -0.01], 12)
    grow = np.arange(12) / 1000
    scores = np.array([flip + grow, 1 + flip, -flip, 1 - flip + grow])
    diagram = critical_difference(scores)
    assert [set(group) for group in diagram.groups] == [{1, 3}, {0, 2}]
    assert diagram.friedman_p == friedman(scores) < 1e-4
    assert diagram.p_values[0, 1] == diagram.smallest_p == pytest.approx(6 * 2**-11)
    np.testing.assert_array_equal(diagram.mean_ranks, [3.5, 1.5, 3.5, 1.5])
    assert critical_difference(scores, alpha=diagram.smallest_p).groups == diagram.groups


def test_equal_mean_ranks_do_not_hang_on_the_listing():
    """The first two tie in mean rank, and only one of them is level with the third: who stands between is defined."""
    scores = np.array([[0, 2, 2, 0, 2, 1], [0, 1, 0, 1, 1, 3], [1, 3, 3, 2, 4, 2]])
    for order in itertools.permutations(range(3)):
        diagram = critical_difference(scores[list(order)], alpha=0.1)
        assert [{order[idx] for idx in group} for group in diagram.groups] == [{1, 2}, {0, 1}]


def test_few_problems_cannot_tell_many_apart():
    """The clearest order there is: with 23 optimizers on nine problems all are one group, and smallest_p says why."""
    diagram = critical_difference(np.arange(23)[:, None] + np.zeros(9))
    assert diagram.groups == [tuple(range(22, -1, -1))]
    assert diagram.smallest_p == 253 / 256 == diagram.p_values[0, 22]


def test_one_optimizer_is_no_group():
    diagram = critical_difference([[0.5, 0.7]])
    assert (diagram.groups, diagram.mean_ranks.tolist(), diagram.smallest_p) == ([], [1.0], 0.0)


@given(tables, st.randoms(use_true_random=False), st.sampled_from([0.05, 0.3, 0.6]))
def test_critical_difference_does_not_see_the_order(scores, random, alpha):
    order = random.sample(range(len(scores)), len(scores))
    ours, shuffled = critical_difference(scores, alpha), critical_difference(scores[order], alpha)
    np.testing.assert_array_equal(shuffled.mean_ranks, ours.mean_ranks[order])
    np.testing.assert_array_equal(shuffled.p_values, ours.p_values[np.ix_(order, order)])
    assert shuffled.friedman_p == pytest.approx(ours.friedman_p, nan_ok=True)
    moved = [{order[idx] for idx in group} for group in shuffled.groups]
    assert moved == [set(group) for group in ours.groups]


@given(tables, st.sampled_from([0.05, 0.3, 0.6]))
def test_groups_are_what_they_say(scores, alpha):
    """Every pair in a group is level, and neighbours that are level share a group."""
    diagram = critical_difference(scores, alpha)
    is_level = diagram.p_values > alpha
    assert all(is_level[np.ix_(group, group)].all() for group in diagram.groups)
    assert all((np.diff(diagram.mean_ranks[list(group)]) >= 0).all() for group in diagram.groups)
    assert not any(set(a) < set(b) for a in diagram.groups for b in diagram.groups)
    ranks = diagram.mean_ranks
    for i, j in zip(*np.nonzero(np.triu(is_level, 1)), strict=True):
        between = (ranks > min(ranks[i], ranks[j])) & (ranks < max(ranks[i], ranks[j]))
        if not between.any() and (ranks == ranks[i]).sum() == (ranks == ranks[j]).sum() == 1:
            assert any({i, j} <= set(group) for group in diagram.groups)
