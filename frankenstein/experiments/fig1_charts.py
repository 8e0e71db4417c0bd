"""The figure as the paper has it: adaptive factors, the function and its gradient, and the trajectories."""

from __future__ import annotations

import math

import numpy as np

from frankenstein.compare.report.charts.chart import COLOURS, DASHES, GREY, Chart, Row, Spec, rounded
from frankenstein.compare.store.records import Record
from frankenstein.experiments.fig1_descent import SPECS
from frankenstein.experiments.fig1_scenes import STAIRS
from frankenstein.rule import XI_GAIN

__all__ = ["colour_and_dash", "factors", "paper_figure", "ways"]

WIDTH = 640
EDGES = (-2.0, 23.0)  # of the function's picture, and of the trajectories
WIDE = (-25.0, 25.0)  # of the trajectories with the best rates, which overshoot
FAR = 1000.0  # further out they are outside every picture
N_GRID = 251  # points of the function: a tenth apart
N_FACTOR_STEPS = 130  # of the factors: some more than Frankenstein takes to the minimum


def colour_and_dash(optimizer: str) -> tuple[str, list[int]]:
    """Return colour and dash of an optimizer's lines, the same in every picture."""
    i = list(SPECS).index(optimizer)
    return COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]


def paper_figure(records: list[Record]) -> Chart:
    """Return the three panels of Fig. 1, from the trajectories with one rate for all."""
    rows = function_rows()
    for record in records:
        factor = np.array(record["factors"].get("adaptive", [])[:N_FACTOR_STEPS], float)  # null becomes NaN
        largest = float(np.nanmax(factor)) if np.isfinite(factor).any() else math.nan
        shares = [(step, value / largest) for step, value in enumerate(factor.tolist()) if math.isfinite(value)]
        title = record["optimizer_title"]
        rows += [{"optimizer": title, "step": step, "factor": rounded(share, 4)} for step, share in shares]
        rows += _way(record)
    spec: Spec = {
        "vconcat": [
            _panel(200, [_lines(records, "factor", "adaptive factor / its largest", is_log=True)]),
            _panel(150, [_curves()]),
            _panel(280, [_lines(records, "x", "x", has_legend=True, domain=EDGES)]),
        ],
        "resolve": {"scale": {"color": "independent", "strokeDash": "independent"}},
    }
    caption = (
        "Top: the adaptive factor, what an update multiplies momentum or gradient by beside the learning rate, as a "
        "share of its largest value. For Frankenstein it is xi over the root of the second moment, from the rule; for "
        "the others the step that was measured, over rate times momentum (times gradient, where an optimizer keeps no "
        "momentum). Middle: the function and its gradient. Bottom: where the optimizers are."
    )
    return Chart("fig1", f"Fig. 1: {STAIRS.formula}, rate {STAIRS.lr:g} for all", caption, spec, rows)


def function_rows() -> list[Row]:
    """Return the function and its gradient on a grid."""
    import torch

    grid = torch.linspace(*EDGES, N_GRID, dtype=torch.float64, requires_grad=True)
    values = torch.stack([STAIRS.function(x[None]) for x in grid])
    (slopes,) = torch.autograd.grad(values.sum(), grid)
    rows: list[Row] = []
    for x, value, slope in zip(grid.tolist(), values.tolist(), slopes.tolist(), strict=True):
        rows.append({"at": rounded(x), "height": rounded(value / 10), "curve": "f(x) / 10"})
        rows.append({"at": rounded(x), "height": rounded(slope), "curve": "gradient"})
    return rows


def factors(records: list[Record]) -> Chart:
    """Return Frankenstein's own factors: xi, P, and rho beta1."""
    rows: list[Row] = []
    for record in records:
        columns = {name: record["factors"][name] for name in ("xi", "P", "rho beta1")}
        for step in range(min(N_FACTOR_STEPS, len(columns["xi"]))):
            numbers = {name.replace(" ", "_"): column[step] for name, column in columns.items()}
            rows.append({"optimizer": record["optimizer_title"], "step": step, **numbers})
    limits = {"values": [{"limit": 1.0}, {"limit": XI_GAIN}]}
    limit: Spec = {
        "data": limits,
        "mark": {"type": "rule", "color": GREY, "strokeDash": [3, 3]},
        "encoding": {"y": {"field": "limit", "type": "quantitative"}},
    }
    panels = [
        _panel(180, [limit, _lines(records, "xi", "acceleration xi")]),
        _panel(110, [_lines(records, "P", "misalignment P")]),
        _panel(110, [_lines(records, "rho_beta1", "momentum: rho beta1", has_legend=True)]),
    ]
    caption = (
        "From the rule, at every step. Dashed: 1, the state without acceleration, and 1 + exp(-1/2), the most that "
        "eq. 13 can give. High on every slope; between two, on the flat of a step, back at 1: there P decides."
    )
    spec = {"vconcat": panels, "resolve": {"scale": {"color": "independent", "strokeDash": "independent"}}}
    return Chart("fig1-factors", "Frankenstein's factors on the way down the stairs", caption, spec, rows)


def ways(records: list[Record]) -> Chart:
    """Return the trajectories with each optimizer at its best rate."""
    rows = [row for record in records for row in _way(record)]
    spec = _panel(340, [_lines(records, "x", "x", has_legend=True, domain=WIDE)])
    caption = "As in Fig. 1 at the bottom, with the rates of the table."
    return Chart("fig1-tuned", "The stairs, each optimizer at its best rate", caption, spec, rows)


def _way(record: Record) -> list[Row]:
    """Return the first coordinate of a trajectory."""
    title = record["optimizer_title"]
    return [{"optimizer": title, "step": i, "x": min(max(x, -FAR), FAR)} for i, x in enumerate(record["path"][0])]


def _panel(height: int, layers: list[Spec]) -> Spec:
    return {"width": WIDTH, "height": height, "layer": layers}


def _lines(
    records: list[Record],
    y: str,
    title: str,
    *,
    is_log: bool = False,
    has_legend: bool = False,
    domain: tuple[float, float] | None = None,
) -> Spec:
    """Return a line for each optimizer, ours thicker."""
    titles = [record["optimizer_title"] for record in records]
    looks = [colour_and_dash(record["optimizer"]) for record in records]
    legend = {"title": None, "orient": "bottom", "columns": 4, "symbolSize": 400, "symbolStrokeWidth": 2}
    is_ours = "indexof(datum.optimizer, 'Frankenstein') == 0"
    kind = {"field": "optimizer", "type": "nominal", "legend": legend if has_legend else None}
    scale: Spec = {"type": "log"} if is_log else {"zero": False}
    if domain is not None:
        scale = {"domain": list(domain), "nice": False}
    return {
        "transform": [{"filter": f"isValid(datum.{y})"}],
        "mark": {"type": "line", "clip": True},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": "optimizer step", "scale": {"nice": False}},
            "y": {"field": y, "type": "quantitative", "title": title, "scale": scale},
            "color": {**kind, "scale": {"domain": titles, "range": [colour for colour, _ in looks]}},
            "strokeDash": {**kind, "scale": {"domain": titles, "range": [dash for _, dash in looks]}},
            "strokeWidth": {"condition": {"test": is_ours, "value": 3}, "value": 1.3},
            "strokeOpacity": {"condition": {"test": is_ours, "value": 1}, "value": 0.75},
        },
    }


def _curves() -> Spec:
    """Return the function and its gradient."""
    curves = ["f(x) / 10", "gradient"]
    return {
        "transform": [{"filter": "isValid(datum.height)"}],
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": {
            "x": {"field": "at", "type": "quantitative", "title": "x", "scale": {"nice": False}},
            "y": {"field": "height", "type": "quantitative", "title": None},
            "color": {
                "field": "curve",
                "type": "nominal",
                "scale": {"domain": curves, "range": ["#1b1b1b", GREY]},
                "legend": {"title": None, "orient": "right"},
            },
        },
    }
