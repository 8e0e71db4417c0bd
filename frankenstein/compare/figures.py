"""Pictures of a comparison, drawn with matplotlib."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from frankenstein.compare.records import Record
from frankenstein.compare.summary import ProblemSummary, Setting

# Okabe and Ito's colours, which people with colour blindness can tell apart; dashes when they are used up.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
STYLES = ("-", "--", ":")


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": STYLES[index // len(COLOURS) % len(STYLES)],
        "linewidth": 1.6,
    }


def _figure(n_panels: int, n_columns: int) -> tuple[Figure, list[Axes]]:
    n_columns = min(n_columns, n_panels)
    n_rows = math.ceil(n_panels / n_columns)
    figure = Figure(figsize=(4.4 * n_columns, 3.1 * n_rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(n_rows, n_columns)).ravel())
    for spare in axes[n_panels:]:
        spare.set_axis_off()
    return figure, axes[:n_panels]


def _loss_like(summary: ProblemSummary, score: float) -> float:
    """Draw accuracy as error, so that lower is better in every panel; no error at all sits at the axis' foot."""
    return max(1.0 - score, 1e-4) if summary.config["metric"] == "accuracy" else score


def _label_scores(axes: Axes, summary: ProblemSummary) -> None:
    metric = summary.config["metric"]
    axes.set_ylabel("error (1 - accuracy)" if metric == "accuracy" else metric)
    if not metric.startswith("log10"):
        axes.set_yscale("log")
    axes.grid(alpha=0.25)


def learning_curves(summaries: list[ProblemSummary], order: list[str], n_columns: int = 3) -> Figure:
    """Return the tuned learning curves: median over seeds, and a band from the worst to the best seed."""
    figure, panels = _figure(len(summaries), n_columns)
    for axes, summary in zip(panels, summaries, strict=True):
        for row in summary.rows:
            if row.tuned:
                style = _style(order.index(row.title))
                steps, curves = _curves(summary, row.tuned)
                axes.plot(steps, np.median(curves, axis=0), label=row.title, **style)
                axes.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=style["color"], alpha=0.12)
        axes.axhline(_loss_like(summary, summary.config["target"]), color="grey", linewidth=0.8, linestyle=":")
        axes.set_title(summary.name)
        axes.set_xlabel("step")
        _label_scores(axes, summary)
    _legend(figure, panels, order)
    return figure


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


def tuning_curves(summaries: list[ProblemSummary], order: list[str], n_columns: int = 3) -> Figure:
    """Return validation score against learning rate: the width of the valley says how much tuning matters."""
    figure, panels = _figure(len(summaries), n_columns)
    for axes, summary in zip(panels, summaries, strict=True):
        for row in summary.rows:
            if row.tuning:
                rates = [record["lr"] for record in row.tuning]
                scores = [_loss_like(summary, record["score"]) for record in row.tuning]
                axes.plot(rates, scores, marker="o", markersize=3, label=row.title, **_style(order.index(row.title)))
        axes.set_xscale("log")
        axes.set_title(summary.name)
        axes.set_xlabel("learning rate")
        _label_scores(axes, summary)
    _legend(figure, panels, order)
    return figure


def _legend(figure: Figure, panels: list[Axes], order: list[str]) -> None:
    entries = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    names = [name for name in order if name in entries]
    figure.legend(
        [entries[name] for name in names], names, loc="outside lower center", ncols=min(len(names), 6), frameon=False
    )


def as_svg(figure: Figure) -> str:
    """Return the figure as an <svg> element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]


def save(figure: Figure, path: Path) -> None:
    """Write the figure; the suffix decides the format."""
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})
