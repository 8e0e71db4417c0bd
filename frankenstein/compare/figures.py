"""Pictures of a comparison, drawn with matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from frankenstein.compare.records import Record
from frankenstein.compare.summary import ProblemSummary, Row, Setting

# Okabe and Ito's colours, which people with colour blindness can tell apart; dashes when they are used up.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
DASHES = ("-", "--", ":")

Style = dict[str, Any]


def learning_curves(summaries: list[ProblemSummary]) -> Figure:
    """Return the tuned learning curves: median over seeds, and a band from the worst to the best seed."""

    def draw(axes: Axes, summary: ProblemSummary, row: Row, style: Style) -> None:
        if row.tuned:
            steps, curves = _curves(summary, row.tuned)
            axes.plot(steps, np.median(curves, axis=0), label=row.title, **style)
            axes.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=style["color"], alpha=0.12)

    figure, panels = _draw(summaries, draw)
    for axes, summary in zip(panels, summaries, strict=True):
        axes.axhline(_loss_like(summary, summary.config["target"]), color="grey", linewidth=0.8, linestyle=":")
        axes.set_xlabel("step")
    return figure


def tuning_curves(summaries: list[ProblemSummary]) -> Figure:
    """Return mean validation score against learning rate: the width of the valley says how much tuning matters."""

    def draw(axes: Axes, summary: ProblemSummary, row: Row, style: Style) -> None:
        scores: dict[float, list[float]] = {}
        for record in row.trials:
            scores.setdefault(record["settings"]["lr"], []).append(record["score"])
        values = [_loss_like(summary, fmean(values)) for values in scores.values()]
        axes.plot(list(scores), values, marker="o", markersize=3, label=row.title, **style)

    figure, panels = _draw(summaries, draw)
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
    return figure


def as_svg(figure: Figure) -> str:
    """Return the figure as an <svg> element; the same figure gives the same text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "frankenstein"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "<svg" + buffer.getvalue().partition("<svg")[2]


def save(figure: Figure, path: Path) -> None:
    """Write the figure; the suffix decides the format."""
    if path.suffix == ".svg":
        path.write_text(as_svg(figure))
    else:
        figure.savefig(path, dpi=110)


def _draw(
    summaries: list[ProblemSummary], draw: Callable[[Axes, ProblemSummary, Row, Style], None]
) -> tuple[Figure, list[Axes]]:
    """Draw one panel for each problem, one line for each optimizer, and one legend for all."""
    n_columns = min(3, len(summaries))
    n_rows = math.ceil(len(summaries) / n_columns)
    figure = Figure(figsize=(4.4 * n_columns, 3.1 * n_rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(np.atleast_1d(figure.subplots(n_rows, n_columns)).ravel())
    for spare in panels[len(summaries) :]:
        spare.set_axis_off()
    titles = sorted({row.title for summary in summaries for row in summary.rows})
    for axes, summary in zip(panels, summaries, strict=False):
        for row in summary.rows:
            index = titles.index(row.title)
            dash = DASHES[index // len(COLOURS) % len(DASHES)]
            draw(axes, summary, row, {"color": COLOURS[index % len(COLOURS)], "linestyle": dash, "linewidth": 1.6})
        metric = summary.config["metric"]
        axes.set_ylabel("error (1 - accuracy)" if metric == "accuracy" else metric)
        if not metric.startswith("log10"):
            axes.set_yscale("log")
        axes.set_title(summary.name)
        axes.grid(alpha=0.25)
    lines = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if lines:
        names = [title for title in titles if title in lines]
        handles = [lines[name] for name in names]
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 4), frameon=False)
    return figure, panels[: len(summaries)]


def _loss_like(summary: ProblemSummary, score: float) -> float:
    """Draw accuracy as error, so that lower is better in every panel; no error at all sits at the axis' foot."""
    return max(1.0 - score, 1e-4) if summary.config["metric"] == "accuracy" else score


def _curves(summary: ProblemSummary, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Return steps (n_points,) and scores (n_seeds, n_points); a run that diverged counts as `worst` from there on."""
    longest: Record = max(setting.records, key=lambda record: len(record["curve"]))
    steps = np.array([step for step, _ in longest["curve"]])
    worst = _loss_like(summary, summary.config["worst"])
    curves = np.full((len(setting.records), len(steps)), worst)
    for row, record in zip(curves, setting.records, strict=True):
        values = [_loss_like(summary, score) for _, score in record["curve"]]
        row[: len(values)] = values
    return steps, curves
