"""Kinds of system that the relaxation rule was not tuned on, ours beside ASE's minimisers."""

from __future__ import annotations

from importlib.util import find_spec

from frankenstein.compare.executors.local import local_executor
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.store.records import Record
from frankenstein.experiments.experiment import ExperimentError, Findings, Options
from frankenstein.experiments.relaxations import charts
from frankenstein.experiments.relaxations.kinds import KINDS, Kind
from frankenstein.experiments.relaxations.runner import jobs, run
from frankenstein.experiments.relaxations.summary import Summary, geometric_mean, summaries, table

METHODS = ["frankenstein", "lbfgs", "lbfgsls", "cg", "bfgsls", "fire", "fire2"]
RIVALS = ("lbfgs", "lbfgsls", "cg")
HELD_OUT = [name for name in KINDS if name != "lj38"]
CLUSTERS = {"lj75": -350.0, "morse30": -100.0, "morse4": -5.0}  # energies above which a cluster has lost atoms


def reproduce(options: Options) -> Findings:
    """Run every kind of which the packages and the data are there; say which are left out."""
    names = [name for name in HELD_OUT if _is_there(KINDS[name], options)]
    if not names:
        raise ExperimentError("nothing can be run: no kind of system has what it needs")
    n_starts = {name: min(options.n_starts or KINDS[name].n_starts, KINDS[name].n_starts) for name in names}
    todo = jobs(names, options.methods or METHODS, n_starts, options.data)
    with local_executor(options.workers, 1, 0.0) as executor:
        records = run(todo, options.out, executor, options.progress, options.say)
    return findings(records)


def _is_there(kind: Kind, options: Options) -> bool:
    missing = [name for name in kind.packages if find_spec(name) is None]
    if missing:
        options.say(f"{kind.name} is left out: it needs {', '.join(missing)}")
    elif kind.data and (options.data is None or not (options.data / kind.data).exists()):
        options.say(f"{kind.name} is left out: it needs {kind.data} in the folder of --data-dir or FRANKENSTEIN_DATA")
        return False
    return not missing


def is_lost(record: Record) -> bool:
    """Say whether a cluster was blown apart, or there is no energy at all."""
    limit = CLUSTERS.get(record["kind"])
    return record["energy"] is None or (limit is not None and record["energy"] > limit)


def findings(records: list[Record]) -> Findings:
    """Return tables, a figure and sentences from the records."""
    by_kind = {
        name: summaries([record for record in records if record["kind"] == name], METHODS, is_lost)
        for name in HELD_OUT
        if any(record["kind"] == name for record in records)
    }
    tables = [overview(by_kind)]
    for name, found in by_kind.items():
        kind = KINDS[name]
        notes = [f"{kind.recipe}; until {kind.fmax:g}, at most {kind.maxcalls:,} calls"]
        tables.append(table(found, name, f"{kind.title}, {len(found[0].calls)} starts: force calls", notes))
    figures = [charts.distribution(found, f"{name}-calls", KINDS[name].title) for name, found in by_kind.items()]
    return Findings("Relaxation on kinds not tuned on", sentences(by_kind), tables, figures)


def overview(by_kind: dict[str, list[Summary]]) -> Table:
    """Return mean calls of every method on every kind, and the ratios to ours."""
    rows = []
    for name, found in by_kind.items():
        means = {summary.method: summary for summary in found}
        sound = [summary.mean_calls for summary in found if summary.n_failed == 0]
        cells = [Cell(KINDS[name].title)]
        for method in METHODS:
            summary = means.get(method)
            if summary is None:
                cells.append(Cell(""))
                continue
            digits = 0 if summary.mean_calls >= 100 else 1
            text = f"{summary.mean_calls:.{digits}f}" + (f" ({summary.n_failed} failed)" if summary.n_failed else "")
            is_best = summary.n_failed == 0 and summary.mean_calls == min(sound)
            cells.append(Cell(text, is_best, {"": summary.mean_calls, "failed": summary.n_failed}))
        rows.append(cells)
    titles = {summary.method: summary.title for found in by_kind.values() for summary in found}
    note = "in parentheses, runs that did not end in a minimum of what they started from"
    return Table("relaxation", "Mean force calls", ["system", *(titles.get(m, m) for m in METHODS)], rows, [note])


def ratios(by_kind: dict[str, list[Summary]]) -> dict[str, tuple[float, float]]:
    """Return, for each kind, our mean calls over FIRE's, and over those of the best of `RIVALS`."""
    result = {}
    for name, found in by_kind.items():
        means = {summary.method: summary.mean_calls for summary in found}
        rivals = [means[method] for method in RIVALS if method in means]
        if "frankenstein" in means and "fire" in means and rivals:
            ours = means["frankenstein"]
            result[name] = ours / means["fire"], ours / min(rivals)
    return result


def sentences(by_kind: dict[str, list[Summary]]) -> list[str]:
    """Say what the tables show."""
    found = ratios(by_kind)
    if not found:
        return []
    to_fire, to_best = ([pair[i] for pair in found.values()] for i in (0, 1))
    worst = max(found, key=lambda name: found[name][1])
    ours = [summary for summaries in by_kind.values() for summary in summaries if summary.method == "frankenstein"]
    n_runs, n_failed = sum(len(summary.calls) for summary in ours), sum(summary.n_failed for summary in ours)
    return [
        f"Over {len(found)} kinds (geometric mean), Frankenstein takes {geometric_mean(to_fire):.2f} of FIRE's force "
        f"calls and {geometric_mean(to_best):.2f} of those of the best of LBFGS, LBFGSLineSearch and CG on each kind.",
        f"Where it gains least on that best ({KINDS[worst].title}), it takes {found[worst][1]:.2f} of its calls.",
        f"It failed in {n_failed} of {n_runs:,} runs.",
    ]
