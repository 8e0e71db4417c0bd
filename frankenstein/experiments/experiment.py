"""What an experiment is to the command that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from frankenstein.compare.report.charts.chart import Chart
from frankenstein.compare.report.formats import Table
from frankenstein.experiments.relaxations.runner import Progress

__all__ = ["ExperimentError", "Findings", "Options"]


class ExperimentError(Exception):
    """An experiment cannot be run as asked; the message is one line for the user."""


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        preset: `local` or `paper`.
        out: Run folder.
        data: Data folder, or None.
        workers: Processes; None: one per processor.
        n_starts: So many starts of each kind, at most; None: all.
        methods: Only these; None: all.
        structures: Files or folders of structures, for experiments that take the user's own.
        calculator: `module:Factory` of an ASE calculator, likewise.
        say: Called with a line for the user.
        progress: Called with how much is done.
    """

    preset: str
    out: Path
    data: Path | None
    workers: int | None = None
    n_starts: int | None = None
    methods: tuple[str, ...] | None = None
    structures: tuple[str, ...] = ()
    calculator: str | None = None
    say: Callable[[str], None] = print
    progress: Progress = lambda done, total, what: None


@dataclass(frozen=True)
class Findings:
    """What an experiment found.

    Attributes:
        title: Of the report.
        sentences: What it found, in plain words.
        tables: With what was published beside ours.
        charts: Figures.
    """

    title: str
    sentences: list[str]
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
