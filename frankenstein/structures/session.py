"""A whole run: structures from files, the folder, the work, the results."""

from __future__ import annotations

import math
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import frankenstein
from frankenstein.relaxation import REASONS
from frankenstein.structures import charts, outputs, page, terminal
from frankenstein.structures.calculators import BATCH_ATOMS, MODELS, CalculatorError, Potential, load
from frankenstein.structures.descents import Terms
from frankenstein.structures.folder import KEEP_JOURNAL, Folder, known_names, opened, replace
from frankenstein.structures.methods import OURS
from frankenstein.structures.reading import Structure, Unread, digest, fault, frame_slice, read, stems, unique
from frankenstein.structures.running import Job, Outcome, Task, nothing_computed, nothing_read, run
from frankenstein.structures.workers import run_in_processes

ALL_REASONS = {
    **{reason: meaning for reason, meaning in REASONS.items() if reason != "stopped"},  # nobody stops one of many
    "failed": "it could not be read or computed: see the message",
}
PACKAGES = ("ase", "numpy", "scipy", "torch", "chgnet", "sevenn")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the user asked for; the options of the command, by their names."""

    files: tuple[Path, ...]
    calculator: str
    out: Path
    fmax: float
    maxstep: float
    maxcalls: int
    cell: bool = False
    index: str = ":"
    timeout: float | None = None
    device: str | None = None
    batch: int | None = None
    workers: int = 1
    compare: tuple[str, ...] = ()
    command: str = ""

    @property
    def methods(self) -> tuple[str, ...]:
        """Ours, and those to compare with."""
        return (OURS, *self.compare)

    @property
    def loading(self) -> tuple[str, str, int]:
        """What makes the calculator."""
        return self.calculator, self.device or "cpu", self.batch or BATCH_ATOMS


class Session:
    """A run on its way.

    Attributes:
        structures: That can be relaxed.
        n_faults: Lines that said what cannot.
    """

    def __init__(self, request: Request, say: Say) -> None:
        self.request, self.say = request, say
        self.potential = _potential(request)
        self.n_faults = 0
        self.refused: dict[str, Outcome] = {}
        self.names = known_names(request.out)
        self.found = read(request.files, frame_slice(request.index), self._complain, self.names)
        read_ones = [one for one in self.found if isinstance(one, Structure)]
        self.structures = [structure for structure in read_ones if not self._is_refused(structure)]
        self.folder: Folder

    @contextmanager
    def in_folder(self) -> Iterator[None]:
        """Open the output folder.

        Raises:
            FolderError: It cannot be used.
        """
        with opened(self.request.out, self.settings, self.context()) as self.folder:
            yield

    def work(self, counter: terminal.Counter) -> None:
        """Relax what has not been relaxed.

        Raises:
            OSError: A file cannot be written.
        """
        request, jobs = self.request, deque(self.jobs())
        end = math.inf if request.timeout is None else time.time() + request.timeout
        terms = Terms(request.fmax, request.maxcalls, request.maxstep, request.cell)
        task = Task(request.out, terms, request.batch or BATCH_ATOMS, end)
        atoms = {structure.name: structure.atoms for structure in self.structures}

        def ended(outcome: Outcome) -> None:
            self.folder.append(outcome)
            if outcome["reason"] not in KEEP_JOURNAL:
                task.journal(Job(outcome["name"], outcome["optimizer"], atoms[outcome["name"]])).remove()
            counter.ended()

        if request.workers > 1 and len(jobs) > 1:
            run_in_processes(task, request.loading, jobs, request.workers, ended, counter.after_round)
        else:
            run(task, self.potential, lambda: jobs.popleft() if jobs else None, ended, counter.after_round)
        for path in (*(request.out / "journals").glob("*"), request.out / "journals"):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def jobs(self) -> list[Job]:
        """Return what is still to do: structure by structure, ours first."""
        return [
            Job(structure.name, method, structure.atoms)
            for structure in self.structures
            for method in self.request.methods
            if not self.folder.is_done(structure.name, method)
        ]

    @property
    def n_jobs(self) -> int:
        """How many descents there are in all."""
        return len(self.structures) * len(self.request.methods)

    def ours(self) -> list[Outcome]:
        """Return our outcomes in the order of the files; those of what was refused or not read are among them."""
        made = []
        for one in self.found:
            if isinstance(one, Unread):
                made.append(nothing_read(one.name, one.message) | _where(one))
            elif outcome := self.refused.get(one.name) or self.folder.outcomes.get((one.name, OURS)):
                made.append(outcome | _where(one))
        return made

    def relaxed(self) -> list[Outcome]:
        """Return the outcomes of what was given to our optimizer."""
        return self._of(OURS)

    def theirs(self) -> list[Outcome]:
        """Return the outcomes of the optimizers that ours is compared with."""
        return [outcome for method in self.request.compare for outcome in self._of(method)]

    def _of(self, method: str) -> list[Outcome]:
        pairs = [(structure, self.folder.outcomes.get((structure.name, method))) for structure in self.structures]
        return [outcome | _where(structure) for structure, outcome in pairs if outcome is not None]

    def write_tables(self) -> None:
        """Write structures and tables.

        Raises:
            OSError: A file cannot be written.
        """
        out = self.request.out
        outputs.write_structures(out / "relaxed.extxyz", self.structures, self.folder.outcomes)
        replace(out / "table.csv", outputs.table(self.ours()))
        if self.request.compare:
            columns = ("optimizer", *outputs.COLUMNS)
            replace(out / "compare.csv", outputs.table([*self.relaxed(), *self.theirs()], columns))

    def write_report(self) -> Path:
        """Write the chart and the page; return where the page is.

        Raises:
            OSError: A file cannot be written.
        """
        request, ours = self.request, self.ours()
        unit = "" if request.calculator == "lj" else "eV"
        looks, drawn = charts.charts([*self.relaxed(), *self.theirs()], request.methods, request.fmax, unit)
        if drawn:
            charts.write_figure(request.out / charts.FIGURE, drawn)
        about = {"settings": self.settings, **self.context(), "reasons": ALL_REASONS}
        path = request.out / page.REPORT
        page.write(path, ours, self.totals(), looks, drawn, terminal.summary(ours), about, unit)
        return path

    def totals(self) -> list[outputs.Total]:
        """Return every optimizer over all structures."""
        return outputs.totals([*self.relaxed(), *self.theirs()], self.request.methods)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return what decides the results."""
        request = self.request
        read_files = {one.file for one in self.found if isinstance(one, Structure)}
        single = unique(request.files)
        names = self.names | dict(zip(map(str, single), stems(single, self.names), strict=True))
        files = [[str(path), digest(path) if path in read_files else ""] for path in dict.fromkeys(request.files)]
        return {
            "calculator": request.calculator,
            "calculator version": self.potential.version,
            "device": request.loading[1] if request.calculator in MODELS else "cpu",
            "fmax": request.fmax,
            "maxstep": request.maxstep,
            "maxcalls": request.maxcalls,
            "cell": request.cell,
            "index": request.index,
            "files": files,
            "names": names,
        }

    def context(self) -> dict[str, Any]:
        """Return what a reader may want to know besides."""
        versions = {"frankenstein": frankenstein.__version__, "python": platform.python_version()}
        return {"command": self.request.command, "versions": versions | {name: _version(name) for name in PACKAGES}}

    def _is_refused(self, structure: Structure) -> bool:
        request, potential = self.request, self.potential
        reason = fault(
            structure.atoms,
            potential.elements,
            request.calculator,
            has_cell=request.cell,
            is_for_clusters=potential.is_for_clusters,
        )
        if reason:
            self._complain(f"{structure.name} ({structure.file}): {reason}")
            self.refused[structure.name] = nothing_computed(Job(structure.name, OURS, structure.atoms), reason)
        return bool(reason)

    def _complain(self, line: str) -> None:
        self.n_faults += not line.startswith("warning:")
        self.say(line)


def _where(one: Structure | Unread) -> Outcome:
    return {"file": str(one.file), "frame": one.frame}


def _potential(request: Request) -> Potential:
    """Return the calculator.

    Raises:
        CalculatorError: There is none, or it cannot do what is asked.
    """
    potential = load(*request.loading)
    if request.cell and potential.is_for_clusters:
        raise CalculatorError(f"--cell is for periodic structures, and {request.calculator} is for clusters")
    if request.cell and not potential.has_stress:
        raise CalculatorError(f"--cell needs the stress, and calculator {request.calculator} does not give it")
    if not potential.is_batched:
        for name, value in (("--device", request.device), ("--batch", request.batch)):
            if value is not None:
                raise CalculatorError(
                    f"{name} is for {', '.join(MODELS)}; {request.calculator} takes one structure at a time"
                )
    return potential


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
