"""Fig. 10: runs that go on, what is concluded from records, and the authors' logs."""

from __future__ import annotations

import json
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import pytest

from frankenstein.cli import main
from frankenstein.compare.executors import WorkerError
from frankenstein.experiments import EXPERIMENTS, Experiment, fig10, fig10_runs
from frankenstein.experiments.experiment import ExperimentError, Options
from frankenstein.experiments.fig10 import METHODS, agreement, findings
from frankenstein.experiments.fig10_logs import authors_curves, authors_last
from frankenstein.experiments.fig10_model import N_EPOCHS, SETTINGS
from frankenstein.experiments.fig10_runs import Found, found_in, run

LAST = authors_last("batch128")
PUBLISHED = {  # the last test losses with batch size 128 of the logs that the authors of arXiv:2503.02147 released
    "frankenstein": 4.8e-7,
    "adam": 7.9e-5,
    "rmsprop": 1.4e-3,
    "sgd": 2.1e-3,
    "adabound": 2.2e-3,
    "ranger": 6.2e-3,
    "lookahead": 3.3e-2,
    "amsgrad": 0.68,
}


class InThisProcess:
    """Runs jobs when they are submitted; those that `dies` names come back as those of a dead worker."""

    n_parallel = 1

    def __init__(self, dies=()):
        self.dies, self.jobs = dies, []

    def submit(self, job):
        future = Future()
        self.jobs.append(job)
        if job.key in self.dies:
            future.set_exception(WorkerError("killed by signal 9"))
        else:
            future.set_result(job.run())
        return future


@pytest.fixture
def quick(monkeypatch):
    """Without the setting of batch size 4, which takes nearly all of the time; and the command knows the name."""
    monkeypatch.delitem(SETTINGS, "batch4")
    monkeypatch.setitem(EXPERIMENTS, "fig10", Experiment("fig10", "", "", (), "", "frankenstein.experiments.fig10"))
    monkeypatch.delenv("FRANKENSTEIN_DATA", raising=False)


def curves(records):
    return {(r["setting"], r["optimizer"], r["seed"]): (r["curve"], r["test_error"]) for r in records}


def lines_of(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_runs_are_kept_and_only_the_missing_ones_are_made(quick, tmp_path):
    options, first = Options("local", tmp_path, None), InThisProcess()
    records = run(options, ["sgd", "adam"], 2, first)
    assert curves(records) == curves(lines_of(tmp_path)) and len(records) == 2 * 2 * 2
    assert [job.seeds for job in first.jobs] == [(0, 1)] * 4
    more = InThisProcess()
    longer = run(options, ["sgd", "adam"], 12, more)
    assert [job.seeds for job in more.jobs] == [tuple(range(2, 12))] * 4
    assert curves(records).items() <= curves(longer).items()
    assert len({str(r["curve"]["test_loss"]) for r in longer}) == len(longer) == 48, "seeds and optimizers differ"
    again = InThisProcess()
    assert curves(run(options, ["adam"], 3, again)).items() <= curves(longer).items() and not again.jobs


def test_a_record_of_other_settings_is_not_taken(quick, tmp_path, monkeypatch):
    options = Options("local", tmp_path, None)
    run(options, ["sgd"], 1, InThisProcess())
    monkeypatch.setattr(fig10_runs, "VERSION", fig10_runs.VERSION + 1)
    executor = InThisProcess()
    records = run(options, ["sgd"], 1, executor)
    assert len(executor.jobs) == 2 and {r["config"]["version"] for r in records} == {fig10_runs.VERSION}


def test_an_interrupt_keeps_what_is_done(quick, tmp_path):
    calls = []

    def interrupt(done, total, what):
        calls.append(done)
        if what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Options("local", tmp_path, None, progress=interrupt), ["sgd"], 2, InThisProcess())
    kept = curves(lines_of(tmp_path))
    assert calls == [0, 2, 4] and len(kept) == 4  # the second job had ended, too
    (tmp_path / "records.jsonl").write_text("\n".join((tmp_path / "records.jsonl").read_text().split("\n")[:3])[:-40])
    executor, told = InThisProcess(), []
    records = run(
        Options("local", tmp_path, None, say=told.append), ["sgd"], 2, executor
    )  # the third line is cut short
    assert curves(records) == kept and sum(len(job.seeds) for job in executor.jobs) == 2
    assert "line 3, the last one, is not JSON" in told[0]


def test_a_worker_that_dies_is_one_line_and_the_rest_is_kept(quick, tmp_path):
    executor = InThisProcess(dies=["batch128-signed/sgd"])
    with pytest.raises(ExperimentError, match=r"^batch128-signed/sgd failed: killed by signal 9; the same command"):
        run(Options("local", tmp_path, None), ["sgd"], 1, executor)
    mended = InThisProcess()
    assert len(run(Options("local", tmp_path, None), ["sgd"], 1, mended)) == 2
    assert len(mended.jobs) <= 2 and mended.jobs[-1].key == "batch128-signed/sgd"


def made(last, n_seeds=5, gap=2.0, setting="batch128"):
    """Records by hand: test losses that end at `last` for each optimizer, a little else for each seed."""
    return [
        {
            "setting": setting,
            "optimizer": method,
            "optimizer_title": method.upper(),
            "seed": seed,
            "curve": {
                "epoch": [0, 1],
                "train_loss": [0.69, end * (1 + 0.01 * seed) / gap],
                "test_loss": [0.69, end * (1 + 0.01 * seed)],
            },
            "test_error": 0.01,
        }
        for method, end in last.items()
        for seed in reversed(range(n_seeds))
    ]


def in_setting(records):
    return found_in(records, "batch128", METHODS)


def test_pairs_are_counted_in_the_authors_order_and_against_it():
    theirs = {"sgd": 3.0, "adam": 2.0, "rmsprop": 1.0}
    assert agreement(in_setting(made({"adam": 0.2, "sgd": 0.3, "rmsprop": 0.1})), theirs) == (3, 0, 0)
    assert agreement(in_setting(made({"adam": 0.2, "sgd": 0.1, "rmsprop": 0.3})), theirs) == (0, 3, 0)
    assert agreement(in_setting(made({"adam": 0.2, "sgd": 0.2, "rmsprop": 0.1})), theirs) == (2, 0, 1)


@pytest.mark.parametrize(
    "change, verdict",
    [
        ({}, "holds: of 28 pairs of optimizers, 28 are in their order, 0 in the reverse, 0 cannot be told apart"),
        ({"amsgrad": 1e-9}, "does not hold: of 28 pairs of optimizers, 21 are in their order, 7 in the reverse, 0"),
        (
            {"adam": LAST["frankenstein"]},
            "is not contradicted: of 28 pairs of optimizers, 27 are in their order, 0 in the reverse, 1",
        ),
    ],
)
def test_the_report_says_whether_the_ranking_holds(quick, change, verdict):
    found = findings(both(LAST | change))
    assert any(f"the ranking by the authors' last test losses {verdict}" in line for line in found.sentences)


def both(last, **options):
    return [record for name in SETTINGS for record in made(last, setting=name, **options)]


def test_two_seeds_rank_nothing(quick):
    assert not any("ranking" in line for line in findings(both(LAST, n_seeds=2)).sentences)
    (row,) = findings(both({"sgd": 0.1})).tables[0].rows  # one optimizer has no rank, and no rival
    assert row[1].is_best


def test_tables_show_means_intervals_gaps_and_what_is_level(quick):
    last = {"adam": 0.2, "sgd": 0.1, "rmsprop": 0.1}
    main_table, signed = findings(both(last, gap=4.0)).tables
    rows = {row[0].text: row for row in main_table.rows}
    assert list(rows) == ["ADAM", "SGD", "RMSPROP"]
    assert rows["ADAM"][1].numbers[""] == pytest.approx(0.204)  # seeds at 1.00, ..., 1.04 times
    assert rows["ADAM"][1].text == "2.04e-01 (2.02e-01 to 2.06e-01)" and rows["ADAM"][3].text == "4"
    assert [rows[name][1].is_best for name in rows] == [False, True, True]
    assert [cell.text for cell in rows["ADAM"][4:]] == ["1.00", "1.9e-04", "7.9e-05"]
    assert len(signed.columns) == len(main_table.columns) - 2, "nobody published that setting"


def test_the_largest_and_the_smallest_gap_are_named(quick):
    records = both({"adam": 0.2}, gap=9.0) + both({"sgd": 0.1}, gap=1.5)
    line = next(line for line in findings(records).sentences if "times the training loss" in line)
    assert "is 1.5 times the training loss with SGD" in line and "9 times with ADAM" in line


def test_seeds_are_paired_in_one_order():
    records = made({"sgd": 0.1})
    (found,) = in_setting(records)
    assert isinstance(found, Found) and found.last.tolist() == sorted(found.last)  # they were written backwards


def test_the_published_values_are_the_authors(quick):
    assert {name: float(f"{value:.1e}") for name, value in LAST.items()} == PUBLISHED
    assert set(authors_last("batch4")) == set(METHODS) and authors_last("batch128-signed") == {}


def test_the_authors_logs_are_drawn_behind_ours_and_apart(quick):
    found = findings(both({"adam": 0.2, "lookahead": 0.1}))
    alone, theirs = found.charts
    assert not any("log" in row for row in alone.rows)
    drawn = [row for row in theirs.rows if "log" in row]
    assert len(drawn) == 2 * 2 * N_EPOCHS and {row["epoch"] for row in drawn} == set(range(1, N_EPOCHS + 1))
    adam = [row["log"] for row in drawn if (row["optimizer"], row["loss"]) == ("ADAM", "test loss")]
    assert adam == authors_curves("batch128", "test_loss")["adam"][:N_EPOCHS]
    assert "not measured here" in theirs.caption
    assert {row["setting"] for row in theirs.rows} == {"batch size 128"}, "nobody published the other one"
    assert "test loss of 0.0067 after one epoch" in found.sentences[-1] and "at least 0.51" in found.sentences[-1]
    row = next(row for row in found.tables[0].rows if row[0].text == "ADAM")
    assert [cell.numbers[""] for cell in row[-2:]] == [adam[-1], LAST["adam"]]


def test_the_command_runs_shows_writes_and_refuses(quick, tmp_path, capsys, monkeypatch):
    @contextmanager
    def executor(n_workers, n_cpus, n_gpus):
        assert (n_workers, n_cpus, n_gpus) == (3, 1, 0.0)
        yield InThisProcess()

    monkeypatch.setattr(fig10, "local_executor", executor)
    words = ["reproduce", "fig10", "--out", str(tmp_path / "out"), "--workers", "3"]
    assert main([*words, "--methods", "sgd", "adam", "--starts", "3"]) == 0
    printed = capsys.readouterr().out
    assert "Batch size 128: mean test loss after 80 epochs, the lowest first: SGD (Nesterov) 0.05" in printed
    for name in ("report.html", "tables/fig10-batch128.csv", "figures/fig10.png", "figures/fig10-authors.png"):
        assert (tmp_path / "out" / name).stat().st_size > 300 and name in printed
    assert main([*words, "--methods", "lamb"]) == 2
    refused = capsys.readouterr().err
    assert "unknown method 'lamb'" in refused and refused.count("\n") == 1


@pytest.mark.parametrize(
    "damage, why",
    [
        (lambda r: r["curve"]["test_loss"].pop(), "lists of equal length"),
        (lambda r: r["curve"]["train_loss"].__setitem__(0, None), "something else than numbers"),
        (lambda r: r.update(setting="batch5"), "'batch5' in 'setting'"),
        (lambda r: r.pop("test_error"), "lacks 'test_error'"),
    ],
)
def test_a_damaged_record_is_found(damage, why, quick, tmp_path):
    (record, _) = run(Options("local", tmp_path, None), ["sgd"], 1, InThisProcess())
    damage(record)
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    told = []
    run(Options("local", tmp_path, None, say=told.append), ["sgd"], 1, InThisProcess())
    assert len(told) == 1 and why in told[0]


@pytest.mark.slow
def test_the_whole_figure_in_worker_processes(tmp_path):
    """Losses far below float32's floor stay losses; the two seeds are those of any other number of seeds."""
    found = fig10.reproduce(Options("local", tmp_path, None, workers=2, n_starts=2, methods=("rmsprop", "sgd")))
    records = lines_of(tmp_path)
    assert len(records) == 3 * 2 * 2 and len(found.tables) == 3
    rmsprop = next(r for r in records if r["cell"] == "batch4/rmsprop/0")
    assert np.min(rmsprop["curve"]["train_loss"]) < 1e-6 and rmsprop["test_error"] == 0.0
