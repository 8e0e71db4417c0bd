"""The generated blocks about small state, from docs/records/small_state.json and step_memory.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).resolve().parent / "records"
REAL = ("digits", "cifar10", "imdb")  # the trainings that the claim is about; the others are controls
SMALL = ("bfloat16", "8bit")
STATES = {"float32": "float32", "bfloat16": "bfloat16", "8bit": "8 bits", "8bit-nearest": "8 bits, to the nearest"}
PARAMETERS = {
    "float32": "float32",
    "bfloat16-kahan": "bfloat16",
    "bfloat16-rounded": "bfloat16, `kahan_sum=False`",
}
METRICS = {"accuracy": ("accuracy, %", 2), "loss": ("cross entropy", 4)}


def record(name: str) -> Any:
    return json.loads((RECORDS / f"{name}.json").read_text())


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in (header, *rows)]
    lines.insert(1, "|---|---|" + "---:|" * (len(header) - 2))
    return "\n".join(lines)


def spread(found: dict[str, float], digits: int) -> str:
    return f"{found['mean']:.{digits}f} ± {found['sd']:.{digits}f}"


def difference(found: dict[str, float], digits: int) -> str:
    """Return the paired difference with its interval; a difference outside the spread is bold."""
    value, low, high = (signed(found[key], digits) for key in ("difference", "low", "high"))
    return f"{value if found['is_within'] else f'**{value}**'} [{low}, {high}]"


def signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return text if float(text) else f"{0:.{digits}f}"


def columns(row: dict[str, Any], is_first: bool) -> list[str]:
    """Return mean and spread, and the difference, of both metrics."""
    cells = []
    for metric, (_, digits) in METRICS.items():
        cells += [spread(row[metric], digits), "" if is_first else difference(row[metric], digits)]
    return cells


def heading(first: str, second: str) -> list[str]:
    return [first, second, *(text for title, _ in METRICS.values() for text in (title, "difference"))]


def quality() -> str:
    """Return the table of the three trainings."""
    measured = record("small_state")
    rows = []
    for name in REAL:
        for variant, row in measured["summary"][name].items():
            is_first = variant == "float32"
            title = measured["settings"][name]["title"] if is_first else ""
            rows.append([title, STATES[variant], *columns(row, is_first)])
    return table(heading("training", "state"), rows)


def setup() -> str:
    """Return what was trained, a line each."""
    measured = record("small_state")
    lines = []
    for name in REAL:
        settings, summary = measured["settings"][name], measured["summary"][name]
        run = next(one for one in measured["runs"] if one["training"] == name)
        row = summary["8bit"]
        lines.append(
            f"- {settings['title']} ({settings['n_train']:,} to train on, {settings['n_test']:,} to test): "
            f"{run['n_params']:,} parameters, {100 * row['share_in_8_bits']:.1f} % of them with "
            f"8-bit state ({row['state_bytes_per_param']:.2f} bytes per parameter in all), {run['n_steps']:,} steps of "
            f"batch {settings['batch_size']} at `lr={run['lr']:g}` falling to 0, {row['n_seeds']} seeds"
        )
    return "\n".join(lines)


def comparisons() -> Iterator[tuple[str, dict[str, Any], float]]:
    """Yield what is compared, how the small state differs there, and how far float32 runs are apart."""
    measured = record("small_state")
    for name, variant, metric in product(REAL, SMALL, METRICS):
        what = f"{METRICS[metric][0].split(',')[0]}, {measured['settings'][name]['title']}, {STATES[variant]}"
        summary = measured["summary"][name]
        yield what, summary[variant][metric], summary["float32"][metric]["sd"]


def verdict() -> str:
    """Say how many of the differences lie within the spread of float32."""
    found = list(comparisons())
    outside = [what for what, row, _ in found if not row["is_within"]]
    n_whole = sum(-sd <= row["low"] and row["high"] <= sd for _, row, sd in found)
    text = (
        f"{len(found) - len(outside)} of {len(found)} mean differences are within one standard deviation of float32 "
        f"runs over seeds, {n_whole} of them with their whole 95 % interval"
    )
    return f"{text}; outside: {'; '.join(outside)}." if outside else f"{text}."


def control() -> str:
    """Say what the comparison shows where 8 bits are rounded to the nearest."""
    measured = record("small_state")
    summary, settings = measured["summary"]["tokens"], measured["settings"]["tokens"]
    right, wrong = (difference(summary[variant]["loss"], 3) for variant in ("8bit", "8bit-nearest"))
    accuracies = [f"{summary[variant]['accuracy']['mean']:.1f} %" for variant in ("8bit", "8bit-nearest")]
    return (
        f"Training {settings['title']} (`lr={settings['rates'][0]:g}` throughout, `momentum={settings['momentum']:g}`, "
        f"{summary['8bit']['n_seeds']} seeds), 8 bits change the cross entropy by {right} and reach {accuracies[0]}; "
        f"rounded to the nearest, they change it by {wrong} and reach {accuracies[1]}."
    )


def kahan() -> str:
    """Return the table of bfloat16 parameters at a small learning rate, and what was trained."""
    measured = record("small_state")
    summary, settings = measured["summary"]["slow"], measured["settings"]["slow"]
    run = next(one for one in measured["runs"] if one["training"] == "slow")
    rows = []
    for variant, row in summary.items():
        share = f"{100 * row['share_unmoved']:.0f} %"
        rows.append([PARAMETERS[variant], share, *columns(row, variant == "float32")])
    return (
        f"{table(heading('parameters', 'weights that end where they began'), rows)}\n\n"
        f"The {settings['title']}, `lr={run['lr']:g}` falling to 0, {run['n_steps']:,} steps, "
        f"{summary['float32']['n_seeds']} seeds, float32 state."
    )


def memory() -> str:
    """Return the table of what a step needs in memory."""
    measured = record("step_memory")
    rows = measured["rows"]
    paths = list(dict.fromkeys(row["path"] for row in rows))
    lines = []
    for optimizer, state in dict.fromkeys((row["optimizer"], row["state_dtype"]) for row in rows):
        found = {row["path"]: row for row in rows if (row["optimizer"], row["state_dtype"]) == (optimizer, state)}
        per_param = found[paths[0]]["state_bytes_per_param"]
        cells = [f"{found[path]['step_mib']:.1f} ({found[path]['step_mib_of_tensors']:.1f})" for path in paths]
        lines.append([f"{optimizer}, {STATES[state]}", f"{per_param:.2f}", *cells])
    header = ["optimizer, state", "state, bytes per parameter", *(f"`{path}`: MiB in a step" for path in paths)]
    size = measured["n_params"] * 4 / 2**20
    return (
        f"{table(header, lines)}\n\n"
        f"{measured['network']}, {measured['n_params']:,} parameters in float32 ({size:.1f} MiB, as much again the "
        f"gradients), {measured['n_threads']} threads, torch {measured['provenance']['versions']['torch']}."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "state-quality": quality,
    "state-setup": setup,
    "state-verdict": verdict,
    "state-control": control,
    "state-kahan": kahan,
    "step-memory": memory,
}
