from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from frankenstein.compare import engine
from frankenstein.compare.cells import Cell, run_cell
from frankenstein.compare.engine import TUNING_SEEDS, Comparison
from frankenstein.compare.optimizers import OPTIMIZERS, OptimizerSpec
from frankenstein.compare.problems import PROBLEMS
from frankenstein.compare.records import read
from frankenstein.compare.summary import best_lr


@pytest.fixture
def short(monkeypatch):
    """The same problems, forty steps long."""
    for name, problem in PROBLEMS.items():
        monkeypatch.setitem(PROBLEMS, name, dataclasses.replace(problem, n_steps=40, n_evals=8))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_cell_is_repeatable(short, problem):
    first, second = (run_cell(Cell(problem, "frankenstein", 1e-2, 0, "test")) for _ in range(2))
    assert first["outcome"] == "finished"
    assert (first["score"], first["curve"]) == (second["score"], second["curve"])
    assert [step for step, _ in first["curve"]] == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    assert first["score"] == first["curve"][-1][1]
    assert first["n_steps_done"] == 40
    assert 0 < first["optimizer_seconds_per_step"] < first["seconds_per_step"]


def test_optimizers_meet_the_same_start(short):
    starts = {name: run_cell(Cell("rosenbrock", name, 1e-3, 5, "test"))["curve"][0] for name in OPTIMIZERS}
    assert len({tuple(start) for start in starts.values()}) == 1
    other = run_cell(Cell("rosenbrock", "sgd", 1e-3, 6, "test"))["curve"][0]
    assert other != starts["sgd"]


def test_it_is_plain_training(short):
    """The curve of a cell is that of a training loop written out by hand."""
    task = PROBLEMS["digits-mlp"].start(2, "validation")
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for _ in range(40):
        task.step(optimizer)
    expected = task.score()
    assert run_cell(Cell("digits-mlp", "adamw", 3e-3, 2, "validation"))["score"] == pytest.approx(expected, rel=1e-5)


def test_divergence_is_an_outcome():
    record = run_cell(Cell("rosenbrock", "sgd", 3.0, 0, "test"))
    assert record["outcome"] == "diverged"
    assert record["score"] == PROBLEMS["rosenbrock"].worst
    assert record["n_steps_done"] < 500
    assert record["steps_to_target"] is None
    assert all(math.isfinite(score) for _, score in record["curve"])


def test_failure_is_an_outcome(monkeypatch):
    monkeypatch.setitem(
        OPTIMIZERS, "broken", OptimizerSpec("broken", "Broken", "torch.optim:SGD", {"lr": 1e-3}, {"momentum": -1.0})
    )
    record = run_cell(Cell("beale", "broken", 1e-3, 0, "test"))
    assert record["outcome"] == "failed"
    assert record["reason"] == "ValueError: Invalid momentum value: -1.0"
    assert record["score"] == PROBLEMS["beale"].worst


def test_target_counts_the_first_step_that_reaches_it(short):
    record = run_cell(Cell("digits-mlp", "adam", 1e-2, 0, "test"))
    scores = dict(record["curve"])
    expected = next((step for step, score in scores.items() if score >= 0.96), None)
    assert record["steps_to_target"] == expected
    hard = run_cell(Cell("digits-mlp", "sgd", 3e-4, 0, "test"))
    assert hard["steps_to_target"] is None


@pytest.mark.parametrize(
    "change", [{"lr": 2e-3}, {"seed": 1}, {"split": "validation"}, {"problem": "digits-mlp"}, {"optimizer": "adamw"}]
)
def test_key_sees_every_field(change):
    cell = Cell("digits-cnn", "adam", 1e-3, 0, "test")
    assert cell.key() == Cell("digits-cnn", "adam", 1e-3, 0, "test").key()
    assert dataclasses.replace(cell, **change).key() != cell.key()


@pytest.mark.parametrize("change", [{"n_steps": 10}, {"version": 2}, {"target": 0.5}, {"lr_grid": (1.0,)}])
def test_key_sees_the_problems_configuration(monkeypatch, change):
    cell = Cell("digits-cnn", "adam", 1e-3, 0, "test")
    before = cell.key()
    monkeypatch.setitem(PROBLEMS, "digits-cnn", dataclasses.replace(PROBLEMS["digits-cnn"], **change))
    assert cell.key() != before


def test_key_sees_the_optimizers_options_and_not_its_title(monkeypatch):
    cell, adam = Cell("digits-cnn", "adam", 1e-3, 0, "test"), OPTIMIZERS["adam"]
    before = cell.key()
    monkeypatch.setitem(OPTIMIZERS, "adam", dataclasses.replace(adam, title="Adam, as usual"))
    assert cell.key() == before
    monkeypatch.setitem(OPTIMIZERS, "adam", dataclasses.replace(adam, options={"amsgrad": True}))
    assert cell.key() != before


def test_budgets_are_equal_and_test_seeds_fresh():
    comparison = Comparison(tuple(PROBLEMS), tuple(OPTIMIZERS), n_seeds=4)
    for problem in PROBLEMS:
        budgets = {tuple((cell.lr, cell.seed) for cell in comparison.tuning(problem, name)) for name in OPTIMIZERS}
        assert len(budgets) == 1
    tuning, final = comparison.tuning("beale", "rmsprop"), comparison.final("beale", "rmsprop", 0.1)
    assert {cell.split for cell in tuning} == {"validation"}
    assert {cell.seed for cell in tuning} == set(TUNING_SEEDS)
    assert max(range(engine.MAX_SEEDS)) < min(TUNING_SEEDS)
    assert {cell.split for cell in final} == {"test"}
    assert not {cell.seed for cell in tuning} & {cell.seed for cell in final}
    assert [(cell.lr, cell.seed) for cell in final] == [(lr, seed) for lr in (0.1, 1e-2) for seed in range(4)]
    assert len(comparison.final("beale", "rmsprop", 1e-2)) == 4  # tuning chose the default: nothing runs twice


def entry(lr, score, *, higher=True, middle=0.0, seed=0):
    curve = [[0, 0.0], [1, middle], [2, score]]
    return {
        "settings": {"lr": lr},
        "score": score,
        "seed": seed,
        "curve": curve,
        "problem_config": {"is_higher_better": higher},
    }


def test_best_learning_rate():
    assert best_lr([entry(1, 0.5), entry(2, 0.9), entry(3, 0.7)]) == 2
    assert best_lr([entry(1, 0.5, higher=False), entry(2, 0.9, higher=False)]) == 1
    tie = [entry(1, 0.9, middle=0.2), entry(2, 0.9, middle=0.8)]
    assert best_lr(tie) == best_lr(tie[::-1]) == 2
    assert best_lr([entry(1, 0.5, higher=False, middle=0.2), entry(2, 0.5, higher=False, middle=0.8)]) == 1


def test_best_learning_rate_is_the_mean_over_tuning_seeds():
    lucky = [entry(1, 0.99, seed=0), entry(1, 0.1, seed=1)]
    steady = [entry(2, 0.8, seed=0), entry(2, 0.8, seed=1)]
    assert best_lr(lucky + steady) == 2


@pytest.fixture
def in_this_process(monkeypatch):
    """A thread in place of worker processes, and five steps a run."""
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import contextmanager

    @contextmanager
    def thread(n_workers, command):
        with ThreadPoolExecutor(1) as pool:
            yield lambda cell: pool.submit(engine.run_cell, cell, command)

    monkeypatch.setattr(engine, "local_workers", thread)
    monkeypatch.setitem(PROBLEMS, "beale", dataclasses.replace(PROBLEMS["beale"], n_steps=5, n_evals=1))


def test_run_goes_on_and_retries_what_failed(tmp_path, monkeypatch, in_this_process):
    """The runs that fail in the first go score worst, so tuning does not choose their learning rate."""
    n_run, fails = 0, True

    def counting(cell, command):
        nonlocal n_run
        n_run += 1
        record = run_cell(cell, command)
        return record | {"outcome": "failed", "reason": "x", "score": 3.0} if fails and cell.lr == 3.0 else record

    monkeypatch.setattr(engine, "run_cell", counting)
    counts = []

    def go(n_seeds):
        comparison = Comparison(("beale",), ("sgd", "adam"), n_seeds)
        engine.run(comparison, tmp_path, 1, lambda _, done, everything: counts.append((done, everything)), pytest.fail)
        return n_run

    n_first = go(1)
    n_failed = sum(record["outcome"] == "failed" for record in read(tmp_path, pytest.fail))
    assert n_failed >= 2 * 3
    n_settings = n_first - 2 * 27  # 4, or fewer where tuning chooses the default
    assert n_first == len(read(tmp_path, pytest.fail))
    assert counts[0] == (0, 2 * (27 + 2))
    assert counts[-1] == (n_first, n_first)
    fails = False
    assert go(1) == n_first + n_failed  # once more
    assert go(1) == n_first + n_failed
    assert go(3) == n_first + n_failed + 2 * n_settings  # more seeds: only the new ones
    assert "failed" not in {record["outcome"] for record in read(tmp_path, pytest.fail)}


def test_a_worker_that_dies_fails_its_own_cell_only(tmp_path, monkeypatch, in_this_process):
    """The error of a lost process, as the pool reports it, becomes the record's reason."""

    class Lost(RuntimeError):
        exitcode = -9

    def dying(cell, command):
        if cell.lr == 0.1 and cell.seed == TUNING_SEEDS[1]:
            raise Lost("Abnormal termination")
        return run_cell(cell, command)

    monkeypatch.setattr(engine, "run_cell", dying)
    engine.run(Comparison(("beale",), ("sgd",), 1), tmp_path, 1, lambda *_: None, pytest.fail)
    records = read(tmp_path, pytest.fail)
    failed = [record for record in records if record["outcome"] == "failed"]
    assert 28 <= len(records) <= 29
    assert [record["reason"] for record in failed] == ["the worker process was ended by SIGKILL (out of memory?)"]
    assert failed[0]["score"] == PROBLEMS["beale"].worst


def test_command_repeats_the_comparison():
    from frankenstein.cli import _parser

    comparison = Comparison(("beale", "stairs"), ("sgd", "adam"), 3)
    options = _parser().parse_args(comparison.command().split()[1:])
    assert (tuple(options.problems), tuple(options.optimizers), options.seeds) == (
        ("beale", "stairs"),
        ("sgd", "adam"),
        3,
    )
