"""Fig. 9 of the paper: how alike the layers of a network are while it is fine-tuned, and when that has settled.

At every look at a training, CKA between all its blocks is taken on the same test images. Fig. 9a compares the maps of
RMSprop and Frankenstein at the end; Fig. 9b is the structural similarity (SSIM) of each map with the last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from frankenstein.compare.problems.problem import Budget, Measurements
from frankenstein.compare.report.charts.chart import COLOURS, Chart, rounded
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.report.words import estimate
from frankenstein.compare.results.summary import ProblemSummary, Row
from frankenstein.compare.statistics.seeds import Interval, bootstrap_mean
from frankenstein.experiments import fig2, fine_tuning
from frankenstein.experiments.experiment import Findings, Options
from frankenstein.experiments.networks import Plan, run

if TYPE_CHECKING:
    from torch import nn

    from frankenstein.compare.optimizers import Factory

NAME = "fig9"
METHODS = fig2.METHODS
N_SEEDS = {"local": 3, "paper": 1}
N_IMAGES = {"local": 500, "paper": 2000}
LAYERS = {
    "local": r"bn1|blocks\.\d+\.\d+|bn2|classifier\.[02]",
    "paper": r"network\.(efficientnet\.(embeddings|encoder\.blocks\.\d+|encoder\.top_activation)|classifier\.[02])",
}
"""Names of the layers that are compared: what comes in, every block, what comes out."""

PAIR = ("rmsprop", "frankenstein")  # Fig. 9a
DIGITS = 4  # of a similarity in the records


@dataclass(frozen=True)
class Represented:
    """The `run` of a problem: a fine-tuning whose layers are compared with each other at every look at it.

    The curve gets "similarity_to_last": SSIM of the map with the last. `details` has the last map and its layers.
    """

    preset: str

    def __call__(self, make_optimizer: Factory, seed: int, budget: Budget) -> Measurements:
        """Train once."""
        with TemporaryDirectory() as place:
            folder = (budget.folder or Path(place)) / "maps"
            folder.mkdir(parents=True, exist_ok=True)
            look = partial(_keep_map, self.preset, folder)
            measured = fine_tuning.VISION[self.preset].train(make_optimizer, seed, budget, look)
            if not measured.diverged:
                _add(measured, folder)
        return measured

    def describe(self) -> list[dict[str, Any]]:
        """Return the name, size and hash of the data."""
        return fine_tuning.VISION[self.preset].describe()


def _keep_map(preset: str, folder: Path, model: nn.Module, step: int) -> None:
    """Write the map of a step into the folder, where it outlives a kill."""
    from frankenstein.analysis.similarity import cka

    layers = [name for name, _ in model.named_modules() if re.fullmatch(LAYERS[preset], name)]
    device = str(next(model.parameters()).device)
    shown = fine_tuning.batches(preset, "test", N_IMAGES[preset], device)
    found = cka(model, shown, layers=layers)
    path = folder / f"{step:09}.json"
    half = path.with_suffix(".half")
    half.write_text(json.dumps({"layers": found.layers, "map": found.map.tolist()}), encoding="utf-8")
    half.replace(path)


def _add(measured: Measurements, folder: Path) -> None:
    """Put what the maps say into the measurements."""
    from frankenstein.analysis.similarity import ssim_history

    steps = [int(step or 0) for step in measured.curve["step"]]
    found = [json.loads((folder / f"{step:09}.json").read_text(encoding="utf-8")) for step in steps]
    measured.curve["similarity_to_last"] = [float(f"{one:.4g}") for one in ssim_history([one["map"] for one in found])]
    last = found[-1]
    measured.details = {
        "layers": last["layers"],
        "map": [[round(value, DIGITS) for value in row] for row in last["map"]],
    }


OPTIMIZERS = fine_tuning.optimizers(NAME)
PROBLEMS = fine_tuning.problems(NAME, Represented)


def reproduce(options: Options) -> Findings:
    """Train with every optimizer and every seed."""
    optimizers = tuple(f"{NAME}-{options.preset}-{name}" for name in options.methods or METHODS)
    return findings(run(Plan(__name__, (f"{NAME}-{options.preset}",), optimizers, N_SEEDS[options.preset]), options))


# What is shown --------------------------------------------------------------------------------------------------------


def findings(summaries: list[ProblemSummary]) -> Findings:
    """Return the maps, the histories, and what they say of the paper's two claims."""
    summary = summaries[0]
    rows = [row for row in summary.rows if _maps(row)]
    settled = {row.optimizer: bootstrap_mean(_settled(row)) for row in rows}
    apart = {row.optimizer: bootstrap_mean([_near_far(one) for one in _maps(row)]) for row in rows}
    rows.sort(key=lambda row: -settled[row.optimizer].value)
    lines = [*_sentences(rows, settled, apart)]
    table = Table(
        "fig9",
        summary.title,
        ["optimizer", "SSIM to the last map, mean over the training", "CKA of first and last third of the layers"],
        [
            [
                Cell(row.title),
                *(Cell(estimate(of[row.optimizer]), numbers={"": of[row.optimizer].value}) for of in both),
            ]
            for row in rows
            for both in ((settled, apart),)
        ],
        [
            f"Mean over {max((len(_maps(row)) for row in rows), default=0)} seeds with its 95 % interval over seeds.",
            "The first: over all looks but the last, the start among them; 1: the map was there from the beginning.",
        ],
    )
    maps = _map_charts(rows)
    drawings = [_histories(rows), *maps] if rows else []
    live = frozenset(one.name for one in maps)
    return Findings("The similarity of layers (Fig. 9)", lines, [table], drawings, live=live)


def _maps(row: Row) -> list[list[list[float]]]:
    """Return the last map of each seed."""
    return [record["details"]["map"] for record in _records(row)]


def _records(row: Row) -> list[dict[str, Any]]:
    found = row.tuned.records if row.tuned else []
    return [record for record in found if record.get("details")]


def _settled(row: Row) -> list[float]:
    """Return the mean of the history without its last point, which is 1, for each seed."""
    histories = [record["curve"]["similarity_to_last"][:-1] for record in _records(row)]
    return [sum(history) / len(history) for history in histories]


def _near_far(of: Sequence[Sequence[float]]) -> float:
    """Return the mean similarity of the first third of the layers with the last third."""
    third = max(1, len(of) // 3)
    values = [value for line in of[:third] for value in line[-third:]]
    return sum(values) / len(values)


def _sentences(rows: list[Row], settled: dict[str, Interval], apart: dict[str, Interval]) -> list[str]:
    names = [row.optimizer.split("-")[-1] for row in rows]
    if "frankenstein" not in names:
        return []
    ours = rows[names.index("frankenstein")]
    best = rows[0]
    line = (
        f"Frankenstein has place {names.index('frankenstein') + 1} of {len(rows)} by how early its map is the last one"
    )
    line += f" ({settled[ours.optimizer].value:.3f}"
    line += ")" if best is ours else f"; first, {best.title}, {settled[best.optimizer].value:.3f})"
    lines = [f"{line}. Published: the highest throughout."]
    if PAIR[0] in names:
        other = rows[names.index(PAIR[0])]
        mine, theirs = (estimate(apart[row.optimizer]) for row in (ours, other))
        lines.append(
            f"First and last layers have a similarity of {mine} with Frankenstein and {theirs} with {other.title}. "
            "Published, without a number: Frankenstein keeps low features from leaking into the last layers."
        )
    lines.append(
        "A map that changes little from the start settles early: the first point is the network before any step, and "
        "an optimizer that hardly moves would be first."
    )
    return lines


def _histories(rows: list[Row]) -> Chart:
    points = [
        {"optimizer": row.title, "step": step, "ssim": value, "seed": record["seed"]}
        for row in rows
        for record in _records(row)
        for step, value in zip(record["curve"]["step"], record["curve"]["similarity_to_last"], strict=True)
    ]
    titles = [row.title for row in rows]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(titles))]
    dashes = [[1, 0] if i < len(COLOURS) else [4, 3] for i in range(len(titles))]
    spec: dict[str, Any] = {
        "width": 560,
        "height": 320,
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": "step"},
            "y": {
                "field": "ssim",
                "type": "quantitative",
                "aggregate": "mean",
                "title": "SSIM to the last map",
                "scale": {"zero": False},
            },
            "color": {
                "field": "optimizer",
                "type": "nominal",
                "title": None,
                "scale": {"domain": titles, "range": colours},
            },
            "strokeDash": {
                "field": "optimizer",
                "type": "nominal",
                "title": None,
                "scale": {"domain": titles, "range": dashes},
            },
        },
    }
    caption = "Structural similarity of the CKA map at each look with the one at the end; mean over seeds."
    return Chart("fig9-histories", "When the map of similarities has settled", caption, spec, points)


def _map_charts(rows: list[Row]) -> list[Chart]:
    """Return the maps of the pair, means over seeds, and their difference."""
    by_name = {row.optimizer.split("-")[-1]: row for row in rows}
    if not all(name in by_name for name in PAIR):
        return []
    layers = _records(by_name[PAIR[0]])[0]["details"]["layers"]
    means = [_mean(_maps(by_name[name])) for name in PAIR]
    titles = [by_name[name].title for name in PAIR]
    gap = [[b - a for a, b in zip(*lines, strict=True)] for lines in zip(*means, strict=True)]
    charts = [
        _map_chart(f"fig9-{name}", f"CKA between layers, {title}", layers, mean, [0, 1], "viridis")
        for name, title, mean in zip(PAIR, titles, means, strict=True)
    ]
    largest = max(abs(value) for line in gap for value in line)
    difference = f"CKA between layers, {titles[1]} less {titles[0]}"
    return [*charts, _map_chart("fig9-difference", difference, layers, gap, [-largest, largest], "redblue")]


def _mean(maps: list[list[list[float]]]) -> list[list[float]]:
    return [[sum(values) / len(maps) for values in zip(*lines, strict=True)] for lines in zip(*maps, strict=True)]


def _map_chart(
    name: str, title: str, layers: list[str], of: list[list[float]], domain: list[float], scheme: str
) -> Chart:
    points = [
        {"layer": layers[i], "other": layers[j], "cka": rounded(value)}
        for i, line in enumerate(of)
        for j, value in enumerate(line)
    ]
    axis = {"type": "nominal", "sort": None, "axis": {"labelAngle": -45, "title": None}}
    spec: dict[str, Any] = {
        "width": 380,
        "height": 380,
        "mark": "rect",
        "encoding": {
            "x": {"field": "layer", **axis},
            "y": {"field": "other", **axis, "axis": {"title": None}},
            "color": {
                "field": "cka",
                "type": "quantitative",
                "title": "CKA",
                "scale": {"domain": domain, "scheme": scheme},
            },
            "tooltip": [
                {"field": "layer", "type": "nominal"},
                {"field": "other", "type": "nominal"},
                {"field": "cka", "type": "quantitative", "format": ".3f"},
            ],
        },
    }
    return Chart(name, title, "Mean over seeds, on test images, at the end of the training.", spec, points)
