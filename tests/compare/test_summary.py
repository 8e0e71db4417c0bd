from __future__ import annotations

import math
from statistics import fmean

import pytest
from compare.hand_made import DEFAULT, compared, lr_of, run, trial
from compare.made_records import made_records

from frankenstein.compare.results.summary import summarise


@pytest.fixture(scope="module")
def records():
    return made_records()


def test_rows():
    records = compared({"a": [[0.7, 0.9], [0.2]], "b": [[0.3], [0.8]]}, {"a": [[0.1], [0.1]]})
    first, second = summarise(records)
    assert (first.name, second.name) == ("problem-0", "problem-1")
    assert first.title == "Problem 0"
    assert [row.optimizer for row in first.rows] == ["a", "b"]  # the best tuned mean first
    assert [row.optimizer for row in second.rows] == ["b", "a"]
    row = first.row("a")
    assert row.title == "A"
    assert [r["score"] for r in row.trials] == [0.5]
    assert [r["score"] for r in row.tuned.records] == [0.7, 0.9]
    assert row.tuned.settings == {"lr": lr_of(0)}
    assert row.tuned.score == pytest.approx((0.8, 0.7, 0.9))
    assert row.default.settings == DEFAULT
    assert first.row("b").default is None
    assert first.row("absent") is None


def test_lower_may_be_better(records):
    for summary in summarise(records):
        means = [row.tuned.score.value for row in summary.rows]
        assert means == sorted(means, reverse=summary.config["is_higher_better"])
        for row in summary.rows:
            assert row.tuned.score.value == pytest.approx(fmean(r["score"] for r in row.tuned.records))
            assert row.tuned.score.low < row.tuned.score.value < row.tuned.score.high


def test_trials_are_in_order(records):
    for summary in summarise(records[::-1]):
        for row in summary.rows:
            assert [r["trial"] for r in row.trials] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_rows_without_a_tuned_score_come_last():
    records = [*compared({"a": [[0.7]], "b": [[0.3]]}), trial(0, "c", 0, 0.99)]
    (summary,) = summarise(records)
    assert [row.optimizer for row in summary.rows] == ["a", "b", "c"]
    assert summary.rows[-1].tuned is summary.rows[-1].default is None
    assert summary.rows[-1].edges == []
    assert summary.best == ["a", "b"]


def test_order_of_records_is_irrelevant(records):
    for one, other in zip(summarise(records), summarise(records[::-1]), strict=True):
        assert [(r.optimizer, r.trials, r.tuned, r.default) for r in one.rows] == [
            (r.optimizer, r.trials, r.tuned, r.default) for r in other.rows
        ]


@pytest.mark.parametrize("which, key", [("problem_config", "n_steps"), ("optimizer_config", "options")])
def test_only_the_newest_configuration_counts(records, which, key):
    """Guards against pooling runs of another length or option as if they were more seeds."""
    old = [record | {which: record[which] | {key: {"x": 1}}, "score": 0.0} for record in records]
    for one, other in zip(summarise(old + records), summarise(records), strict=True):
        assert [(row.trials, row.tuned, row.default) for row in one.rows] == [
            (row.trials, row.tuned, row.default) for row in other.rows
        ]


def test_only_the_newest_tuner_counts():
    old = [trial(0, "a", number, 0.9, tuner="another") for number in (0, 1)]
    (summary,) = summarise(old + compared({"a": [[0.7]]}))
    assert [r["score"] for r in summary.rows[0].trials] == [0.5]


def test_best_or_level_compares_seed_by_seed():
    """A copy of the best optimizer is level with it; one that is a little worse on every seed is not."""
    scores = [0.5, 0.6, 0.7, 0.8, 0.9]
    (summary,) = summarise(compared({"a": [scores], "b": [scores], "c": [[s - 1e-3 for s in scores]]}))
    assert summary.best == ["a", "b"]


def test_with_too_few_seeds_everything_is_level():
    (summary,) = summarise(compared({"a": [[0.9, 0.9]], "b": [[0.1, 0.1]], "c": [[0.2, 0.2]]}))
    assert summary.best == ["a", "c", "b"]


def test_steps_to_target_with_misses():
    for n_there, steps in ((5, 100), (3, 100), (2, math.inf)):
        (summary,) = summarise(compared({"a": [[1.0] * n_there + [0.5] * (5 - n_there)]}))
        tuned = summary.rows[0].tuned
        assert tuned.n_reached == n_there
        assert tuned.steps_to_target == steps
        assert tuned.seconds_to_target == steps / 100


def test_costs_go_without_runs_that_have_none():
    runs = [run(0, "a", 0.5, seed, state_bytes=8 * seed) for seed in range(3)]
    failed = run(0, "a", 0.0, 3, outcome="failed")
    del failed["state_bytes"]
    tuned = summarise([trial(0, "a", 0, 0.5), *runs, failed])[0].rows[0].tuned
    assert tuned.cost("state_bytes") == 8
    assert math.isnan(tuned.cost("absent"))


def test_outcomes_are_counted():
    outcomes = ("finished", "failed", "diverged", "failed")
    runs = [run(0, "a", 0.5, seed, outcome=outcome) for seed, outcome in enumerate(outcomes)]
    trials = [trial(0, "a", 0, 0.5), trial(0, "a", 1, 0.0, outcome="failed")]
    row = summarise([*trials, *runs, run(0, "a", 0.5, 9, outcome="failed", settings=DEFAULT)])[0].rows[0]
    assert {outcome: row.tuned.count(outcome) for outcome in outcomes} == {"finished": 1, "failed": 2, "diverged": 1}
    assert row.n_failed == 4
    assert len(row.records) == 7


def test_a_default_that_tuning_chose_counts_once():
    runs = [run(0, "a", 0.5, seed, settings=DEFAULT, outcome="failed") for seed in range(2)]
    (summary,) = summarise([trial(0, "a", 0, 0.5, settings=DEFAULT), *runs])
    (row,) = summary.rows
    assert row.tuned == row.default
    assert len(summary.records) == len(row.records) == 3
    assert row.n_failed == 2


@pytest.mark.parametrize(
    "settings, edges",
    [
        ({"lr": 1e-2, "betas[0]": 0.97}, []),
        ({"lr": 1.5e-4, "betas[0]": 0.97}, ["lr"]),
        ({"lr": 0.7, "betas[0]": 0.71}, ["lr", "betas[0]"]),
        ({"lr": 0.5, "betas[0]": 0.9969}, ["betas[0]"]),
        ({"lr": 0.5, "betas[0]": 0.99, "eps": 1e-8}, []),  # eps was not searched
        ({"lr": 7.0, "betas[0]": 0.97}, ["lr"]),  # a default beyond the interval
    ],
)
def test_settings_at_the_edge_of_their_search(settings, edges):
    space = {"lr": [1e-4, 1.0, "log"], "betas[0]": [0.7, 0.997, "decay"]}
    records = [trial(0, "a", 0, 0.5, settings=settings, space=space), run(0, "a", 0.5, settings=settings)]
    (row,) = summarise(records)[0].rows
    assert row.edges == edges
    assert row.is_at_edge == ("lr" in edges)


def test_nothing_to_summarise():
    assert summarise([]) == []
