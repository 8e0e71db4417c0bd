"""The report of a comparison: one HTML file that needs no network, and on request every figure and table as files.

sections.py  what the page holds: charts, tables, and the words around them
files.py     figures and tables as files
page.html    the page (Jinja2), page.css its looks
charts.js    draws its charts; page.js does what its reader asks for
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from frankenstein.compare.results.overall import Overall, overall
from frankenstein.compare.results.summary import ProblemSummary, summarise
from frankenstein.compare.store.merge import REFERENCES, References, joined_records, read_references
from frankenstein.compare.store.records import RecordError, Report

_HERE = Path(__file__).parent
_SNIPPET = "window.vegaEmbed = vegaEmbed;"  # what the bundle hands to the page


@dataclass(frozen=True)
class Loaded:
    """What a report is made of.

    Attributes:
        summaries: One for each problem.
        references: Published curves, by problem; never mixed with ours.
    """

    summaries: list[ProblemSummary]
    references: References = field(default_factory=dict)

    @cached_property
    def overall(self) -> Overall | None:
        """The standings, if there are any yet."""
        return overall(self.summaries)


def load(folders: Path | Iterable[Path], report: Report) -> Loaded:
    """Return what one or several run folders hold, as if it had been run in one.

    Args:
        folders: Run folders. Of two records of a cell, one that did not fail counts, then the later one.
        report: Called with a line for what is damaged and skipped.

    Raises:
        RecordError: There is no such folder, or it holds no records, or damaged ones.
    """
    folders = [folders] if isinstance(folders, Path) else list(folders)
    summaries = summarise(joined_records(folders, report))
    references: References = {}
    for folder in folders:
        for problem, curves in read_references(folder).items():
            held = references.setdefault(problem, [])
            for curve in curves:
                if not _is_drawable(curve):
                    report(f"{folder / REFERENCES}: {curve['title']!r} of {problem} has no steps and scores; left out")
                elif curve not in held:
                    held.append(curve)
    return Loaded(summaries, references)


def _is_drawable(curve: dict[str, Any]) -> bool:
    """Say whether a published curve is one: a title, a source, steps and as many scores."""
    step, score = curve.get("step"), curve.get("score")
    if not (
        isinstance(curve.get("source"), str)
        and isinstance(step, list)
        and isinstance(score, list)
        and len(step) == len(score) > 0
    ):
        return False
    return all(type(value) in (int, float) for value in [*step, *score])


def only(loaded: Loaded, problems: Collection[str], optimizers: Collection[str]) -> Loaded:
    """Return what is left of it with these problems and optimizers; an empty collection keeps all.

    Raises:
        RecordError: A name has no runs, or nothing is left.
    """
    known = {s.name for s in loaded.summaries}, {row.optimizer for s in loaded.summaries for row in s.rows}
    for what, names, there in zip(("problem", "optimizer"), (problems, optimizers), known, strict=True):
        for name in names:
            if name not in there:
                raise RecordError(f"no runs of {what} {name!r}; there are {', '.join(sorted(there))}")
    kept = [s for s in loaded.summaries if not problems or s.name in problems]
    if optimizers:
        kept = [replace(s, rows=[row for row in s.rows if row.optimizer in optimizers]) for s in kept]
    kept = [s for s in kept if s.rows]
    if not kept:
        raise RecordError("nothing is left: these optimizers have no runs of these problems")
    return Loaded(kept, loaded.references)


def write_html(folder: Path, loaded: Loaded) -> Path:
    """Write `report.html` into the folder.

    Raises:
        RecordError: The file cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from frankenstein.compare.report import sections

    loader = PackageLoader("frankenstein.compare.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("page.html").render(
        page=sections.page(loaded),
        text_columns=sections.text_columns,
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup((_HERE / name).read_text(encoding="utf-8")) for name in ("charts.js", "page.js")],
        vega=Markup(vega_script()),
        json=lambda value: Markup(script_json(value)),
    )
    path, half = folder / "report.html", folder / ".report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        half.write_text(html, encoding="utf-8")
        os.replace(half, path)  # a reader never sees half a report
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}") from None
    return path


def write_files(folder: Path, loaded: Loaded) -> list[Path]:
    """Write every figure as PNG, SVG and PDF and every table as CSV and LaTeX; return their paths.

    Raises:
        RecordError: A file cannot be written.
    """
    from frankenstein.compare.report import files

    try:
        return files.write(folder, loaded)
    except OSError as error:
        raise RecordError(f"cannot write {error.filename or folder}: {error.strerror}") from None


@cache
def vega_script() -> str:
    """Return Vega and Vega-Lite as one script; bundling takes a second or two."""
    import vl_convert

    return vl_convert.javascript_bundle(_SNIPPET).replace("</script", r"<\/script").replace("<!--", r"<\!--")


def script_json(value: Any) -> str:
    """Return JSON that cannot end the script element around it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace("\u2028", r"\u2028")
