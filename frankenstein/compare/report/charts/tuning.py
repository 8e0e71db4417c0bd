"""How much tuning matters: validation scores against learning rates, and ranks against numbers of trials."""

from __future__ import annotations

import math

from frankenstein.compare.comparison import losses
from frankenstein.compare.optimizers import Range
from frankenstein.compare.report.charts.chart import (
    GREY,
    WIDTH,
    Chart,
    Look,
    Row,
    Spec,
    colour,
    dash,
    emphasis,
    field,
    labels,
    opacity,
    rounded,
)
from frankenstein.compare.report.charts.curves import PADDING, VALUE, parameters, scale, views
from frankenstein.compare.results.overall import Overall
from frankenstein.compare.results.summary import ProblemSummary
from frankenstein.compare.results.summary import Row as Result

PANEL = 190
RATES = "Best validation score of the trials in each half decade. A wide valley forgives a poor guess."


def tuning(summary: ProblemSummary, styles: list[Look]) -> Chart:
    """Return validation score against learning rate, a panel for each optimizer; colour is the second setting."""
    names = labels(styles)
    rows = [point for row in summary.rows for point in _trials(row, names[row.optimizer])]
    shown = views(summary, rows)
    view = shown[0]
    spec: Spec = {
        "params": parameters(view),
        "transform": [{"calculate": VALUE, "as": "value"}, {"filter": "!is_log || datum.value > 0"}],
        "facet": {
            "field": "panel",
            "type": "nominal",
            "title": None,
            "sort": list(dict.fromkeys(row["panel"] for row in rows)),
            "header": {"labelAnchor": "start", "labelFontWeight": 600},
        },
        "columns": 4,
        "spacing": {"row": 16, "column": 16},
        "resolve": {"axis": {"x": "independent"}},
        "spec": {
            "width": PANEL,
            "height": 120,
            "encoding": {
                "x": {
                    "field": "lr",
                    "type": "quantitative",
                    "title": "lr",
                    "scale": {"type": "log", "nice": False, "padding": PADDING},
                },
                "y": {
                    "field": "value",
                    "type": "quantitative",
                    "title": f"validation {view['quantity']}",
                    "scale": scale(view, PADDING),
                },
            },
            "layer": _dots(view),
        },
        "usermeta": {"axes": "y", "value": "y", "views": shown, "panel": PANEL, "padding": PADDING},
    }
    spec["spec"]["encoding"]["x"]["axis"] = {"grid": False, "format": "~g", "labelOverlap": "greedy"}
    caption = (
        "Validation score of every trial, mean over its seeds, against the learning rate. A wide valley forgives a "
        "poor guess. Colour: where the second setting lies in its interval. Ring: chosen. Cross: diverged or failed."
    )
    return Chart(f"tuning-{summary.name}", "What tuning tried", caption, spec, rows, summary.name)


def _dots(view: Spec) -> list[Spec]:
    tooltip = [
        field("optimizer", "optimizer", None),
        field("lr", "lr", ".3~g"),
        field("second", "second setting", None),
        field("value", "validation"),
        field("outcome", "outcome", None),
    ]
    legend = {"title": "second setting, in its interval", "orient": "bottom", "values": [0, 1], "gradientLength": 120}
    legend["labelExpr"] = "datum.value == 0 ? 'low' : 'high'"
    return [
        {
            "transform": [{"filter": "datum.is_best"}],
            "mark": {"type": "point", "size": 190, "strokeWidth": 1.6, "color": "#1b1b1b"},
        },
        {
            "mark": {"type": "point", "strokeWidth": 1.6, "size": 55, "opacity": 1},
            "encoding": {
                "color": {
                    "condition": {"test": "datum.unit < 0", "value": GREY},
                    "field": "unit",
                    "type": "quantitative",
                    "scale": {"scheme": "viridis", "domain": [0, 1]},
                    "legend": legend,
                },
                "shape": {
                    "condition": {"test": "datum.outcome == 'finished'", "value": "circle"},
                    "value": "cross",
                },
                "tooltip": tooltip,
            },
        },
    ]


def _trials(row: Result, label: str) -> list[Row]:
    """Return one row for each trial of an optimizer."""
    trials: dict[int, Row] = {}
    for record in row.trials:
        trials[record["trial"]] = record if record["outcome"] != "finished" else trials.get(record["trial"], record)
    made = []
    for trial, loss in losses(row.trials).items():
        record = trials[trial]
        name = next((name for name in record["space"] if name != "lr"), None)
        made.append(
            {
                "optimizer": label,
                "panel": f"{label} \N{MIDDLE DOT} {name}" if name else label,
                "lr": record["settings"]["lr"],
                "second": f"{name} = {record['settings'].get(name, '?'):g}" if name else "none",
                "unit": rounded(Range(*record["space"][name]).unit(record["settings"][name]), 3) if name else -1,
                "score": rounded(-loss if record["problem_config"]["is_higher_better"] else loss),
                "outcome": record["outcome"],
                "is_best": row.tuned is not None and record["settings"] == row.tuned.settings,
            }
        )
    return made


def rates(summary: ProblemSummary, styles: list[Look]) -> Chart:
    """Return the best validation score in each half decade of the learning rate, all optimizers in one panel.

    Trials differ in a second setting too, so a line through all of them would be a zigzag.
    """
    names = labels(styles)
    best = max if summary.config["is_higher_better"] else min
    rows: list[Row] = []
    for row in summary.rows:
        scores: dict[int, list[float]] = {}
        for point in _trials(row, names[row.optimizer]):
            scores.setdefault(round(2 * math.log10(point["lr"])), []).append(point["score"])
        base = {"optimizer": names[row.optimizer]}
        rows += [base | {"lr": rounded(10 ** (k / 2), 3), "score": best(found)} for k, found in sorted(scores.items())]
    view = views(summary, rows)[0]
    spec = {
        "width": 300,
        "height": 190,
        "params": [*parameters(view), *emphasis(styles)],
        "transform": [{"calculate": VALUE, "as": "value"}, {"filter": "!is_log || datum.value > 0"}],
        "mark": {"type": "line", "point": {"size": 16}, "strokeWidth": 1.4},
        "encoding": {
            "x": {
                "field": "lr",
                "type": "quantitative",
                "title": "learning rate",
                "scale": {"type": "log", "nice": False},
                "axis": {"grid": False, "format": "~g"},
            },
            "y": {"field": "value", "type": "quantitative", "title": view["title"], "scale": scale(view)},
            "color": colour(styles),
            "strokeDash": dash(styles),
            "strokeOpacity": opacity(),
        },
    }
    return Chart(f"rates-{summary.name}", "Trials", RATES, spec, rows, summary.name)


def budgets(found: Overall, styles: list[Look]) -> Chart:
    """Return the mean rank as it would be with fewer trials for everybody."""
    names = labels(styles)
    rows = [
        {"optimizer": names[standing.optimizer], "trials": int(budget), "rank": rounded(float(rank), 4)}
        for standing, ranks in reversed(list(zip(found.standings, found.budget_ranks, strict=True)))
        for budget, rank in zip(found.budgets, ranks, strict=True)
        if rank == rank
    ]
    tooltip = [field("optimizer", "optimizer", None), field("trials", "trials", "d"), field("rank", "mean rank", ".2f")]
    spec = {
        "width": 620,
        "height": 320,
        "params": emphasis(styles),
        "mark": {"type": "line", "strokeJoin": "round"},
        "encoding": {
            "x": {
                "field": "trials",
                "type": "quantitative",
                "title": "trials for each optimizer",
                "axis": {"grid": False, "tickMinStep": 1},
            },
            "y": {
                "field": "rank",
                "type": "quantitative",
                "title": "mean rank (1 is best)",
                "scale": {"reverse": True, "zero": False},
            },
            "color": colour(styles),
            "strokeDash": dash(styles),
            "strokeWidth": WIDTH,
            "strokeOpacity": opacity(),
            "tooltip": tooltip,
        },
    }
    caption = (
        "Mean rank over the problems by the expected best validation score of so many trials. An optimizer that rises "
        "to the right needs tuning to be good; one that is good at the left needs little."
    )
    return Chart("budgets", "How much tuning each one needs", caption, spec, rows)
