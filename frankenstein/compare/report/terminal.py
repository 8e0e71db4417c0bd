"""A comparison in the terminal: live progress, and at the end tables and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from frankenstein.compare.report import words
from frankenstein.compare.results.overall import Overall, overall
from frankenstein.compare.results.summary import ProblemSummary, Row
from frankenstein.compare.results.verdict import verdict
from frankenstein.compare.store.records import Record

if TYPE_CHECKING:
    from frankenstein.compare.engine import State


class Counter:
    """Cells done and cells in all, kept up to date by a progress bar."""

    n_run = 0  # of this time; those done before are in `n_done` only
    n_done = 0
    n_cells = 0

    def __str__(self) -> str:
        return f"{self.n_done} of {self.n_cells} runs"

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task = bar.add_task("comparing", total=None, seconds_left=None, estimated_at=0.0)

    def __call__(self, record: Record | None, state: State) -> None:
        """Take note of the record just finished (None: the start), and of how far the comparison is."""
        self.n_done, self.n_cells = state.n_done, state.n_cells
        if record is None:
            self.bar.start()
            stage = "comparing"
        else:
            self.n_run += 1
            stage = f"{record['problem']}, {record['optimizer']}"
        self.bar.update(
            self.task,
            completed=state.n_done,
            total=state.n_cells,
            description=f"{stage:28.28}",
            seconds_left=state.seconds_left,
            estimated_at=self.bar.get_time(),
        )


class _TimeLeft(ProgressColumn):
    """The time left as the engine estimates it from the runs so far, counted down until its next estimate.

    Runs differ a hundredfold in length, so the rate of the bar, which is what rich would go by, says little.
    """

    def render(self, task: Task) -> Text:
        seconds = task.fields["seconds_left"]
        if task.finished or seconds is None:
            return Text("")
        return Text(f"{duration(seconds - (task.get_time() - task.fields['estimated_at']))} left")


def duration(seconds: float) -> str:
    """Return a time roughly, as an estimate deserves.

    Examples:
        >>> duration(-3.0), duration(42.0), duration(400.0), duration(9000.0)
        ('< 10 s', '~40 s', '~7 min', '~2.5 h')
    """
    if seconds < 10:
        return "< 10 s"
    if seconds < 95:
        return f"~{round(seconds, -1):.0f} s"
    return f"~{seconds / 60:.0f} min" if seconds < 95 * 60 else f"~{seconds / 3600:.1f} h"


@contextmanager
def progress() -> Iterator[Counter]:
    """Show a bar on standard error from the first call of what is yielded; the terminal is put right at the end."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(None), MofNCompleteColumn())
    bar = Progress(*columns, TimeElapsedColumn(), _TimeLeft(), console=Console(stderr=True))
    try:
        yield Counter(bar)
    finally:
        if bar.live.is_started:
            bar.stop()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1, as if something had failed


def show(summaries: list[ProblemSummary]) -> None:
    """Print every problem's table, what its columns mean, the standings over all problems and the verdict."""
    console = _Console(highlight=False, markup=False, emoji=False)  # names in square brackets are names
    for summary in summaries:
        console.print(table(summary))
        console.print()
    console.print(words.NOTES)
    console.print()
    found = overall(summaries)
    if found:
        console.print(standings(found))
        console.print()
    sentences = Table.grid(padding=(0, 1, 0, 0))
    for sentence in verdict(found, summaries):
        sentences.add_row("-", sentence)
    console.print(sentences)


def table(summary: ProblemSummary) -> Table:
    """Return the problem's table; it fits 80 columns."""
    shown = _table(words.heading(summary), "; ".join(words.footnotes(summary)))
    shown.add_column("optimizer")  # this one and the settings may wrap
    shown.add_column("tuned", justify="right", no_wrap=True)
    shown.add_column("settings", justify="right")
    for name in ("default", "to target"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in summary.rows:
        scores = words.interval(row.tuned), _settings(row), words.mean(row.default)
        style = "bold" if row.optimizer in summary.best else ""
        shown.add_row(row.title, *scores, words.steps(row.tuned), style=style)
    return shown


def _settings(row: Row) -> str:
    """Return the values that tuning chose, without their names: the learning rate, then what else was tuned."""
    chosen = row.tuned.settings if row.tuned else {}
    return ", ".join(f"{value:g}{'*' * (name in row.edges)}" for name, value in chosen.items()) or "-"


def standings(found: Overall) -> Table:
    """Return the short table of all problems; it fits 80 columns."""
    notes = [
        "best: problems where it is best or level; first: how often it has the best mean rank when problems and seeds "
        "are drawn again; score: interquartile mean, 0 the worst and 1 the target; default: mean rank untuned; cost: "
        "its own step time beside the cheapest's"
    ]
    if found.left_out:
        notes.append(f"without a tuned score on every problem: {', '.join(found.left_out)}")
    shown = _table(f"All problems ({found.n_problems}), by mean rank", "; ".join(notes))
    shown.add_column("optimizer")
    for name in ("rank", "best", "first", "score", "default", "cost"):
        shown.add_column(name, justify="right", no_wrap=True)
    for standing in found.standings:
        shown.add_row(
            standing.title,
            words.number(standing.mean_rank, ".2f"),
            str(standing.n_best),
            words.percent(standing.probability_best),
            words.estimate(standing.score),
            words.number(standing.default_rank, ".2f"),
            words.number(standing.step_cost, ".1f"),
        )
    return shown


def _table(title: str, caption: str) -> Table:
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    shown.caption = caption
    shown.caption_justify = "left"
    return shown
