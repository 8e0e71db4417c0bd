"""The generated block about what telemetry costs, from docs/records/telemetry.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).resolve().parent / "records"
KINDS = {
    "alone again": "without telemetry, measured again",
    "detached": "detached",
    "counting": "attached, no report",
    "every 100": "with a report every 100 steps",
}


def spread(found: dict[str, float], digits: int = 3) -> str:
    """Return the median with smallest and largest."""
    low, middle, high = (f"{found[name]:.{digits}f}" for name in ("min", "median", "max"))
    return f"{middle} ({low} to {high})"


def cost() -> str:
    """Return the table of what a report takes, and of 100 steps with telemetry to 100 without."""
    measured: dict[str, Any] = json.loads((RECORDS / "telemetry.json").read_text())
    cases = measured["cases"]
    rows = {
        "parameters, tensors": [f"{case['n_params']:,} in {case['n_tensors']}" for case in cases.values()],
        "a step, ms": [f"{case['step_ms']['median']:.2f}" for case in cases.values()],
        "a report, ms": [f"{case['report_ms']['median']:.2f}" for case in cases.values()],
        "its part of 100 steps, %": [
            spread({name: 100 * value for name, value in case["report_share"].items()}, 2) for case in cases.values()
        ],
        "to TensorBoard, ms more": [f"{case['tensorboard_ms']['median']:.2f}" for case in cases.values()],
    }
    for kind, title in KINDS.items():
        rows[f"steps {title}, times those without"] = [
            spread(case["ratios"][kind]) if kind in case["ratios"] else "" for case in cases.values()
        ]
    table = [["", *cases], ["---", *["---:"] * len(cases)], *([title, *cells] for title, cells in rows.items())]
    lines = ["| " + " | ".join(line) + " |" for line in table]
    found, origin = measured["machine"], measured["provenance"]
    rounds = sorted({case["n_rounds"] for case in cases.values()})
    where = (
        f"{origin['device']}, {found['instruction_set']}, {measured['n_threads']} threads, torch "
        f"{origin['versions']['torch']}; {rounds[0]} to {rounds[-1]} rounds, medians with the smallest and the largest."
    )
    return "\n".join([*lines, "", where])


BLOCKS: dict[str, Callable[[], str]] = {"telemetry-cost": cost}
