"""Figures of the over-adaptation test."""

from __future__ import annotations

from frankenstein.compare.report.charts.chart import COLOURS, DASHES, Chart, Look, Row, Spec, colour, dash, rounded
from frankenstein.experiments.fig10_logs import authors_curves
from frankenstein.experiments.fig10_model import N_EPOCHS, SETTINGS
from frankenstein.experiments.fig10_runs import Found
from frankenstein.experiments.published import SOURCE

__all__ = ["beside_logs", "ours"]

LOSSES = {"test": "test loss", "train": "training loss"}
PALETTE = (*COLOURS, "#7a4b2a")  # theirs are all dashed: the eighth optimizer needs a colour of its own
ALL_FOUND = dict[str, list[Found]]


def ours(found: ALL_FOUND) -> Chart:
    """Return our losses in the course of training: the mean over seeds, and the range."""
    styles = _looks(found)
    band = {
        "mark": {"type": "area", "opacity": 1},
        "encoding": {
            "y": _loss("low"),
            "y2": {"field": "high"},
            "color": colour(styles),
            "fillOpacity": {"value": 0.15},
        },
    }
    caption = "Line: mean over seeds. Band: from the lowest to the highest."
    spec = _panels([band, _ours(styles)], [SETTINGS[name].title for name in found])
    return Chart("fig10", "Loss in the course of training", caption, spec, _rows(found))


def beside_logs(found: ALL_FOUND) -> Chart:
    """Return our mean losses with the authors' logs behind them."""
    shown = {name: runs for name, runs in found.items() if authors_curves(name, "test_loss")}
    rows = _rows(shown)
    for name, runs in shown.items():
        for key, title in LOSSES.items():
            theirs = authors_curves(name, f"{key}_loss")
            for one in runs:
                panel = {"optimizer": one.title, "setting": SETTINGS[name].title, "loss": title}
                rows += [{**panel, "epoch": i, "log": x} for i, x in enumerate(theirs[one.method][:N_EPOCHS], start=1)]
    styles = _looks(shown)
    theirs_line: Spec = {
        "transform": [{"filter": "isValid(datum.log)"}],
        "mark": {"type": "line", "strokeWidth": 1},
        "encoding": {"y": _loss("log"), "color": colour(styles), "strokeDash": {"value": [4, 3]}},
    }
    spec = _panels([theirs_line, _ours(styles)], [SETTINGS[name].title for name in shown])
    caption = (
        f"Thick: ours, mean over seeds. Thin and dashed: {SOURCE}, one seed, and of another model than their text has "
        "(their training loss is taken in the course of each epoch)."
    )
    return Chart("fig10-authors", "Loss in the course of training, ours and the authors'", caption, spec, rows)


def _looks(found: ALL_FOUND) -> list[Look]:
    titles = list(dict.fromkeys(one.title for runs in found.values() for one in runs))
    return [Look(title, title, PALETTE[i], DASHES[i // len(COLOURS)], i == 0, True) for i, title in enumerate(titles)]


def _rows(found: ALL_FOUND) -> list[Row]:
    rows: list[Row] = []
    for name, runs in found.items():
        for one in runs:
            for key, title in LOSSES.items():
                values = getattr(one, key)
                points = zip(values.mean(0), values.min(0), values.max(0), strict=True)
                panel = {"optimizer": one.title, "setting": SETTINGS[name].title, "loss": title}
                rows += [
                    {**panel, "epoch": i, "mean": rounded(mean), "low": rounded(low), "high": rounded(high)}
                    for i, (mean, low, high) in enumerate(points)
                ]
    return rows


def _ours(styles: list[Look]) -> Spec:
    return {
        "transform": [{"filter": "isValid(datum.mean)"}],
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": {"y": _loss("mean"), "color": colour(styles), "strokeDash": dash(styles)},
    }


def _loss(name: str) -> Spec:
    axis = {"format": ".0e"}
    return {"field": name, "type": "quantitative", "scale": {"type": "log", "nice": False}, "title": None, "axis": axis}


def _panels(layers: list[Spec], settings: list[str]) -> Spec:
    """Return a panel for each setting (rows) and loss (columns); the losses of a setting share their axis."""
    epoch = {"field": "epoch", "type": "quantitative", "title": "epoch", "axis": {"grid": False}}
    return {
        "facet": {
            "row": {"field": "setting", "type": "nominal", "sort": settings, "title": None},
            "column": {"field": "loss", "type": "nominal", "sort": list(LOSSES.values()), "title": None},
        },
        "spec": {"width": 300, "height": 240, "encoding": {"x": epoch}, "layer": layers},
        "resolve": {"scale": {"y": "independent"}},
    }
