"""What a chart is, how optimizers look in all of them, and how one becomes a file.

A chart is a Vega-Lite specification and its rows, apart: the HTML report draws it in the browser, `save` on paper.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frankenstein.compare.results.overall import Overall
from frankenstein.compare.results.summary import ProblemSummary

Spec = dict[str, Any]
Row = dict[str, Any]

# Okabe and Ito's colours, which people with colour blindness can tell apart, without the yellow that white paper
# swallows; dashes when they are used up.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b1b1b")
DASHES: tuple[list[int], ...] = ([1, 0], [7, 3], [2, 2], [8, 3, 2, 3])
N_STRONG = 5  # with more optimizers than colours, so many of the best are drawn in full, and ours
GREY = "#808080"  # of what is not an optimizer; readable on white and on black
FONT = "Helvetica, Arial, sans-serif"
FORMATS = ("png", "svg", "pdf")

CONFIG: Spec = {
    "font": FONT,
    "background": "white",
    "padding": {"left": 6, "top": 6, "right": 20, "bottom": 6},
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelColor": "#444",
        "titleColor": "#444",
        "gridColor": "#e6e6e6",
        "domain": False,
        "tickColor": "#cfcfcf",
        "tickSize": 4,
        "labelPadding": 4,
        "labelLimit": 190,
        "titlePadding": 8,
        "tickCount": 5,
    },
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelColor": "#444"},
    "header": {"labelFontSize": 12, "labelColor": "#222", "titleColor": "#222"},
    "title": {"fontSize": 13, "fontWeight": 600, "color": "#222", "anchor": "start", "offset": 10},
    "text": {"color": "#222", "fontSize": 12},
}


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: For files and anchors: lower case, with hyphens.
        title: For people.
        caption: What it shows and how to read it.
        spec: Vega-Lite, without data. Its `usermeta` tells the page what it may change, see `report/charts.js`.
        rows: The data. A row with the key "optimizer" is shown while that optimizer is.
        subject: The problem, if it is about one.
    """

    name: str
    title: str
    caption: str
    spec: Spec
    rows: list[Row]
    subject: str = ""

    @property
    def full_title(self) -> str:
        """The title, for a chart that stands alone."""
        return f"{self.subject}: {self.title.lower()}" if self.subject else self.title

    def complete(self) -> Spec:
        """Return the specification with its data, which can stand alone."""
        return {"title": self.full_title, **self.spec, "data": {"values": self.rows}, "config": CONFIG}


@dataclass(frozen=True)
class Look:
    """How one optimizer looks, in every chart.

    Attributes:
        optimizer: Name.
        label: Title, which no other optimizer has.
        colour: Of its lines.
        dash: Of its lines: lengths of strokes and gaps.
        is_ours: Whether this package brings it.
        is_strong: Whether its lines are drawn in full where there are many.
    """

    optimizer: str
    label: str
    colour: str
    dash: list[int]
    is_ours: bool
    is_strong: bool


def looks(summaries: list[ProblemSummary], found: Overall | None) -> list[Look]:
    """Return how the optimizers look: ours first, then the best mean rank first, then those without one by title."""
    rows = {row.optimizer: row for summary in summaries for row in summary.rows}
    ranked = [standing.optimizer for standing in found.standings] if found else []
    order = [*ranked, *sorted(rows.keys() - set(ranked), key=lambda name: rows[name].title)]
    ours = [name for name in order if is_ours(rows[name].config["class"])]
    titles = [row.title for row in rows.values()]
    best = order if len(order) <= len(COLOURS) + 1 else order[:N_STRONG]
    made = []
    for i, name in enumerate([*ours, *(name for name in order if name not in ours)]):
        title = rows[name].title
        label = title if titles.count(title) == 1 else f"{title} ({name})"
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
        made.append(Look(name, label, colour, dash, name in ours, name in ours or name in best))
    return made


def is_ours(target: str) -> bool:
    """Say whether `module:Class` is one of this package's optimizers; its baselines are other people's.

    Examples:
        >>> is_ours("frankenstein.torch:Frankenstein"), is_ours("frankenstein.compare.baselines:lamb")
        (True, False)
    """
    return target.startswith("frankenstein.") and not target.startswith("frankenstein.compare.")


def labels(styles: Iterable[Look]) -> dict[str, str]:
    """Return the label of each optimizer, by its name."""
    return {look.optimizer: look.label for look in styles}


def colour(styles: list[Look], has_legend: bool = True) -> Spec:
    """Return the encoding of optimizers as colours; the page has a legend of its own and leaves this one out."""
    scale = {"domain": [look.label for look in styles], "range": [look.colour for look in styles]}
    legend: Spec = {"title": None, "orient": "bottom", "columns": 4, "symbolType": "stroke", "symbolSize": 400}
    legend |= {"symbolOpacity": 1, "symbolStrokeWidth": 2.2}
    encoding = {"field": "optimizer", "type": "nominal", "scale": scale}
    return {**encoding, "legend": legend if has_legend else None}


def dash(styles: list[Look]) -> Spec:
    """Return the encoding of optimizers as dashes, which goes with `colour`."""
    scale = {"domain": [look.label for look in styles], "range": [look.dash for look in styles]}
    legend = {"title": None, "orient": "bottom", "columns": 4, "symbolOpacity": 1, "symbolStrokeWidth": 2.2}
    return {"field": "optimizer", "type": "nominal", "scale": scale, "legend": legend}


def emphasis(styles: list[Look]) -> list[Spec]:
    """Return the parameters by which some optimizers stand out: the strong ones, and the one in focus."""
    return [
        {"name": "strong", "value": [look.label for look in styles if look.is_strong]},
        {"name": "focus", "value": ""},
    ]


WIDTH = {
    "condition": [
        {"test": "focus == datum.optimizer", "value": 3.2},
        {"test": "indexof(strong, datum.optimizer) < 0", "value": 1},
    ],
    "value": 2.2,
}


def opacity(full: float = 1.0, weak: float = 0.65) -> Spec:
    """Return the encoding of emphasis as opacity: `full` for strong optimizers, `weak` for the others.

    Lines take it as `strokeOpacity`, areas as `fillOpacity`: groups that are blended as a whole make slow PNGs.
    """
    return {
        "condition": [
            {"test": "focus != '' && focus != datum.optimizer", "value": full / 8},
            {"test": "focus == '' && indexof(strong, datum.optimizer) < 0", "value": weak},
        ],
        "value": full,
    }


def by_optimizer(order: list[str], **axis: Any) -> Spec:
    """Return the encoding that gives every optimizer a line of its own, in this order."""
    settings: Spec = {"grid": False, "ticks": False, "labelPadding": 8, **axis}
    return {"field": "optimizer", "type": "nominal", "sort": order, "title": None, "axis": settings}


def field(name: str, title: str, form: str | None = ".4~g") -> Spec:
    """Return a line of a tooltip; `form` None for text."""
    kind = {"type": "quantitative", "format": form} if form else {"type": "nominal"}
    return {"field": name, "title": title, **kind}


def rounded(value: float, digits: int = 5) -> float:
    """Return the value with so many significant digits: more cannot be seen, and take room."""
    return float(f"{value:.{digits}g}")


def save(chart: Chart, *paths: Path) -> None:
    """Write the chart to files; the suffix decides the format of each: .svg, .png or .pdf."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(json.dumps(chart.complete()))
    for path in paths:
        if path.suffix == ".svg":
            path.write_text(svg, encoding="utf-8")
        elif path.suffix == ".pdf":
            path.write_bytes(vl_convert.svg_to_pdf(svg))
        else:
            path.write_bytes(vl_convert.svg_to_png(svg, scale=2.0))
