"""The generated blocks about relaxation, from docs/records."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from frankenstein.compare.report.formats import Table, markdown
from frankenstein.compare.store.records import read
from frankenstein.experiments import ablation, relaxation, table2, table4
from frankenstein.experiments.experiment import Findings
from frankenstein.experiments.relaxations.runner import RELAXATIONS

RECORDS = Path(__file__).resolve().parent / "records"
MODULES = {"table2": table2, "relaxation": relaxation, "ablation": ablation, "table4": table4}


def fail(line: str) -> None:
    raise SystemExit(line)


@cache
def findings(name: str) -> Findings:
    found: Findings = MODULES[name].findings(read(RECORDS / name, fail, RELAXATIONS))
    return found


def listed(name: str) -> str:
    return "\n".join(f"- {sentence}" for sentence in findings(name).sentences)


def tabled(name: str, which: int = 0) -> str:
    table = findings(name).tables[which]
    return f"{markdown(table)}\n\n{notes(table)}"


def notes(table: Table) -> str:
    return f"{table.title} ({'; '.join(note.rstrip('.') for note in table.notes)})."


def all_models() -> str:
    return "\n\n".join(f"{markdown(table)}\n\n{notes(table)}" for table in findings("table4").tables[:-1])


@cache
def content(name: str) -> Any:
    return json.loads((RECORDS / f"{name}.json").read_text())


def constants() -> str:
    """Return the table of what each constant does on the starts of the search."""
    rows = content("relaxation_search")["constants"]["rows"]
    names = list(dict.fromkeys(row["constant"] for row in rows))[1:]
    lines = ["| constant | value: calls relative to the published rule |", "|---|---|"]
    for name in names:
        values = ", ".join(f"{row['value']:.3g}: {row['relative']:.2f}" for row in rows if row["constant"] == name)
        lines.append(f"| `{name}` | {values} |")
    return "\n".join(lines)


def tried() -> str:
    """Return the log of what was tried in the search."""
    log = content("relaxation_search")["tried"]
    lines = ["| tried | calls relative to FIRE | remark |", "|---|---:|---|"]
    lines += [f"| {row['what']} | {row['ratio_to_fire']:.3f} | {row['remark']} |" for row in log["rows"]]
    return "\n".join([*lines, "", log["how"]])


def batch() -> str:
    """Say how long a batch takes."""
    measured = content("relaxation_batch")
    parts = [f"{run['seconds']:.0f} s with {name}" for name, run in measured["runs"].items()]
    n_converged = min(run["n_converged"] for run in measured["runs"].values())
    return (
        f"{measured['n_systems']:,} LJ38 clusters in one batch take {' and '.join(parts)} on two cores, "
        f"{n_converged:,} of them converged ({measured['provenance']['device']})."
    )


def plain_rule() -> str:
    """Say how far the paper's update rule comes on atoms."""
    measured = content("relaxation_plain_rule")
    rows = measured["rows"]
    forces = [force for row in rows for force in row["smallest_force"]]
    capped = [force for row in rows if row["maxstep"] for force in row["smallest_force"]]
    rates = sorted({row["lr"] for row in rows})
    n_converged = sum(force <= measured["fmax"] for force in forces)
    return (
        "The update rule of the paper itself does not converge on atoms: with fixed learning rates from "
        f"{rates[0]:g} to {rates[-1]:g}, both presets, with and without a step cap, {n_converged} of {len(forces)} "
        f"runs on LJ38 clusters brought the largest force to {measured['fmax']:g} within "
        f"{measured['n_calls']:,} calls; with the cap, none came below {min(capped):.2g}. Its steps, scaled coordinate "
        "by coordinate, rattle or creep, and depend on how the structure is turned."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "table2-sentences": lambda: listed("table2"),
    "table2-table": lambda: tabled("table2"),
    "table2-published": lambda: tabled("table2", 1),
    "relaxation-sentences": lambda: listed("relaxation"),
    "relaxation-table": lambda: tabled("relaxation"),
    "ablation-table": lambda: tabled("ablation"),
    "table4-sentences": lambda: listed("table4"),
    "table4-tables": all_models,
    "relaxation-constants": constants,
    "relaxation-tried": tried,
    "relaxation-batch": batch,
    "relaxation-plain-rule": plain_rule,
}
