"""How long a comparison will still take, from the cells that are done."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, median

from frankenstein.compare.comparison import Pair
from frankenstein.compare.store.records import Record

ENOUGH = 3  # cells of a pair that say what it takes; before, the pair is guessed from the others
OUTLIER = (
    3.0  # a cell that takes longer than so many medians counts as that: the first one of a worker pays for its start
)


class Estimate:
    """Seconds of each kind of cell, learnt as they finish.

    A pair with few cells is guessed from what its problem takes (median over optimizers) and from what its optimizer
    takes beside others (median over problems).
    """

    def __init__(self) -> None:
        self.seconds: dict[Pair, list[float]] = {}
        self.means: dict[Pair, float] = {}  # of the pairs with enough cells
        self.problems: dict[str, float] = {}
        self.optimizers: dict[str, float] = {}

    def add(self, record: Record) -> None:
        """Learn from a finished cell."""
        if not record["wall_seconds"]:  # its worker died: nobody knows what it took
            return
        pair = record["problem"], record["optimizer"]
        seconds = self.seconds.setdefault(pair, [])
        seconds.append(record["wall_seconds"])
        self.problems = {}
        if len(seconds) >= ENOUGH:
            limit = OUTLIER * median(seconds)
            self.means[pair] = fmean(min(value, limit) for value in seconds)

    def of(self, pair: Pair) -> float | None:
        """Return the expected seconds of one cell of the pair; None while too little is known."""
        if pair in self.means:
            return self.means[pair]
        if sum(map(len, self.seconds.values())) < ENOUGH:
            return None
        if not self.problems:
            self._compare()
        return self.problems.get(pair[0], median(self.problems.values())) * self.optimizers.get(pair[1], 1.0)

    def left(self, cells: Mapping[Pair, int], n_parallel: int) -> float | None:
        """Return the seconds that so many cells of each pair take on so many workers; None: too little is known."""
        total = 0.0
        for pair, count in cells.items():
            if count:
                seconds = self.of(pair)
                if seconds is None:
                    return None
                total += count * seconds
        return total / max(n_parallel, 1)

    def _compare(self) -> None:
        """Find out what each problem takes, and each optimizer beside the others."""
        medians = {pair: median(seconds) for pair, seconds in self.seconds.items()}
        by_problem: dict[str, list[float]] = {}
        for (problem, _), seconds in medians.items():
            by_problem.setdefault(problem, []).append(seconds)
        self.problems = {problem: median(values) for problem, values in by_problem.items()}
        by_optimizer: dict[str, list[float]] = {}
        for (problem, optimizer), seconds in medians.items():
            by_optimizer.setdefault(optimizer, []).append(seconds / self.problems[problem])
        self.optimizers = {optimizer: median(values) for optimizer, values in by_optimizer.items()}
