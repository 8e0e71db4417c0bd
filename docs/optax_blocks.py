"""The generated block about the time of XLA's step, from docs/records/optax_step.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

RECORDS = Path(__file__).resolve().parent / "records"


def cost() -> str:
    """Return the table of step times beside optax.adamw."""
    measured = json.loads((RECORDS / "optax_step.json").read_text())
    lines = ["| parameters | optimizer | a step, ms | times optax.adamw |", "|---|---|---:|---:|"]
    for title, case in measured["cases"].items():
        for name, milliseconds in case["step_ms"].items():
            ratio = case["ratios"].get(name)
            shown = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
            lines.append(f"| {title} | {name} | {milliseconds:g} | {shown} |")
    found = measured["versions"]
    where = (
        f"{measured['provenance']['device']}; jax {found['jax']}, optax {found['optax']}; medians, and the extremes."
    )
    return "\n".join([*lines, "", where])


BLOCKS: dict[str, Callable[[], str]] = {"optax-cost": cost}
