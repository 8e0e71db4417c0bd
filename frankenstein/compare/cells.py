"""A cell is one run: problem, optimizer, settings, seed, split. Here it is run and turned into a record."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch.optim import Optimizer

from frankenstein.compare.optimizers import OPTIMIZERS
from frankenstein.compare.problems import PROBLEMS, Problem, Split
from frankenstein.compare.provenance import provenance
from frankenstein.compare.records import SCHEMA, Record


@dataclass(frozen=True)
class Cell:
    """One run. Two cells with the same key measure the same thing."""

    problem: str
    optimizer: str
    lr: float
    seed: int
    split: Split

    def config(self) -> dict[str, Any]:
        """Return what is measured, as plain data; the code that measures it is in the record's provenance."""
        return {
            "problem": self.problem,
            "problem_config": PROBLEMS[self.problem].config(),
            "optimizer": self.optimizer,
            "optimizer_config": OPTIMIZERS[self.optimizer].config(),
            "settings": {"lr": self.lr},
            "seed": self.seed,
            "split": self.split,
        }

    def key(self) -> str:
        """Return the hash of `config()` that names the cell in records."""
        return hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode()).hexdigest()[:16]


def run_cell(cell: Cell, command: str = "") -> Record:
    """Train once and return the record: score, curve, time and outcome. Divergence and failure are outcomes.

    Args:
        cell: What to run.
        command: The command that asked for it, kept in the record.
    """
    began = time.perf_counter()
    try:
        outcome = _train(PROBLEMS[cell.problem], cell)
    except Exception as error:
        outcome = failure(cell, f"{type(error).__name__}: {error}")
    return finish(cell, outcome, time.perf_counter() - began, command)


def failure(cell: Cell, reason: str) -> Record:
    """Return the outcome of a cell that could not be run to its end."""
    return {
        "outcome": "failed",
        "reason": " ".join(reason.split()),
        "score": PROBLEMS[cell.problem].worst,
        "curve": [],
        "steps_to_target": None,
    }


def finish(cell: Cell, outcome: Record, wall_seconds: float, command: str) -> Record:
    """Return the whole record of a cell."""
    return {
        "schema": SCHEMA,
        "cell": cell.key(),
        **cell.config(),
        "problem_title": PROBLEMS[cell.problem].title,
        "optimizer_title": OPTIMIZERS[cell.optimizer].title,
        **outcome,
        "wall_seconds": round(wall_seconds, 4),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "provenance": provenance(),
    }


def _train(problem: Problem, cell: Cell) -> Record:
    task = problem.start(cell.seed, cell.split)
    optimizer = OPTIMIZERS[cell.optimizer].make(task.parameters(), {"lr": cell.lr})
    step_seconds = _time_steps(optimizer)
    eval_steps = {round(problem.n_steps * i / problem.n_evals) for i in range(1, problem.n_evals + 1)}
    curve: list[list[float]] = []
    outcome, seconds = "finished", 0.0

    def evaluate(step: int) -> float:
        with torch.no_grad():
            score = task.score()
        curve.append([step, float(f"{problem.bounded(score):.6g}")])
        return score

    evaluate(0)
    step = 0
    while step < problem.n_steps and outcome == "finished":
        step += 1
        began = time.perf_counter()
        loss = task.step(optimizer)
        seconds += time.perf_counter() - began
        if not math.isfinite(loss) or (step in eval_steps and not math.isfinite(evaluate(step))):
            outcome = "diverged"
    reached = [s for s, score in curve if problem.reaches_target(score)]
    return {
        "outcome": outcome,
        "reason": "" if outcome == "finished" else f"the loss or the score was not finite at step {step}",
        "score": curve[-1][1] if outcome == "finished" else problem.worst,
        "steps_to_target": reached[0] if reached else None,
        "seconds_per_step": float(f"{seconds / step:.4g}"),
        "optimizer_seconds_per_step": float(f"{sum(step_seconds) / step:.4g}"),
        "n_steps_done": step,
        "curve": curve,
    }


def _time_steps(optimizer: Optimizer) -> list[float]:
    """Return a list to which each `optimizer.step` will add minus its begin and its end: the sum is its seconds."""
    ticks: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: ticks.append(-time.perf_counter()))
    optimizer.register_step_post_hook(lambda *_: ticks.append(time.perf_counter()))
    return ticks
