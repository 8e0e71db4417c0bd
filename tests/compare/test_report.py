from __future__ import annotations

import dataclasses
import re

import pytest

from frankenstein.compare import figures, report, tables, terminal
from frankenstein.compare.cells import Cell, run_cell
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
    made = [run_cell(cell, "frankenstein compare --seeds 3") for cell in cells]
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
        if r["problem"] == "digits-mlp"
        and r["optimizer"] == "adam"
        and r["settings"]["lr"] == 3e-2
        and r["split"] == "test"
    ]
    assert adam.tuned.score.value == pytest.approx(sum(scores) / 3)
    assert adam.tuned.score.low <= adam.tuned.score.value <= adam.tuned.score.high
    assert mlp.rows[2].tuned is None
    assert not adam.is_at_edge
    sgd = next(row for row in rosenbrock.rows if row.optimizer == "sgd")
    assert {record["outcome"] for record in sgd.trials} == {"finished", "diverged"}
    assert sgd.is_at_edge


def test_order_of_records_is_irrelevant(records):
    for one, other in zip(summarise(records), summarise(records[::-1]), strict=True):
        assert [(r.optimizer, r.tuned and r.tuned.score) for r in one.rows] == [
            (r.optimizer, r.tuned and r.tuned.score) for r in other.rows
        ]


@pytest.mark.parametrize("which", ["problem_config", "optimizer_config"])
def test_only_the_newest_configuration_counts(records, which):
    """Guards against pooling runs of another length, grid or option as if they were more seeds."""
    key = {"problem_config": "n_steps", "optimizer_config": "options"}[which]
    old = [record | {which: record[which] | {key: {"x": 1}}, "score": 0.0} for record in records]
    for one, other in zip(summarise(old + records), summarise(records), strict=True):
        assert [row.tuned and row.tuned.records for row in one.rows] == [
            row.tuned and row.tuned.records for row in other.rows
        ]
        assert [row.trials for row in one.rows] == [row.trials for row in other.rows]


def shifted(records, shift):
    return [record | {"score": record["score"] + shift} for record in records]


def test_best_or_level_compares_seed_by_seed(records):
    """A copy of the best optimizer is level with it; one that is a little worse on every seed is not."""
    mlp = [record for record in records if record["problem"] == "digits-mlp"]
    adam = [record for record in mlp if record["optimizer"] == "adam"]
    copies = {"twin": 0.0, "worse": -1e-3}
    others = [
        r | {"optimizer": name, "optimizer_title": name} for name, by in copies.items() for r in shifted(adam, by)
    ]
    (summary,) = summarise(mlp + others)
    assert "twin" in summary.best
    assert "adam" in summary.best
    assert "worse" not in summary.best
    assert "rmsprop" not in summary.best  # not run yet


def test_too_few_seeds_are_said(records):
    few = [record for record in records if record["split"] == "validation" or record["seed"] == 0]
    summary = summarise(few)[0]
    assert set(summary.best) == {"adam", "sgd"}
    assert any("1 seed: the intervals say nothing" in note for note in tables.footnotes(summary))


def test_missing_seeds_divergence_and_failures_are_said(records):
    gone = [r for r in records if not (r["optimizer"] == "adam" and r["seed"] == 2 and r["settings"]["lr"] == 3e-2)]
    first = next(i for i, r in enumerate(gone) if r["optimizer"] == "sgd" and r["split"] == "validation")
    gone[first] = gone[first] | {"outcome": "failed", "reason": "x"}
    notes = {summary.name: tables.footnotes(summary) for summary in summarise(gone)}
    assert notes["digits-mlp"] == ["3 seeds", "Adam, tuned: only 2 seeds", "SGD (Nesterov), tuning: 1 failed"]
    assert sum(row.n_failed for summary in summarise(gone) for row in summary.rows) == 1


def test_counts_of_outcomes(records):
    rosenbrock = summarise(records)[1]
    sgd = rosenbrock.row("sgd")
    edge = dataclasses.replace(sgd.tuned, records=[r | {"outcome": "diverged"} for r in sgd.tuned.records])
    assert edge.count("diverged") == 3
    assert edge.count("failed") == 0
    times = [record["seconds_per_step"] for record in sgd.tuned.records]
    assert sgd.tuned.seconds_per_step == sorted(times)[1]


def test_ranking_takes_only_complete_optimizers(records):
    entries = ranking(summarise(records))
    assert {title for title, _, _ in entries} == {"Adam", "SGD (Nesterov)"}
    assert sum(rank for _, rank, _ in entries) == pytest.approx(3)
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
        "frankenstein compare --seeds 3",
        "torch 2.",
    ):
        assert text in html
    assert "nan" not in html.lower().replace("finance", "")


def test_failures_are_shown_with_their_reason(records, tmp_path):
    failed = records[0] | {"outcome": "failed", "reason": "ValueError: <boom>"}
    html = report.write_html(tmp_path, summarise([failed, *records[1:]])).read_text()
    assert "ValueError: &lt;boom&gt;" in html


def test_markdown(records):
    table = tables.markdown(summarise(records)).splitlines()
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
    figures.save(figures.learning_curves(summaries), path)
    assert path.stat().st_size > 5000


def test_nothing_to_report(tmp_path):
    with pytest.raises(RecordError, match=r"no records in .*; `frankenstein compare --out"):
        report.load(tmp_path, pytest.fail)
    with pytest.raises(RecordError, match="is no folder"):
        report.load(tmp_path / "absent", pytest.fail)


def test_a_half_finished_folder_has_a_report(records, tmp_path):
    """Guards against a report that needs test runs, or more than one problem."""
    for part in ([r for r in records if r["split"] == "validation"], records[:1]):
        html = report.write_html(tmp_path, summarise(part)).read_text()
        assert "there is no ranking" in html
        assert "--seeds 0" not in html


def test_terminal_tables_fit_80_columns(records, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    terminal.show(summarise(records))
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    for column in ("optimizer", "tuned", "lr", "default", "to target", "ms/step"):
        assert column in out


def test_load_reads_what_was_written(records, tmp_path):
    with appending(tmp_path, pytest.fail) as (_, append):
        for record in records:
            append(record)
    assert tables.markdown(report.load(tmp_path, pytest.fail)) == tables.markdown(summarise(records))
