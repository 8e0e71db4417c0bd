"""The report of a run: one HTML file that needs no network.

Its charts are drawn, its tables sorted and its looks decided by what the report of a comparison uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from frankenstein.compare.report import script_json, vega_script
from frankenstein.compare.report.charts.chart import Chart, Look
from frankenstein.structures.folder import replace
from frankenstein.structures.methods import METHODS
from frankenstein.structures.outputs import Total
from frankenstein.structures.running import Outcome
from frankenstein.structures.terminal import number

REPORT = "report.html"


def write(
    path: Path,
    outcomes: Sequence[Outcome],
    sums: Sequence[Total],
    looks: Sequence[Look],
    charts: Sequence[Chart],
    summary: str,
    about: dict[str, Any],
    unit: str,
) -> None:
    """Write the page.

    Args:
        path: The file.
        outcomes: Ours.
        sums: Of all optimizers.
        looks: Of the lines.
        charts: In order.
        summary: The result in a line.
        about: What was asked and with what, as `settings.json` has it.
        unit: Of energies, "" if they have none.

    Raises:
        OSError: It cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    assets = files("frankenstein.compare.report")
    environment = Environment(
        loader=PackageLoader("frankenstein.structures", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    html = environment.get_template("page.html").render(
        outcomes=outcomes,
        sums=sums,
        titles={name: method.title for name, method in METHODS.items()},
        looks=looks,
        charts=charts,
        summary=summary,
        about=about,
        energy_unit=f" ({unit})" if unit else "",
        force_unit=f" ({unit}/Å)" if unit else "",
        css=Markup(assets.joinpath("page.css").read_text(encoding="utf-8")),
        scripts=[Markup(assets.joinpath(name).read_text(encoding="utf-8")) for name in ("charts.js", "page.js")],
        vega=Markup(vega_script()),
        look_data=Markup(script_json([{"label": look.label, "is_strong": look.is_strong} for look in looks])),
        chart_data=Markup(script_json({chart.name: {"spec": chart.spec, "rows": chart.rows} for chart in charts})),
    )
    replace(path, html)
