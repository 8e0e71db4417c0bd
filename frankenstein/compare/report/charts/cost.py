"""What a step costs: time, the optimizer's part of it, memory."""

from __future__ import annotations

import math

from frankenstein.compare.report.charts.chart import (
    Chart,
    Look,
    Row,
    by_optimizer,
    colour,
    emphasis,
    field,
    labels,
    opacity,
    rounded,
)
from frankenstein.compare.results.overall import Overall
from frankenstein.compare.results.summary import ProblemSummary

TITLES = {
    "step_cost": ("Time of the optimizer's own step", "multiple of the cheapest optimizer's", ".2f"),
    "bytes_per_param": ("Memory of the optimizer's state", "bytes for each parameter", ".3~g"),
}


def costs(found: Overall, styles: list[Look], name: str) -> Chart:
    """Return one cost ("step_cost" or "bytes_per_param") of every optimizer, the median over problems."""
    names = labels(styles)
    title, axis, form = TITLES[name]
    standings = sorted(found.standings, key=lambda standing: getattr(standing, name))
    rows: list[Row] = [
        {"optimizer": names[s.optimizer], "value": rounded(getattr(s, name), 4)}
        for s in standings
        if math.isfinite(getattr(s, name))
    ]
    y = by_optimizer([row["optimizer"] for row in rows])
    x = {"field": "value", "type": "quantitative", "title": axis}
    spec = {
        "width": 420,
        "height": {"step": 24},
        "params": emphasis(styles),
        "encoding": {"y": y, "x": x, "tooltip": [field("optimizer", "optimizer", None), field("value", axis, form)]},
        "layer": [
            {
                "mark": {"type": "bar", "height": {"band": 0.6}, "cornerRadiusEnd": 2},
                "encoding": {"color": colour(styles, has_legend=False), "opacity": opacity(0.85, 0.85)},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 5},
                "encoding": {"text": {"field": "value", "type": "quantitative", "format": form}},
            },
        ],
    }
    return Chart(name.replace("_", "-"), title, f"{axis.capitalize()}, median over the problems.", spec, rows)


def times(summary: ProblemSummary, styles: list[Look]) -> Chart:
    """Return the time of a step on one problem, and the optimizer's part of it."""
    names = labels(styles)
    rows: list[Row] = []
    for row in summary.rows:
        if row.tuned:
            whole, own = (row.tuned.cost(f"{part}seconds_per_step") for part in ("", "optimizer_"))
            if math.isfinite(whole):
                part = own if math.isfinite(own) else 0.0
                base = {
                    "optimizer": names[row.optimizer],
                    "whole": rounded(1e3 * whole, 4),
                    "own": rounded(1e3 * part, 4),
                }
                rows.append(base)
    y = by_optimizer([row["optimizer"] for row in sorted(rows, key=lambda row: row["whole"])])
    tooltip = [field("optimizer", "optimizer", None), field("whole", "ms a step"), field("own", "of it the optimizer")]
    x = {"type": "quantitative", "title": "milliseconds a step"}
    spec = {
        "width": 480,
        "height": {"step": 24},
        "params": emphasis(styles),
        "encoding": {"y": y, "tooltip": tooltip},
        "layer": [
            {
                "mark": {"type": "bar", "height": {"band": 0.6}, "color": "#c4c4c4", "cornerRadiusEnd": 2},
                "encoding": {"x": {**x, "field": "whole"}},
            },
            {
                "mark": {"type": "bar", "height": {"band": 0.6}},
                "encoding": {
                    "x": {**x, "field": "own"},
                    "color": colour(styles, has_legend=False),
                    "opacity": opacity(0.9, 0.9),
                },
            },
        ],
    }
    caption = "Wall time of a step, median over seeds. Coloured: the optimizer's own part. Grey: forward and backward."
    return Chart(f"times-{summary.name}", "Time of a step", caption, spec, rows, summary.name)
