from __future__ import annotations

import dataclasses
import re

import pytest

from frankenstein.compare import figures, report
from frankenstein.compare.engine import Cell, run_cell
from frankenstein.compare.problems import PROBLEMS
from frankenstein.compare.records import RecordError, appending
from frankenstein.compare.summary import ranking, summarise


@pytest.fixture(scope="module")
def records():
    """Real, short runs: three optimizers on two problems, one of them diverging, one without its test runs."""
    patch = pytest.MonkeyPatch()
    for name in ("digits-mlp", "rosenbrock"):
        patch.setitem(PROBLEMS, name, dataclasses.replace(PROBLEMS[name], n_steps=30, n_evals=6))
    cells = []
    for problem in ("digits-mlp", "rosenbrock"):
        for optimizer in ("adam", "sgd", "rmsprop"):
            cells += [Cell(problem, optimizer, lr, 1000, "validation") for lr in (1e-3, 3e-2, 3.0)]
            if optimizer != "rmsprop":
                cells += [Cell(problem, optimizer, lr, seed, "test") for lr in (1e-3, 3e-2) for seed in range(3)]
    made = [run_cell(cell) for cell in cells]
    patch.undo()
    return made


def test_rows(records):
    mlp, rosenbrock = summarise(records)
    assert (mlp.name, rosenbrock.name) == ("digits-mlp", "rosenbrock")
    assert [row.optimizer for row in mlp.rows] == ["adam", "sgd", "rmsprop"]  # best tuned mean first, missing last
    adam = mlp.rows[0]
    assert adam.tuned.lr == 3e-2
    assert adam.default.lr == 1e-3
    scores = [
        r["score"]
        for r in records
        if r["problem"] == "digits-mlp" and r["optimizer"] == "adam" and r["lr"] == 3e-2 and r["split"] == "test"
    ]
    assert adam.tuned.score.value == pytest.approx(sum(scores) / 3)
    assert adam.tuned.score.low <= adam.tuned.score.value <= adam.tuned.score.high
    assert mlp.rows[2].tuned is None
    assert not adam.is_at_edge
    sgd = next(row for row in rosenbrock.rows if row.optimizer == "sgd")
    assert {record["outcome"] for record in sgd.tuning} == {"finished", "diverged"}
    assert sgd.is_at_edge


def test_order_of_records_is_irrelevant(records):
    for one, other in zip(summarise(records), summarise(records[::-1])[::-1], strict=True):
        assert [(r.optimizer, r.tuned and r.tuned.score) for r in one.rows] == [
            (r.optimizer, r.tuned and r.tuned.score) for r in other.rows
        ]


def test_old_versions_of_a_problem_are_left_out(records):
    old = [record | {"problem_config": record["problem_config"] | {"version": 0}, "score": 0.0} for record in records]
    assert [s.rows[0].tuned.score for s in summarise(old + records)] == [
        s.rows[0].tuned.score for s in summarise(records)
    ]


def test_ranking_takes_only_complete_optimizers(records):
    entries = ranking(summarise(records))
    assert {title for title, *_ in entries} == {"Adam", "SGD (Nesterov)"}
    assert sum(rank for _, rank, *_ in entries) == pytest.approx(3)
    assert ranking(summarise([record for record in records if record["optimizer"] == "rmsprop"])) == []


def test_html_is_self_contained(records, tmp_path):
    path = report.write_html(tmp_path, summarise(records))
    html = path.read_text()
    assert html.count("<svg") == 2
    outside = re.sub(r'xmlns(:\w+)?="[^"]*"|<!DOCTYPE[^>]*>', "", html)
    assert not re.findall(
        r'(?:src|href)="(?!#)|https?://|url\((?!#)', re.sub(r"<metadata>.*?</metadata>", "", outside, flags=re.S)
    )
    for text in (
        "digits-mlp",
        "Adam",
        "not run yet",
        "frankenstein compare --problems digits-mlp rosenbrock",
        "torch 2.",
    ):
        assert text in html
    assert "nan" not in html.lower().replace("finance", "")


def test_failures_are_shown_with_their_reason(records, tmp_path):
    failed = records[0] | {"outcome": "failed", "reason": "ValueError: <boom>"}
    html = report.write_html(tmp_path, summarise([failed, *records[1:]])).read_text()
    assert "ValueError: &lt;boom&gt;" in html


def test_markdown(records):
    table = report.markdown(summarise(records)).splitlines()
    assert table[0].startswith("| optimizer | mean rank | best or level | digits-mlp | rosenbrock |")
    assert len(table) == 2 + 2
    assert "**" in table[2]


def test_diverged_runs_are_drawn_as_worst(records):
    rosenbrock = summarise(records)[1]
    sgd = next(row for row in rosenbrock.rows if row.optimizer == "sgd")
    diverged = dataclasses.replace(
        sgd.tuned, records=[*sgd.tuned.records, sgd.tuned.records[0] | {"curve": [[0, 1.0]]}]
    )
    _, curves = figures._curves(rosenbrock, diverged)
    assert curves.shape == (4, 7)
    assert list(curves[3]) == [1.0, *[3.0] * 6]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures_are_files(records, tmp_path, suffix):
    summaries = summarise(records)
    path = tmp_path / f"curves.{suffix}"
    figures.save(figures.learning_curves(summaries, report.order(summaries)), path)
    assert path.stat().st_size > 5000


def test_nothing_to_report(tmp_path):
    with pytest.raises(RecordError, match=r"no records in .*; `frankenstein compare --out"):
        report.load(tmp_path, pytest.fail)


def test_load_reads_what_was_written(records, tmp_path):
    with appending(tmp_path) as append:
        for record in records:
            append(record)
    assert report.markdown(report.load(tmp_path, pytest.fail)) == report.markdown(summarise(records))
