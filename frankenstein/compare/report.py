"""Show a comparison: a table in the terminal, a table in Markdown, one self-contained HTML file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frankenstein.compare.records import Record, RecordError, read
from frankenstein.compare.statistics import Interval
from frankenstein.compare.summary import ProblemSummary, Row, Setting, ranking, summarise

if TYPE_CHECKING:
    from rich.table import Table

NOTES = (
    "Mean over fresh seeds on the test split with its 95 % bootstrap interval. Tuned: the learning rate with the best "
    "validation score of the same grid for every optimizer; `*` marks one at the grid's edge. Default: the optimizer's "
    "own, untuned. Steps to target: median over seeds, `-` where half of them missed it. "
    "Bold: the interval overlaps that of the best."
)


def load(folder: Path, report: Callable[[str], None]) -> list[ProblemSummary]:
    """Return the summaries of a run folder.

    Raises:
        RecordError: The folder holds no records, or damaged ones.
    """
    records = read(folder, report)
    if not records:
        raise RecordError(f"no records in {folder}; `frankenstein compare --out {folder}` makes them")
    return summarise(records)


def order(summaries: list[ProblemSummary]) -> list[str]:
    """Return the optimizers' titles in the order that fixes their colours and line styles."""
    return sorted({row.title for summary in summaries for row in summary.rows})


def terminal_table(summary: ProblemSummary) -> Table:
    """Return the problem's table for rich."""
    from rich import box
    from rich.table import Table

    arrow = "higher" if summary.config["is_higher_better"] else "lower"
    table = Table(
        title=f"{summary.name}: {summary.config['metric']} ({arrow} is better), target {summary.config['target']:g}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "optimizer" else "right", no_wrap=True)
    for row in summary.rows:
        table.add_row(*_cells(row), style="bold" if row.optimizer in summary.best() else "")
    return table


COLUMNS = ("optimizer", "tuned", "lr", "default", "steps to target", "ms/step", "notes")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.title,
        _score(row.tuned),
        f"{row.tuned.lr:g}{'*' if row.is_at_edge else ''}" if row.tuned else "",
        _score(row.default),
        _steps(row.tuned),
        f"{1e3 * row.tuned.seconds_per_step:.2f}" if row.tuned else "",
        "; ".join(_notes(row)),
    )


def _score(setting: Setting | None) -> str:
    return _interval(setting.score) if setting else "not run yet"


def _interval(score: Interval) -> str:
    return f"{score.value:.4g} [{score.low:.4g}, {score.high:.4g}]"


def _steps(setting: Setting | None) -> str:
    if setting is None:
        return ""
    steps = "-" if math.isinf(setting.steps_to_target) else f"{setting.steps_to_target:g}"
    n_seeds = len(setting.records)
    return steps if setting.n_reached == n_seeds else f"{steps} ({setting.n_reached}/{n_seeds})"


def _notes(row: Row) -> list[str]:
    notes = []
    for name, setting in (("tuned", row.tuned), ("default", row.default)):
        for what in ("diverged", "failed"):
            count = getattr(setting, f"n_{what}", 0)
            if count:
                notes.append(f"{name}: {count} {what}")
    return notes


def markdown(summaries: list[ProblemSummary]) -> str:
    """Return the overview as a Markdown table: tuned (and default) score of every optimizer on every problem."""
    entries = ranking(summaries)
    lines = [
        "| optimizer | mean rank | best or level | " + " | ".join(summary.name for summary in summaries) + " |",
        "|---|---|---|" + "---|" * len(summaries),
    ]
    for title, rank, n_best, n_problems in entries:
        cells = []
        for summary in summaries:
            row = next(row for row in summary.rows if row.title == title)
            value = f"{row.tuned.score.value:.3f}" if row.tuned else ""
            value = f"**{value}**" if row.optimizer in summary.best() else value
            cells.append(value + (f" ({row.default.score.value:.3f})" if row.default else ""))
        lines.append(f"| {title} | {rank:.2f} | {n_best} of {n_problems} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_html(folder: Path, summaries: list[ProblemSummary]) -> Path:
    """Write `report.html` into the run folder: text, tables and pictures in one file, no network needed.

    Raises:
        RecordError: The file cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from frankenstein.compare import figures

    titles = order(summaries)
    template = Environment(
        loader=PackageLoader("frankenstein.compare", "."), autoescape=True, undefined=StrictUndefined
    ).get_template("report.html")
    records = [record for summary in summaries for record in _records(summary)]
    html = template.render(
        summaries=summaries,
        ranking=ranking(summaries),
        columns=COLUMNS,
        cells=_cells,
        notes=NOTES.replace("`", ""),
        curves=figures.as_svg(figures.learning_curves(summaries, titles)),
        tuning=figures.as_svg(figures.tuning_curves(summaries, titles)),
        provenance=_provenance(records),
        failures=[record for record in records if record["outcome"] == "failed"],
        n_records=len(records),
        wall_minutes=sum(record["wall_seconds"] for record in records) / 60,
        command=command(summaries),
        json=lambda value: json.dumps(value, sort_keys=True),
    )
    path = folder / "report.html"
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}") from None
    return path


def _records(summary: ProblemSummary) -> list[Record]:
    """Return the records behind a summary, each once."""
    found: dict[str, Record] = {}
    for row in summary.rows:
        settings = [setting for setting in (row.tuned, row.default) if setting]
        for record in [*row.tuning, *(record for setting in settings for record in setting.records)]:
            found[record["cell"]] = record
    return list(found.values())


def _provenance(records: list[Record]) -> list[tuple[int, str, str, dict[str, Any]]]:
    """Return (cells, first finished, last finished, provenance) for each distinct provenance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps(record["provenance"], sort_keys=True), []).append(record)
    return [
        (len(group), min(r["finished_at"] for r in group), max(r["finished_at"] for r in group), json.loads(key))
        for key, group in groups.items()
    ]


def command(summaries: list[ProblemSummary]) -> str:
    """Return the command that repeats the comparison."""
    optimizers = dict.fromkeys(row.optimizer for summary in summaries for row in summary.rows)
    n_seeds = max((len(row.tuned.records) for summary in summaries for row in summary.rows if row.tuned), default=0)
    problems = " ".join(summary.name for summary in summaries)
    return f"frankenstein compare --problems {problems} --optimizers {' '.join(sorted(optimizers))} --seeds {n_seeds}"
