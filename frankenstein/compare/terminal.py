"""A comparison in the terminal: live progress, and a table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from frankenstein.compare import tables
from frankenstein.compare.records import Record
from frankenstein.compare.summary import ProblemSummary


class Counter:
    """Cells done and cells in all, kept up to date by a progress bar."""

    n_done = 0
    n_all: int | None = None  # None: nothing has started

    def __str__(self) -> str:
        return f"{self.n_done} of {self.n_all or 0} runs"

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task = bar.add_task("comparing", total=None)

    def __call__(self, record: Record | None, n_done: int, n_all: int) -> None:
        """Take note of the record just finished (None: the start)."""
        self.n_done, self.n_all = n_done, n_all
        if record is None:
            self.bar.start()
        stage = f"{record['problem']}, {record['optimizer']}" if record else "comparing"
        self.bar.update(self.task, completed=n_done, total=n_all, description=f"{stage:28.28}")


@contextmanager
def progress() -> Iterator[Counter]:
    """Show a bar on standard error from the first call of what is yielded; the terminal is put right at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn())
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    try:
        yield Counter(bar)
    finally:
        if bar.live.is_started:
            bar.stop()


def table(summary: ProblemSummary) -> Table:
    """Return the problem's table; it fits 80 columns."""
    shown = Table(title=tables.heading(summary), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("optimizer")  # the one column that may wrap
    for name in ("tuned", "lr", "default", "to target", "ms/step"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in summary.rows:
        scores = tables.interval(row.tuned), tables.rate(row), tables.mean(row.default)
        style = "bold" if row.optimizer in summary.best else ""
        shown.add_row(row.title, *scores, tables.steps(row.tuned), tables.milliseconds(row.tuned), style=style)
    shown.caption = "; ".join(tables.footnotes(summary))
    shown.caption_justify = "left"
    return shown


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1, as if something had failed


def show(summaries: list[ProblemSummary]) -> None:
    """Print every problem's table and what its columns mean."""
    console = _Console(highlight=False)
    for summary in summaries:
        console.print(table(summary))
        console.print()
    console.print(tables.NOTES)
