from __future__ import annotations

import csv as csv_files
import io
import math
import re

import pytest
from compare.hand_made import DEFAULT, N_STEPS, compared, run, trial
from compare.made_records import made_records

from frankenstein.compare.report import tables, terminal, words
from frankenstein.compare.report.formats import Cell, Table, csv, latex, markdown
from frankenstein.compare.results.overall import overall
from frankenstein.compare.results.summary import summarise
from frankenstein.compare.statistics.seeds import Interval

NASTY = '50% of $x_1^2$ & <b>#1</b> ~ {a}|[b](c) *d* \\e "f" `g`'


@pytest.fixture(scope="module")
def summaries():
    return summarise(made_records(3, 4))


@pytest.fixture(scope="module")
def every(summaries):
    return {table.name: table for table in tables.every(summaries, overall(summaries))}


def read_csv(table):
    header, *rows = csv_files.reader(io.StringIO(csv(table)))
    return [dict(zip(header, row, strict=True)) for row in rows]


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


# What the tables hold -------------------------------------------------------------------------------------------------


def test_every_table(every):
    assert list(every) == [
        "overall",
        "wins",
        "p-values",
        "scores",
        "problem-problem-0",
        "problem-problem-1",
        "problem-problem-2",
        "costs",
        "search-spaces",
        "failures",
    ]
    for table in every.values():
        assert len(set(table.columns)) == len(table.columns)
        for row in table.rows:
            assert len(row) == len(table.columns)
            assert not any("nan" in cell.text or "inf" in cell.text for cell in row)


def test_a_half_finished_folder_has_tables():
    """Guards against tables that need test runs, or more than one problem."""
    records = made_records(2, 2)
    for part in ([r for r in records if r["split"] == "validation"], records[:1], []):
        summaries = summarise(part)
        found = overall(summaries)
        assert found is None
        for table in tables.every(summaries, found):
            assert csv(table) and latex(table) and markdown(table)


def test_standings():
    records = compared({"a": [[0.9] * 3] * 2, "b": [[0.5] * 3] * 2, "c": [[0.5], []]}, {"b": [[0.1], [0.1]]})
    (first, second) = read_csv(table := tables.standings(overall(summarise(records))))
    assert texts(table)[0][:6] == ["A", "1.00", "2 of 2", "100 %", "0.900 [0.900, 0.900]", "0.900 [0.900, 0.900]"]
    assert (first["optimizer"], first["mean rank"], first["best or level"], first["first"]) == ("A", "1.0", "2", "1.0")
    assert (first["score"], first["score low"], first["untuned score"]) == ("0.9", "0.9", "")
    assert (second["untuned score"], second["untuned score high"], second["untuned rank"]) == ("0.1", "0.1", "1.0")
    assert (second["reached target"], second["reached target runs"]) == ("0", "6")
    assert table.notes[-1] == "without a tuned score on every problem: C"


def test_scores(summaries):
    table = tables.scores(summaries, overall(summaries))
    assert table.columns == ["optimizer", "mean rank", "best or level", "problem-0", "problem-1", "problem-2"]
    ranks = [float(row[1].text) for row in table.rows]
    assert ranks == sorted(ranks)
    for summary, column in zip(summaries, list(zip(*table.rows, strict=True))[3:], strict=True):
        cells = {row[0].text: cell for row, cell in zip(table.rows, column, strict=True)}
        for row in summary.rows:
            assert cells[row.title].is_best == (row.optimizer in summary.best)
            assert cells[row.title].text.startswith(words.mean(row.tuned))
            assert cells[row.title].text.endswith(f"({words.mean(row.default)})")


def test_scores_of_unranked_optimizers_come_last():
    records = [*compared({"a": [[0.5], [0.5]], "b": [[0.9], []]}), trial(0, "c", 0, 0.5)]
    summaries = summarise(records)
    assert texts(tables.scores(summaries, overall(summaries))) == [
        ["A", "1.00", "2 of 2", "0.5 (-)", "0.5 (-)"],
        ["B", "-", "1 of 2", "0.9 (-)", "- (-)"],
        ["C", "-", "0 of 2", "- (-)", "-"],
    ]


def test_scores_say_where_settings_are_at_the_edge():
    summaries = summarise(compared({"a": [[0.5]]}, trials={"a": [[0.1] * 10 + [0.9]]}))  # lr 1.024 of 1e-4 to 1
    assert texts(tables.scores(summaries, overall(summaries)))[0][-1] == "0.5* (-)"


def test_wins_and_p_values():
    low, high = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    found = overall(summarise(compared({"a": [high, high, low], "b": [low, low, low]})))
    assert texts(tables.wins(found)) == [["A", "", "2/1/0"], ["B", "0/1/2", ""]]
    assert read_csv(tables.wins(found))[0]["B wins"] == "2"
    table = tables.p_values(found)
    assert table.columns == ["optimizer", "A", "B"]
    assert texts(table)[0][:2] == ["A", ""]
    assert float(table.rows[0][2].text) == pytest.approx(found.critical.p_values[0, 1], rel=0.01)
    assert any("no pair could be below 0.25" in note for note in table.notes)


def test_one_problem():
    runs = [run(0, "a", 0.5 + 0.1 * seed, seed, steps_to_target=None if seed == 2 else 30 + seed) for seed in range(3)]
    (summary,) = summarise([trial(0, "a", 0, 0.5), *runs, trial(0, "b", 0, 0.5)])
    table = tables.problem(summary)
    assert table.title == "problem-0: accuracy (higher is better), target 1"
    a, b = read_csv(table)
    assert texts(table)[0] == [
        *("A", "0.60 [0.50, 0.70]", "lr=0.001", "not run yet", "31 (2/3)", "-", "10.00", "1.00", "8 kB"),
    ]
    assert texts(table)[1] == ["B", "not run yet", "-", "not run yet", "-", "-", "-", "-", "-"]
    assert [cell.is_best for cell in table.rows[0][:3]] == [True, True, False]
    assert float(a["tuned"]) == pytest.approx(0.6)
    assert (a["steps to target"], a["steps to target reached"], a["steps to target runs"]) == ("31.0", "2", "3")
    assert float(a["steps to target restricted mean"]) == pytest.approx((30 + 31 + N_STEPS) / 3)
    assert (a["seconds to target"], a["state"]) == ("inf", "8000")
    assert (b["tuned"], b["steps to target"], b["ms/step"]) == ("", "", "")


def test_costs_of_everybody():
    records = [*compared({"a": [[0.5], [0.5]]}), trial(0, "b", 0, 0.5, wall_seconds=90.0)]
    summaries = summarise(records)
    rows = texts(tables.costs(summaries, overall(summaries)))
    assert [row[0] for row in rows] == ["A", "B"]
    assert rows[0][1:3] == ["1.0", "8"]
    assert rows[0][4:] == ["1.00", "1.00"]
    assert rows[1][1:] == ["-", "-", "1.5", "-", "-"]


def test_search_spaces():
    narrow, wide = {"lr": [1e-4, 1.0, "log"]}, {"lr": [1e-3, 10.0, "log"]}
    records = [trial(problem, "a", 0, 0.5, space=(narrow, wide, narrow)[problem]) for problem in range(3)]
    records += [trial(problem, "b", 0, 0.5, space=wide) for problem in range(3)]
    for record in records:
        record["optimizer_config"] = record["optimizer_config"] | {"options": {"decay": 0.1}, "tied": ["base_lr"]}
    assert texts(tables.spaces(summarise(records))) == [
        ["A", "some:A", "lr=0.0005", "decay=0.1, base_lr=lr", "lr 0.0001 to 1 (log)", "problem-0, problem-2"],
        ["A", "some:A", "lr=0.0005", "decay=0.1, base_lr=lr", "lr 0.001 to 10 (log)", "problem-1"],
        ["B", "some:B", "lr=0.0005", "decay=0.1, base_lr=lr", "lr 0.001 to 10 (log)", "all"],
    ]


def test_failures():
    failed = {"outcome": "failed", "reason": "ValueError: boom", "attempt": 2}
    records = [trial(0, "a", 0, 0.5), trial(0, "a", 1, 0.0, **failed), run(0, "a", 0.0, 7, settings=DEFAULT, **failed)]
    assert texts(tables.failures(summarise(records))) == [
        ["problem-0", "A", "lr=0.002", "validation", "1000000", "ValueError: boom", "2"],
        ["problem-0", "A", "lr=0.0005", "test", "7", "ValueError: boom", "2"],
    ]


# Words ----------------------------------------------------------------------------------------------------------------


def test_heading_says_the_direction(summaries):
    assert words.heading(summaries[0]) == "problem-0: accuracy (higher is better), target 0.8"
    assert words.heading(summaries[1]) == "problem-1: log10 of the loss (lower is better), target -2"


@pytest.mark.parametrize(
    "value, text",
    [
        (Interval(0.912, 0.903, 0.921), "0.912 [0.903, 0.921]"),
        (Interval(0.912, 0.5, 1.3), "0.91 [0.50, 1.30]"),
        (Interval(-3.2, -40.0, 30.0), "-3 [-40, 30]"),
        (Interval(0.5, 0.5, 0.5), "0.500 [0.500, 0.500]"),
        (Interval(0.5, 0.4999999, 0.5000001), "0.5000 [0.5000, 0.5000]"),
    ],
)
def test_digits_tell_the_ends_apart(value, text):
    assert words.estimate(value) == text


@pytest.mark.parametrize(
    "reached, text", [([30, 40, 50], "40"), ([30, None, 50], "50 (2/3)"), ([None, 9, None], "> 100 (1/3)")]
)
def test_steps_say_what_was_missed(reached, text):
    runs = [run(0, "a", 0.5, seed, steps_to_target=n) for seed, n in enumerate(reached)]
    (summary,) = summarise([trial(0, "a", 0, 0.5), *runs])
    assert words.steps(summary.rows[0].tuned) == text
    assert words.steps(None) == "-"


def test_too_few_seeds_are_said():
    for n, note in ((1, "1 seed: the"), (2, "2 seeds: the"), (3, "3 seeds")):
        (summary,) = summarise(compared({"a": [[0.5] * n]}))
        assert words.footnotes(summary)[0].startswith(note)


def test_missing_seeds_divergence_and_failures_are_said():
    records = compared({"a": [[0.5, 0.5, None]], "b": [[0.4, 0.4, 0.0]]}, {"a": [[0.1, 0.1, 0.1]]})
    records[-1]["outcome"] = "failed"
    (diverged,) = [r for r in records if r["score"] == 0.0]
    diverged["outcome"] = "diverged"
    records.append(trial(0, "b", 1, 0.0, outcome="failed"))
    (summary,) = summarise(records)
    assert words.footnotes(summary) == [
        "3 seeds",
        "A, tuned: only 2 seeds",
        "A, default: 1 failed",
        "B, tuned: 1 diverged",
        "trials were not equal: A 1 (halton), B 2 (halton)",
        "B, tuning: 1 failed",
    ]


def test_what_failed_whole_has_no_score():
    """All runs failed: that is no result of 0 with an interval, and nothing is best."""
    records = compared({"a": [[0.0, 0.0, 0.0]]})
    for record in records:
        record["outcome"] = "failed"
    (summary,) = summarise(records)
    assert (words.mean(summary.rows[0].tuned), words.interval(summary.rows[0].tuned)) == ("failed", "failed")
    assert summary.best == []


def test_small_and_large_scores_keep_their_digits():
    assert words.estimate(Interval(3.08e-8, 3e-8, 3.2e-8)) == "3.08e-08 [3e-08, 3.2e-08]"
    assert words.estimate(Interval(1.5e6, 1.5e6, 1.5e6)) == "1.5e+06 [1.5e+06, 1.5e+06]"


def test_nothing_was_run():
    (summary,) = summarise([trial(0, "a", 0, 0.5)])
    assert words.footnotes(summary) == []
    assert (words.mean(None), words.interval(None), words.settings(summary.rows[0])) == ("-", "not run yet", "-")


# Formats --------------------------------------------------------------------------------------------------------------

TABLE = Table(
    "some-table",
    "Title & co",
    ["name", "score_1"],
    [
        [Cell("[a] *x*"), Cell("-0.5 [-1, 2]", True, {"": -0.5, "low": -1.0, "high": math.inf})],
        [Cell(NASTY), Cell("-", numbers={"": math.nan})],
    ],
    ["100 % sure", "p < 0.05"],
)


def test_csv_has_all_digits():
    assert csv(TABLE).splitlines()[:2] == ["name,score_1,score_1 low,score_1 high", "[a] *x*,-0.5,-1.0,inf"]
    assert read_csv(TABLE)[1] == {"name": NASTY, "score_1": "", "score_1 low": "", "score_1 high": ""}


def test_csv_of_many_digits(every):
    value = every["overall"].rows[0][4].numbers[""]
    assert float(read_csv(every["overall"])[0]["score"]) == value


def test_latex_by_hand():
    lines = latex(TABLE).splitlines()
    assert lines[:8] == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Title \& co}",
        r"\label{tab:some-table}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"name & score\_1 \\",
        r"\midrule",
    ]
    assert lines[8] == r"{[}a] {*}x{*} & \textbf{$-$0.5 {[}$-$1, 2]} \\"
    assert lines[10:] == [
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\footnotesize 100 \% sure; p \textless{} 0.05",
        r"\end{table}",
    ]


def test_latex_of_every_table_is_balanced(every):
    for table in [*every.values(), TABLE]:
        text = latex(table)
        bare = re.sub(r"\\[{}$&%#_\\]", "", text.replace(r"\\", ""))
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert not re.search(r"[%#_^~]", bare)
        body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) == len(table.rows) + 1
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(table.columns) - 1


def test_markdown_by_hand():
    assert markdown(TABLE).splitlines()[:3] == [
        r"| name | score\_1 |",
        "|---|---:|",
        r"| [a] \*x\* | **-0.5 [-1, 2]** |",
    ]


def test_markdown_of_every_table_has_its_columns(every):
    for table in [*every.values(), TABLE]:
        for line in markdown(table).splitlines():
            assert len(re.findall(r"(?<!\\)\|", line)) == len(table.columns) + 1


def test_markdown_keeps_what_looks_like_markup():
    html = pytest.importorskip("markdown").markdown(markdown(TABLE), extensions=["tables"])
    cells = re.findall(r"<td[^>]*>(.*?)</td>", html)
    assert cells[0] == "[a] *x*"
    assert cells[1] == "<strong>-0.5 [-1, 2]</strong>"
    assert cells[2].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"') == NASTY


# Terminal -------------------------------------------------------------------------------------------------------------


def shown(summaries, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    terminal.show(summaries)
    return capsys.readouterr().out


def test_terminal_fits_80_columns(capsys, monkeypatch):
    records = made_records(3, 7)
    for record in records:
        record["optimizer_title"] += " (with a long name, as some have)"
    summaries = summarise(records)
    out = shown(summaries, capsys, monkeypatch)
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    for text in ("tuned", "settings", "default", "to target", "All problems (3), by mean rank", "cost"):
        assert text in out
    plain = " ".join(out.split())
    for summary in summaries:
        assert words.heading(summary) in plain
        for row in summary.rows:
            assert words.interval(row.tuned) in plain
            assert words.steps(row.tuned) in plain
    assert words.NOTES in plain
    assert "- After tuning, take" in plain


def test_terminal_takes_names_for_names(capsys, monkeypatch):
    """Square brackets are no markup, colons no pictures."""
    records = [r | {"optimizer_title": "[bold]x[/y] :smile:"} for r in compared({"a": [[0.5] * 3]})]
    assert "[bold]x[/y] :smile:" in " ".join(shown(summarise(records), capsys, monkeypatch).split())


def test_terminal_before_there_is_a_ranking(capsys, monkeypatch):
    out = shown(summarise([trial(0, "a", 0, 0.5)]), capsys, monkeypatch)
    assert "not run yet" in out
    assert "so there is no ranking." in " ".join(out.split())
    assert "All problems" not in out


def test_nobody_reads(monkeypatch):
    """`| head` has seen enough: the caller says so with its exit code, not rich."""

    class Closed(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(BrokenPipeError):
        terminal.show(summarise(compared({"a": [[0.5]]})))
