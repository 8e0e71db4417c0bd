"""How long a comparison will still take, from the cells that are done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from frankenstein.compare.comparison import Pair
from frankenstein.compare.store.records import Record


class Estimate:
    """Seconds of each kind of cell, learnt as they finish.

    A pair that has not run yet is guessed from how its optimizer does on other problems and how its problem does with
    other optimizers: the two means, relative to the mean of all.
    """

    def __init__(self) -> None:
        self.n: Counter[str | Pair] = Counter()
        self.seconds: Counter[str | Pair] = Counter()

    def add(self, record: Record) -> None:
        """Learn from a finished cell."""
        for key in self._keys((record["problem"], record["optimizer"])):
            self.n[key] += 1
            self.seconds[key] += record["wall_seconds"]

    def of(self, pair: Pair) -> float | None:
        """Return the expected seconds of one cell of the pair; None while nothing is known."""
        whole, problem, optimizer, everything = self._keys(pair)
        if self.n[whole]:
            return self._mean(whole)
        if not self.n[everything]:
            return None
        mean = self._mean(everything)
        factors = [self._mean(key) / mean for key in (problem, optimizer) if self.n[key] and mean > 0]
        for factor in factors:
            mean *= factor
        return mean

    def left(self, cells: Mapping[Pair, int], n_parallel: int) -> float | None:
        """Return the seconds that so many cells of each pair will take on so many workers; None: nothing is known."""
        total = 0.0
        for pair, count in cells.items():
            seconds = self.of(pair)
            if count and seconds is None:
                return None
            total += count * (seconds or 0.0)
        return total / max(n_parallel, 1)

    def _mean(self, key: str | Pair) -> float:
        return self.seconds[key] / self.n[key]

    @staticmethod
    def _keys(pair: Pair) -> tuple[Pair, str, str, str]:
        return pair, f"problem {pair[0]}", f"optimizer {pair[1]}", "all"
