"""Table 4 of the paper: relaxing crystals, positions and cell, with machine-learned potentials.

The paper relaxes the 257,000 crystals of WBM with MACE. The preset `local` takes a few dozen, disturbed, with the
two models whose weights come with their packages; `paper` takes any structures and any ASE calculator.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from frankenstein.compare.executors.local import local_executor
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.store.records import Record
from frankenstein.experiments.experiment import ExperimentError, Findings, Options
from frankenstein.experiments.relaxations import charts, crystals
from frankenstein.experiments.relaxations.kinds import find_kind
from frankenstein.experiments.relaxations.runner import jobs, run
from frankenstein.experiments.relaxations.summary import Summary, summaries

METHODS = ["frankenstein", "lbfgs", "fire"]
MODELS = {"chgnet": "chgnet", "sevennet": "sevenn"}  # and the module of each
FAR_OFF = 0.001  # eV per atom above the best found: another, worse minimum
PUBLISHED = {"Frankenstein": (1034, 95.64), "LBFGS": (1229, 97.64), "FIRE": (1076, 96.3)}


def reproduce(options: Options) -> Findings:
    """Run LBFGS, FIRE and ours from the same crystals: at most 500 force calls, or 0.01 eV/A."""
    kinds, data, n_starts = _local(options) if options.preset == "local" else _own(options)
    todo = jobs(kinds, options.methods or METHODS, dict.fromkeys(kinds, n_starts), data)
    with local_executor(options.workers, 1, 0.0) as executor:
        records = run(todo, options.out, executor, options.progress, options.say)
    return findings(records)


def _local(options: Options) -> tuple[list[str], Path, int]:
    if options.structures or options.calculator:
        raise ExperimentError("--structures and --calculator belong to --preset paper")
    if options.data is None or not (options.data / crystals.WBM).exists():
        raise ExperimentError(f"needs {crystals.WBM} in the folder of --data-dir or FRANKENSTEIN_DATA")
    there = [name for name, module in MODELS.items() if find_spec(module)]
    for name in MODELS.keys() - set(there):
        options.say(f"{name} is left out: pip install '.[{name}]' (in the checkout)")
    if not there:
        raise ExperimentError("needs a model: pip install '.[chgnet]' or '.[sevennet]' (in the checkout)")
    kinds = [f"table4/{name}" for name in there]
    return kinds, options.data, min(options.n_starts or 24, find_kind(kinds[0]).n_starts)


def _own(options: Options) -> tuple[list[str], Path, int]:
    if len(options.structures) > 1:
        raise ExperimentError("--structures takes one file or one folder; put several files into a folder")
    if not options.structures or not options.calculator or not _is_model(options.calculator):
        raise ExperimentError(
            "--preset paper needs --structures PATH (a file or a folder that ASE reads) and --calculator NAME: chgnet, "
            "sevennet, or module:Factory (ase.calculators.emt:EMT, mace.calculators:mace_mp, say)"
        )
    path = Path(options.structures[0])
    if not path.exists():
        raise ExperimentError(f"no file or folder {path}")
    try:
        structures = crystals.read_structures(path)
        crystals.calculator(options.calculator)
    except Exception as error:
        raise ExperimentError(f"{' '.join(str(error).split()) or type(error).__name__}") from None
    flat = next((number for number, atoms in enumerate(structures) if atoms.cell.rank < 3), None)
    if flat is not None:
        raise ExperimentError(
            f"structure {flat} of {path} has no cell, and the cell is relaxed here; see `frankenstein relax`"
        )
    return [f"own/{options.calculator}"], path, min(options.n_starts or len(structures), len(structures))


def _is_model(name: str) -> bool:
    return name in MODELS or ":" in name


def findings(records: list[Record]) -> Findings:
    """Return tables, figures and sentences from the records."""
    tables, figures, sentences = [], [], []
    for kind in dict.fromkeys(record["kind"] for record in records):
        own = [record for record in records if record["kind"] == kind]
        n_atoms = {record["start"]: record["n_atoms"] for record in own if record["n_atoms"]}
        found = summaries(own, METHODS)
        model = kind.partition("/")[2]
        tables.append(_table(found, own, n_atoms, model))
        figures.append(charts.distribution(found, f"table4-{_plain(model)}", f"{model}: crystals relaxed"))
        sentences += _sentences(found, model)
        failures = dict.fromkeys(record["reason"] for record in own if record["reason"].startswith("failed: "))
        sentences += [f"{model}: {failure}" for failure in failures]
    tables.append(_published())
    return Findings("Table 4: crystals", sentences, tables, figures)


def _plain(model: str) -> str:
    return model.replace(":", "-").replace("/", "-")


def errors(found: list[Summary], n_atoms: np.ndarray) -> dict[str, np.ndarray]:
    """Return for each method the energy per atom (eV) above the lowest that any of them found, start by start."""
    energies = np.array([summary.energies for summary in found])
    lowest = np.min(np.where(np.isnan(energies), np.inf, energies), axis=0)
    return {summary.method: (summary.energies - lowest) / n_atoms for summary in found}


def _table(found: list[Summary], records: list[Record], n_atoms: dict[int, int], model: str) -> Table:
    starts = sorted({record["start"] for record in records})[: len(found[0].calls)]
    above = errors(found, np.array([n_atoms.get(start, 1) for start in starts]))
    rows = []
    for summary in found:
        error = above[summary.method]
        n_far = int((error > FAR_OFF).sum())
        known = error[np.isfinite(error)]
        mean = 1000 * float(known.mean()) if len(known) else math.nan
        numbers: list[tuple[str, float]] = [
            (f"{summary.mean_calls:.1f}", summary.mean_calls),
            (f"{summary.calls.max():.0f}", float(summary.calls.max())),
            (f"{summary.n_failed} of {len(summary.calls)}", summary.n_failed),
            ("" if math.isnan(mean) else f"{mean:.2f}", mean),
            (str(n_far), n_far),
            (f"{summary.seconds.sum():.0f}", float(summary.seconds.sum())),
        ]
        rows.append([Cell(summary.title), *(Cell(text, numbers={"": value}) for text, value in numbers)])
    columns = ["method", "mean calls", "max", "failed", "mean error, meV/atom", "above 1 meV/atom", "seconds"]
    kind = records[0]["kind_config"]
    notes = [
        f"{kind['recipe']}; {kind['source']}",
        f"positions and cell, until {kind['fmax']:g} eV/A, at most {kind['maxcalls']} force calls; error: energy above "
        "the lowest that any method found from the same start",
    ]
    return Table(f"table4-{_plain(model)}", f"{model}: {len(starts)} crystals", columns, rows, notes)


def _published() -> Table:
    rows = [
        [Cell(title), Cell(str(count), numbers={"": count}), Cell(f"{error:g}", numbers={"": error})]
        for title, (count, error) in PUBLISHED.items()
    ]
    note = (
        "257,000 crystals, MACE; errors to the reference energies of the benchmark, so not to be set beside those above"
    )
    return Table("table4-published", "Published", ["method", "error above 1 eV/atom", "MAE, meV"], rows, [note])


def _sentences(found: list[Summary], model: str) -> list[str]:
    means = {summary.method: summary for summary in found}
    ours = means.get("frankenstein")
    if ours is None:
        return []
    others = [summary for summary in found if summary is not ours and summary.mean_calls > 0]
    if not others or ours.n_failed == len(ours.calls):
        return []
    parts = [f"{ours.mean_calls / summary.mean_calls:.2f} of {summary.title}'s" for summary in others]
    failures = ", ".join(f"{summary.title} {summary.n_failed}" for summary in found)
    return [
        f"{model}: Frankenstein takes {' and '.join(parts)} force calls; not at the tolerance after the calls allowed: "
        f"{failures} of {len(ours.calls)}."
    ]
