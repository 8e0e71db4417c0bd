"""Every figure and every table of a report as files, for papers and slides."""

from __future__ import annotations

import re
from pathlib import Path

from frankenstein.compare.report import Loaded, charts, sections, tables
from frankenstein.compare.report.formats import csv, latex


def write(folder: Path, loaded: Loaded) -> list[Path]:
    """Write `figures/` and `tables/` into the folder; return the files."""
    styles = charts.looks(loaded.summaries, loaded.overall)
    figures = [charts.overview(loaded.summaries), charts.tuning_overview(loaded.summaries)]
    figures += sections.overview_charts(loaded, styles)
    for summary in loaded.summaries:
        figures += sections.problem_charts(summary, styles, loaded.references.get(summary.name, []))
    written = []
    for name in ("figures", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for figure in figures:
        paths = [folder / "figures" / f"{_file_name(figure.name)}.{suffix}" for suffix in charts.FORMATS]
        charts.save(figure, *paths)
        written += paths
    for table in tables.every(loaded.summaries, loaded.overall):
        for suffix, text in (("csv", csv(table)), ("tex", latex(table))):
            written.append(folder / "tables" / f"{_file_name(table.name)}.{suffix}")
            written[-1].write_text(text, encoding="utf-8")
    return written


def _file_name(name: str) -> str:
    """Return the name with all but letters, digits, dots and hyphens as hyphens.

    Examples:
        >>> _file_name("curves-a/b c")
        'curves-a-b-c'
    """
    return re.sub(r"[^\w.-]+", "-", name)
