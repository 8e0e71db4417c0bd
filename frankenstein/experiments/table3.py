"""Table 3 of the paper: polycrystals of CoNiCrFeMn, ours against LAMMPS's minimisers, and the dislocations they leave.

The paper has boxes of 40 nm, 5.5 million atoms. The preset `local` has 4.5 nm, several grains and seeds; `paper` says
how to run the published box, and shows what such runs have left in the folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from frankenstein.compare.executors.local import local_executor
from frankenstein.compare.report.charts.chart import COLOURS, Chart
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.store.records import Record, read
from frankenstein.experiments.alloys import runs
from frankenstein.experiments.alloys.runs import METHODS, Job
from frankenstein.experiments.experiment import ExperimentError, Findings, Options
from frankenstein.experiments.relaxations.runner import run

LENGTH = 45.0  # Angstrom
GRAINS = (2, 4, 8)
N_SEEDS = 2
FMAX = 0.02  # eV / Angstrom
MAXCALLS = 1500
AT_CALLS = 300
PAPER = {"length": 400.0, "n_grains": 10, "n_atoms": 5_500_000}
RANKS = 64  # of the line that is printed
PUBLISHED = {
    "Frankenstein": (0, 8406, 7775),
    "FIRE": (1172, 8627, 8369),
    "CG": (1216, 9469, 9328),
    "HFTN": (1358, 8853, 8426),
}
"""Energy above ours (eV), dislocation segments, their length (nm)."""


def reproduce(options: Options) -> Findings:
    """Minimise every polycrystal with every method."""
    return findings(records(options, GRAINS, range(N_SEEDS)))


def records(options: Options, grains: Iterable[int], seeds: Sequence[int]) -> list[Record]:
    """Run what the folder lacks of these polycrystals, and return all records."""
    potential = (options.data or Path()) / runs.POTENTIAL
    if options.data is None or not all((potential / name).exists() for name in runs.FILES):
        wanted = " and ".join(str(runs.POTENTIAL / name) for name in runs.FILES)
        raise ExperimentError(f"needs {wanted} in the folder of --data-dir or FRANKENSTEIN_DATA")
    unknown = [name for name in options.methods or () if name not in METHODS]
    if unknown:
        raise ExperimentError(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}")
    if options.preset == "paper":
        return _published_box(options, potential)
    todo = [
        Job(LENGTH, n_grains, seed, method, str(potential), FMAX, MAXCALLS, AT_CALLS, str(options.out))
        for n_grains in grains
        for seed in seeds[: options.n_starts]
        for method in options.methods or METHODS
    ]
    with local_executor(options.workers, 1, 0.0) as executor:
        return run(todo, options.out, executor, options.progress, options.say, runs.ALLOYS)


def _published_box(options: Options, potential: Path) -> list[Record]:
    """Say how to run the published box; return what has been run."""
    size = f"{PAPER['length'] / 10:g} nm, {PAPER['n_atoms'] / 1e6:g} million atoms"
    options.say(
        f"{size}: about {runs.memory(int(PAPER['n_atoms']), RANKS):.0f} GiB of memory on {RANKS} ranks; on a cluster:"
    )
    for method in options.methods or METHODS:
        options.say(
            f"mpiexec -n {RANKS} python -m frankenstein.experiments.alloys.runs --length {PAPER['length']:g} "
            f"--grains {PAPER['n_grains']} --method {method} --fmax {FMAX} --maxcalls 5000 "
            f"--at-calls {AT_CALLS} --potential {quote(str(potential))} --out {quote(str(options.out))}"
        )
    found = read(options.out, options.say, runs.ALLOYS) if (options.out / "records.jsonl").exists() else []
    found = list({r["cell"]: r for r in found if r["preset"] == "paper"}.values())  # the last of each
    if not found:
        raise ExperimentError(f"no runs of it in {options.out} yet; the lines above do them, this command then reports")
    return found


# What is shown --------------------------------------------------------------------------------------------------------


def findings(found: list[Record]) -> Findings:
    """Return tables, figures and sentences from the records."""
    complete = _complete(found)
    if not complete:
        raise ExperimentError("no polycrystal has been run with every method")
    by_box = {
        box: [r for r in complete if _start(r)[:2] == box] for box in dict.fromkeys(_start(r)[:2] for r in complete)
    }
    tables = [_table(complete, "table3", "All polycrystals")]
    for (length, n_grains), own in by_box.items():
        if len(by_box) > 1:
            tables.append(_table(own, f"table3-{n_grains}", f"{n_grains} grains in {length / 10:g} nm"))
    tables.append(_published())
    failures = dict.fromkeys(r["reason"] for r in found if r["reason"].startswith("failed: "))
    charts = [_descent(own, f"{n_grains} grains") for (_, n_grains), own in by_box.items()]
    return Findings("Table 3: polycrystals of CoNiCrFeMn", [*_sentences(complete), *failures], tables, charts)


def _complete(found: list[Record]) -> list[Record]:
    """Return the records of the polycrystals that every method has been run on."""
    sound = [r for r in found if r["n_atoms"]]
    methods = {r["method"] for r in sound}
    starts: dict[tuple[float, int, int], set[str]] = {}
    for r in sound:
        starts.setdefault(_start(r), set()).add(r["method"])
    return [r for r in sound if starts[_start(r)] == methods]


def _start(record: Record) -> tuple[float, int, int]:
    return record["box"]["length"], record["box"]["n_grains"], record["start"]


def _moment(record: Record, name: str) -> dict[str, Any]:
    """Return what is known of a run at its end, or after `AT_CALLS` calls, where it may have ended before."""
    there: dict[str, Any] = record["structures"].get(name, record["structures"]["end"])
    return there


def above(found: list[Record], moment: str) -> dict[str, np.ndarray]:
    """Return for each method the energy (eV) above the lowest that any method found, for each polycrystal.

    Args:
        found: Complete records.
        moment: "end", or "calls": at the last iterate within as many calls.
    """
    ends = {(r["method"], _start(r)): _moment(r, moment)["energy"] for r in found}
    starts = sorted({start for _, start in ends})
    lowest = {start: min(energy for (_, one), energy in ends.items() if one == start) for start in starts}
    methods = [name for name in METHODS if any(r["method"] == name for r in found)]
    return {name: np.array([ends[name, start] - lowest[start] for start in starts]) for name in methods}


def _mean(found: list[Record], method: str, get: Callable[[Record], Any]) -> float:
    values = [get(r) for r in found if r["method"] == method]
    return float(np.mean(values)) if values and None not in values else math.nan


def _table(found: list[Record], name: str, title: str) -> Table:
    rows = []
    ends, early = above(found, "end"), above(found, "calls")
    for method in ends:
        own = [r for r in found if r["method"] == method]
        n_done = sum(r["converged"] for r in own)
        calls, seconds = _mean(found, method, itemgetter("calls")), _mean(found, method, itemgetter("seconds"))
        rows.append(
            [
                Cell(METHODS[method]),
                _energy(ends, method),
                Cell(f"{n_done} of {len(own)}", numbers={"": n_done}),
                Cell(f"{calls:.0f}", numbers={"": calls}),
                Cell(f"{seconds:.0f}", numbers={"": seconds}),
                *_structure(found, method, "end"),
                _energy(early, method),
                *_structure(found, method, "calls")[:2],
            ]
        )
    columns = ["method", "energy above the lowest, eV", "converged", "force calls", "seconds"]
    columns += ["segments", "length, nm", "fcc", "hcp"]
    columns += [f"after {AT_CALLS} calls: energy above the lowest, eV", "segments", "length, nm"]
    n_starts, atoms = len({_start(r) for r in found}), [r["n_atoms"] for r in found]
    notes = [
        f"means over {n_starts} polycrystals of {min(atoms):,} to {max(atoms):,} atoms, 2NN-MEAM; until no atom feels "
        f"more than {found[0]['fmax_wanted']:g} eV/A, at most {found[0]['maxcalls']:,} force calls",
        "the lowest: of the methods, from the same polycrystal",
        "; ".join(f"{METHODS[name]}: {runs.SETTINGS[name]}" for name in ends),
        f"seconds: on {', '.join(map(str, sorted({r['n_ranks'] for r in found})))} core, as it went",
    ]
    return Table(name, title, columns, rows, notes)


def _energy(energies: dict[str, np.ndarray], method: str) -> Cell:
    means = {name: float(values.mean()) for name, values in energies.items()}
    is_best = means[method] == min(means.values())
    return Cell(f"{means[method]:.2f}", is_best, {"": means[method], "largest": float(energies[method].max())})


def _structure(found: list[Record], method: str, moment: str) -> list[Cell]:
    def of(name: str) -> Callable[[Record], float]:
        def get(record: Record) -> float:
            there = _moment(record, moment)
            value: float = there["fractions"][name] if name in ("fcc", "hcp") else there[name]
            return value / 10.0 if name == "length" else value

        return get

    cells = []
    for name, form in (("n_segments", "{:.1f}"), ("length", "{:.1f}"), ("fcc", "{:.1%}"), ("hcp", "{:.1%}")):
        value = _mean(found, method, of(name))
        cells.append(Cell(form.format(value), numbers={"": value}))
    return cells


def _published() -> Table:
    rows = [
        [Cell(title), *(Cell(f"{number:,}", numbers={"": number}) for number in numbers)]
        for title, numbers in PUBLISHED.items()
    ]
    columns = ["method", "energy above ours, eV", "segments", "length, nm"]
    return Table("table3-published", "Published", columns, rows, ["5.5 million atoms in a box of 40 nm"])


def _sentences(found: list[Record]) -> list[str]:
    ends, early = above(found, "end"), above(found, "calls")
    if "frankenstein" not in ends or len(ends) < 2:
        return []
    n = len(ends["frankenstein"])
    lines = []
    for name in list(ends)[1:]:
        wins, apart = int((ends["frankenstein"] < ends[name]).sum()), ends[name] - ends["frankenstein"]
        calls, seconds = (
            _mean(found, "frankenstein", itemgetter(what)) / _mean(found, name, itemgetter(what))
            for what in ("calls", "seconds")
        )
        lines.append(
            f"At the end, Frankenstein's energy is below {METHODS[name]}'s in {wins} of {n} polycrystals, by "
            f"{apart.mean():+.2f} eV on average ({apart.min():+.2f} to {apart.max():+.2f}; above 0: ours is lower), "
            f"{1e3 * apart.mean() / float(np.mean([r['n_atoms'] for r in found])):+.2f} meV an atom (published: "
            f"{1e3 * PUBLISHED[METHODS[name]][0] / PAPER['n_atoms']:+.2f}), for {calls:.2f} of its force calls and "
            f"{seconds:.2f} of its time."
        )
    best = min(early, key=lambda name: early[name].mean())
    lines.append(f"After {AT_CALLS} force calls each, {METHODS[best]} has the lowest energy on average.")
    stopped = [f"{METHODS[r['method']]} ({r['reason']})" for r in found if not r["converged"]]
    if stopped:
        lines.append(
            f"Not at the tolerance: {', '.join(f'{name}, {stopped.count(name)}x' for name in dict.fromkeys(stopped))}."
        )
    return lines


def _descent(found: list[Record], title: str) -> Chart:
    """Return the energy above the lowest end, per force call, of the first polycrystal of a box."""
    first = min(r["start"] for r in found)
    own = [r for r in found if r["start"] == first]
    lowest = min(r["energy"] for r in own)
    points = []
    for r in sorted(own, key=lambda r: list(METHODS).index(r["method"])):
        best = math.inf
        for calls, energy, _ in r["curve"]:
            best = min(best, energy)
            points.append({"method": METHODS[r["method"]], "calls": calls, "above": round(max(best - lowest, 1e-3), 4)})
    titles = [METHODS[r["method"]] for r in sorted(own, key=lambda r: list(METHODS).index(r["method"]))]
    colour = {"field": "method", "type": "nominal", "title": None,
              "scale": {"domain": titles, "range": list(COLOURS[: len(titles)])}}  # fmt: skip
    spec = {
        "width": 560,
        "height": 320,
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": {
            "x": {"field": "calls", "type": "quantitative", "title": "force calls", "scale": {"type": "log"}},
            "y": {"field": "above", "type": "quantitative", "title": "energy above the lowest end, eV",
                  "scale": {"type": "log"}},
            "color": colour,
        },
    }  # fmt: skip
    caption = "The lowest energy so far, above the lowest that any of the methods ended at."
    name = "table3-descent-" + title.replace(" ", "-")
    return Chart(name, f"The way down, {title}", caption, spec, points)
