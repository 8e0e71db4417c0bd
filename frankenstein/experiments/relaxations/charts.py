"""Figures of the relaxation experiments."""

from __future__ import annotations

import numpy as np

from frankenstein.compare.report.charts.chart import COLOURS, DASHES, Chart, Row, Spec
from frankenstein.experiments.relaxations.summary import Summary

__all__ = ["distribution"]

N_POINTS = 200  # of a curve: more than the eye can tell


def distribution(found: list[Summary], name: str, title: str) -> Chart:
    """Return the share of starts that a method has minimised within so many force calls."""
    found = [summary for summary in found if summary.n_failed < len(summary.calls)]
    rows: list[Row] = []
    for summary in found:
        calls = np.sort(np.where(summary.converged & ~summary.is_lost, summary.calls, np.inf))
        rows.append({"method": summary.title, "calls": float(calls[0]), "share": 0.0})
        for share in np.linspace(0.0, 1.0, min(len(calls), N_POINTS) + 1)[1:]:
            at = calls[max(0, int(np.ceil(share * len(calls))) - 1)]
            if np.isfinite(at):
                rows.append({"method": summary.title, "calls": float(at), "share": 100.0 * float(share)})
    spec: Spec = {
        "width": 620,
        "height": 320,
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2.2},
        "encoding": {
            "x": {
                "field": "calls",
                "type": "quantitative",
                "scale": {"type": "log", "nice": False},
                "title": "force calls",
            },
            "y": {"field": "share", "type": "quantitative", "title": "minimised, %", "scale": {"domain": [0, 100]}},
            "color": colour(found),
            "strokeDash": {"field": "method", "type": "nominal", "legend": None, "scale": _dashes(found)},
            "tooltip": [{"field": "method"}, {"field": "calls"}, {"field": "share", "format": ".0f"}],
        },
    }
    caption = "Further left and higher is better. Where a curve ends below 100 %, the rest of the runs failed."
    return Chart(name, title, caption, spec, rows)


def colour(found: list[Summary]) -> Spec:
    """Return the encoding of methods as colours."""
    scale = {
        "domain": [summary.title for summary in found],
        "range": [COLOURS[i % len(COLOURS)] for i in range(len(found))],
    }
    return {"field": "method", "type": "nominal", "scale": scale, "legend": {"title": None, "orient": "right"}}


def _dashes(found: list[Summary]) -> Spec:
    dashes = [DASHES[i // len(COLOURS) % len(DASHES)] for i in range(len(found))]
    return {"domain": [summary.title for summary in found], "range": dashes}
