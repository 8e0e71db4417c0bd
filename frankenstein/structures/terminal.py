"""A run in the terminal: live progress, and at the end tables."""

from __future__ import annotations

import math
import time
from collections import Counter as Counts
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from frankenstein.compare.report.terminal import duration
from frankenstein.structures.methods import METHODS
from frankenstein.structures.outputs import Total
from frankenstein.structures.reading import plural
from frankenstein.structures.running import Outcome

N_ROWS = 20  # of the table in the terminal
SHOW_SECONDS = 0.1
NOTE = (
    "mean calls and energy: over the structures that it converged; ratio: its calls over ours, where both did; ASE's "
    "optimizers have the settings that ASE gives them"
)


class Counter:
    """Structures done of all, force calls per second, the largest force now; drawn as a bar.

    Args:
        bar: To draw it.
        n_done: Structures that had ended before.
        n_jobs: In all.
    """

    def __init__(self, bar: Progress, n_done: int, n_jobs: int) -> None:
        self.bar, self.n_done, self.n_jobs = bar, n_done, n_jobs
        self.n_ended = self.n_calls = 0
        self.largest = math.nan
        self.begin, self.shown_at = time.monotonic(), -math.inf
        self.task = bar.add_task("", total=n_jobs, completed=n_done)
        bar.start()

    def after_round(self, n_calls: int, largest: float) -> None:
        """Take note of force calls."""
        self.n_calls += n_calls
        if largest:
            self.largest = largest
        self._show()

    def ended(self) -> None:
        """Take note that a structure has ended."""
        self.n_ended += 1
        self._show()

    def _show(self) -> None:
        now, n_done = time.monotonic(), self.n_done + self.n_ended
        if now - self.shown_at < SHOW_SECONDS and n_done < self.n_jobs:
            return
        self.shown_at, seconds = now, now - self.begin
        left = f"  {duration(seconds / self.n_ended * (self.n_jobs - n_done))} left" if self.n_ended else ""
        rate = f"{self.n_calls / seconds:,.0f} calls/s" if seconds > 0 else ""
        is_over = n_done >= self.n_jobs
        force = "" if math.isnan(self.largest) or is_over else f"  fmax {self.largest:.3g}"
        self.bar.update(self.task, completed=n_done, description=f"{rate}{force}{'' if is_over else left}")


@contextmanager
def progress(n_done: int, n_jobs: int) -> Iterator[Counter]:
    """Show a bar on standard error; the terminal is put right at the end."""
    columns = (MofNCompleteColumn(), BarColumn(None), TextColumn("{task.description}", markup=False))
    bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
    try:
        yield Counter(bar, n_done, n_jobs)
    finally:
        bar.stop()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1, as if something had failed


def show(outcomes: Sequence[Outcome], sums: Sequence[Total]) -> None:
    """Print our outcomes, a long list shortened, and the optimizers beside each other if there are several."""
    console = _Console(highlight=False, markup=False, emoji=False)
    shown = chosen(outcomes)
    rows = _table("name", "formula", "reason", "calls", "energy", "fmax", "seconds", n_words=3)
    for outcome in shown:
        numbers = (number(outcome["energy"], ".6f"), number(outcome["fmax"], ".3g"), number(outcome["seconds"], ".2f"))
        rows.add_row(outcome["name"], outcome["formula"], outcome["reason"], str(outcome["calls"]), *numbers)
    console.print(rows)
    if len(shown) < len(outcomes):
        console.print(f"... and {len(outcomes) - len(shown)} more, all in table.csv")
    if len(sums) > 1:
        console.print()
        console.print(comparison(sums))
        console.print(NOTE)


def chosen(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return so many outcomes as the terminal has room for, in their order: those that did not converge go first."""
    if len(outcomes) <= N_ROWS:
        return list(outcomes)
    first = sorted(range(len(outcomes)), key=lambda i: outcomes[i]["converged"])  # stable: ties stay in order
    return [outcomes[i] for i in sorted(first[:N_ROWS])]


def comparison(sums: Sequence[Total]) -> Table:
    """Return the optimizers beside each other."""
    table = _table("optimizer", "converged", "mean calls", "ratio", "mean energy", n_words=1)
    for one in sums:
        numbers = (number(one.mean_calls, ".1f"), number(one.ratio, ".2f"), number(one.mean_energy, ".4f"))
        table.add_row(METHODS[one.method].title, f"{one.n_converged} of {one.n}", *numbers)
    return table


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return in a line how many converged, and why the others did not; files that cannot be read are told apart."""
    n_unread = sum(outcome["frame"] is None and outcome["message"].startswith("cannot be read") for outcome in outcomes)
    outcomes = [outcome for outcome in outcomes if outcome["frame"] is not None]
    reasons = Counts(outcome["reason"] for outcome in outcomes if not outcome["converged"])
    n_converged = len(outcomes) - reasons.total()
    others = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    unread = f"; {plural(n_unread, 'file')} could not be read" if n_unread else ""
    n_calls = sum(outcome["calls"] for outcome in outcomes)
    return (
        f"{n_converged} of {plural(len(outcomes), 'structure')} converged{f' ({others})' if others else ''}, "
        f"{plural(n_calls, 'force call')}{unread}"
    )


def number(value: float | None, form: str) -> str:
    """Return a number in this format, "-" if there is none.

    Examples:
        >>> number(None, ".3g"), number(0.01234, ".3g")
        ('-', '0.0123')
    """
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def _table(*columns: str, n_words: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < n_words else "right", no_wrap=i > 0)
    return table
