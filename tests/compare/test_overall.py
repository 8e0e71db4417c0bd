from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from compare.hand_made import DEFAULT, compared, lr_of, run, trial
from compare.made_records import made_records

from frankenstein.compare.report.words import footnotes
from frankenstein.compare.results import arrays
from frankenstein.compare.results.overall import overall
from frankenstein.compare.results.summary import summarise
from frankenstein.compare.results.verdict import verdict

# 10,000 resamples give a frequency to 0.005; three times as much is left to chance.
FREQUENCY_TOLERANCE = 0.015
nan = math.nan


def of(records):
    return overall(summarise(records))


def by_name(found):
    return {standing.optimizer: standing for standing in found.standings}


# Standings ------------------------------------------------------------------------------------------------------------


def test_ranks_by_hand():
    found = of(compared({"a": [[0.2, 0.4], [0.5]], "b": [[0.5, 0.7], [0.5]], "c": [[0.1, 0.1], [0.9]]}))
    assert [(s.optimizer, s.title, s.mean_rank) for s in found.standings] == [
        ("b", "B", (1 + 2.5) / 2),
        ("c", "C", (3 + 1) / 2),
        ("a", "A", (2 + 2.5) / 2),
    ]
    assert found.critical.mean_ranks.tolist() == [1.75, 2.0, 2.25]
    assert (found.n_problems, found.n_seeds, found.n_trials) == (2, 1, 1)
    assert found.left_out == []


def test_lower_may_be_better():
    """Every further made-up optimizer but for its noise is worse, on accuracies and on losses."""
    summaries = summarise(made_records(4, 6))
    found = overall(summaries)
    ranks = [[[row.optimizer for row in s.rows].index(t.optimizer) + 1 for s in summaries] for t in found.standings]
    assert [s.mean_rank for s in found.standings] == [np.mean(r) for r in ranks]
    assert found.standings[-1].optimizer == "optimizer-5"
    assert all(0.0 < standing.score.value < 1.5 for standing in found.standings)


def test_only_optimizers_with_a_tuned_score_everywhere_are_ranked():
    records = compared({"a": [[0.2], [0.2]], "b": [[0.9], []], "c": [[0.3], [0.3]]})
    found = of(records)
    assert [standing.optimizer for standing in found.standings] == ["c", "a"]
    assert found.left_out == ["B"]
    assert of([record for record in records if record["optimizer"] == "b"]) is None
    assert of([]) is None


def test_order_of_records_is_irrelevant():
    records = made_records(3, 4)
    one, other = of(records), of(records[::-1])
    for field in dataclasses.fields(one):
        np.testing.assert_equal(getattr(one, field.name), getattr(other, field.name))


def test_ranks_use_the_seeds_that_all_have_run():
    """Without pairing, the bad seed that only A has run would put it behind."""
    found = of(compared({"a": [[0.9, 0.9, 0.9, 0.0]], "b": [[0.8, 0.8, 0.8, None]]}))
    assert [standing.optimizer for standing in found.standings] == ["a", "b"]
    assert found.n_seeds == 3
    assert by_name(found)["a"].n_runs == 4


def test_without_a_shared_seed_means_are_ranked():
    found = of(compared({"a": [[0.9, 0.1, None, None], [0.5]], "b": [[None, None, 0.6, 0.8], [0.4]]}))
    assert {standing.mean_rank for standing in found.standings} == {1.5}
    assert found.n_seeds == 0


def test_problems_where_it_is_best_or_level():
    low = [0.1, 0.2, 0.3, 0.4]
    found = of(compared({"a": [low, low, low], "b": [low, [s + 0.1 for s in low], [s - 0.1 for s in low]]}))
    assert {name: standing.n_best for name, standing in by_name(found).items()} == {"a": 2, "b": 2}
    assert [standing.optimizer for standing in found.standings] == ["a", "b"]  # ties by title
    assert found.wins.tolist() == [[0, 1], [1, 0]]
    assert found.ties.tolist() == [[3, 1], [1, 3]]
    assert found.losses.tolist() == found.wins.T.tolist()


def test_probability_best_resamples_problems():
    """A is the best on the first two of three problems: resampled, it has the majority in 20 of 27 cases."""
    found = of(compared({"a": [[0.9], [0.9], [0.1]], "b": [[0.5]] * 3}))
    chances = {name: standing.probability_best for name, standing in by_name(found).items()}
    assert chances["a"] == pytest.approx(20 / 27, abs=FREQUENCY_TOLERANCE)
    assert sum(chances.values()) == pytest.approx(1.0)


def test_scores_are_normalised_and_robust():
    """One run of eight that diverged moves the interquartile mean little."""
    records = compared({"a": [[0.5, 0.6, 0.7, 0.0], [0.8, 0.8, 0.8, 0.8]]})
    for record in records:  # the same on another scale, where lower is better
        if record["problem"] == "problem-1":
            config = record["problem_config"] | {"is_higher_better": False, "worst": 5.0, "target": -5.0}
            record |= {"problem_config": config, "score": 5.0 - 10.0 * record["score"]}
    (standing,) = of(records).standings
    assert standing.score.value == pytest.approx((0.6 + 0.7 + 0.8 + 0.8) / 4)
    assert standing.median.value == pytest.approx(0.75)
    assert standing.score.low < standing.score.value < standing.score.high


def test_defaults_are_ranked_among_themselves():
    tuned = {"a": [[0.9], [0.9]], "b": [[0.8], [0.8]], "c": [[0.7], [0.7]]}
    standings = by_name(of(compared(tuned, {"a": [[0.1], [0.2]], "b": [[0.5], [0.3]], "c": [[0.7], []]})))
    assert [standings[name].default_rank for name in "ab"] == [2.0, 1.0]
    assert standings["b"].default_score.value == pytest.approx(0.4)
    assert standings["c"].default_score is None
    assert math.isnan(standings["c"].default_rank)
    assert math.isnan(by_name(of(compared(tuned)))["a"].default_rank)


def test_a_default_of_an_optimizer_without_a_rank_does_not_count():
    records = compared({"a": [[0.9]], "b": [[0.8]]}, {"a": [[0.1]], "b": [[0.2]]})
    records.append(run(0, "c", 0.7, settings=DEFAULT))
    assert [standing.default_rank for standing in of(records).standings] == [2.0, 1.0]


def test_times_to_target():
    times = {"a": [[10, 30, None], [40, 40, 40]], "b": [[60, 60, 60], [None, 20, None]]}
    records = [trial(problem, name, 0, 0.5) for name in times for problem in (0, 1)]
    for name, problems in times.items():
        for problem, steps in enumerate(problems):
            for seed, n in enumerate(steps):
                there = {"steps_to_target": n, "seconds_to_target": n and n / (10 if name == "a" else 60)}
                records.append(run(problem, name, 0.5, seed, **there))
    standings = by_name(of(records))
    assert (standings["a"].n_reached, standings["a"].n_runs) == (5, 6)
    assert (standings["b"].n_reached, standings["b"].n_runs) == (4, 6)
    # medians in steps: A 30 and 40; B 60, twice the best, and a miss
    assert standings["a"].profile_score == pytest.approx(1.0)
    assert standings["b"].profile_score == pytest.approx((4 - 2) / 3 / 2)
    # in seconds: A 3 and 4; B 1, and a miss
    assert standings["a"].time_profile_score == pytest.approx(((4 - 3) / 3 + 1) / 2)
    assert standings["b"].time_profile_score == pytest.approx(1 / 2)
    found = of(records)
    assert found.step_profiles.shape == found.time_profiles.shape == (2, len(found.profile_taus))
    assert found.step_profiles[:, 0].tolist() == [1.0, 0.0]
    assert found.time_profiles[:, 0].tolist() == [0.5, 0.5]


def test_nobody_reached_a_target():
    found = of(compared({"a": [[0.5] * 3] * 2, "b": [[0.4] * 3] * 2}))
    assert [(s.n_reached, s.profile_score, s.time_profile_score) for s in found.standings] == [(0, 0.0, 0.0)] * 2


def test_runs_that_failed_count_as_the_worst():
    """As records have them: the worst score, no curve, no times, no costs."""
    records = compared({"a": [[0.9] * 4], "b": [[0.5] * 4]}, {"a": [[0.4] * 4], "b": [[0.3] * 4]})
    empty = {"step": [], "score": [], "seconds": []}
    for record in records:
        if record["optimizer"] == "a" and record["split"] == "test":
            record |= {"outcome": "failed", "score": 0.0, "curve": empty}
            for name in ("seconds_per_step", "optimizer_seconds_per_step", "state_bytes", "n_params"):
                del record[name]
    first, last = of(records).standings
    assert (first.optimizer, last.optimizer) == ("b", "a")
    assert last.score == last.default_score == (0.0, 0.0, 0.0)
    assert math.isnan(last.step_cost) and math.isnan(last.bytes_per_param)
    assert first.step_cost == 1.0


def test_everything_failed():
    records = [r | {"score": 0.0, "outcome": "failed"} for r in compared({"a": [[0.9]], "b": [[0.5]]})]
    found = of(records)
    assert [standing.mean_rank for standing in found.standings] == [1.5, 1.5]
    assert [standing.lr_width for standing in found.standings] == pytest.approx([nan, nan], nan_ok=True)


def test_costs():
    records = compared({"a": [[0.5]] * 3, "b": [[0.4]] * 3})
    for record in records:
        problem, is_b = int(record["problem"][-1]), record["optimizer"] == "b"
        seconds = {0: (1e-3, 2e-3), 1: (1e-3, 3e-3), 2: (8e-3, 2e-3)}[problem][is_b]
        record |= {"optimizer_seconds_per_step": seconds, "state_bytes": 8000 if is_b else 4000 * (problem + 1)}
    standings = by_name(of(records))
    assert (standings["a"].step_cost, standings["b"].step_cost) == (1.0, 2.0)  # of 1, 1, 4 and of 2, 3, 1
    assert (standings["a"].bytes_per_param, standings["b"].bytes_per_param) == (8.0, 8.0)


# Tuning budgets -------------------------------------------------------------------------------------------------------


def test_ranks_with_fewer_trials():
    """A is steady, B has one trial that beats it: the fewer trials, the less likely B is to have found it."""
    trials = {"a": [[0.6, 0.6, 0.6, 0.6]], "b": [[0.0, 0.9, 0.0, 0.0]]}
    found = of(compared({"a": [[0.6]], "b": [[0.9]]}, trials=trials))
    assert found.budgets.tolist() == [1, 2, 3, 4]
    assert [standing.optimizer for standing in found.standings] == ["b", "a"]
    assert found.budget_ranks.tolist() == [[2, 2, 1, 1], [1, 1, 2, 2]]  # expected best of B: .225, .45, .675, .9
    assert found.half_budget == 2
    assert [(s.half_budget_rank, s.full_budget_rank) for s in found.standings] == [(2.0, 1.0), (1.0, 2.0)]


def test_budgets_that_all_had():
    trials = {"a": [[0.6, 0.7, 0.8], [0.5, 0.5]], "b": [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]}
    found = of(compared({"a": [[0.8], [0.5]], "b": [[0.3], [0.3]]}, trials=trials))
    assert found.n_trials == 2
    assert found.budget_ranks.shape == (2, 2)


def test_a_search_that_learns_is_cut_short_instead():
    """Guards against drawing its late, good trials into a small budget."""
    records = [trial(0, "a", number, score, tuner="optuna") for number, score in enumerate([0.1, 0.3, 0.2, 0.9])]
    (row,) = summarise(records)[0].rows
    assert arrays.best_by_budget(row).tolist() == [-0.1, -0.3, -0.3, -0.9]
    (row,) = summarise([record | {"tuner": "halton"} for record in records])[0].rows
    assert arrays.best_by_budget(row)[0] == pytest.approx(-0.375)


# The width of the valley ----------------------------------------------------------------------------------------------

SPACE = {"lr": [1e-4, 1.0, "log"]}


def width(scores, rates, **changes):
    trials = [
        trial(0, "a", number, score, settings={"lr": rate}, space=SPACE, **changes)
        for number, (score, rate) in enumerate(zip(scores, rates, strict=True))
    ]
    (row,) = summarise(trials)[0].rows
    return arrays.lr_width(row)


EVEN = [10**-3.5, 10**-2.5, 10**-1.5, 10**-0.5]


@pytest.mark.parametrize(
    "scores, rates, decades",
    [
        ([0.1, 0.90, 0.86, 0.2], EVEN, 2.0),  # 0.86 is within 0.05 of 0.90
        ([0.1, 0.90, 0.84, 0.2], EVEN, 1.0),
        ([0.9, 0.90, 0.90, 0.9], EVEN, 4.0),
        ([0.9, 0.1, 0.1, 0.9], EVEN, 2.0),  # two separate valleys
        ([0.0, 0.0, 0.0, 0.0], EVEN, 0.0),  # all diverged: nothing is forgiven
        ([0.03, 0.0, 0.0, 0.0], EVEN, 1.0),  # as good as the best within 0.05, but as bad as can be
        ([0.9, 0.1, 0.9, 0.1], [1e-3, 1e-3, 1e-1, 1e-1], 2.0),  # each rate tried twice, good once
        (
            [0.9, 0.9, 0.9, 0.1],
            [10**-2.1, 10**-2.0, 10**-1.9, 10**-1.1],
            2.5,
        ),  # a search that crowds: no more than the valley
        ([0.9, 0.1], [1e-5, 1e-2], 1.0),  # a default below the interval counts as its edge
        ([0.9], [1e-2], nan),
        ([0.9, 0.9], [1e-2, 1e-2], nan),
    ],
)
def test_width_of_the_valley(scores, rates, decades):
    assert width(scores, rates) == pytest.approx(decades, nan_ok=True)
    if not math.isnan(decades):
        assert width(scores[::-1], rates[::-1]) == pytest.approx(decades)


def test_width_where_lower_is_better():
    config = trial(0, "a", 0, 0.5)["problem_config"]
    config |= {"is_higher_better": False, "worst": 10.0, "target": -10.0}
    assert width([9.0, -8.0, -7.5, 2.0], EVEN, problem_config=config) == pytest.approx(2.0)


# Whole comparisons ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 2, 1), (1, 2, 2, 1), (2, 1, 2, 1), (1, 3, 2, 5), (3, 5, 7, 2)])
def test_every_shape_has_an_answer(shape):
    """Also one problem, one optimizer, one seed."""
    summaries = summarise(made_records(*shape))
    found = overall(summaries)
    n = len(found.standings)
    assert n == shape[1]
    assert found.wins.shape == found.ties.shape == found.losses.shape == found.critical.p_values.shape == (n, n)
    assert found.step_profiles.shape == found.time_profiles.shape == (n, len(found.profile_taus))
    assert found.budget_ranks.shape == (n, len(found.budgets)) == (n, shape[2])
    ranks = [standing.mean_rank for standing in found.standings]
    assert ranks == sorted(ranks) == found.critical.mean_ranks.tolist()
    assert sum(ranks) == pytest.approx(n * (n + 1) / 2)
    assert all(sentence.endswith(".") for sentence in verdict(found, summaries))


# Verdict --------------------------------------------------------------------------------------------------------------


def said(records):
    summaries = summarise(records)
    return verdict(overall(summaries), summaries)


def test_a_clear_outcome():
    n, seeds = 8, [0.0, 0.01, 0.02]
    tuned = {
        "a": [[1.0 - s for s in seeds]] * n,
        "b": [[0.7 - s for s in seeds]] * n,
        "c": [[0.4 + s for s in seeds]] * n,
    }
    default = {"a": [[0.3]] * n, "b": [[0.5]] * n, "c": [[0.1]] * n}
    trials = {"a": [[0.9, 1.0]] * n, "b": [[0.6, 0.7]] * n, "c": [[0.3, 0.4]] * n}
    records = compared(tuned, default, trials)
    for record in records:
        record["optimizer_seconds_per_step"] = {"a": 3e-3, "b": 1e-3, "c": 2e-3}[record["optimizer"]]
    assert said(records) == [
        "After tuning, take A: mean rank 1.00 over 8 problems, best or level with the best on 8.",
        "With problems and seeds drawn again at random, A comes first in 100 %: a clear lead.",
        "Tests across problems (Wilcoxon, Holm) separate A from every other optimizer.",
        "If you cannot tune, take B with its published default: mean rank 1.00 among the defaults.",
        "A takes 3.0 times the step time of the cheapest optimizer and keeps 8 bytes of state for each parameter.",
        "With 1 trial instead of 2, A would still find the best validation scores (mean rank 1.00, 1.00 with all).",
        "This rests on 8 problems, 3 shared seeds and 2 trials for each optimizer: another choice of problems may give "
        "another answer.",
    ]


def test_a_score_that_says_otherwise_is_told():
    """A is ahead by little on two problems, B by much on the third."""
    records = compared({"a": [[0.9] * 3, [0.9] * 3, [0.1] * 3], "b": [[0.85] * 3, [0.85] * 3, [0.95] * 3]})
    lines = said(records)
    assert lines[0].startswith("After tuning, take A")
    (line,) = [line for line in lines if line.startswith("By score")]
    assert "B leads (" in line
    assert "A is number 2 (" in line


def test_unequal_tuning_is_told():
    trials = {"a": [[0.9, 1.0, 0.5]] * 2, "b": [[0.6]] * 2}
    records = compared({"a": [[0.9] * 3] * 2, "b": [[0.8] * 3] * 2}, trials=trials)
    lines = said(records)
    assert any("at least 1 trial for each optimizer" in line for line in lines)
    assert any(line.startswith("The tuning was not equal") for line in lines)
    (note,) = [note for note in footnotes(summarise(records)[0]) if note.startswith("trials")]
    assert note == "trials were not equal: A 3 (halton), B 1 (halton)"


def test_an_unclear_outcome():
    """A leads on two of three problems, B on the third; B costs less, and needs fewer trials."""
    high, low = [0.9, 0.8, 0.7], [0.6, 0.5, 0.4]
    trials = {"a": [[0.0, 0.9]] * 3, "b": [[0.6, 0.6]] * 3}
    records = compared({"a": [high, high, low], "b": [low, low, high]}, trials=trials)
    for record in records:
        record["optimizer_seconds_per_step"] = {"a": 3e-3, "b": 1e-3}[record["optimizer"]]
    records.append(run(0, "c", 0.0, outcome="failed", settings=DEFAULT))
    first, chance, rivals, *others = said(records)
    assert first == "After tuning, take A: mean rank 1.33 over 3 problems, best or level with the best on 2."
    assert chance == "With problems and seeds drawn again at random, A comes first in 74 %: a lead that may not last."
    assert rivals == "Not ruled out, first in at least 5 %: B (26 %)."
    assert others == [
        "No published default has been run on every problem, so there is no advice for who cannot tune.",
        "A takes 3.0 times the step time of the cheapest optimizer and keeps 8 bytes of state for each parameter; of "
        "those not ruled out, B takes least, 1.0 times and 8 bytes.",
        "With 1 trial instead of 2, B would find the best validation scores (mean rank 1.00); with all of them it is A "
        "(1.00).",
        "This rests on 3 problems, 3 shared seeds and 2 trials for each optimizer.",
        "3 problems cannot separate 2 optimizers by a test: the p-value of one that led on all of them would be 0.25 "
        "at best, corrected for the number of pairs. It takes at least 6 problems, so read the ranks as a tendency.",
        "Left out, without a tuned score on every problem: C.",
        "1 run failed and counts with the worst score.",
    ]


def test_the_tests_may_leave_some_in():
    """B leads A on three of eight problems; C is behind on all of the problems."""
    n = 8
    tuned = {
        "a": [[0.9 + 0.01 * i] * 3 for i in range(n)],
        "b": [[0.9 + 0.01 * i + (0.02 if i % 3 == 0 else -0.02)] * 3 for i in range(n)],
        "c": [[0.5] * 3] * n,
    }
    sentences = said(compared(tuned))
    assert "Tests across problems (Wilcoxon, Holm) do not separate A from B." in sentences
    assert said(compared({name: tuned[name] for name in "ab"}))[3] == (
        "Tests across problems (Wilcoxon, Holm) separate A from no other optimizer."
    )


def test_ties_for_the_best():
    tuned = {"a": [[0.5] * 3] * 2, "b": [[0.5] * 3] * 2}
    first, second, *_ = said(compared(tuned))
    assert first == "After tuning, both optimizers have the same mean rank: none can be recommended."
    assert second.startswith("No published default")
    first, second, third, *_ = said(compared(tuned | {"c": [[0.1] * 3] * 2}))
    assert first == "After tuning, A and B share the best mean rank, 1.50 over 2 problems."
    assert second.endswith("A comes first in 50 %: no settled lead.")
    assert third == "Not ruled out, first in at least 5 %: B (50 %)."


def test_few_seeds_and_one_problem_are_said():
    sentences = said(compared({"a": [[0.9, 0.9]], "b": [[0.5, 0.5]]}))
    assert sentences[1] == "With 2 shared seeds, chance alone may have decided that."
    assert "Every optimizer had one trial only: nothing was tuned." in sentences
    assert sentences[-1] == (
        "This rests on 1 problem, 2 shared seeds and 1 trial for each optimizer: one problem says nothing about others."
    )


def test_nothing_to_say():
    assert said([]) == ["No optimizer has a tuned score on every problem yet, so there is no ranking."]
    first, *_ = said(compared({"a": [[0.9]]}))
    assert first == "Only A has a tuned score on every problem: there is nothing to rank."


def test_costs_that_nobody_measured():
    records = [r | {"optimizer_seconds_per_step": None} for r in compared({"a": [[0.9] * 3], "b": [[0.5] * 3]})]
    assert not any("step time" in sentence for sentence in said(records))
    records = [r | {"n_params": None} for r in compared({"a": [[0.9] * 3], "b": [[0.5] * 3]})]
    assert "A takes 1.0 times the step time of the cheapest optimizer." in said(records)


def test_long_lists_are_cut():
    names = "bcdefghijk"
    tuned = {"a": [[0.9] * 3] * 2} | {name: [[0.5] * 3, []] for name in names}
    left_out = next(sentence for sentence in said(compared(tuned)) if sentence.startswith("Left out"))
    assert left_out == "Left out, without a tuned score on every problem: B, C, D, E, F and 5 more."


def test_settings_of_trials_differ():
    """The helper's own promise: no trial has the default."""
    assert DEFAULT["lr"] not in [lr_of(number) for number in range(5)]
