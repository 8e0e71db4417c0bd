"""The generated blocks about the experiments with networks, from docs/records."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from relaxation_blocks import notes

from frankenstein.compare.report.formats import markdown
from frankenstein.compare.store.records import Format, Record, read
from frankenstein.experiments import fig1, fig2, fig3, fig4, fig5, fig6, fig7, fig8, fig9, fig10, table1, table3, table6
from frankenstein.experiments.alloys.runs import ALLOYS
from frankenstein.experiments.experiment import Findings
from frankenstein.experiments.fig1_descent import DESCENTS
from frankenstein.experiments.fig10_runs import RUNS
from frankenstein.experiments.networks import summaries

RECORDS = Path(__file__).resolve().parent / "records"
NETWORKS: dict[str, Any] = {
    "table1": table1,
    "fig2": fig2,
    "fig3": fig3,
    "fig4": fig4,
    "fig5": fig5,
    "fig7": fig7,
    "fig8": fig8,
    "fig9": fig9,
    "table6": table6,
}
OTHERS: dict[str, tuple[Any, Format]] = {
    "fig1": (fig1, DESCENTS),
    "fig10": (fig10, RUNS),
    "table3": (table3, ALLOYS),
    "fig6": (fig6, ALLOYS),
}
NAMES = (*NETWORKS, *OTHERS)


def fail(line: str) -> None:
    raise SystemExit(line)


@cache
def records(name: str) -> list[Record]:
    return read(RECORDS / name, fail, *([OTHERS[name][1]] if name in OTHERS else []))


@cache
def findings(name: str) -> Findings:
    if name in OTHERS:
        folder = [RECORDS / name] if name == "fig6" else []  # where its atoms are, to be drawn
        found: Findings = OTHERS[name][0].findings(records(name), *folder)
    else:
        problems = [problem.name for problem in NETWORKS[name].PROBLEMS]
        more = fig8.read_landscapes(RECORDS / name) if name == "fig8" else ()
        found = NETWORKS[name].findings(summaries(records(name), problems), *more)
    return found


def listed(name: str) -> str:
    return "\n".join(f"- {sentence}" for sentence in findings(name).sentences)


def tabled(name: str) -> str:
    return "\n\n".join(f"{markdown(table)}\n\n{notes(table)}" for table in findings(name).tables)


def setup(name: str) -> str:
    """Say what was run, on what."""
    found = records(name)
    parts = {part["name"]: part for record in found for part in record.get("data", [])}
    data = ", ".join(f"{title} ({part['sha256'][:8]})" for title, part in parts.items())
    seconds = sum(record.get("wall_seconds", record.get("seconds", 0.0)) for record in found)
    origin = found[0]["provenance"]
    text = f"{len(found)} runs, {seconds / 60:.0f} minutes of one core in all; "
    text += f"data (and the beginning of their hash): {data}; " if data else ""
    return f"{text}torch {origin['versions']['torch']}, {origin['device']}."


BLOCKS: dict[str, Callable[[], str]] = {
    f"{name}-{kind}": (lambda make=make, name=name: make(name))
    for name in NAMES
    for kind, make in (("sentences", listed), ("tables", tabled), ("setup", setup))
}
