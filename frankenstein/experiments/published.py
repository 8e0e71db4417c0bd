"""What the paper's authors released: one number for each experiment, task, optimizer, epoch and metric.

`authors_runs.csv.gz` holds these numbers and nothing else. They are drawn beside ours, under the authors' name, and
never mixed with ours.
"""

from __future__ import annotations

import csv
import gzip
from functools import cache
from pathlib import Path
from statistics import fmean

from frankenstein.compare.report.charts.chart import COLOURS, DASHES, Chart

__all__ = ["SOURCE", "chart", "curves"]

SOURCE = "logs released by the authors of arXiv:2503.02147, not measured here"
TITLES = {
    "frankenstein": "Frankenstein",
    "sgd": "SGD",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "amsgrad": "AMSGrad",
    "adamw": "AdamW",
    "lookahead_adam": "Lookahead (Adam)",
    "adabound": "AdaBound",
    "adabelief": "AdaBelief",
    "adan": "Adan",
    "radam": "RAdam",
    "ranger": "Ranger",
}

Curve = list[tuple[int, float]]  # epoch and value


@cache
def _rows() -> list[tuple[str, str, str, int, str, float]]:
    with gzip.open(Path(__file__).with_name("authors_runs.csv.gz"), "rt", encoding="utf-8", newline="") as lines:
        return [
            (row["experiment"], row["task"], row["optimizer"], int(row["epoch"]), row["metric"], float(row["value"]))
            for row in csv.DictReader(lines)
        ]


def curves(experiment: str, task: str, metric: str) -> dict[str, Curve]:
    """Return the authors' curves, by optimizer.

    Args:
        experiment: As in the file: `cifar10_finetune`, `imagenet_scratch`, ...
        task: Likewise; of several seeds the part before `_seed`: their mean.
        metric: Likewise: `test_accuracy_percent`, `eval_top1_percent`, ...
    """
    values: dict[str, dict[int, list[float]]] = {}
    for row_experiment, row_task, optimizer, epoch, row_metric, value in _rows():
        if (row_experiment, row_task.partition("_seed")[0], row_metric) == (experiment, task, metric):
            values.setdefault(optimizer, {}).setdefault(epoch, []).append(value)
    return {
        optimizer: [(epoch, fmean(found)) for epoch, found in sorted(by_epoch.items())]
        for optimizer, by_epoch in values.items()
    }


def chart(name: str, title: str, what: str, found: dict[str, Curve], *, is_log: bool = False) -> Chart:
    """Return the authors' curves as a chart of their own, for settings of which ours are another size.

    Args:
        name: For files.
        title: For people.
        what: The value, for the axis.
        found: Curves, by optimizer.
        is_log: Whether the values are drawn on a logarithmic axis.
    """
    names = [TITLES.get(optimizer, optimizer) for optimizer in found]
    rows = [
        {"line": TITLES.get(optimizer, optimizer), "epoch": epoch, "value": float(f"{value:.5g}")}
        for optimizer, points in found.items()
        for epoch, value in points
        if value > 0 or not is_log
    ]
    others = [colour for colour in COLOURS if colour != COLOURS[0]]
    colours = [COLOURS[0] if name == "Frankenstein" else others[i % len(others)] for i, name in enumerate(names)]
    dashes = [DASHES[i // len(others) % len(DASHES)] for i in range(len(names))]
    legend = {"title": None, "orient": "bottom", "columns": 4, "symbolType": "stroke", "symbolSize": 400}
    spec = {
        "width": 620,
        "height": 300,
        "mark": {"type": "line", "strokeWidth": 1.6},
        "encoding": {
            "x": {"field": "epoch", "type": "quantitative", "title": "epoch", "axis": {"grid": False}},
            "y": {
                "field": "value",
                "type": "quantitative",
                "title": what,
                "scale": {"type": "log"} if is_log else {"zero": False},
            },
            "color": {"field": "line", "scale": {"domain": names, "range": colours}, "legend": legend},
            "strokeDash": {"field": "line", "scale": {"domain": names, "range": dashes}, "legend": legend},
        },
    }
    return Chart(name, title, f"{SOURCE[0].upper()}{SOURCE[1:]}.", spec, rows)
