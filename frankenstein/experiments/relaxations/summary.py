"""What the runs of a kind say about a method: calls, failures, energies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.store.records import Record
from frankenstein.experiments.relaxations.methods import find_method

__all__ = ["Summary", "geometric_mean", "summaries", "table"]


@dataclass(frozen=True)
class Summary:
    """A method on the starts of one kind.

    Attributes:
        method: Name.
        calls: (n_starts,) force calls, by start; a run that did not converge counts what it used.
        converged: (n_starts,) whether the tolerance was met.
        energies: (n_starts,) at the end, NaN where there is none.
        seconds: (n_starts,) wall time.
        is_lost: (n_starts,) whether it ended as something else than it was meant to minimise (a cluster blown apart).
    """

    method: str
    calls: np.ndarray
    converged: np.ndarray
    energies: np.ndarray
    seconds: np.ndarray
    is_lost: np.ndarray

    @property
    def title(self) -> str:
        """The method's, for people."""
        return find_method(self.method).title

    @property
    def n_failed(self) -> int:
        """How many runs did not end in a minimum of what they started from."""
        return int((~self.converged | self.is_lost).sum())

    @property
    def mean_calls(self) -> float:
        """Mean force calls."""
        return float(self.calls.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean force calls."""
        return float(self.calls.std(ddof=1) / math.sqrt(len(self.calls))) if len(self.calls) > 1 else math.nan


def summaries(
    records: list[Record], methods: list[str], is_lost: Callable[[Record], bool] = lambda record: False
) -> list[Summary]:
    """Return a summary of each method that has runs, on the starts that all of them have, in the order given."""
    by_method = {name: {r["start"]: r for r in records if r["method"] == name} for name in methods}
    by_method = {name: found for name, found in by_method.items() if found}
    starts = sorted(set.intersection(*(set(found) for found in by_method.values()))) if by_method else []
    result = []
    for name, found in by_method.items():
        runs = [found[start] for start in starts]
        result.append(
            Summary(
                method=name,
                calls=np.array([run["calls"] for run in runs], float),
                converged=np.array([run["converged"] for run in runs], bool),
                energies=np.array([math.nan if run["energy"] is None else run["energy"] for run in runs], float),
                seconds=np.array([run["seconds"] for run in runs], float),
                is_lost=np.array([is_lost(run) for run in runs], bool),
            )
        )
    return result


def geometric_mean(values: list[float]) -> float:
    """Return the geometric mean.

    Example:
        >>> round(geometric_mean([0.5, 2.0]), 12)
        1.0
    """
    return math.exp(sum(map(math.log, values)) / len(values))


def table(found: list[Summary], name: str, title: str, notes: list[str]) -> Table:
    """Return the table of one kind; bold is the fewest calls among methods that never failed."""
    sound = [summary.mean_calls for summary in found if summary.n_failed == 0]
    best = min(sound, default=math.nan)
    columns = [
        "method",
        "mean calls",
        "median",
        "95 %",
        "min",
        "max",
        "failed",
        "mean energy",
        "needs fewer than ours",
    ]
    ours = next((summary for summary in found if summary.method == "frankenstein"), None)
    return Table(name, title, columns, [_row(summary, best, ours) for summary in found], notes)


def _row(summary: Summary, best: float, ours: Summary | None) -> list[Cell]:
    calls = summary.calls
    fewer = math.nan if ours is None or ours is summary else 100 * float((calls < ours.calls).mean())
    sound = summary.energies[summary.converged & ~summary.is_lost]
    energy = float(sound.mean()) if len(sound) else math.nan
    return [
        Cell(summary.title),
        Cell(
            f"{summary.mean_calls:.0f}" if summary.mean_calls >= 100 else f"{summary.mean_calls:.1f}",
            summary.n_failed == 0 and summary.mean_calls == best,
            {"": summary.mean_calls, "standard error": summary.error},
        ),
        *(
            Cell(f"{value:.0f}", numbers={"": float(value)})
            for value in (np.median(calls), np.percentile(calls, 95), calls.min(), calls.max())
        ),
        Cell(
            f"{summary.n_failed} of {len(calls)}",
            numbers={
                "": summary.n_failed,
                "not converged": float((~summary.converged).sum()),
                "lost": float(summary.is_lost.sum()),
            },
        ),
        Cell("" if math.isnan(energy) else f"{energy:.3f}", numbers={"": energy}),
        Cell("" if math.isnan(fewer) else f"{fewer:.0f} %", numbers={"": fewer}),
    ]
