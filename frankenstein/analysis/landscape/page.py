"""A landscape as a page to look around in: one HTML file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from frankenstein.analysis.landscape.chart import caption
from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.files import place
from frankenstein.analysis.landscape.result import Landscape
from frankenstein.compare.report import script_json, vega_script
from frankenstein.compare.report.charts.chart import Chart

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff; }
figure { margin: 1.5rem 0; overflow-x: auto; } figcaption { color: #555; font-size: .9rem; }
.vega-bind-name { margin-right: .5rem; } .vega-bind input { width: 24rem; max-width: 60vw; vertical-align: middle; }
table { border-collapse: collapse; } th, td { padding: .2rem .7rem .2rem 0; text-align: left; vertical-align: top; }
th { font-weight: normal; color: #555; }
"""
SCRIPT = """
for (const figure of document.querySelectorAll("figure")) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  vegaEmbed(figure.querySelector("div"), spec, {mode: "vega-lite", renderer: "svg", actions: false})
    .catch(error => { figure.querySelector("div").textContent = `This chart cannot be drawn: ${error.message}`; });
}
"""


def write_page(path: Path | str, landscape: Landscape, charts: Sequence[Chart]) -> Path:
    """Write the page and return its path.

    Args:
        path: The file.
        landscape: What the charts are of; how it was made is said below them.
        charts: Of it, in order.

    Raises:
        LandscapeError: The file cannot be written.
    """
    path = Path(path)
    figures = "".join(
        f'<figure><div></div><figcaption>{escape(one.caption)}</figcaption><script type="application/json">'
        f"{script_json(one.complete())}</script></figure>"
        for one in charts
    )
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Loss landscape</title>'
        f"<style>{STYLE}</style></head><body><h1>Loss landscape</h1>{figures}<h2>How it was made</h2>"
        f"{_facts(landscape)}<script>{vega_script()}</script><script>{SCRIPT}</script></body></html>\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place(path, html.encode())
    except OSError as error:
        raise LandscapeError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _facts(landscape: Landscape) -> str:
    about, grid = landscape.about, landscape.grid
    versions = landscape.provenance["versions"]
    facts = {
        "summary": caption(landscape),
        "scale": f"x from {grid.x[0]:.4g} to {grid.x[-1]:.4g}, y from {grid.y[0]:.4g} to {grid.y[-1]:.4g}",
        "directions": f"{about.kind}, normalisation {about.normalisation}, norms "
        + " and ".join(f"{norm:.4g}" for norm in landscape.norms),
        "seeds": f"{'no seed' if about.seed is None else about.seed} for directions, {landscape.seed} for evaluation",
        "explained variance": ", ".join(f"{share:.2%}" for share in about.explained_variance[:6])
        or "not of a trajectory",
        "plane": landscape.plane,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "commit": json.dumps(landscape.provenance["git"]),
    }
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in facts.items())
    return f"<table>{rows}</table>"
