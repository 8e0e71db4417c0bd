from __future__ import annotations

import dataclasses
import json

import pytest
from compare.in_process import in_process

from frankenstein.compare import engine
from frankenstein.compare.catalog import catalog
from frankenstein.compare.comparison import FIRST_TUNING_SEED, MAX_SEEDS, Comparison, best_trial, losses
from frankenstein.compare.estimate import Estimate
from frankenstein.compare.executors import WorkerError
from frankenstein.compare.problems.problem import Reference
from frankenstein.compare.store.records import RecordError, read

PROBLEMS, OPTIMIZERS = catalog().problems, catalog().optimizers


@pytest.fixture(autouse=True)
def five_steps(monkeypatch):
    for name in ("beale", "stairs"):
        monkeypatch.setitem(PROBLEMS, name, dataclasses.replace(PROBLEMS[name], n_steps=5, n_evals=1))


def go(out, comparison, run=lambda job: job.run(), **options):
    """Run a comparison in this process; return the number of jobs, and the states that were reported."""
    execution, executor = in_process(run, **options)
    states = []
    engine.run(comparison, out, execution, lambda _, state: states.append(state), pytest.fail)
    return executor.n_run, states


SMALL = Comparison(("beale",), ("sgd", "adam"), n_trials=4, n_tuning_seeds=2, n_seeds=3)


def test_budgets_are_equal_and_test_seeds_fresh(tmp_path):
    go(tmp_path, dataclasses.replace(SMALL, problems=("beale", "stairs"), optimizers=("sgd", "adam", "rmsprop")))
    groups = {}
    for record in read(tmp_path, pytest.fail):
        key = record["problem"], record["optimizer"], record["split"]
        groups.setdefault(key, []).append((record["trial"], record["seed"]))
    tuning_seeds = (FIRST_TUNING_SEED, FIRST_TUNING_SEED + 1)
    for (_, _, split), runs in groups.items():
        if split == "validation":
            assert sorted(runs) == [(trial, seed) for trial in range(4) for seed in tuning_seeds]
        else:
            assert sorted(seed for _, seed in runs) in ([0, 0, 1, 1, 2, 2], [0, 1, 2])
    assert len(groups) == 2 * 3 * 2
    assert MAX_SEEDS < FIRST_TUNING_SEED


def test_the_best_trial_and_the_default_are_tested(tmp_path):
    go(tmp_path, SMALL)
    records = read(tmp_path, pytest.fail)
    for optimizer in SMALL.optimizers:
        mine = [record for record in records if record["optimizer"] == optimizer]
        by_trial = losses(record for record in mine if record["split"] == "validation")
        chosen = min(by_trial, key=by_trial.get)
        settings = next(record["settings"] for record in mine if record["trial"] == chosen)
        tested = [record["settings"] for record in mine if record["split"] == "test"]
        assert all(one in (settings, OPTIMIZERS[optimizer].default) for one in tested)
        assert settings in tested
        assert OPTIMIZERS[optimizer].default in tested


def entry(trial, score, *, higher=True, middle=0.0):
    return {
        "trial": trial,
        "score": score,
        "curve": {"step": [0, 1, 2], "score": [0.0, middle, score]},
        "problem_config": {"is_higher_better": higher},
    }


def test_best_trial():
    assert best_trial([entry(0, 0.5), entry(1, 0.9), entry(2, 0.7)]) == 1
    assert best_trial([entry(0, 0.5, higher=False), entry(1, 0.9, higher=False)]) == 0
    tie = [entry(0, 0.9, middle=0.2), entry(1, 0.9, middle=0.8)]
    assert best_trial(tie) == best_trial(tie[::-1]) == 1
    assert best_trial([entry(0, 0.5, higher=False, middle=0.2), entry(1, 0.5, higher=False, middle=0.8)]) == 0
    lucky, steady = [entry(0, 0.99), entry(0, 0.1)], [entry(1, 0.8), entry(1, 0.8)]
    assert best_trial(lucky + steady) == 1


def test_it_goes_on_and_tries_again_what_failed(tmp_path):
    """Trials that fail in the first go score worst, so tuning does not choose them."""

    def failing(job):
        return job.failed("no reason") if job.cell.trial == 2 else job.run()

    n_first, states = go(tmp_path, SMALL, failing)
    assert (states[0].n_done, states[0].n_cells) == (0, 2 * (8 + 6))
    assert (states[-1].n_done, states[-1].n_cells) == (n_first, n_first)
    assert [state.n_done for state in states] == list(range(n_first + 1))
    assert sum(record["outcome"] == "failed" for record in read(tmp_path, pytest.fail)) == 2 * 2
    n_again, states = go(tmp_path, SMALL)
    assert 4 <= n_again <= 4 + 6  # what failed; and test cells, where a trial that failed is chosen now
    assert states[0].n_done == 2 * 8 - 4
    assert go(tmp_path, SMALL)[0] == 0
    n_more, _ = go(tmp_path, dataclasses.replace(SMALL, n_seeds=4))
    assert 2 <= n_more <= 4  # one seed more, tuned and untuned
    assert "failed" not in {record["outcome"] for record in read(tmp_path, pytest.fail)}


def test_more_trials_begin_with_those_that_are_there(tmp_path):
    go(tmp_path, SMALL)
    n_more, _ = go(tmp_path, dataclasses.replace(SMALL, n_trials=6))
    assert 2 * 2 * 2 <= n_more <= 2 * 2 * 2 + 2 * 3


@pytest.mark.parametrize("n_retries", [0, 1, 3])
def test_retries(tmp_path, n_retries):
    """A cell that fails twice is there at the end if it may be tried three times; each attempt is recorded."""
    attempts = []

    def flaky(job):
        if (job.cell.trial, job.cell.seed, job.cell.optimizer) == (1, FIRST_TUNING_SEED, "sgd"):
            attempts.append(job.attempt)
            if len(attempts) <= 2:
                raise WorkerError("the worker process was ended by SIGKILL (out of memory?)")
        return job.run()

    _, states = go(tmp_path, SMALL, flaky, n_retries=n_retries)
    assert attempts == [1, 2, 3][: n_retries + 1]
    assert states[-1].n_done == states[-1].n_cells
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    failed = [record for record in lines if record["outcome"] == "failed"]
    assert [record["attempt"] for record in failed] == attempts[:2]
    assert {record["reason"] for record in failed} == {"the worker process was ended by SIGKILL (out of memory?)"}
    assert {record["score"] for record in failed} == {PROBLEMS["beale"].worst}
    outcomes = {record["outcome"] for record in read(tmp_path, pytest.fail)}
    assert ("failed" in outcomes) == (n_retries < 2)


def test_optuna_runs_trial_by_trial_and_goes_on(tmp_path):
    """Stopped in the middle and continued, the search tries the same settings as one in one go."""
    comparison = dataclasses.replace(SMALL, tuner="optuna", n_trials=9)
    n_whole, states = go(tmp_path / "whole", comparison)
    assert states[-1].n_done == states[-1].n_cells == n_whole

    class StopError(Exception):
        pass

    def stopping(record, state):
        if state.n_done == 20:
            raise StopError

    with pytest.raises(StopError):
        engine.run(comparison, tmp_path / "part", in_process()[0], stopping, pytest.fail)
    n_rest, _ = go(tmp_path / "part", comparison)
    assert n_rest == n_whole - 20

    def scores(folder):
        return {record["cell"]: record["score"] for record in read(tmp_path / folder, pytest.fail)}

    assert scores("whole") == scores("part")


def test_records_left_behind_by_workers_are_taken_in_once(tmp_path):
    """Cluster jobs outlive a killed driver: what they finished is not run again, and what is known counts once."""
    go(tmp_path / "whole", SMALL)
    whole = read(tmp_path / "whole", pytest.fail)
    n_left, states = go(tmp_path / "new", SMALL, leftover=lambda: iter(whole[:10]))
    assert states[0].n_done == 10
    assert n_left == len(whole) - 10
    go(tmp_path / "new", SMALL, leftover=lambda: iter(whole[:10]))
    assert len((tmp_path / "new" / "records.jsonl").read_text().splitlines()) == len(whole)


def test_references_are_kept_beside_the_records(tmp_path, monkeypatch):
    reference = Reference("A curve", "A paper, 2020", (0, 5), (1.0, 0.5))
    monkeypatch.setitem(PROBLEMS, "beale", dataclasses.replace(PROBLEMS["beale"], references=(reference,)))
    go(tmp_path, SMALL)
    go(tmp_path, dataclasses.replace(SMALL, problems=("stairs",)))
    kept = json.loads((tmp_path / "references.json").read_text())
    expected = {"title": "A curve", "source": "A paper, 2020", "step": [0, 5], "score": [1.0, 0.5]}
    assert kept == {"beale": [expected]}
    (tmp_path / "references.json").write_text("[")
    with pytest.raises(RecordError, match=r"cannot use .*references.json"):
        go(tmp_path, SMALL)


def test_nothing_is_started_when_all_is_done(tmp_path):
    go(tmp_path, SMALL)
    execution = dataclasses.replace(in_process()[0], executor=lambda: pytest.fail("an executor was started"))
    engine.run(SMALL, tmp_path, execution, lambda *_: None, pytest.fail)


def test_command_repeats_the_comparison(tmp_path):
    from frankenstein.cli import _parser
    from frankenstein.cli.compare import _comparison

    module = tmp_path / "my problems.py"
    module.write_text("PROBLEMS = ()\n")
    asked = Comparison(("beale", "stairs"), ("sgd", "torch.optim:NAdam"), 7, 2, 3, "optuna", (str(module),))
    import shlex

    options = _parser().parse_args(shlex.split(asked.command())[1:])
    assert _comparison(options) == asked


@pytest.mark.parametrize(
    "where",
    [
        [
            "--out",
            "with space",
            "--workers",
            "3",
            "--threads",
            "2",
            "--timeout",
            "50",
            "--retries",
            "1",
            "--tensorboard",
        ],
        ["--executor", "ray", "--ray-address", "auto", "--gpus", "0.5", "--mlflow", "http://127.0.0.1:1"],
        ["--executor", "slurm", "--slurm", "partition=gpu", "time=60"],
    ],
)
def test_the_command_that_goes_on_runs_as_the_first_one_did(where):
    import shlex

    from frankenstein.cli import _parser
    from frankenstein.cli.compare import _execution_words

    asked = _parser().parse_args(["compare", *where])
    again = _parser().parse_args(["compare", *shlex.split(_execution_words(asked))])
    assert vars(again) == vars(asked)


def timed(problem, optimizer, seconds):
    return {"problem": problem, "optimizer": optimizer, "wall_seconds": seconds}


def test_the_estimate_is_right_where_pairs_are_known_and_sensible_where_not():
    estimate = Estimate()
    assert estimate.left({("a", "x"): 3}, 2) is None
    assert estimate.left({("a", "x"): 0}, 2) == 0
    for problem, factor in (("a", 1.0), ("b", 4.0)):
        for optimizer, seconds in (("x", 1.0), ("y", 2.0)):
            estimate.add(timed(problem, optimizer, factor * seconds))
    assert estimate.left({("a", "x"): 10, ("b", "y"): 5}, 2) == pytest.approx((10 * 1 + 5 * 8) / 2)
    estimate.add(timed("c", "x", 10.0))
    assert 10.0 < estimate.of(("c", "y")) < 20.0  # problem c takes about ten times problem a; y takes longer than x
    assert estimate.of(("new", "new")) == pytest.approx(6.0)  # the problem in the middle
    for seconds in (1.0, 2.0, 3.0):
        estimate.add(timed("new", "new", seconds))
    assert estimate.of(("new", "new")) == pytest.approx(2.0)


def test_loading_libraries_does_not_spoil_the_estimate():
    """The first cell of a worker takes many times as long: before and after there are enough of its pair."""
    estimate = Estimate()
    estimate.add(timed("a", "x", 50.0))
    for optimizer in "xyz":
        for problem in "abc":
            estimate.add(timed(problem, optimizer, 1.0))
    assert estimate.of(("a", "x")) < 30.0  # one of two: the others tell more
    estimate.add(timed("a", "x", 1.0))
    assert estimate.of(("a", "x")) < 2.0


def test_the_estimate_of_a_run_is_honest_all_the_while(tmp_path):
    """With known costs per pair, the time left is right within a fifth as soon as every pair has run once."""
    cost = {("beale", "sgd"): 1.0, ("beale", "adam"): 2.0, ("stairs", "sgd"): 5.0, ("stairs", "adam"): 30.0}

    def pretending(job):
        return job.run() | {"wall_seconds": cost[job.cell.problem, job.cell.optimizer]}

    comparison = Comparison(("beale", "stairs"), ("sgd", "adam"), n_trials=10, n_seeds=5)
    execution, _ = in_process(pretending)
    spent, seen = 0.0, []

    def watch(record, state):
        nonlocal spent
        spent += record["wall_seconds"] if record else 0.0
        seen.append((spent, state.seconds_left))

    engine.run(comparison, tmp_path, execution, watch, pytest.fail)
    assert seen[0][1] is None
    assert seen[-1][1] == 0
    total = seen[-1][0]
    for spent_then, left in seen[5:]:
        assert left == pytest.approx(total - spent_then, rel=0.2, abs=0.1 * total)  # a chosen default saves test cells


def test_without_tuning_each_optimizer_has_its_default_once(tmp_path):
    """Guards against a best trial of none, and against cells that are counted and never run."""
    comparison = dataclasses.replace(SMALL, n_trials=0)
    n_run, states = go(tmp_path, comparison)
    records = read(tmp_path, pytest.fail)
    assert sorted((r["optimizer"], r["seed"], r["split"]) for r in records) == [
        (name, seed, "test") for name in ("adam", "sgd") for seed in range(3)
    ]
    assert all(r["settings"] == r["optimizer_config"]["default"] for r in records)
    assert n_run == states[-1].n_done == states[-1].n_cells == 6


def test_only_the_tuned_settings_are_tested_where_the_default_is_not_wanted(tmp_path):
    comparison = dataclasses.replace(SMALL, tuner="rates", has_untuned=False)
    n_run, states = go(tmp_path, comparison)
    records = read(tmp_path, pytest.fail)
    assert n_run == len(records) == states[0].n_cells == states[-1].n_done == 2 * (4 * 2 + 3)
    for optimizer in SMALL.optimizers:
        mine = [record for record in records if record["optimizer"] == optimizer]
        best = best_trial(record for record in mine if record["split"] == "validation")
        chosen = next(record["settings"] for record in mine if record["trial"] == best)
        assert [record["settings"] for record in mine if record["split"] == "test"] == 3 * [chosen]


def test_a_run_has_a_folder_until_it_has_ended(tmp_path):
    """Guards against two runs in one place, against checkpoints that are gone too early, and against rubbish."""
    folders = {}

    def run(job):
        job.folder.mkdir(parents=True)
        folders[job.folder] = job.cell.seed
        return job.run() | {"outcome": "failed" if job.cell.seed == 1 else "finished"}

    go(tmp_path / "out", dataclasses.replace(SMALL, n_trials=0), run, folder=tmp_path / "runs")
    assert len(folders) == 6
    assert all(folder.exists() == (seed == 1) for folder, seed in folders.items())
