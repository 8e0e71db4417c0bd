"""What a problem is: where a run starts, what one step does, how the result is scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor
from torch.optim import Optimizer

Split = Literal["validation", "test"]

# Half decades, wide enough that the best learning rate of most optimizers lies inside.
LR_GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)


class Task(Protocol):
    """One problem at one seed, ready to be trained. Everything random in it follows from the seed alone."""

    def parameters(self) -> list[Tensor]:
        """Return the tensors to optimize."""

    def step(self, optimizer: Optimizer) -> float:
        """Take one optimizer step on the next batch; return the training loss before it."""

    def score(self) -> float:
        """Return the metric on the split that the task was made for."""


@dataclass(frozen=True)
class Problem:
    """A problem to compare optimizers on.

    Attributes:
        name: Name on the command line and in records.
        title: One line for people.
        metric: What `Task.score` returns.
        is_higher_better: Direction of the metric.
        target: Score that "steps to target" waits for; fixed beforehand.
        worst: Score of a run that diverges; scores beyond it count as it, so that means exist.
        n_steps: Steps of one run.
        n_evals: How often the score is taken on the way, evenly spread.
        start: Makes the task from a seed and a split.
        version: Raised when the problem's code changes, so that old records are not mixed with new ones.
        lr_grid: Learning rates that every optimizer may try: the tuning budget.
    """

    name: str
    title: str
    metric: str
    is_higher_better: bool
    target: float
    worst: float
    n_steps: int
    n_evals: int
    start: Callable[[int, Split], Task]
    version: int = 1
    lr_grid: tuple[float, ...] = LR_GRID

    def config(self) -> dict[str, Any]:
        """Return everything that decides a run's outcome and meaning, as plain data."""
        names = ("metric", "is_higher_better", "target", "worst", "n_steps", "n_evals", "version")
        return {name: getattr(self, name) for name in names} | {"lr_grid": list(self.lr_grid)}

    def bounded(self, score: float) -> float:
        """Return `score`, or `worst` where that is better than it or it is not a number."""
        if not math.isfinite(score):
            return self.worst
        return max(score, self.worst) if self.is_higher_better else min(score, self.worst)

    def reaches_target(self, score: float) -> bool:
        """Say whether `score` is as good as the target."""
        return score >= self.target if self.is_higher_better else score <= self.target
