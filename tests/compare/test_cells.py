from __future__ import annotations

import dataclasses
import math
import time
from contextlib import suppress

import pytest
import torch

from frankenstein.compare.catalog import catalog
from frankenstein.compare.cells import Cell, Job
from frankenstein.compare.optimizers import Factory, OptimizerSpec
from frankenstein.compare.problems.problem import Budget, Measurements, Problem
from frankenstein.compare.store.records import appending, read

PROBLEMS, OPTIMIZERS = catalog().problems, catalog().optimizers


@pytest.fixture
def short(monkeypatch):
    """The same problems, forty steps long."""
    for name, problem in PROBLEMS.items():
        monkeypatch.setitem(PROBLEMS, name, dataclasses.replace(problem, n_steps=40, n_evals=8))


def run_cell(problem, optimizer, lr, seed, split="test", **options):
    return Job(Cell(problem, optimizer, {"lr": lr}, seed, split), **options).run()


def scores(record):
    return dict(zip(record["curve"]["step"], record["curve"]["score"], strict=True))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_cell_is_repeatable(short, problem):
    first, second = (run_cell(problem, "frankenstein", 1e-2, 0) for _ in range(2))
    assert first["outcome"] == "finished"
    for column in ("step", "score", "train_loss"):
        assert first["curve"][column] == second["curve"][column]
    assert first["curve"]["step"] == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    assert first["curve"]["train_loss"][0] is None
    assert first["score"] == first["curve"]["score"][-1]
    assert first["n_steps_done"] == 40
    assert 0 < first["optimizer_seconds_per_step"] < first["seconds_per_step"]
    seconds = first["curve"]["seconds"]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(40 * first["seconds_per_step"], rel=1e-3)  # both are rounded


def test_optimizers_meet_the_same_start(short):
    starts = {name: run_cell("rosenbrock", name, 1e-3, 5)["curve"]["score"][0] for name in OPTIMIZERS}
    assert len(set(starts.values())) == 1
    assert run_cell("rosenbrock", "sgd", 1e-3, 6)["curve"]["score"][0] != starts["sgd"]


def test_it_is_plain_training(short):
    """The score of a cell is that of a training loop written out by hand."""
    task = PROBLEMS["digits-mlp"].run.start(2, Budget(40, 8, "validation"))
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(task.batch()).backward()
        optimizer.step()
    expected = task.score()
    assert run_cell("digits-mlp", "adamw", 3e-3, 2, "validation")["score"] == pytest.approx(expected, rel=1e-5)


def test_divergence_is_an_outcome():
    record = run_cell("rosenbrock", "sgd", 3.0, 0)
    assert record["outcome"] == "diverged"
    assert record["score"] == PROBLEMS["rosenbrock"].worst
    assert record["n_steps_done"] < 500
    assert record["steps_to_target"] is record["seconds_to_target"] is None
    assert record["reason"].startswith("the loss was not finite at step ")
    assert all(math.isfinite(score) for score in record["curve"]["score"])


def test_failure_is_an_outcome(monkeypatch):
    spec = OptimizerSpec("broken", "Broken", "torch.optim:SGD", {"lr": 1e-3}, options={"momentum": -1.0})
    monkeypatch.setitem(OPTIMIZERS, "broken", spec)
    record = run_cell("beale", "broken", 1e-3, 0)
    assert record["outcome"] == "failed"
    assert record["reason"] == "ValueError: Invalid momentum value: -1.0"
    assert record["score"] == PROBLEMS["beale"].worst


def custom(monkeypatch, run):
    """Add a problem whose `run` is written by hand."""
    problem = dataclasses.replace(PROBLEMS["beale"], name="custom", run=run, n_steps=10, n_evals=2)
    monkeypatch.setitem(PROBLEMS, "custom", problem)


def test_a_problem_needs_no_torch(monkeypatch):
    """`run` may do anything: what it gives is kept, further columns too."""

    def run(make_optimizer, seed, budget):
        assert isinstance(make_optimizer, Factory)
        assert make_optimizer.settings == {"lr": 0.5}
        assert (budget.n_steps, budget.eval_steps, budget.device) == (10, {0, 5, 10}, "cpu")
        curve = {"step": [0, 5, 10], "score": [2.0, -5.0, 99.0], "seconds": [0.0, 1.0, 2.5], "gap": [None, 1.0, 2.0]}
        return Measurements(curve, n_steps_done=10)

    custom(monkeypatch, run)
    record = run_cell("custom", "sgd", 0.5, 3)
    assert record["outcome"] == "finished", record["reason"]
    assert record["curve"]["score"] == [2.0, -5.0, 3.0]  # bounded by the worst score
    assert record["curve"]["gap"] == [None, 1.0, 2.0]
    assert (record["score"], record["steps_to_target"], record["seconds_to_target"]) == (3.0, 5, 1.0)
    assert "seconds_per_step" not in record


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (3.0, "TypeError: run returned float; it must return Measurements"),
        (Measurements({}, 10), "ValueError: the curve that run returned lacks score, seconds, step"),
        (Measurements({"step": [0, 5, 10], "score": [1.0], "seconds": [0.0]}, 10), "columns of unequal length"),
        (Measurements({"step": [0], "score": [1.0], "seconds": [0.0]}, 0), "run scored after steps [0]; it must after"),
        (Measurements({"step": [0, 5, 10], "score": [1.0, None, 2.0], "seconds": [0.0] * 3}, 10), "has None among"),
    ],
)
def test_half_a_run_is_no_result(monkeypatch, result, reason):
    custom(monkeypatch, lambda make_optimizer, seed, budget: result)
    record = run_cell("custom", "sgd", 0.1, 0)
    assert record["outcome"] == "failed"
    assert reason in record["reason"]


def test_a_failure_with_gaps_in_its_curve_can_be_read_again(monkeypatch, tmp_path):
    """A damaged line in the middle would make the whole folder unreadable."""

    def run(make_optimizer, seed, budget):
        budget.watch(0, {"loss": 1.0})
        budget.watch(5, {"score": 0.5, "seconds": 0.1})
        raise RuntimeError("no reason")

    custom(monkeypatch, run)
    with appending(tmp_path, pytest.fail) as (_, append):
        append(run_cell("custom", "sgd", 0.1, 0))
        append(run_cell("custom", "sgd", 0.1, 1))
    first, _ = read(tmp_path, pytest.fail)
    assert (first["reason"], first["curve"]["step"]) == ("RuntimeError: no reason", [])


def test_a_last_score_that_is_not_finite_is_divergence(monkeypatch):
    curve = {"step": [0, 5, 10], "score": [1.0, 0.5, math.nan], "seconds": [0.0, 0.1, 0.2]}
    custom(monkeypatch, lambda make_optimizer, seed, budget: Measurements(curve, 10))
    record = run_cell("custom", "sgd", 0.1, 0)
    assert (record["outcome"], record["reason"]) == ("diverged", "the last score was not finite")
    assert record["score"] == record["curve"]["score"][-1] == PROBLEMS["beale"].worst


def test_a_timeout_keeps_what_came_before_it(monkeypatch):
    def run(make_optimizer, seed, budget):
        budget.watch(0, {"score": 1.0, "seconds": 0.0})
        budget.watch(5, {"score": 0.5, "seconds": 0.1, "extra": 7.0})
        while True:
            with suppress(Exception):  # no such clause in a user's code may swallow it
                time.sleep(0.01)

    custom(monkeypatch, run)
    record = run_cell("custom", "sgd", 0.1, 0, timeout=0.2)
    assert (record["outcome"], record["reason"]) == ("failed", "timed out after 0.2 s")
    assert record["score"] == PROBLEMS["beale"].worst
    assert record["curve"] == {"step": [0, 5], "score": [1.0, 0.5], "seconds": [0.0, 0.1], "extra": [None, 7.0]}
    assert record["wall_seconds"] >= 0.2


def test_out_of_memory_is_named(monkeypatch):
    def run(make_optimizer, seed, budget):
        return torch.empty(2**60)

    custom(monkeypatch, run)
    assert run_cell("custom", "sgd", 0.1, 0)["reason"].startswith("out of memory: ")


def test_target_counts_the_first_step_that_reaches_it(short):
    record = run_cell("digits-mlp", "adam", 1e-2, 0)
    expected = next((step for step, score in scores(record).items() if score >= 0.96), None)
    assert record["steps_to_target"] == expected
    assert run_cell("digits-mlp", "sgd", 3e-4, 0)["steps_to_target"] is None


CELL = Cell("digits-cnn", "adam", {"lr": 1e-3}, 0, "test")


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"lr": 2e-3}},
        {"seed": 1},
        {"split": "validation"},
        {"problem": "digits-mlp"},
        {"optimizer": "adamw"},
        {"trial": 0},
        {"tuner": "halton"},
    ],
)
def test_key_sees_every_field(change):
    assert dataclasses.replace(CELL).key == CELL.key
    assert dataclasses.replace(CELL, **change).key != CELL.key


@pytest.mark.parametrize("change", [{"n_steps": 100}, {"version": 2}, {"target": 0.5}, {"lr_scale": 2.0}])
def test_key_sees_the_problems_configuration(monkeypatch, change):
    monkeypatch.setitem(PROBLEMS, "digits-cnn", dataclasses.replace(PROBLEMS["digits-cnn"], **change))
    assert dataclasses.replace(CELL).key != CELL.key


def test_key_sees_the_optimizers_options_and_not_its_title(monkeypatch):
    adam = OPTIMIZERS["adam"]
    monkeypatch.setitem(OPTIMIZERS, "adam", dataclasses.replace(adam, title="Adam, as usual"))
    assert dataclasses.replace(CELL).key == CELL.key
    monkeypatch.setitem(OPTIMIZERS, "adam", dataclasses.replace(adam, options={"amsgrad": True}))
    assert dataclasses.replace(CELL).key != CELL.key


def test_problems_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROBLEMS["beale"].target = 0.0
    assert isinstance(PROBLEMS["beale"], Problem)
