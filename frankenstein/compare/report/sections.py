"""What the page holds, section by section: charts, tables, and the words around them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from frankenstein.compare.report import Loaded, charts, tables, words
from frankenstein.compare.report.charts import across, cost, curves, tuning
from frankenstein.compare.report.charts.chart import Chart, Look
from frankenstein.compare.report.formats import Table
from frankenstein.compare.results.overall import Overall
from frankenstein.compare.results.summary import ProblemSummary
from frankenstein.compare.results.verdict import verdict
from frankenstein.compare.store.records import Record

# The columns of the standings that the first screen has room for, and what it calls them.
ANSWER = {
    "optimizer": "optimizer",
    "mean rank": "mean rank",
    "first": "comes first",
    "best or level": "best or level",
    "score": "score",
    "untuned score": "untuned score",
    "step cost": "step cost",
}


@dataclass(frozen=True)
class Problem:
    """The page of one problem."""

    summary: ProblemSummary
    path: str
    charts: list[Chart]
    table: Table

    @property
    def answer(self) -> str:
        """Who is best here, and what is measured."""
        summary, config = self.summary, self.summary.config
        tuned = [row for row in summary.rows if row.tuned and row.optimizer in summary.best]
        best = "No optimizer has been tuned here yet."
        if tuned:
            best = f"Best after tuning: {tuned[0].title}, {words.interval(tuned[0].tuned)}."
            if len(tuned) > 1:
                best += f" Level with it: {', '.join(row.title for row in tuned[1:])}."
        arrow = "higher" if config["is_higher_better"] else "lower"
        return (
            f"{best} Score: {config['metric']} ({arrow} is better) after {config['n_steps']} steps; target "
            f"{config['target']:g}; a run that diverges or fails scores {config['worst']:g}."
        )

    @property
    def curves(self) -> Chart | None:
        """The learning curves, which the overview shows too; None while there are none."""
        return next((chart for chart in self.charts if chart.name.startswith("curves-")), None)


@dataclass(frozen=True)
class Page:
    """Everything that the template shows.

    Attributes:
        counts: What was run, in a line.
        verdict: Sentences; the first is the answer.
        looks: The optimizers, as the legend lists them.
        charts: Those across problems, by name.
        answer: The ranking in short.
        tables: All numbers across problems.
        problems: One page each.
        commands: What was typed.
        origins: Where the records come from.
        has_loss: Whether any curve has a training loss.
        has_error: Whether any score is an accuracy.
    """

    counts: list[str]
    verdict: list[str]
    looks: list[Look]
    charts: dict[str, Chart]
    answer: Table | None
    tables: list[Table]
    problems: list[Problem]
    commands: list[str]
    origins: list[dict[str, Any]]
    has_loss: bool
    has_error: bool

    @property
    def look_data(self) -> list[dict[str, Any]]:
        """What the page must know of the optimizers."""
        return [{"label": look.label, "is_strong": look.is_strong} for look in self.looks]

    def parts(self) -> dict[str, dict[str, Any]]:
        """Return the charts as data, in parts that the page reads when it shows them."""
        parts = {"overview": list(self.charts.values())} | {problem.path: problem.charts for problem in self.problems}
        return {name: {c.name: {"spec": c.spec, "rows": c.rows} for c in found} for name, found in parts.items()}


def page(loaded: Loaded) -> Page:
    """Return the contents of the page."""
    summaries, found = loaded.summaries, loaded.overall
    styles = charts.looks(summaries, found)
    problems = [_problem(summary, styles, loaded.references.get(summary.name, [])) for summary in summaries]
    records = [record for summary in summaries for record in summary.records]
    drawn = [chart for problem in problems for chart in problem.charts]
    quantities = {view["quantity"] for chart in drawn for view in chart.spec.get("usermeta", {}).get("views", [])}
    return Page(
        counts=_counts(summaries, records),
        verdict=verdict(found, summaries),
        looks=styles,
        charts={chart.name: chart for chart in overview_charts(loaded, styles)},
        answer=answer(found) if found else None,
        tables=[even(table) for table in tables.every(summaries, found) if not table.name.startswith("problem-")],
        problems=problems,
        commands=list(dict.fromkeys(record["command"] for record in records)),
        origins=_origins(records),
        has_loss="train_loss" in quantities,
        has_error="error" in quantities,
    )


def overview_charts(loaded: Loaded, styles: list[Look]) -> list[Chart]:
    """Return the charts across problems; none while nobody has a tuned score on every problem."""
    found = loaded.overall
    if found is None:
        return []
    made = [
        across.aggregate(found, styles),
        across.profiles(found, styles, "steps"),
        across.profiles(found, styles, "seconds"),
        tuning.budgets(found, styles),
        cost.costs(found, styles, "step_cost"),
        cost.costs(found, styles, "bytes_per_param"),
    ]
    return [*made, across.ranks(found, styles), across.wins(found, styles)] if len(found.standings) > 1 else made


def problem_charts(summary: ProblemSummary, styles: list[Look], references: list[dict[str, Any]]) -> list[Chart]:
    """Return the charts of one problem, the learning curves first."""
    made = [
        curves.curves(summary, styles, references),
        curves.scores(summary, styles),
        tuning.tuning(summary, styles),
        cost.times(summary, styles),
    ]
    return [chart for chart in made if chart.rows]


def answer(found: Overall) -> Table:
    """Return the standings in short."""
    whole = tables.standings(found)
    kept = [whole.columns.index(name) for name in ANSWER]
    return even(Table("answer", "Ranking", list(ANSWER.values()), [[row[i] for i in kept] for row in whole.rows]))


def even(table: Table) -> Table:
    """Return the table with estimates of as many digits in a whole column, so that they stand below each other."""
    rows = [list(row) for row in table.rows]
    for i in range(len(table.columns)):
        estimates = [row for row in rows if "low" in row[i].numbers]
        digits = max((len(row[i].text.partition(" ")[0].partition(".")[2]) for row in estimates), default=0)
        for row in estimates:
            value, low, high = (f"{row[i].numbers[end]:.{digits}f}" for end in ("", "low", "high"))
            row[i] = replace(row[i], text=f"{value} [{low}, {high}]")
    return replace(table, rows=rows)


def text_columns(table: Table) -> list[bool]:
    """Say of each column whether it holds words only."""
    return [not any(cell.numbers for cell in column) for column in zip(*table.rows, strict=True)]


def _problem(summary: ProblemSummary, styles: list[Look], references: list[dict[str, Any]]) -> Problem:
    drawn = problem_charts(summary, styles, references)
    return Problem(summary, f"/problem/{quote(summary.name, safe='')}", drawn, even(tables.problem(summary)))


def _counts(summaries: list[ProblemSummary], records: list[Record]) -> list[str]:
    optimizers = {row.optimizer for summary in summaries for row in summary.rows}
    minutes = sum(record["wall_seconds"] for record in records) / 60
    spent = f"{minutes:,.1f} minutes" if minutes < 120 else f"{minutes / 60:,.1f} hours"
    days = sorted({record["finished_at"][:10] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    counted = ((len(optimizers), "optimizer"), (len(summaries), "problem"), (len(records), "run"))
    return [*(f"{n:,} {what}{'s' * (n != 1)}" for n, what in counted), f"{spent} of computing", when]


def _origins(records: list[Record]) -> list[dict[str, Any]]:
    """Return each distinct provenance, with the number of its records and when they were finished."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps(record["provenance"], sort_keys=True), []).append(record)
    return [
        {
            "n_records": len(group),
            "first": min(record["finished_at"] for record in group),
            "last": max(record["finished_at"] for record in group),
            **json.loads(key),
        }
        for key, group in groups.items()
    ]
