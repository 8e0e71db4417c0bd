"""Charts across problems: aggregate scores, ranks, wins, performance profiles."""

from __future__ import annotations

import numpy as np

from frankenstein.compare.report.charts.chart import (
    GREY,
    WIDTH,
    Chart,
    Look,
    Row,
    by_optimizer,
    colour,
    dash,
    emphasis,
    field,
    labels,
    opacity,
    rounded,
)
from frankenstein.compare.results.overall import Overall

LEVEL = 0.05  # of the tests in the diagram of ranks
N_FULL = 10  # up to so many optimizers, the cells of the matrix have room for ties and losses


def aggregate(found: Overall, styles: list[Look]) -> Chart:
    """Return the aggregate score of every optimizer with its interval, tuned and untuned."""
    names = labels(styles)
    rows: list[Row] = []
    for standing in found.standings:
        for setting, score in (("tuned", standing.score), ("default", standing.default_score)):
            if score:
                ends = {name: rounded(value, 4) for name, value in score._asdict().items()}
                rows.append({"optimizer": names[standing.optimizer], "setting": setting, **ends})
    order = found.standings  # by rank, as everywhere; where the score says otherwise, the eye sees it
    tooltip = [field("optimizer", "optimizer", None), field("setting", "settings", None)]
    tooltip += [field("value", "score", ".3f"), field("low", "from", ".3f"), field("high", "to", ".3f")]
    x = {
        "field": "value",
        "type": "quantitative",
        "title": "normalised score (0: worst, 1: target)",
        "scale": {"zero": False},
    }
    is_tuned = "datum.setting == 'tuned'"
    spec = {
        "width": 420,
        "height": {"step": 24},
        "params": emphasis(styles),
        "encoding": {
            "y": by_optimizer([names[standing.optimizer] for standing in order]),
            "color": colour(styles, has_legend=False),
            "opacity": opacity(weak=1.0),
        },
        "layer": [
            {
                "mark": "rule",
                "encoding": {
                    "x": {"field": "low", "type": "quantitative"},
                    "x2": {"field": "high"},
                    "strokeWidth": {"condition": {"test": is_tuned, "value": 2.5}, "value": 1},
                },
            },
            {
                "transform": [{"filter": "datum.setting == 'default'"}],
                "mark": {"type": "point", "size": 50, "strokeWidth": 1.4, "fill": "white", "opacity": 1},
                "encoding": {"x": x, "tooltip": tooltip},
            },
            {
                "transform": [{"filter": is_tuned}],
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {"x": x, "tooltip": tooltip},
            },
        ],
    }
    caption = (
        "Interquartile mean over all runs of the score as a fraction of the way from the problem's worst to its "
        "target, with its 95 % bootstrap interval over seeds. Full dot: tuned. Open dot: at the published default."
    )
    return Chart("aggregate", "Score over all problems", caption, spec, rows)


def ranks(found: Overall, styles: list[Look]) -> Chart:
    """Return the critical-difference diagram: mean ranks, and bars that join those that cannot be told apart."""
    names = labels(styles)
    order = np.argsort([standing.mean_rank for standing in found.standings], kind="stable")
    places = [names[found.standings[i].optimizer] for i in order]
    rank = {names[standing.optimizer]: standing.mean_rank for standing in found.standings}
    rows: list[Row] = [{"optimizer": label, "rank": rounded(rank[label], 4)} for label in places]
    ends = [
        (names[found.standings[g[0]].optimizer], names[found.standings[g[-1]].optimizer]) for g in found.critical.groups
    ]
    step = 0.012 * len(places)
    bars = [{"from": a, "to": b, "at": rounded(max(rank[a], rank[b]) + step, 4)} for a, b in ends]
    tooltip = [field("optimizer", "optimizer", None), field("rank", "mean rank", ".2f")]
    y = by_optimizer(places) | {"scale": {"domain": places}}
    spec = {
        "width": 480,
        "height": {"step": 24},
        "params": emphasis(styles),
        "layer": [
            {
                "mark": {"type": "rule", "color": "#c9c9c9", "strokeDash": [1, 3]},
                "encoding": {
                    "x": {"field": "rank", "type": "quantitative"},
                    "x2": {"datum": 1},
                    "y": y,
                },
            },
            {
                "data": {"values": bars},
                "mark": {"type": "rule", "strokeWidth": 4, "strokeCap": "round", "color": GREY},
                "encoding": {
                    "x": {"field": "at", "type": "quantitative"},
                    "y": {**y, "field": "from"},
                    "y2": {"field": "to"},
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {
                    "x": {
                        "field": "rank",
                        "type": "quantitative",
                        "title": "mean rank (1 is best)",
                        "scale": {"zero": False, "nice": False, "padding": 8},
                    },
                    "y": y,
                    "color": colour(styles, has_legend=False),
                    "opacity": opacity(weak=1.0),
                    "tooltip": tooltip,
                },
            },
        ],
        "usermeta": {"shows_all": True},
    }
    caption = (
        f"Critical differences. A grey bar joins optimizers that Wilcoxon's test over the {found.n_problems} problems, "
        f"corrected for the number of pairs (Holm), cannot tell apart at {LEVEL:g}."
    )
    if found.critical.smallest_p > LEVEL:
        caption += (
            f" With so few problems the smallest possible p-value is {found.critical.smallest_p:.2g}: no pair could "
            "have been told apart, whatever the scores. More problems are needed for that, not more seeds."
        )
    return Chart("ranks", "Mean ranks, and who cannot be told apart", caption, spec, rows)


def wins(found: Overall, styles: list[Look]) -> Chart:
    """Return the matrix of wins, ties and losses."""
    names = labels(styles)
    order = [names[standing.optimizer] for standing in found.standings]
    is_roomy = len(order) <= N_FULL
    rows: list[Row] = []
    for i, ours in enumerate(order):
        for j, theirs in enumerate(order):
            if i != j:
                won, tied, lost = (int(m[i, j]) for m in (found.wins, found.ties, found.losses))
                lead = rounded((won - lost) / max(1, won + tied + lost), 3)
                text = f"{won}/{tied}/{lost}" if is_roomy else str(won)
                rows.append(
                    {
                        "optimizer": ours,
                        "other": theirs,
                        "wins": won,
                        "ties": tied,
                        "losses": lost,
                        "lead": lead,
                        "text": text,
                    }
                )
    tooltip = [field("optimizer", "optimizer", None), field("other", "against", None)]
    tooltip += [field("wins", "wins", "d"), field("ties", "ties", "d"), field("losses", "losses", "d")]
    size = 46 if is_roomy else 26
    spec = {
        "width": {"step": size},
        "height": {"step": 26},
        "encoding": {
            "x": {
                "field": "other",
                "type": "nominal",
                "sort": order,
                "title": None,
                "axis": {"orient": "top", "labelAngle": -45, "ticks": False, "labelLimit": 190},
            },
            "y": by_optimizer(order),
            "tooltip": tooltip,
        },
        "layer": [
            {
                "mark": {"type": "rect", "stroke": "white", "strokeWidth": 1.5},
                "encoding": {
                    "color": {
                        "field": "lead",
                        "type": "quantitative",
                        "scale": {
                            "domain": [-1, 0, 1],
                            "range": ["#e08a4f", "#f4f4f4", "#5aa2d4"],
                            "interpolate": "rgb",
                        },
                        "legend": None,
                    }
                },
            },
            {"mark": {"type": "text", "fontSize": 11, "color": "#1b1b1b"}, "encoding": {"text": {"field": "text"}}},
        ],
        "usermeta": {"cells": [len(order), 36 if is_roomy else 24]},
    }
    what = "wins/ties/losses" if is_roomy else "wins"
    caption = (
        f"In each cell: {what} of the row against the column, by problem. A tie: the seeds cannot tell the two apart "
        "(95 % paired bootstrap). Blue: the row leads. Orange: the column."
    )
    return Chart("wins", "Wins, ties and losses", caption, spec, rows)


def profiles(found: Overall, styles: list[Look], unit: str) -> Chart:
    """Return the performance profiles in "steps" or "seconds"."""
    names = labels(styles)
    fractions = found.step_profiles if unit == "steps" else found.time_profiles
    rows: list[Row] = []
    for standing, line in reversed(list(zip(found.standings, fractions, strict=True))):
        kept = np.flatnonzero(np.diff(line, prepend=-1.0))  # a staircase is its corners
        for i in {*kept.tolist(), len(line) - 1}:
            point = {"tau": rounded(float(found.profile_taus[i]), 4), "fraction": rounded(float(line[i]), 4)}
            rows.append({"optimizer": names[standing.optimizer], **point})
    tooltip = [field("optimizer", "optimizer", None), field("tau", "factor", ".2f"), field("fraction", "solved", ".0%")]
    top = float(found.profile_taus[-1])
    spec = {
        "width": 480,
        "height": 300,
        "params": emphasis(styles),
        "mark": {"type": "line", "interpolate": "step-after"},
        "encoding": {
            "x": {
                "field": "tau",
                "type": "quantitative",
                "title": f"{unit}, as a multiple of the fastest",
                "scale": {"domain": [1, top]},
                "axis": {"grid": False},
            },
            "y": {
                "field": "fraction",
                "type": "quantitative",
                "title": "problems solved",
                "scale": {"domain": [0, 1]},
                "axis": {"format": ".0%"},
            },
            "color": colour(styles),
            "strokeDash": dash(styles),
            "strokeWidth": WIDTH,
            "strokeOpacity": opacity(),
            "tooltip": tooltip,
        },
    }
    caption = (
        f"Fraction of the problems on which the median seed reached the target within so many times the {unit} of the "
        "fastest optimizer there. Left end: how often it is the fastest. Higher is better."
    )
    return Chart(f"profiles-{unit}", f"Performance profiles, {unit}", caption, spec, rows)
