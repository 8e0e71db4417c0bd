"""All problems in one figure, for papers and pages without JavaScript."""

from __future__ import annotations

import json
import re
from typing import Any

from frankenstein.compare.report.charts.chart import Chart, Look, Spec, emphasis, looks
from frankenstein.compare.report.charts.curves import HOW_TO_READ, curves
from frankenstein.compare.report.charts.tuning import RATES, rates
from frankenstein.compare.results.overall import overall
from frankenstein.compare.results.summary import ProblemSummary

PANEL = {"width": 290, "height": 190}
N_COLUMNS = 3


def overview(summaries: list[ProblemSummary]) -> Chart:
    """Return the tuned learning curves, a panel for each problem, one legend."""
    styles = looks(summaries, overall(summaries))
    panels = [curves(summary, styles) for summary in summaries]
    caption = f"{HOW_TO_READ} Band: the middle half of the seeds. Dotted: the target."
    return Chart("overview", "Learning curves, tuned", caption, _grid(panels, styles), [])


def tuning_overview(summaries: list[ProblemSummary]) -> Chart:
    """Return validation score against learning rate, a panel for each problem, one legend."""
    styles = looks(summaries, overall(summaries))
    panels = [rates(summary, styles) for summary in summaries]
    return Chart("tuning-overview", "Validation score against learning rate", RATES, _grid(panels, styles), [])


def _grid(panels: list[Chart], styles: list[Look]) -> Spec:
    """Return the charts side by side; each keeps its data and its scales, colours are shared."""
    specs = []
    for panel in panels:
        kept = {key: value for key, value in panel.spec.items() if key not in ("params", "usermeta")}
        values = {parameter["name"]: parameter["value"] for parameter in panel.spec["params"]}
        specs.append(_fixed(kept, values) | PANEL | {"title": panel.subject, "data": {"values": panel.rows}})
    return {
        "concat": specs,
        "columns": min(N_COLUMNS, len(specs)),
        "spacing": 28,
        "params": emphasis(styles),
        "resolve": {"scale": {"color": "shared", "strokeDash": "shared"}},
    }


def _fixed(node: Any, values: dict[str, Any]) -> Any:
    """Return the specification with parameters replaced by their values: panels of one figure differ in them."""
    if isinstance(node, list):
        return [_fixed(item, values) for item in node]
    if not isinstance(node, dict):
        return node
    fixed = {}
    for key, value in node.items():
        if key in ("filter", "calculate") and isinstance(value, str):
            for name, constant in values.items():
                value = re.sub(rf"(?<![.\w'])\b{name}\b(?![\w'])", json.dumps(constant), value)
        fixed[key] = value if key in ("filter", "calculate", "data") else _fixed(value, values)
    return fixed
