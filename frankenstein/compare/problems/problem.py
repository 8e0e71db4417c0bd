"""What a problem is: what one run does with an optimizer, and how it is scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from frankenstein.compare.optimizers import Factory

Split = Literal["validation", "test"]
Watch = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Budget:
    """What one run may spend, and where it is scored.

    Attributes:
        n_steps: Optimizer steps.
        n_evals: How often the score is taken on the way, evenly spread; and once before the first step.
        split: Where the score is taken: "validation" while tuning, "test" afterwards.
        device: "cpu", or "cuda" where the run was given a GPU.
        watch: Called with the step and the numbers there at each evaluation: live metrics, and what is kept of a run
            that fails later.
        folder: Where the run may keep what it needs to go on after a kill: checkpoints, progress. None: nowhere.
    """

    n_steps: int
    n_evals: int
    split: Split
    device: str = "cpu"
    watch: Watch = lambda _step, _numbers: None
    folder: Path | None = None

    @property
    def eval_steps(self) -> set[int]:
        """The steps after which the score is taken; 0 and the last are among them."""
        return {round(self.n_steps * i / self.n_evals) for i in range(self.n_evals + 1)}


@dataclass
class Measurements:
    """What one run gives.

    Attributes:
        curve: Lists of equal length: "step", "score", "seconds" (of training, without the evaluations) and any further
            numbers; None where one was not taken.
        diverged: Why the run stopped early, if it did: a loss or a score that was not finite.
        n_steps_done: Optimizer steps taken.
        seconds_per_step: Mean wall time of a step, forward and backward pass included.
        optimizer_seconds_per_step: The optimizer's own part of it.
        state_bytes: Memory of the optimizer's state at the end.
        n_params: Number of parameters.
        data: What it was trained and scored on: name, size and hash of each part.
        samples: What the trained network makes of a few inputs, as named texts, for people to judge.
        details: What else was found, as plain data.
    """

    curve: dict[str, list[float | None]]
    n_steps_done: int
    diverged: str = ""
    seconds_per_step: float | None = None
    optimizer_seconds_per_step: float | None = None
    state_bytes: int | None = None
    n_params: int | None = None
    data: list[dict[str, Any]] | None = None
    samples: list[dict[str, str]] | None = None
    details: dict[str, Any] | None = None


Run = Callable[["Factory", int, Budget], Measurements]


@dataclass(frozen=True)
class Reference:
    """A published curve, drawn behind ours and labelled as what it is.

    Attributes:
        title: What it is, as the legend says it.
        source: Where it was published.
        step: Steps (or what the problem counts as steps), shape (n_points,).
        score: Scores in the problem's metric, same shape.
    """

    title: str
    source: str
    step: tuple[float, ...]
    score: tuple[float, ...]


@dataclass(frozen=True)
class Problem:
    """A problem to compare optimizers on.

    Attributes:
        name: Name on the command line and in records.
        title: One line for people.
        metric: What the score is.
        is_higher_better: Direction of the metric.
        target: Score that "steps to target" waits for; fixed beforehand.
        worst: Score of a run that diverges; scores beyond it count as it, so that means exist.
        n_steps: Steps of one run.
        n_evals: How often the score is taken on the way, evenly spread.
        run: Trains once: `run(make_optimizer, seed, budget)`. Everything random in it follows from the seed alone.
            `frankenstein.compare.training.Training` is one, for a task with batches and a loss.
        version: Raised when the problem's code changes, so that old records are not mixed with new ones.
        lr_scale: How much larger good learning rates are here than an optimizer's default: the interval in which every
            optimizer's learning rate is searched is centred there.
        references: Published curves.
        load: Loads the data and keeps it; called before each run, outside its time.
    """

    name: str
    title: str
    metric: str
    is_higher_better: bool
    target: float
    worst: float
    n_steps: int
    n_evals: int
    run: Run
    version: int = 1
    lr_scale: float = 1.0
    references: tuple[Reference, ...] = field(default=())
    load: Callable[[], Any] = lambda: None

    def __post_init__(self) -> None:
        is_possible = self.worst < self.target if self.is_higher_better else self.worst > self.target
        if not (is_possible and math.isfinite(self.worst) and math.isfinite(self.target)):
            raise ValueError(f"{self.name}: worst {self.worst!r} must be finite, and worse than target {self.target!r}")
        if not 1 <= self.n_evals <= self.n_steps:
            raise ValueError(f"{self.name}: n_evals {self.n_evals!r} must be from 1 to n_steps {self.n_steps!r}")

    def config(self) -> dict[str, Any]:
        """Return everything that decides a run's outcome and meaning, as plain data."""
        names = ("metric", "is_higher_better", "target", "worst", "n_steps", "n_evals", "version", "lr_scale")
        return {name: getattr(self, name) for name in names}

    def bounded(self, score: float) -> float:
        """Return `score`, or `worst` where that is better than it or it is not a number."""
        if not math.isfinite(score):
            return self.worst
        return max(score, self.worst) if self.is_higher_better else min(score, self.worst)

    def reaches_target(self, score: float) -> bool:
        """Say whether `score` is as good as the target."""
        return score >= self.target if self.is_higher_better else score <= self.target
