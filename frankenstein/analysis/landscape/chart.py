"""A landscape as a chart: heat map, contour lines, and the way of each training with arrows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from frankenstein.analysis.landscape.contours import contour_rows, levels
from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.result import Landscape
from frankenstein.analysis.landscape.tracks import arrow_rows, track_rows
from frankenstein.compare.report.charts.chart import COLOURS, Chart, Row, Spec, field, rounded

WIDTH, HEIGHT = 560, 460  # pixels
OVERLAP = 0.1  # of a cell, or hairlines show between the cells
SCHEME = {"name": "greys", "extent": [0.0, 0.75]}  # contour lines must be seen on the darkest of it
BATCHNORM = {
    "keep": "BatchNorm with the statistics of the origin",
    "recompute": "BatchNorm with statistics recomputed at each point",
    "none": "no BatchNorm",
}


def chart(landscape: Landscape, metric: str | None = None, *, is_log: bool = False) -> Chart:
    """Return the chart of one metric.

    In a browser, a slider shows the trainings up to a step, and whatever the mouse is on says what it is.

    Args:
        landscape: What to draw.
        metric: Its name; None for the first, which is the loss.
        is_log: Colours and contour lines in equal ratios, and not in equal differences.

    Raises:
        LandscapeError: There is no such metric, none of its values is finite, or `is_log` and not all are positive.
    """
    name = metric if metric is not None else next(iter(landscape.metrics))
    if name not in landscape.metrics:
        raise LandscapeError(f"there is no metric {name!r}; there are {', '.join(landscape.metrics)}")
    values = landscape.metrics[name]
    drawn = levels(values, is_log, name)
    edges = [_edges(np.array(axis)) for axis in (landscape.grid.x, landscape.grid.y)]
    tracks = track_rows(landscape.about.tracks)
    frame = [(float(edge[0]), float(edge[-1])) for edge in edges]
    rows = [
        *_cells(landscape, values, edges),
        *contour_rows(landscape.grid, values, drawn),
        *tracks,
        *arrow_rows(landscape.about.tracks, frame, (WIDTH, HEIGHT)),
    ]
    spec = _spec(landscape, name, is_log, frame)
    title = f"{name} in the plane of {'the trajectory' if landscape.about.kind == 'pca' else 'random directions'}"
    return Chart(f"landscape-{name}", title, caption(landscape), spec, rows)


def caption(landscape: Landscape) -> str:
    """Return what the picture shows and how it was made, in words."""
    about = landscape.about
    if about.kind == "pca":
        held = sum(about.explained_variance[:2])
        plane = (
            f"The plane holds {held:.1%} of the variance of the trajectory; values are those in the plane, not on it."
        )
    else:
        plane = f"Random directions with {about.normalisation} normalisation, seed {about.seed}."
    name, step = about.origin
    origin = f"(0, 0) is step {step}" + (f" of {name}." if len(about.tracks) > 1 else ".")
    grid = f"{len(landscape.grid.x)} x {len(landscape.grid.y)} points"
    return f"{plane} {origin} Data: {landscape.data}; {grid}; {BATCHNORM[landscape.batchnorm]}; seed {landscape.seed}."


def _cells(landscape: Landscape, values: NDArray[np.float64], edges: list[NDArray[np.float64]]) -> list[Row]:
    """Return a rectangle around each point of the grid; "value" is None where it is not finite."""
    (x, y), rows = edges, []
    for row in range(len(landscape.grid.y)):
        for column in range(len(landscape.grid.x)):
            value = float(values[row, column])
            cell: Row = {
                "x": x[column],
                "x2": x[column + 1] + OVERLAP * (x[column + 1] - x[column]) * (column < len(x) - 2),
                "y": y[row],
                "y2": y[row + 1] + OVERLAP * (y[row + 1] - y[row]) * (row < len(y) - 2),
                "value": rounded(value) if math.isfinite(value) else None,
                "at": f"{landscape.grid.x[column]:.4g}, {landscape.grid.y[row]:.4g}",
            }
            for name, metric in landscape.metrics.items():
                cell[f"metric {name}"] = f"{metric[row, column]:.4g}"
            rows.append(cell)
    return rows


def _edges(axis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the n + 1 edges of the cells around n points."""
    middle = (axis[1:] + axis[:-1]) / 2
    return np.concatenate([[2 * axis[0] - middle[0]], middle, [2 * axis[-1] - middle[-1]]])


def _spec(landscape: Landscape, metric: str, is_log: bool, frame: list[tuple[float, float]]) -> Spec:
    steps = sorted({step for track in landscape.about.tracks.values() for step in track.steps})
    layers = [*_heat_map(landscape, metric, is_log, frame), _contour_layer(), *_track_layers(landscape)]
    spec: Spec = {"width": WIDTH, "height": HEIGHT, "layer": layers}
    # Legends of fills on their own: the way of a training has one by its stroke, and Vega would warn of the two.
    spec["resolve"] = {"scale": {"color": "independent"}, "legend": {"fill": "independent"}}
    if len(steps) > 1:
        stride = math.gcd(*np.diff(steps).tolist())
        bind = {"input": "range", "min": steps[0], "max": steps[-1], "step": stride, "name": "up to step "}
        spec["params"] = [{"name": "until", "value": steps[-1], "bind": bind}]
    return spec


def _axis(landscape: Landscape, which: int, name: str, frame: list[tuple[float, float]]) -> Spec:
    about = landscape.about
    if about.kind == "pca":
        title = f"principal component {which + 1} ({about.explained_variance[which]:.1%} of the variance)"
    else:
        title = f"random direction {which + 1} ({about.normalisation} normalisation)"
    scale = {"domain": list(frame[which]), "nice": False, "zero": False}
    return {"field": name, "type": "quantitative", "title": title, "scale": scale, "axis": {"grid": False}}


def _heat_map(landscape: Landscape, metric: str, is_log: bool, frame: list[tuple[float, float]]) -> list[Spec]:
    place = {
        "x": _axis(landscape, 0, "x", frame),
        "x2": {"field": "x2"},
        "y": _axis(landscape, 1, "y", frame),
        "y2": {"field": "y2"},
        "tooltip": [
            *(field(f"metric {name}", name, None) for name in landscape.metrics),
            field("at", "at", None),
        ],
    }
    scale = {"scheme": SCHEME, "type": "log" if is_log else "linear", "zero": False, "nice": False}
    colour = {"field": "value", "type": "quantitative", "title": metric, "scale": scale}
    layers: list[Spec] = [
        {
            "transform": [{"filter": "isValid(datum.value)"}],
            "mark": {"type": "rect", "strokeWidth": 0, "clip": True},
            "encoding": {**place, "color": colour},
        }
    ]
    if not np.isfinite(landscape.metrics[metric]).all():
        layers.append(
            {
                "transform": [{"filter": "isValid(datum.x2) && !isValid(datum.value)"}],
                "mark": {"type": "rect", "strokeWidth": 0, "clip": True, "color": COLOURS[4], "opacity": 0.4},
                "encoding": place,
            }
        )
    return layers


def _contour_layer() -> Spec:
    return {
        "transform": [{"filter": "isValid(datum.line)"}],
        "mark": {"type": "line", "strokeWidth": 0.8, "color": "#444", "opacity": 0.6, "clip": True},
        "encoding": {
            "x": {"field": "cx", "type": "quantitative"},
            "y": {"field": "cy", "type": "quantitative"},
            "detail": {"field": "line"},
            "order": {"field": "place"},
            "tooltip": [field("level", "contour line")],
        },
    }


def _track_layers(landscape: Landscape) -> list[Spec]:
    names = list(landscape.about.tracks)
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
    legend = {"title": None, "orient": "bottom"} if len(names) > 1 else None
    training: Spec = {"field": "training", "type": "nominal", "scale": {"domain": names, "range": colours}}
    until = " && datum.step <= until" if any(len(one.steps) > 1 for one in landscape.about.tracks.values()) else ""
    tooltip = [field("training", "training", None), field("step", "step", "d")]
    tooltip += [field("px", "x"), field("py", "y"), field("distance", "distance from the plane")]
    place = {"x": {"field": "px", "type": "quantitative"}, "y": {"field": "py", "type": "quantitative"}}
    arrow = {"x": {"field": "ax", "type": "quantitative"}, "y": {"field": "ay", "type": "quantitative"}}
    return [
        {
            "transform": [{"filter": f"isValid(datum.px){until}"}],
            "mark": {"type": "line", "strokeWidth": 2, "clip": True},
            "encoding": {**place, "stroke": {**training, "legend": legend}, "order": {"field": "step"}},
        },
        {
            "transform": [{"filter": f"isValid(datum.px){until}"}],
            "mark": {
                "type": "point",
                "filled": True,
                "opacity": 1,
                "clip": True,
                "stroke": "white",
                "strokeWidth": 0.5,
            },
            "encoding": {
                **place,
                "fill": {**training, "legend": None},
                "size": {"condition": {"test": "datum.is_last", "value": 110}, "value": 30},
                "tooltip": tooltip,
            },
        },
        {
            "transform": [{"filter": f"isValid(datum.angle){until}"}],
            "mark": {"type": "point", "shape": "triangle", "filled": True, "opacity": 1, "size": 110, "clip": True},
            "encoding": {
                **arrow,
                "fill": {**training, "legend": None},
                "angle": {"field": "angle", "type": "quantitative", "scale": None},
            },
        },
    ]
