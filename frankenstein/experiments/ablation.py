"""The relaxation rule with parts of it switched off, on kinds of system that it was not tuned on."""

from __future__ import annotations

from frankenstein.compare.executors.local import local_executor
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.store.records import Record
from frankenstein.experiments.experiment import Findings, Options
from frankenstein.experiments.relaxation import is_lost
from frankenstein.experiments.relaxations.kinds import KINDS
from frankenstein.experiments.relaxations.methods import VARIANTS
from frankenstein.experiments.relaxations.runner import jobs, run
from frankenstein.experiments.relaxations.summary import Summary, geometric_mean, summaries

METHODS = list(VARIANTS)
HELD_OUT = ["lj75", "morse30", "morse4", "cu-vacancy", "pt-slab", "molecule"]  # those without a model to load


def reproduce(options: Options) -> Findings:
    """Run every variant on every kind."""
    n_starts = {name: min(options.n_starts or KINDS[name].n_starts, KINDS[name].n_starts) for name in HELD_OUT}
    todo = jobs(HELD_OUT, options.methods or METHODS, n_starts, options.data)
    with local_executor(options.workers, 1, 0.0) as executor:
        records = run(todo, options.out, executor, options.progress, options.say)
    return findings(records)


def findings(records: list[Record]) -> Findings:
    """Return the table of mean calls, relative to the whole rule, and a sentence for each part."""
    by_kind = {
        name: summaries([record for record in records if record["kind"] == name], METHODS, is_lost)
        for name in HELD_OUT
        if any(record["kind"] == name for record in records)
    }
    changes = _changes(by_kind)
    rows = []
    for method in changes:
        cells = [Cell(VARIANTS[method].title)]
        for found in by_kind.values():
            means = {summary.method: summary for summary in found}
            here = means[method]
            failed = f" ({here.n_failed} failed)" if here.n_failed else ""
            cells.append(
                Cell(
                    f"{here.mean_calls:.{0 if here.mean_calls >= 100 else 1}f}{failed}",
                    numbers={"": here.mean_calls, "failed": here.n_failed},
                )
            )
        rows.append([*cells, Cell(f"{changes[method]:.2f}", numbers={"": changes[method]})])
    columns = ["the rule with", *(KINDS[name].title for name in by_kind), "calls, relative"]
    note = "mean force calls, and in the last column their geometric mean over the kinds, relative to the whole rule"
    table = Table("ablation", "What each part of the rule contributes", columns, rows, [note])
    lines = [
        f"{VARIANTS[method].title.capitalize()}: {change:.2f} times the calls of the whole rule."
        for method, change in changes.items()
        if method != "frankenstein"
    ]
    return Findings("Ablation of the relaxation rule", lines, [table])


def _changes(by_kind: dict[str, list[Summary]]) -> dict[str, float]:
    """Return the geometric mean over the kinds of each variant's mean calls, relative to the whole rule's."""
    result = {}
    for method in METHODS:
        quotients = []
        for found in by_kind.values():
            means = {summary.method: summary.mean_calls for summary in found}
            if method in means and "frankenstein" in means:
                quotients.append(means[method] / means["frankenstein"])
        if quotients and len(quotients) == len(by_kind):
            result[method] = geometric_mean(quotients)
    return result
