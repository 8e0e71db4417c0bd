"""The standings in a few plain sentences: which optimizer to use, and how sure that is."""

from __future__ import annotations

import math

from frankenstein.compare.report.words import percent
from frankenstein.compare.results.overall import Overall, Standing
from frankenstein.compare.results.summary import ProblemSummary
from frankenstein.compare.statistics.seeds import MIN_SEEDS

CLEAR = 0.95  # first in this share of resamples: a clear lead
RIVAL = 0.05  # first in this share of resamples: not ruled out
ALPHA = 0.05  # level of the tests across problems
N_NAMES = 6  # longer lists of names are cut


def verdict(found: Overall | None, summaries: list[ProblemSummary]) -> list[str]:
    """Return the sentences for the first screen of a report, the recommendation first; the same input, the same text.

    Args:
        found: What `overall` returns.
        summaries: What it was made from.
    """
    if found is None:
        return ["No optimizer has a tuned score on every problem yet, so there is no ranking."]
    if len(found.standings) == 1:
        sentences = [f"Only {found.standings[0].title} has a tuned score on every problem: there is nothing to rank."]
    else:
        rivals = _rivals(found)
        sentences = [*_tuned(found, rivals), *_by_score(found), _untuned(found)]
        if not _is_shared(found):
            sentences += [*_cost(found, rivals), _half_budget(found)]
    return [*sentences, *_basis(found), *_gaps(found, summaries)]


def _rivals(found: Overall) -> list[Standing]:
    """Return those that resampling does not rule out as the best, the leader not among them."""
    return [standing for standing in found.standings[1:] if standing.probability_best >= RIVAL]


def _is_shared(found: Overall) -> bool:
    """Say whether several share the best mean rank: then none of them is the leader."""
    return found.standings[1].mean_rank == found.standings[0].mean_rank


def _by_score(found: Overall) -> list[str]:
    """Say so where the mean score has another leader than the mean rank: ranks do not see by how much one wins."""
    leader = found.standings[0]
    ahead = sorted(found.standings, key=lambda standing: -standing.score.value)
    place = ahead.index(leader) + 1
    if place == 1 or _is_shared(found):
        return []
    return [
        f"By score, which counts how far beyond or below its target a run ends, {ahead[0].title} leads "
        f"({ahead[0].score.value:.2f}) and {leader.title} is number {place} ({leader.score.value:.2f}; 0 is a "
        f"problem's worst, 1 its target): rank rewards being ahead often, score being ahead by much."
    ]


def _tuned(found: Overall, rivals: list[Standing]) -> list[str]:
    leader = found.standings[0]
    level = [standing for standing in found.standings if standing.mean_rank == leader.mean_rank]
    n_problems = _count(found.n_problems, "problem")
    if len(level) == len(found.standings):
        who = "both" if len(level) == 2 else f"all {len(level)}"
        return [f"After tuning, {who} optimizers have the same mean rank: none can be recommended."]
    if len(level) > 1:
        first = f"After tuning, {_listed(level)} share the best mean rank, {leader.mean_rank:.2f} over {n_problems}."
    else:
        first = (
            f"After tuning, take {leader.title}: mean rank {leader.mean_rank:.2f} over {n_problems}, "
            f"best or level with the best on {leader.n_best}."
        )
    if found.n_seeds < MIN_SEEDS:
        return [first, f"With {_count(found.n_seeds, 'shared seed')}, chance alone may have decided that."]
    share = leader.probability_best
    sureness = "a clear lead" if share >= CLEAR else "a lead that may not last" if share > 0.5 else "no settled lead"
    sentences = [
        first,
        f"With problems and seeds drawn again at random, {leader.title} comes first in {percent(share)}: {sureness}.",
    ]
    if rivals:
        chances = [f"{standing.title} ({percent(standing.probability_best)})" for standing in rivals]
        sentences.append(f"Not ruled out, first in at least {percent(RIVAL)}: {_cut(chances)}.")
    return [*sentences, *_tests(found)]


def _tests(found: Overall) -> list[str]:
    """Say whom the tests across problems separate from the leader, where there are problems enough for any."""
    if found.critical.smallest_p > ALPHA:
        return []
    leader, others = found.standings[0], found.standings[1:]
    alike = [standing for i, standing in enumerate(others, 1) if found.critical.p_values[0, i] > ALPHA]
    if not alike:
        return [f"Tests across problems (Wilcoxon, Holm) separate {leader.title} from every other optimizer."]
    if len(alike) == len(others):
        return [f"Tests across problems (Wilcoxon, Holm) separate {leader.title} from no other optimizer."]
    return [f"Tests across problems (Wilcoxon, Holm) do not separate {leader.title} from {_listed(alike)}."]


def _untuned(found: Overall) -> str:
    ranked = [standing for standing in found.standings if math.isfinite(standing.default_rank)]
    if not ranked:
        return "No published default has been run on every problem, so there is no advice for who cannot tune."
    best = min(ranked, key=lambda standing: (standing.default_rank, standing.mean_rank, standing.title))
    sentence = (
        f"If you cannot tune, take {best.title} with its published default: mean rank {best.default_rank:.2f} "
        f"among the defaults"
    )
    scored = [standing for standing in ranked if standing.default_score]
    top = max(
        scored, key=lambda standing: standing.default_score.value if standing.default_score else 0.0, default=best
    )
    if top is not best and top.default_score and best.default_score:
        sentence += f" (by score, {top.title}: {top.default_score.value:.2f}, against {best.default_score.value:.2f})"
    return f"{sentence}."


def _cost(found: Overall, rivals: list[Standing]) -> list[str]:
    """Say what the leader costs, and which is the cheapest of it and those not ruled out."""
    leader = found.standings[0]
    known = [standing for standing in (leader, *rivals) if math.isfinite(standing.step_cost)]
    if leader not in known:
        return []
    cheapest = min(known, key=lambda standing: standing.step_cost)
    sentence = f"{leader.title} takes {leader.step_cost:.1f} times the step time of the cheapest optimizer"
    sentence += _state(leader, " and keeps {:.3g} bytes of state for each parameter")
    if cheapest is not leader:
        sentence += f"; of those not ruled out, {cheapest.title} takes least, {cheapest.step_cost:.1f} times"
        sentence += _state(cheapest, " and {:.3g} bytes")
    elif rivals:
        sentence += "; none of those not ruled out takes less"
    return [f"{sentence}."]


def _state(standing: Standing, text: str) -> str:
    return text.format(standing.bytes_per_param) if math.isfinite(standing.bytes_per_param) else ""


def _half_budget(found: Overall) -> str:
    if found.n_trials == 1:
        return "Every optimizer had one trial only: nothing was tuned."
    half, full = (
        min(found.standings, key=lambda standing: (getattr(standing, name), standing.mean_rank, standing.title))
        for name in ("half_budget_rank", "full_budget_rank")
    )
    n_half = _count(found.half_budget, "trial")
    if half is full:
        return (
            f"With {n_half} instead of {found.n_trials}, {half.title} would still find the best validation scores "
            f"(mean rank {half.half_budget_rank:.2f}, {half.full_budget_rank:.2f} with all)."
        )
    return (
        f"With {n_half} instead of {found.n_trials}, {half.title} would find the best validation scores (mean rank "
        f"{half.half_budget_rank:.2f}); with all of them it is {full.title} ({full.full_budget_rank:.2f})."
    )


def _basis(found: Overall) -> list[str]:
    """Say how much the answer rests on, and what so few problems cannot show."""
    n, n_optimizers = found.n_problems, len(found.standings)
    basis = (
        f"This rests on {_count(n, 'problem')}, {_count(found.n_seeds, 'shared seed')} and "
        f"{'at least ' * (not found.is_budget_equal)}{_count(found.n_trials, 'trial')} for each optimizer"
    )
    if n == 1:
        return [f"{basis}: one problem says nothing about others."]
    if found.critical.smallest_p <= ALPHA or n_optimizers == 1:
        return [f"{basis}: another choice of problems may give another answer."]
    n_pairs = n_optimizers * (n_optimizers - 1) // 2
    n_needed = 1 + math.ceil(math.log2(n_pairs / ALPHA))
    return [
        f"{basis}.",
        f"{n} problems cannot separate {n_optimizers} optimizers by a test: the p-value of one that led on all of them "
        f"would be {found.critical.smallest_p:.2g} at best, corrected for the number of pairs. It takes at least "
        f"{n_needed} problems, so read the ranks as a tendency.",
    ]


def _gaps(found: Overall, summaries: list[ProblemSummary]) -> list[str]:
    sentences = []
    if not found.is_budget_equal:
        sentences.append(
            "The tuning was not equal (see the notes of each problem): whoever had more trials is favoured."
        )
    if found.left_out:
        sentences.append(f"Left out, without a tuned score on every problem: {_cut(found.left_out)}.")
    n_failed = sum(row.n_failed for summary in summaries for row in summary.rows)
    if n_failed:
        sentences.append(f"{_count(n_failed, 'run')} failed and count{'s' * (n_failed == 1)} with the worst score.")
    return sentences


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _listed(standings: list[Standing]) -> str:
    return _cut([standing.title for standing in standings])


def _cut(names: list[str]) -> str:
    """Return the names in a phrase; of many, the first and how many more there are."""
    shown = names if len(names) <= N_NAMES else [*names[: N_NAMES - 1], f"{len(names) - N_NAMES + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
