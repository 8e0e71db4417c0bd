"""A cell is one run: problem, optimizer, settings, seed, split. Here it is run and turned into a record."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from frankenstein.compare.catalog import catalog
from frankenstein.compare.live import Live, watching
from frankenstein.compare.optimizers import Factory, OptimizerSpec, Range, Settings
from frankenstein.compare.problems.problem import Budget, Measurements, Problem, Split
from frankenstein.compare.store.provenance import provenance
from frankenstein.compare.store.records import SCHEMA, Record

DIGITS = 6  # significant digits of scores in a record


@dataclass(frozen=True)
class Cell:
    """One run. Two cells with the same key measure the same thing.

    Attributes:
        problem: Name of the problem.
        optimizer: Name of the optimizer, or `module:Class`.
        settings: What tuning chose.
        seed: Decides everything random in the run.
        split: Where the score is taken.
        trial: Which trial of tuning it belongs to; None after tuning.
        tuner: Who chose the settings of that trial.
        modules: The user's modules in which problem and optimizer are looked up.
    """

    problem: str
    optimizer: str
    settings: Settings
    seed: int
    split: Split
    trial: int | None = None
    tuner: str | None = None
    modules: tuple[str, ...] = ()

    @property
    def problem_spec(self) -> Problem:
        """The problem."""
        return catalog(self.modules).problems[self.problem]

    @property
    def optimizer_spec(self) -> OptimizerSpec:
        """The optimizer."""
        return catalog(self.modules).optimizer(self.optimizer)

    def space(self) -> dict[str, Range]:
        """Return what tuning may choose from."""
        return self.optimizer_spec.space(self.problem_spec.lr_scale)

    def config(self) -> dict[str, Any]:
        """Return what is measured, as plain data; the code that measures it is in the record's provenance."""
        return {
            "problem": self.problem,
            "problem_config": self.problem_spec.config(),
            "optimizer": self.optimizer,
            "optimizer_config": self.optimizer_spec.config(),
            "settings": self.settings,
            "seed": self.seed,
            "split": self.split,
            "trial": self.trial,
            "tuner": self.tuner,
        }

    @cached_property
    def key(self) -> str:
        """The hash of `config()` that names the cell in records."""
        return hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode()).hexdigest()[:16]


class TimedOutError(BaseException):
    """The run took longer than it was given. No Exception: it comes anywhere, and nobody's `except` may swallow it."""


@dataclass(frozen=True)
class Job:
    """A cell, and how to run it; an executor sends it to a worker.

    Attributes:
        cell: What to run.
        command: The command that asked for it, kept in the record.
        n_cpus: Threads it may use.
        n_gpus: GPUs it is given.
        timeout: Seconds it may take; None: as long as it likes.
        attempt: 1, and one more each time it failed before.
        live: Where its numbers go while it runs.
        folder: Where it may keep what it needs to go on after a kill.
    """

    cell: Cell
    command: str = ""
    n_cpus: int = 1
    n_gpus: float = 0.0
    timeout: float | None = None
    attempt: int = 1
    live: Live = field(default_factory=Live)
    folder: Path | None = None

    @property
    def key(self) -> str:
        """The cell's."""
        return self.cell.key

    @property
    def modules(self) -> tuple[str, ...]:
        """The cell's."""
        return self.cell.modules

    def run(self) -> Record:
        """Train once and return the record. Divergence, failure and a timeout are outcomes."""
        began = time.perf_counter()
        curve: dict[str, list[Any]] = {}
        try:
            self.cell.problem_spec.load()
            self.cell.optimizer_spec.load()
            began = time.perf_counter()  # libraries and data are the worker's start, not the cell's time
            with _time_limit(self.timeout):
                outcome = self._train(curve)
        except (Exception, TimedOutError) as error:
            outcome = failure(self.cell, _why(error), _rounded(self.cell.problem_spec, curve))
        return self.finished(outcome, time.perf_counter() - began)

    def failed(self, reason: str) -> Record:
        """Return the record of a run whose worker is gone."""
        return self.finished(failure(self.cell, reason), 0.0)

    def finished(self, outcome: Record, wall_seconds: float) -> Record:
        """Return the whole record of the run."""
        return {
            "schema": SCHEMA,
            "cell": self.cell.key,
            **self.cell.config(),
            "problem_title": self.cell.problem_spec.title,
            "optimizer_title": self.cell.optimizer_spec.title,
            "space": {name: interval.config() for name, interval in self.cell.space().items()},
            **outcome,
            "wall_seconds": round(wall_seconds, 4),
            "attempt": self.attempt,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "provenance": provenance() | {"modules": catalog(self.modules).sources},
        }

    def _train(self, curve: dict[str, list[Any]]) -> Record:
        """Run the problem; `curve` is filled on the way, so that a failure leaves what came before it."""
        cell, problem = self.cell, self.cell.problem_spec
        settings = " ".join(f"{name}={value:g}" for name, value in cell.settings.items())
        name = f"{cell.problem}/{cell.optimizer}/{settings} {cell.split} seed {cell.seed}"
        with watching(self.live, name, {**cell.settings, "seed": cell.seed, "split": cell.split}) as log:

            def watch(step: int, numbers: dict[str, float]) -> None:
                curve.setdefault("step", []).append(step)
                for column in numbers.keys() | curve.keys() - {"step"}:
                    values = curve.setdefault(column, [])
                    values += [None] * (len(curve["step"]) - 1 - len(values)) + [numbers.get(column)]
                log(step, numbers)

            device = "cuda" if self.n_gpus else "cpu"
            budget = Budget(problem.n_steps, problem.n_evals, cell.split, device, watch, self.folder)
            measured = problem.run(Factory(cell.optimizer_spec, cell.settings), cell.seed, budget)
            _check(measured, budget)
            return _outcome(problem, measured)


def failure(cell: Cell, reason: str, curve: dict[str, list[Any]] | None = None) -> Record:
    """Return the outcome of a run that could not be taken to its end."""
    needed = [curve.get(name) for name in ("step", "score", "seconds")] if curve else [None]
    columns = curve if all(needed) and not any(None in values for values in needed if values) else None
    return {
        "outcome": "failed",
        "reason": " ".join(reason.split()),
        "score": cell.problem_spec.worst,
        "curve": columns or {"step": [], "score": [], "seconds": []},
        "steps_to_target": None,
        "seconds_to_target": None,
    }


def _check(measured: Any, budget: Budget) -> None:
    """Refuse what is not the whole of a run: half a run would count as a result."""
    if not isinstance(measured, Measurements):
        raise TypeError(f"run returned {type(measured).__name__}; it must return Measurements")
    curve = measured.curve
    if missing := {"step", "score", "seconds"} - curve.keys():
        raise ValueError(f"the curve that run returned lacks {', '.join(sorted(missing))}")
    lengths = {name: len(values) for name, values in curve.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the curve that run returned has columns of unequal length: {lengths}")
    expected = sorted(budget.eval_steps)
    if not measured.diverged and curve["step"] != expected:
        raise ValueError(f"run scored after steps {curve['step']!r:.60}; it must after all of {expected!r:.60}")
    if None in (*curve["score"], *curve["seconds"]):
        raise ValueError("the curve that run returned has None among its scores or seconds")
    if not _all_finite(curve["seconds"]):
        raise ValueError("the curve that run returned has seconds that are not finite")


def _all_finite(values: Iterable[float | None]) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def _outcome(problem: Problem, measured: Measurements) -> Record:
    curve = _rounded(problem, measured.curve)
    points = zip(curve["step"], curve["score"], curve["seconds"], strict=True)
    is_whole = _all_finite(measured.curve["score"][-1:])
    diverged = measured.diverged or ("" if is_whole else "the last score was not finite")
    reached = next(((step, seconds) for step, score, seconds in points if problem.reaches_target(score)), (None, None))
    costs = {name: getattr(measured, name) for name in ("seconds_per_step", "optimizer_seconds_per_step")}
    return {
        "outcome": "diverged" if diverged else "finished",
        "reason": diverged,
        "score": problem.worst if diverged else curve["score"][-1],
        "curve": curve,
        "steps_to_target": reached[0],
        "seconds_to_target": reached[1],
        **{name: float(f"{value:.4g}") for name, value in costs.items() if value is not None},
        **{name: getattr(measured, name) for name in ("state_bytes", "n_params", "n_steps_done")},
        **{name: value for name in ("data", "samples", "details") if (value := getattr(measured, name))},
    }


def _rounded(problem: Problem, curve: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the curve as records keep it: scores bounded, few digits, None for what is not finite."""

    def short(value: float | None, n_digits: int = DIGITS) -> float | None:
        return float(f"{value:.{n_digits}g}") if value is not None and math.isfinite(value) else None

    columns = {name: [short(value) for value in values] for name, values in curve.items() if name != "step"}
    if "seconds" in curve:
        columns["seconds"] = [short(value, 4) for value in curve["seconds"]]
    if "score" in curve:
        columns["score"] = [None if value is None else short(problem.bounded(value)) for value in curve["score"]]
    return {"step": [int(step) for step in curve.get("step", [])], **columns}


def _why(error: BaseException) -> str:
    if isinstance(error, TimedOutError):
        return str(error)
    is_memory = isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)
    return f"{'out of memory: ' if is_memory else ''}{type(error).__name__}: {error}"


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimedOutError in the block after so long; code that never returns to Python is the executor's to end."""
    is_possible = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    if seconds is None or not is_possible:
        yield
        return

    def stop(*_: Any) -> None:
        raise TimedOutError(f"timed out after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
