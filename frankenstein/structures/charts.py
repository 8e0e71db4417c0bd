"""Energy and force against force calls: Vega-Lite, the same for the page and for files.

With one optimizer a line is a structure; with several it is an optimizer, over all structures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from frankenstein.compare.report.charts.chart import (
    COLOURS,
    DASHES,
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
    opacity,
    rounded,
    save,
)
from frankenstein.structures.methods import METHODS, OURS
from frankenstein.structures.running import Outcome

N_LINES = 24  # structures that are drawn: those that took the most calls
N_POINTS = 240  # of a line: more cannot be seen
FIGURE = "chart.png"


def charts(
    outcomes: Sequence[Outcome], methods: Sequence[str], fmax: float, unit: str
) -> tuple[list[Look], list[Chart]]:
    """Return how the lines look and the charts, those without any data left out.

    Args:
        outcomes: Of all methods.
        methods: In the order of the legend, ours first.
        fmax: What converged means: drawn as a rule.
        unit: Of energies, "" if they have none.
    """
    is_comparison = len(methods) > 1
    if is_comparison:
        looks = [_look(i, METHODS[name].title, name == OURS) for i, name in enumerate(methods)]
        rows, told = (
            _over_structures(outcomes, methods, fmax),
            "One line per optimizer: the median over all structures, up to where it has converged.",
        )
        made = [_solved(rows, looks)]
    else:
        drawn = sorted((one for one in outcomes if one["curve"]["fmax"]), key=lambda one: -one["calls"])[:N_LINES]
        looks = [_look(i, one["name"], True) for i, one in enumerate(drawn)]
        rows = [row for one in drawn for row in _points(one, one["name"])]
        more = f"; the {N_LINES} of {len(outcomes)} that took the most calls" if len(outcomes) > N_LINES else ""
        told, made = f"One line per structure{more}.", []
    per, force = (f" ({unit} per atom)", f" ({unit}/Å)") if unit else (" (per atom)", "")
    made += [
        _chart("fmax", "Largest force", f"{told} Dotted: converged below.", f"largest force{force}", rows, looks, fmax),
        _chart("energy", "Energy above the final energy", f"{told} The lowest of a line is its 0.",
               f"energy above the final energy{per}", rows, looks),
    ]  # fmt: skip
    for chart in made if is_comparison else []:  # one that needs a hundred times the calls hides the others
        chart.spec["encoding"]["x"]["scale"] = {"type": "log", "nice": False}
    return looks, [chart for chart in made if chart.rows]


def _look(i: int, label: str, is_ours: bool) -> Look:
    return Look(label, label, COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)], is_ours, True)


def _points(outcome: Outcome, label: str) -> list[Row]:
    """Return the curve of one structure, thinned out."""
    largest, energies = outcome["curve"]["fmax"], np.array(outcome["curve"]["energy"])
    above = (energies - energies.min()) / outcome["n_atoms"]
    return [
        {
            "optimizer": label,
            "call": i + 1,
            "fmax": rounded(largest[i]),
            "energy": rounded(float(above[i])) if above[i] > 0 else None,
            "total": rounded(float(energies[i]), 9),
        }
        for i in _thinned(len(largest))
    ]


def _thinned(n: int) -> list[int]:
    """Return up to `N_POINTS` of n indices, the first and the last among them."""
    even = np.linspace(0, n - 1, min(n, N_POINTS // 2))
    early = np.geomspace(1, n, min(n, N_POINTS // 2)) - 1  # most happens in the first calls
    return np.unique(np.concatenate([even, early]).round().astype(int)).tolist()


def _over_structures(outcomes: Sequence[Outcome], methods: Sequence[str], fmax: float) -> list[Row]:
    """Return for each method and call the medians over structures, and the share that has converged.

    A structure that has ended stays at its last values.
    """
    rows: list[Row] = []
    longest = max((len(one["curve"]["fmax"]) for one in outcomes), default=0)
    for method in methods:
        mine = [one for one in outcomes if one["optimizer"] == method]
        curves = [one for one in mine if one["curve"]["fmax"]]
        if not curves:
            continue
        n = max(len(one["curve"]["fmax"]) for one in curves)
        largest = np.array([_held(one["curve"]["fmax"], n) for one in curves])
        above = np.array(
            [(_held(one["curve"]["energy"], n) - min(one["curve"]["energy"])) / one["n_atoms"] for one in curves]
        )
        needed = np.array([one["calls"] if one["converged"] else math.inf for one in mine])
        middle_force, middle_energy = np.median(largest, 0), np.median(above, 0)
        n_open = 1 + int(np.argmax(middle_force < fmax)) if (middle_force < fmax).any() else n  # flat from there on
        for i in sorted({*_thinned(n), *_thinned(n_open)}):
            energy = float(middle_energy[i])
            rows.append(
                {
                    "optimizer": METHODS[method].title,
                    "call": i + 1,
                    "fmax": rounded(float(middle_force[i])) if i < n_open else None,
                    "energy": rounded(energy) if energy > 0 and i < n_open else None,
                    "share": rounded(float((needed <= i + 1).mean())),
                }
            )
        if n < longest:
            rows.append(
                {
                    "optimizer": METHODS[method].title,
                    "call": longest,
                    "share": rounded(float(np.isfinite(needed).mean())),
                }
            )
    return rows


def _held(values: Sequence[float], n: int) -> np.ndarray:
    return np.concatenate([values, np.full(n - len(values), values[-1])])


def _solved(rows: list[Row], looks: list[Look]) -> Chart:
    title, caption = "Converged structures", "Share of all structures that have converged after so many force calls."
    spec = _spec("share", looks)
    spec["encoding"]["y"] |= {"title": "converged", "axis": {"format": "%"}, "scale": {"domain": [0, 1]}}
    spec["layer"][0]["mark"]["interpolate"] = "step-after"
    return Chart("solved", title, caption, spec, [row for row in rows if row.get("share") is not None])


def _chart(
    name: str, title: str, caption: str, axis: str, rows: list[Row], looks: list[Look], rule: float | None = None
) -> Chart:
    spec = _spec(name, looks)
    spec["encoding"]["y"] |= {"title": axis, "scale": {"type": "log", "nice": False}, "axis": {"format": ".0e"}}
    if rule is not None:
        mark = {"type": "rule", "strokeDash": [2, 3], "color": GREY}
        spec["layer"].insert(0, {"mark": mark, "encoding": {"y": {"datum": rule}, "x": None}})
    return Chart(name, title, caption, spec, [row for row in rows if row.get(name)])


def _spec(name: str, looks: list[Look]) -> Spec:
    tooltip = [field("optimizer", "line", None), field("call", "call", "d")]
    tooltip += [field("fmax", "largest force"), field("energy", "energy above the final energy")]
    if name == "share":
        tooltip = [*tooltip[:2], field("share", "converged", ".1%")]
    line = {"color": colour(looks), "strokeDash": dash(looks)}
    line["strokeDash"]["legend"] = line["color"]["legend"] and line["strokeDash"]["legend"]
    return {
        "width": 620,
        "height": 320,
        "params": emphasis(looks),
        "encoding": {
            "x": {"field": "call", "type": "quantitative", "title": "force calls", "axis": {"grid": False},
                  "scale": {"nice": False, "zero": False}},
            "y": {"field": name, "type": "quantitative"},
        },
        "layer": [
            {
                "mark": {"type": "line", "clip": True},
                "encoding": {**line, "strokeWidth": WIDTH, "strokeOpacity": opacity(), "tooltip": tooltip},
            }
        ],
    }  # fmt: skip


def write_figure(path: Path, drawn: Sequence[Chart]) -> None:
    """Write the charts below each other as one image.

    Raises:
        OSError: It cannot be written.
    """
    panels = [
        {
            "title": {"text": chart.title, "subtitle": chart.caption},  # it stands alone, without the page's words
            "data": {"values": chart.rows},
            **{key: value for key, value in chart.spec.items() if key != "params"},
        }
        for chart in drawn
    ]
    spec = {"vconcat": panels, "spacing": 28, "params": drawn[0].spec["params"]}
    spec["resolve"] = {"scale": {"color": "shared", "strokeDash": "shared"}}
    half = path.with_name(f".{path.name}.png")
    save(Chart("relaxation", "Relaxation", "", spec, []), half)
    half.replace(path)
