"""Table 2 of the paper: force calls to minimise 1,000 random LJ38 clusters."""

from __future__ import annotations

import numpy as np

from frankenstein.compare.executors.local import local_executor
from frankenstein.compare.report.charts.chart import Chart
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.store.records import Record
from frankenstein.experiments.experiment import Findings, Options
from frankenstein.experiments.relaxations import charts
from frankenstein.experiments.relaxations.kinds import KINDS, LJ38
from frankenstein.experiments.relaxations.runner import jobs, run
from frankenstein.experiments.relaxations.summary import Summary, summaries, table

KIND = "lj38"
METHODS = ["frankenstein", "cg", "lbfgsls", "lbfgs", "bfgs", "bfgsls", "fire", "fire2", "sd"]
GLOBAL_MINIMUM = -173.928427  # the truncated octahedron (Wales and Doye 1997)
SAME_MINIMUM = 1e-3  # energies closer than this are one minimum: forces below 0.01 leave some 1e-5
BLOWN_APART = -140.0  # a compact cluster of 38 atoms lies below -150; what ends above has lost atoms
# arXiv:2503.02147, Table 2: mean, min, max
PUBLISHED = {
    "steepest descent": (4901, 1355, 9982),
    "BFGS": (463, 243, 8210),
    "CG": (453, 207, 1153),
    "FIRE": (656, 208, 1000),
    "Frankenstein": (383, 183, 3469),
}


def reproduce(options: Options) -> Findings:
    """Run the protocol of OptBench: until the largest force is 0.01, at most 10,000 force calls."""
    n_starts = min(options.n_starts or KINDS[KIND].n_starts, KINDS[KIND].n_starts)
    if options.data is None or not (options.data / LJ38).exists():
        options.say(f"clusters are made here by the same rule; the published table has those of {LJ38} (--data-dir)")
    todo = jobs([KIND], options.methods or METHODS, {KIND: n_starts}, options.data)
    with local_executor(options.workers, 1, 0.0) as executor:
        records = run(todo, options.out, executor, options.progress, options.say)
    return findings(records)


def is_lost(record: Record) -> bool:
    """Say whether a run ended as a cluster that is blown apart."""
    return record["energy"] is None or record["energy"] > BLOWN_APART


def findings(records: list[Record]) -> Findings:
    """Return tables, figures and sentences from the records."""
    found = summaries([record for record in records if record["kind"] == KIND], METHODS, is_lost)
    source = records[0]["kind_config"]["source"] if records else ""
    notes = [
        f"starts: {source}",
        f"failed: not at the tolerance after {KINDS[KIND].maxcalls:,} calls, or blown apart (energy above "
        f"{BLOWN_APART:g}); such runs count with the calls that they used, and not in the mean energy",
    ]
    main = table(found, "table2", f"LJ38, {len(found[0].calls) if found else 0} clusters: force calls", notes)
    main.columns.append("times in the global minimum")
    for row, summary in zip(main.rows, found, strict=True):
        n_global = int((summary.energies < GLOBAL_MINIMUM + SAME_MINIMUM).sum())
        row.append(Cell(str(n_global), numbers={"": n_global}))
    return Findings("Table 2: LJ38", sentences(found), [main, published(found)], [chart(found)])


def published(found: list[Summary]) -> Table:
    """Return the paper's row beside ours."""
    ours = {summary.title: summary for summary in found}
    rows = []
    for title, (mean, low, high) in PUBLISHED.items():
        here = ours.get(title)
        rows.append(
            [
                Cell(title),
                Cell(f"{mean} ({low} to {high})", numbers={"": mean}),
                Cell(
                    "" if here is None else f"{here.mean_calls:.0f} ({here.calls.min():.0f} to {here.calls.max():.0f})"
                ),
            ]
        )
    note = "the paper does not give its settings; its FIRE stops at 1,000 calls, its Frankenstein is not this rule"
    return Table("table2-published", "Table 2, published and here", ["method", "published", "here"], rows, [note])


def sentences(found: list[Summary]) -> list[str]:
    """Say what the table shows."""
    lines = []
    ours = next((summary for summary in found if summary.method == "frankenstein"), None)
    others = [summary for summary in found if summary is not ours]
    sound = [summary for summary in others if summary.n_failed == 0]
    if ours is not None:
        lines.append(
            f"Frankenstein takes {ours.mean_calls:.0f} force calls on average (95 % of the runs at most "
            f"{np.percentile(ours.calls, 95):.0f}, all at most {ours.calls.max():.0f}); "
            f"{int(ours.converged.sum()):,} of {len(ours.calls):,} converged."
        )
        if sound:
            next_best = min(sound, key=lambda summary: summary.mean_calls)
            lines.append(
                f"The next that never failed is {next_best.title}: {next_best.mean_calls:.0f} on average, "
                f"95 % at most {np.percentile(next_best.calls, 95):.0f}."
            )
    failed = [f"{summary.title} {summary.n_failed}" for summary in others if summary.n_failed]
    if failed:
        lines.append(f"Runs that did not end in a cluster's minimum: {', '.join(failed)}.")
    return lines


def chart(found: list[Summary]) -> Chart:
    """Return the distribution of the calls."""
    return charts.distribution(
        [summary for summary in found if summary.method != "sd"],
        "table2-calls",
        "Share of the clusters that are minimised, against force calls",
    )
