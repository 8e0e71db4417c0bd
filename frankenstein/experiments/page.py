"""Findings in the terminal and as files: a page to open in a browser, tables as CSV and LaTeX, figures."""

from __future__ import annotations

from html import escape
from pathlib import Path

from frankenstein.compare.report import charts
from frankenstein.compare.report.charts.chart import Chart
from frankenstein.compare.report.formats import Table, csv, latex
from frankenstein.experiments.experiment import Findings

__all__ = ["text", "write"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; } figcaption, .note { color: #555; font-size: .9rem; }
svg { max-width: 100%; height: auto; }
"""


def text(findings: Findings) -> list[str]:
    """Return what the terminal shows, line by line."""
    lines = [f"- {sentence}" for sentence in findings.sentences]
    for table in findings.tables:
        lines += ["", table.title, *_aligned(table), *(f"  {note}" for note in table.notes)]
    return [*lines, ""]


def _aligned(table: Table) -> list[str]:
    rows = [table.columns, *([cell.text for cell in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def write(findings: Findings, folder: Path) -> list[Path]:
    """Write `report.html`, `tables/` and `figures/` into the folder; return the files."""
    for name in ("figures", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    written = [folder / "report.html"]
    for table in findings.tables:
        for suffix, content in (("csv", csv(table)), ("tex", latex(table))):
            written.append(folder / "tables" / f"{table.name}.{suffix}")
            written[-1].write_text(content, encoding="utf-8")
    drawings = []
    shown = [chart for chart in findings.charts if chart.rows]  # none where every run failed
    for chart in shown:
        paths = [folder / "figures" / f"{chart.name}.{suffix}" for suffix in ("png", "svg")]
        charts.save(chart, *paths)
        written += paths
        drawings.append(paths[1].read_text(encoding="utf-8"))
    written[0].write_text(_page(findings, shown, drawings), encoding="utf-8")
    return written


def _page(findings: Findings, shown: list[Chart], drawings: list[str]) -> str:
    parts = [f"<h1>{escape(findings.title)}</h1>", "<ul>"]
    parts += [f"<li>{escape(sentence)}</li>" for sentence in findings.sentences]
    parts.append("</ul>")
    for table in findings.tables:
        parts.append(f"<h2>{escape(table.title)}</h2>")
        head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        parts += [f'<p class="note">{escape(note)}</p>' for note in table.notes]
    for chart, drawing in zip(shown, drawings, strict=True):
        parts.append(f"<figure>{drawing}<figcaption>{escape(chart.caption)}</figcaption></figure>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(findings.title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _cell(cell: object) -> str:
    shown = escape(str(cell))
    return f"<td><b>{shown}</b></td>" if getattr(cell, "is_best", False) else f"<td>{shown}</td>"
