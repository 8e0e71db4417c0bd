"""What an experiment is to the command that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from frankenstein.compare.report.charts.chart import Chart
from frankenstein.compare.report.formats import Table
from frankenstein.experiments.relaxations.runner import Progress

__all__ = ["ExperimentError", "Findings", "Options", "Passage", "Picture"]


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
        n_starts: So many starts of each kind, or seeds, at most; None: all.
        methods: Only these; None: all.
        structures: Files or folders of structures, for experiments that take the user's own.
        calculator: `module:Factory` of an ASE calculator, likewise.
        is_live: Whether curves go to TensorBoard while runs go on, where an experiment trains networks.
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
    is_live: bool = False
    say: Callable[[str], None] = print
    progress: Progress = lambda done, total, what: None


@dataclass(frozen=True)
class Picture:
    """A figure that is not a chart: a drawing in pixels, or an animation.

    Attributes:
        name: Of its file: lower case, with hyphens; the suffix (.png or .gif) is its format.
        caption: What it shows and how to read it.
        draw: Returns the file's bytes.
    """

    name: str
    caption: str
    draw: Callable[[], bytes]


@dataclass(frozen=True)
class Passage:
    """Texts to be read beside each other: what networks answered to one instruction.

    Attributes:
        title: What they are about.
        texts: Each with its name.
    """

    title: str
    texts: list[tuple[str, str]]


@dataclass(frozen=True)
class Findings:
    """What an experiment found.

    Attributes:
        title: Of the report.
        sentences: What it found, in plain words.
        tables: With what was published beside ours.
        charts: Figures.
        pictures: Further figures, after the charts.
        passages: Texts, at the end of the page; the terminal does not show them.
        live: Names of charts that answer the mouse on the page: with a slider, or values where it points.
    """

    title: str
    sentences: list[str]
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    live: frozenset[str] = frozenset()
