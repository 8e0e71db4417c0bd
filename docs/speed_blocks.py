"""The generated blocks about the time of a step, from docs/records/step_time.json and step_time_cuda.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).resolve().parent / "records"
TITLES = {
    "1 M": "1 M",
    "ResNet-18": "ResNet-18",
    "200 M": "200 M",
    "500 of 1,000": "500 tensors of 1,000",
    "small": "small",
}
NOT_MEASURED = "not measured"


def record(name: str = "step_time") -> Any:
    return json.loads((RECORDS / f"{name}.json").read_text())


def row_of(case: dict[str, Any], way: str, n_threads: int = 2) -> dict[str, Any] | None:
    found = [row for row in case["rows"] if (row["way"], row["n_threads"]) == (way, n_threads)]
    return found[0] if found else None


def ratio(row: dict[str, Any] | None, name: str = "ratio_to_fused") -> str:
    """Return the median with smallest and largest."""
    if row is None:
        return ""
    found = row[name]
    return f"{number(found['median'])} ({number(found['min'])} to {number(found['max'])})"


def number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in (header, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(header) - 1))
    return "\n".join(lines)


def ratios() -> str:
    """Return the table of all ways on all tensors, as ratios to AdamW's fused step."""
    cases = record()["cases"]
    ways = list(dict.fromkeys(row["way"] for name in TITLES for row in cases[name]["rows"]))
    rows = [[way, *(ratio(row_of(cases[name], way)) for name in TITLES)] for way in ways]
    milliseconds = ["AdamW fused, ms"]
    for name in TITLES:
        reference = row_of(cases[name], "AdamW fused")
        assert reference is not None, f"{name} lacks its reference"
        milliseconds.append(number(reference["ms"]["median"]))
    sizes = [f"{cases[name]['n_params']:,} in {cases[name]['n_tensors']}" for name in TITLES]
    return table(["", *TITLES.values()], [["parameters, tensors", *sizes], milliseconds, *rows])


def standing() -> str:
    """Say how the fused step stands to AdamW's, on one and two threads, and what a first step takes."""
    measured = record()
    cases = measured["cases"]

    def at(case: str, way: str = "fused", n_threads: int = 2) -> dict[str, Any]:
        row = row_of(cases[case], way, n_threads)
        assert row is not None, f"{case} lacks {way}"
        return row

    here, training, large = at("ResNet-18"), at("ResNet-18, in a training"), at("ResNet-18, gradients above 1")
    one, cached = at("ResNet-18", n_threads=1), at("1 M, in cache")
    adamw = at("ResNet-18", "AdamW fused")
    first = measured["first_step"]
    gap = first["fused"]["median"] - first["plain"]["median"]
    foreach = [at(name, "AdamW foreach")["ms"]["median"] for name in ("ResNet-18", "ResNet-18, in a training")]
    return "\n".join(
        [
            f"- **ResNet-18**, two threads: {ratio(here)} times AdamW's fused step and "
            f"{ratio(here, 'ratio_to_foreach')} of its `foreach`; between the forward and backward passes of a real "
            f"training {ratio(training)} and {ratio(training, 'ratio_to_foreach')}. The second ratio depends on what "
            f"the C library's allocator keeps: AdamW's `foreach` took {foreach[0]:.0f} ms in the one and "
            f"{foreach[1]:.0f} ms in the other, while the fused steps allocate nothing.",
            f"- **One million parameters that stay in the cache**: {ratio(cached)} times AdamW's fused step.",
            f"- **One thread**: {ratio(one)} times AdamW's fused step. Two threads make ours {ratio(here, 'speedup')} "
            f"times as fast as one, AdamW's {ratio(adamw, 'speedup')} times: then memory is the bound, not arithmetic.",
            f"- **Gradients above 1** throughout, where no block is short cut: {ratio(large)} times.",
            f"- **First step** of a process, with its state: fused {first['fused']['median']:.2f} s, plain "
            f"{first['plain']['median']:.2f} s ({gap:+.2f} s), AdamW fused {first['AdamW fused']['median']:.2f} s. "
            f"Nothing is compiled.",
        ]
    )


def machine() -> str:
    """Say where it was measured."""
    measured = record()
    found, origin = measured["machine"], measured["provenance"]
    rounds = sorted({case["n_rounds"] for case in measured["cases"].values()})
    return (
        f"{origin['device']}, {found['instruction_set']}, {', '.join(found['caches'])}, torch "
        f"{origin['versions']['torch']}; {rounds[0]} to {rounds[-1]} rounds, all ways in turns within one run, and a "
        f"buffer larger than the caches written before each step (but for `small`)."
    )


def cuda() -> str:
    """Return the table for GPUs, or that there is none."""
    targets = {"100 M": 1.35, "1 B": 1.35, "500 of 1,000": 1.5}
    cases = record("step_time_cuda")["cases"] if (RECORDS / "step_time_cuda.json").exists() else {}
    rows = []
    for name, target in targets.items():
        row = row_of(cases[name], "fused", cases[name]["rows"][0]["n_threads"]) if name in cases else None
        rows.append([TITLES.get(name, name), ratio(row) or NOT_MEASURED, f"{target:.2f}"])
    return table(["fused on CUDA, times AdamW fused", "measured", "aim"], rows)


def large_step_cost() -> str:
    """Say what a step on a network of some size takes; for the README."""
    case = record()["cases"]["ResNet-18"]
    ours, plain = row_of(case, "fused"), row_of(case, "AdamW plain")
    assert ours is not None and plain is not None, "ResNet-18 lacks a row"
    return (
        f"on the {case['n_params'] / 1e6:.1f} million parameters of ResNet-18 it takes {ours['ms']['median']:.0f} ms "
        f"({ours['n_threads']} threads), {number(ours['ratio_to_fused']['median'])} times AdamW's fused step and "
        f"{number(ours['ms']['median'] / plain['ms']['median'])} of its plain one"
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "step-ratios": ratios,
    "step-standing": standing,
    "step-machine": machine,
    "step-cuda": cuda,
}
