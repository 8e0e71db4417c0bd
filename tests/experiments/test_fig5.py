"""Fig. 5 end to end on tiny data: the command, its records, its report, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from omniglot_cases import write_omniglot

from frankenstein.compare.baselines import OPTIMIZERS
from frankenstein.compare.store.records import read
from frankenstein.experiments import fig5, published
from frankenstein.experiments.networks import RUNS, summaries

DRIVER = """
import sys
from frankenstein.experiments import Experiment, EXPERIMENTS
EXPERIMENTS.setdefault("fig5", Experiment("fig5", "", "", ("torch",), "", "frankenstein.experiments.fig5"))
from frankenstein.cli import main
sys.exit(main())
"""


def reproduce(data, *arguments):
    environment = {**os.environ, "FRANKENSTEIN_DATA": str(data), "FRANKENSTEIN_CACHE": str(data / "cache")}
    command = [sys.executable, "-c", DRIVER, "reproduce", "fig5", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_local_preset(tmp_path):
    data, out = write_omniglot(tmp_path / "data"), tmp_path / "out"
    arguments = ("--steps", 1, "--starts", 1, "--workers", 1, "--methods", "frankenstein")
    done = reproduce(data, "--out", out, *arguments)
    assert done.returncode == 0, done.stderr
    records = read(out, pytest.fail)
    assert sorted(record["problem"] for record in records) == sorted(p.name for p in fig5.LOCAL_PROBLEMS)
    for record in records:
        assert record["outcome"] == "finished" and record["n_steps_done"] == 1
        assert len(record["curve"]["half_width"]) == 2 and record["curve"]["half_width"][-1] > 0
        assert [part["n_characters"] for part in record["data"]] == [30, 21]
        assert record["settings"] == {"lr": fig5.LR["local"], "base_lr": fig5.LR["local"]}
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 2 * len(records) + len(fig5.SETTINGS)
    assert "over tasks" in page and not list((out / RUNS).iterdir())
    found = fig5.findings(summaries(records, [problem.name for problem in fig5.PROBLEMS]))
    for table, problem in zip(found.tables, fig5.LOCAL_PROBLEMS, strict=True):
        assert all(len(row) == len(table.columns) for row in table.rows)
        record = next(record for record in records if record["problem"] == problem.name)
        width = table.rows[0][table.columns.index("over tasks, ±")]
        assert width.numbers[""] == pytest.approx(100 * record["curve"]["half_width"][-1])
        assert ("published" in table.columns) == ("first-order" not in problem.name)


def test_data_that_do_not_do(tmp_path):
    """Guards against a traceback, or a refusal after the first runs: 20 ways come last."""
    data = write_omniglot(tmp_path / "data", splits={"background": (30, 0), "evaluation": (19, 30)})
    done = reproduce(data, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "split test has 19 characters and a task needs 20" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_settings_and_published_numbers():
    """Guards against a preset that is not what is published, and logs that no optimizer of ours goes with."""
    for problem in fig5.PAPER_PROBLEMS:
        few_shot = problem.run
        assert (few_shot.meta_batch, few_shot.inner_lr, few_shot.n_filters) == (64, 0.1, 64)
        assert problem.n_evals == fig5.N_EPOCHS
    assert {(p.run.n_ways, p.run.n_shots) for p in fig5.PAPER_PROBLEMS} == set(fig5.SETTINGS)
    paper = [spec for spec in fig5.OPTIMIZERS if "-paper-" in spec.name]
    assert all(spec.default["lr"] == 2e-4 for spec in paper) and len(paper) == 8
    assert {spec.name for spec in OPTIMIZERS} >= set(fig5.METHODS)
    for ways, shots in fig5.SETTINGS:
        logs = published.curves("maml_omniglot", f"{ways}way_{shots}shot", "accuracy")
        assert set(logs) == {fig5.LOGS.get(name, name) for name in fig5.METHODS}
    best = {name: fig5._best(name, fig5.LOCAL) for name in fig5.METHODS}
    assert (best["frankenstein"], best["sgd"]) == ("99.71", "99.13")
