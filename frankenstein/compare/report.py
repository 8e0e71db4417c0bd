"""The HTML report of a comparison: text, tables and pictures in one file, which needs no network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from frankenstein.compare import tables
from frankenstein.compare.records import Record, RecordError, Report, read
from frankenstein.compare.summary import ProblemSummary, ranking, summarise


def load(folder: Path, report: Report) -> list[ProblemSummary]:
    """Return the summaries of a run folder.

    Raises:
        RecordError: There is no such folder, or it holds no records, or damaged ones.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder} is {'not a folder' if folder.exists() else 'no folder'}; name a run folder")
    records = read(folder, report)
    if not records:
        raise RecordError(f"no records in {folder}; `frankenstein compare --out {folder}` makes them")
    return summarise(records)


def write_html(folder: Path, summaries: list[ProblemSummary]) -> Path:
    """Write `report.html` into the run folder.

    Raises:
        RecordError: The file cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from frankenstein.compare import figures

    environment = Environment(
        loader=PackageLoader("frankenstein.compare", "."), autoescape=True, undefined=StrictUndefined
    )
    records = [record for summary in summaries for record in records_behind(summary)]
    html = environment.get_template("report.html").render(
        summaries=summaries,
        ranking=ranking(summaries),
        tables=tables,
        curves=figures.as_svg(figures.learning_curves(summaries)),
        tuning=figures.as_svg(figures.tuning_curves(summaries)),
        optimizers=_optimizers(summaries),
        provenance=_provenance(records),
        failures=[record for record in records if record["outcome"] == "failed"],
        n_records=len(records),
        wall_minutes=sum(record["wall_seconds"] for record in records) / 60,
        commands=list(dict.fromkeys(record["command"] for record in records)),
        json=lambda value: json.dumps(value, sort_keys=True),
    )
    path, half = folder / "report.html", folder / ".report.html"
    try:
        half.write_text(html, encoding="utf-8")
        os.replace(half, path)  # a reader never sees half a report
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}") from None
    return path


def records_behind(summary: ProblemSummary) -> list[Record]:
    """Return the records behind a summary, each once."""
    found: dict[str, Record] = {}
    for row in summary.rows:
        settings = [setting for setting in (row.tuned, row.default) if setting]
        for record in [*row.trials, *(record for setting in settings for record in setting.records)]:
            found[record["cell"]] = record
    return list(found.values())


def _optimizers(summaries: list[ProblemSummary]) -> list[tuple[str, dict[str, Any]]]:
    """Return title and configuration of every optimizer."""
    found = {row.title: row.config for summary in summaries for row in summary.rows}
    return sorted(found.items())


def _provenance(records: list[Record]) -> list[tuple[int, str, str, dict[str, Any]]]:
    """Return (cells, first finished, last finished, provenance) for each distinct provenance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps(record["provenance"], sort_keys=True), []).append(record)
    return [
        (len(group), min(r["finished_at"] for r in group), max(r["finished_at"] for r in group), json.loads(key))
        for key, group in groups.items()
    ]
