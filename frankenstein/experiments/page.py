"""Findings in the terminal and as files: a page to open in a browser, tables as CSV and LaTeX, figures."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from pathlib import Path

from frankenstein.compare.report import charts, script_json, vega_script
from frankenstein.compare.report.charts.chart import Chart
from frankenstein.compare.report.formats import Table, csv, latex
from frankenstein.experiments.experiment import Findings, Passage

__all__ = ["text", "write", "write_overview"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; } figcaption, .note { color: #555; font-size: .9rem; }
svg, img { max-width: 100%; height: auto; }
.vega-bind-name { margin-right: .5rem; } .vega-bind input { width: 24rem; max-width: 60vw; vertical-align: middle; }
dt { font-weight: bold; } dd { margin: 0 0 .5rem 1.5rem; white-space: pre-wrap; }
"""

SCRIPT = """
for (const figure of document.querySelectorAll("figure.live")) {
  const place = document.createElement("div"), still = figure.querySelector("div");
  vegaEmbed(place, JSON.parse(figure.querySelector("script").textContent), {renderer: "svg", actions: false})
    .then(() => still.replaceWith(place));
}
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
    figures = []
    for chart in findings.charts:
        if not chart.rows:  # every run failed
            continue
        paths = [folder / "figures" / f"{chart.name}.{suffix}" for suffix in ("png", "svg")]
        charts.save(chart, *paths)
        written += paths
        drawing = paths[1].read_text(encoding="utf-8")
        figures.append(_live(drawing, chart) if chart.name in findings.live else _figure(drawing, chart.caption))
    for picture in findings.pictures:
        written.append(folder / "figures" / picture.name)
        written[-1].write_bytes(picture.draw())
        figures.append(_figure(_image(written[-1]), picture.caption))
    written[0].write_text(_page(findings, figures), encoding="utf-8")
    return written


def write_overview(found: list[tuple[str, Findings | str]], folder: Path) -> Path:
    """Write one page of several experiments, which links to the page of each; return it.

    Args:
        found: Name of each experiment, which is its folder, and what it found or why it was not run.
        folder: Where their folders are.
    """
    parts = ["<h1>The paper's experiments</h1>"]
    for name, findings in found:
        if isinstance(findings, str):
            parts.append(f"<h2>{escape(name)}</h2><p class='note'>{escape(findings)}</p>")
            continue
        lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in findings.sentences)
        link = f'<a href="{escape(name)}/report.html">{escape(findings.title)}</a>'
        parts.append(f"<h2>{link}</h2><ul>{lines}</ul>{''.join(map(_table, findings.tables))}")
    path = folder / "report.html"
    path.write_text(_html("The paper's experiments", parts), encoding="utf-8")
    return path


def _image(path: Path) -> str:
    """Return the file as an element that holds it, so that the page can be sent alone."""
    return f'<img alt="" src="data:image/{path.suffix[1:]};base64,{b64encode(path.read_bytes()).decode()}">'


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _live(drawing: str, chart: Chart) -> str:
    """Return a figure that a browser draws anew, with what answers the mouse; the drawing stands where it cannot."""
    spec = f'<script type="application/json">{script_json(chart.complete())}</script>'
    return f'<figure class="live"><div>{drawing}</div><figcaption>{escape(chart.caption)}</figcaption>{spec}</figure>'


def _page(findings: Findings, figures: list[str]) -> str:
    parts = [f"<h1>{escape(findings.title)}</h1>", "<ul>"]
    parts += [f"<li>{escape(sentence)}</li>" for sentence in findings.sentences]
    parts.append("</ul>")
    for table in findings.tables:
        parts += [f"<h2>{escape(table.title)}</h2>", _table(table)]
    parts += [*figures, *map(_passage, findings.passages)]
    if findings.live:
        parts.append(f"<script>{vega_script()}</script><script>{SCRIPT}</script>")
    return _html(findings.title, parts)


def _passage(passage: Passage) -> str:
    texts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in passage.texts)
    return f"<h2>{escape(passage.title)}</h2><dl>{texts}</dl>"


def _html(title: str, parts: list[str]) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def _cell(cell: object) -> str:
    shown = escape(str(cell))
    return f"<td><b>{shown}</b></td>" if getattr(cell, "is_best", False) else f"<td>{shown}</td>"
