"""Which optimizers differ: wins, corrected tests, critical differences. Conventions: see `statistics.py`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from frankenstein.compare.statistics.seeds import as_scores, leads, mean_ranks


class WinTieLoss(NamedTuple):
    """Numbers of problems, each (n_optimizers, n_optimizers): row i against column j."""

    wins: np.ndarray
    ties: np.ndarray
    losses: np.ndarray


class CriticalDifference(NamedTuple):
    """What a critical-difference diagram shows.

    Attributes:
        mean_ranks: Shape (n_optimizers,); 1 is best.
        friedman_p: That all optimizers are alike; NaN where `friedman` is.
        p_values: Shape (n_optimizers, n_optimizers), of each pair, corrected by Holm; 1 on the diagonal.
        groups: Optimizers that cannot be told apart, as indices in rank order: the bars of the diagram.
        smallest_p: The smallest p-value that any pair could have had. Above the level of the test, the one group that
            holds everybody speaks of the number of problems, not of the optimizers. 0 if there is no pair.
    """

    mean_ranks: np.ndarray
    friedman_p: float
    p_values: np.ndarray
    groups: list[tuple[int, ...]]
    smallest_p: float


def win_tie_loss(
    scores: ArrayLike,
    is_higher_better: ArrayLike,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> WinTieLoss:
    """Count, for every pair of optimizers, the problems where one leads, and those where they are level.

    Level is what `are_level` says: the paired bootstrap over seeds cannot tell them apart.

    Args:
        scores: Shape (n_optimizers, n_problems, n_seeds), in the problems' own units, seeds in the same order; never
            modified. NaN is a seed not run: the pair goes without it. With fewer than `MIN_SEEDS` in common they tie;
            with none, the problem is not counted for that pair.
        is_higher_better: Shape (n_problems,).
        confidence: Of each interval by itself; nothing is corrected for the number of pairs.
        n_resamples: Of the seeds.
        seed: Of the resamples.

    Raises:
        ValueError: `scores` has another shape or an infinite entry.

    Examples:
        >>> win_tie_loss([[[0.9, 0.8, 0.7]], [[0.8, 0.7, 0.6]], [[0.8, 0.9, 0.7]]], [True]).wins
        array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    """
    values = np.where(np.asarray(is_higher_better), 1.0, -1.0)[:, None] * as_scores(scores, n_dims=3)
    ours, theirs = np.triu_indices(len(values), k=1)
    ahead = leads(values[ours], values[theirs], confidence, n_resamples, seed)
    wins = np.zeros((len(values), len(values)), dtype=int)
    wins[ours, theirs] = (ahead == 1).sum(axis=1)
    wins[theirs, ours] = (ahead == -1).sum(axis=1)
    is_run = ~np.isnan(values)
    compared = (is_run[:, None] & is_run[None]).any(axis=-1).sum(axis=-1)
    return WinTieLoss(wins, compared - wins - wins.T, wins.T.copy())


def holm(p_values: ArrayLike) -> np.ndarray:
    """Return p-values corrected for their number: those below a level keep its chance of any false alarm.

    Args:
        p_values: Shape (n_tests,); never modified. May be empty.

    Returns:
        Same shape and order; none above 1, equal ones stay equal.

    Raises:
        ValueError: One is not a number from 0 to 1.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])
    """
    values = np.asarray(p_values, dtype=float)
    if values.ndim != 1 or not ((values >= 0.0) & (values <= 1.0)).all():
        raise ValueError(f"p-values must be a list of numbers from 0 to 1; got {values.tolist()}")
    order = np.argsort(values)
    corrected = np.empty(len(values))
    corrected[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return np.minimum(corrected, 1.0)


def wilcoxon_pairs(scores: ArrayLike) -> np.ndarray:
    """Return the p-value of Wilcoxon's signed-rank test for every pair of optimizers, two-sided and not corrected.

    The problems are the sample: it asks whether one optimizer would lead on other problems like these. It ranks
    differences between problems, so scores must be comparable (`normalised`). The p-value is exact, with ties too. It
    cannot be below 2^(1 - n_problems): five problems or fewer never show a difference at 0.05.

    Args:
        scores: Shape (n_optimizers, n_problems), higher is better on all or lower on all; never modified. A problem
            with a NaN is left out for all optimizers.

    Returns:
        Shape (n_optimizers, n_optimizers), symmetric; 1 on the diagonal, for optimizers that tie everywhere, and for a
        single problem.

    Raises:
        ValueError: `scores` has another shape or an infinite entry, or every problem has a NaN.

    Source: Wilcoxon 1945; Pratt 1959 for differences of 0; Demsar 2006, Statistical Comparisons of Classifiers over
    Multiple Data Sets.

    Examples:
        >>> wilcoxon_pairs([[0.9, 0.8, 0.7, 0.6], [0.8, 0.6, 0.4, 0.2]])
        array([[1.   , 0.125], [0.125, 1.   ]])
    """
    values = _complete(scores)
    p_values = np.ones((len(values), len(values)))
    for i, j in zip(*np.triu_indices(len(values), k=1), strict=True):
        p_values[i, j] = p_values[j, i] = _signed_rank_p(values[i] - values[j])
    return p_values


def _signed_rank_p(differences: np.ndarray) -> float:
    """Return the exact two-sided p-value of the signed ranks: every choice of signs is as likely as any other.

    A difference of 0 has a rank but no sign. Split between the sides or left out of both ("zsplit" and "pratt" of
    `scipy.stats.wilcoxon`), the p-value given the zeros is the same. That function is exact with ties as well, but
    walks through all 2^n signs: minutes for 253 pairs on 13 problems.
    """
    from scipy.stats import rankdata

    ranks = np.rint(2.0 * rankdata(np.abs(differences))).astype(int)  # twice the rank, so that shared ones are whole
    chances = np.ones(1)  # of each sum of the positive ranks
    for rank in ranks[differences != 0.0]:
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2.0
    smaller = min(ranks[differences > 0.0].sum(), ranks[differences < 0.0].sum())
    return min(1.0, 2.0 * float(chances[: smaller + 1].sum()))


def friedman(scores: ArrayLike) -> float:
    """Return the p-value of Friedman's test that all optimizers rank alike.

    Args:
        scores: Shape (n_optimizers, n_problems), higher is better on all or lower on all; never modified. A problem
            with a NaN is left out for all optimizers.

    Returns:
        The p-value by the chi-square approximation, a rough one below ten problems. NaN for fewer than three optimizers
        or two problems, or if all tie on every problem.

    Raises:
        ValueError: `scores` has another shape or an infinite entry, or every problem has a NaN.

    Source: Friedman 1937; Demsar 2006.

    Examples:
        >>> round(friedman([[3, 3, 3, 3], [2, 2, 2, 2], [1, 1, 1, 1]]), 4)
        0.0183
    """
    from scipy.stats import friedmanchisquare

    values = _complete(scores)
    if len(values) < 3 or values.shape[1] < 2 or (np.ptp(values, axis=0) == 0.0).all():
        return float("nan")
    return float(friedmanchisquare(*values).pvalue)


def level_groups(is_level: ArrayLike, order: ArrayLike) -> list[tuple[int, ...]]:
    """Return the longest runs of neighbours in `order` in which every pair is level: the bars of a diagram.

    Groups may overlap, since being level does not carry over. One of a single optimizer is no group.

    Args:
        is_level: Shape (n_optimizers, n_optimizers), symmetric.
        order: Indices of the optimizers from best to worst.

    Returns:
        The groups from best to worst, each a tuple of indices in that order.

    Source: Benavoli et al. 2016, Should We Really Use Post-Hoc Tests Based on Mean-Ranks?

    Examples:
        >>> level_groups([[1, 1, 0], [1, 1, 1], [0, 1, 1]], order=[0, 1, 2])
        [(0, 1), (1, 2)]
    """
    places = [int(idx) for idx in np.asarray(order)]
    level = np.asarray(is_level, dtype=bool)[np.ix_(places, places)]
    groups, stop = [], 0
    for start in range(len(places)):
        previous, stop = stop, max(stop, start + 1)
        while stop < len(places) and level[start:stop, stop].all():
            stop += 1
        if stop > previous and stop - start > 1:
            groups.append(tuple(places[start:stop]))
    return groups


def critical_difference(scores: ArrayLike, alpha: float = 0.05) -> CriticalDifference:
    """Return the mean ranks of the optimizers and the groups that cannot be told apart.

    Pairs are compared by Wilcoxon's test with Holm's correction, not by their mean ranks, so that whether two differ
    depends on the others through the correction only (Benavoli et al. 2016).

    Args:
        scores: Shape (n_optimizers, n_problems), normalised, higher is better; never modified. A problem with a NaN is
            left out for all optimizers.
        alpha: A pair differs if its corrected p-value is at most this.

    Raises:
        ValueError: `scores` has another shape or an infinite entry, or every problem has a NaN.

    Source: Demsar 2006; Benavoli et al. 2016.

    Examples:
        >>> diagram = critical_difference([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4], [0.3, 0.1, 0.2]])
        >>> diagram.mean_ranks, diagram.groups, diagram.smallest_p
        (array([1., 2., 3.]), [(0, 1, 2)], 0.75)
    """
    from scipy.stats import rankdata

    values = _complete(scores)
    pairs = np.triu_indices(len(values), k=1)
    p_values = np.ones((len(values), len(values)))
    p_values[pairs] = p_values.T[pairs] = holm(wilcoxon_pairs(values)[pairs])
    # Equal mean ranks are ordered by the ranks themselves: the groups do not depend on how the optimizers are listed.
    ranks = rankdata(-values, axis=0)
    order = np.lexsort((*ranks.T, ranks.mean(axis=1)))
    smallest_p = min(1.0, len(pairs[0]) * 2.0 ** (1 - values.shape[1]))
    return CriticalDifference(
        mean_ranks(values, True), friedman(values), p_values, level_groups(p_values > alpha, order), smallest_p
    )


def _complete(scores: ArrayLike) -> np.ndarray:
    """Return scores (n_optimizers, n_problems) on the problems that every optimizer has been run on."""
    values = as_scores(scores, n_dims=2)
    values = values[:, ~np.isnan(values).any(axis=0)]
    if values.size == 0:
        raise ValueError("a comparison across problems needs a problem that every optimizer has been run on")
    return values
