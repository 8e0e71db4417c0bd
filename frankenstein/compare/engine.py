"""Run the cells of a comparison: equal tuning budgets on the validation split, then fresh seeds on the test split.

A cell is one run: problem, optimizer, learning rate, seed, split. Its key is a hash of everything that decides its
outcome, so a finished cell is never run twice and a changed problem never reuses old numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from frankenstein.compare.optimizers import OPTIMIZERS
from frankenstein.compare.problems import PROBLEMS, Problem, Split
from frankenstein.compare.records import Record, appending, provenance, read
from frankenstein.compare.summary import best_lr

TUNING_SEED = 1000  # far from the test seeds 0, 1, 2, ...


class WorkerLostError(Exception):
    """A worker process died (killed, or out of memory); what was finished is kept."""


@dataclass(frozen=True)
class Cell:
    """One run. Two cells with the same key have the same outcome."""

    problem: str
    optimizer: str
    lr: float
    seed: int
    split: Split

    def config(self) -> dict[str, Any]:
        """Return everything that decides the outcome, as plain data."""
        problem, spec = PROBLEMS[self.problem], OPTIMIZERS[self.optimizer]
        names = ("title", "metric", "is_higher_better", "target", "worst", "n_steps", "n_evals", "version")
        return {
            "problem": self.problem,
            "problem_config": {name: getattr(problem, name) for name in names},
            "optimizer": self.optimizer,
            "optimizer_config": {
                "title": spec.title,
                "class": spec.target,
                "default_lr": spec.default_lr,
                "options": spec.options,
            },
            "lr": self.lr,
            "seed": self.seed,
            "split": self.split,
        }

    def key(self) -> str:
        """Return the hash of `config()` that names the cell in records."""
        return hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode()).hexdigest()[:16]


def run_cell(cell: Cell) -> Record:
    """Train once and return the record: score, curve, time and outcome. Divergence and failure are outcomes."""
    problem = PROBLEMS[cell.problem]
    record: Record = {"schema": 1, "cell": cell.key(), **cell.config()}
    began = time.perf_counter()
    try:
        record |= _train(problem, cell)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        record |= {"outcome": "failed", "reason": reason, "score": problem.worst, "curve": []}
    record["wall_seconds"] = round(time.perf_counter() - began, 4)
    record["finished_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    return record | {"provenance": provenance()}


def _train(problem: Problem, cell: Cell) -> Record:
    task = problem.start(cell.seed, cell.split)
    optimizer = OPTIMIZERS[cell.optimizer].make(task.parameters(), cell.lr)
    eval_steps = {round(problem.n_steps * i / problem.n_evals) for i in range(1, problem.n_evals + 1)}
    curve: list[list[float]] = []
    outcome, train_seconds, step_seconds = "finished", 0.0, 0.0

    def evaluate(step: int) -> float:
        with torch.no_grad():
            score = task.score()
        curve.append([step, float(f"{problem.bounded(score):.6g}")])
        return score

    evaluate(0)
    step = 0
    while step < problem.n_steps and outcome == "finished":
        step += 1
        t0 = time.perf_counter()
        optimizer.zero_grad()
        loss = task.loss()
        loss.backward()
        t1 = time.perf_counter()
        optimizer.step()
        t2 = time.perf_counter()
        train_seconds, step_seconds = train_seconds + t2 - t0, step_seconds + t2 - t1
        if not math.isfinite(loss.item()) or (step in eval_steps and math.isnan(evaluate(step))):
            outcome = "diverged"
    reached = [s for s, score in curve if problem.reaches_target(score)]
    return {
        "outcome": outcome,
        "score": curve[-1][1] if outcome == "finished" else problem.worst,
        "steps_to_target": reached[0] if reached else None,
        "seconds_per_step": float(f"{train_seconds / step:.4g}"),
        "optimizer_seconds_per_step": float(f"{step_seconds / step:.4g}"),
        "n_steps_done": step,
        "curve": curve,
    }


@dataclass(frozen=True)
class Comparison:
    """What to compare: every optimizer on every problem, tuned and untuned, on `n_seeds` fresh seeds."""

    problems: tuple[str, ...]
    optimizers: tuple[str, ...]
    n_seeds: int

    def pairs(self) -> list[tuple[str, str]]:
        """Return every (problem, optimizer)."""
        return [(problem, optimizer) for problem in self.problems for optimizer in self.optimizers]

    def tuning(self, problem: str, optimizer: str) -> list[Cell]:
        """Return the tuning cells: the same learning rates for every optimizer, on the validation split."""
        return [Cell(problem, optimizer, lr, TUNING_SEED, "validation") for lr in PROBLEMS[problem].lr_grid]

    def final(self, problem: str, optimizer: str, lr: float) -> list[Cell]:
        """Return the test cells: the learning rate that tuning chose, and the untuned default."""
        rates = dict.fromkeys((lr, OPTIMIZERS[optimizer].default_lr))
        return [Cell(problem, optimizer, rate, seed, "test") for rate in rates for seed in range(self.n_seeds)]


Progress = Callable[[Record | None, int, int], None]  # the record just finished, cells done, cells in all


def run(
    comparison: Comparison, folder: Path, n_workers: int, progress: Progress, report: Callable[[str], None]
) -> None:
    """Run the cells that `folder` does not hold yet, and append their records.

    Args:
        comparison: What to compare.
        folder: Run folder; made if absent, continued if not.
        n_workers: Worker processes, one thread each.
        progress: Called after each cell, and once at the start with None.
        report: Called with a line for the user where records were damaged.

    Raises:
        RecordError: The folder cannot be used.
        WorkerLostError: A worker process died.
        KeyboardInterrupt: Ctrl-C; cells that were running are finished and recorded first.
    """
    with appending(folder) as append:
        _Run(comparison, append, read(folder, report), n_workers, progress).run()


class _Run:
    """The state of one `run`: what is done, what is running, what follows from it."""

    def __init__(
        self,
        comparison: Comparison,
        append: Callable[[Record], None],
        records: list[Record],
        n_workers: int,
        progress: Progress,
    ) -> None:
        self.comparison, self.append, self.progress = comparison, append, progress
        self.done = {record["cell"]: record for record in records if record["outcome"] != "failed"}
        self.futures: dict[Future[Record], Cell] = {}
        self.untuned = dict.fromkeys(comparison.pairs())
        self.wanted: set[str] = set()
        self.n_finals = dict.fromkeys(self.untuned, 2 * comparison.n_seeds)  # an upper bound until tuned
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_start_worker)

    def run(self) -> None:
        try:
            for pair in self.comparison.pairs():
                self.submit(self.comparison.tuning(*pair))
            self.submit_finals()
            self.progress(None, *self.counts())
            while self.futures:
                finished, _ = wait(self.futures, return_when=FIRST_COMPLETED)
                self.collect(finished)
                self.submit_finals()
        except BrokenProcessPool:
            raise WorkerLostError("a worker process died (killed, or out of memory)") from None
        finally:
            self.pool.shutdown(cancel_futures=True)
            self.collect(f for f in list(self.futures) if f.done() and not f.cancelled() and f.exception() is None)

    def submit(self, cells: Iterable[Cell]) -> None:
        for cell in cells:
            self.wanted.add(cell.key())
            if cell.key() not in self.done:
                self.futures[self.pool.submit(run_cell, cell)] = cell

    def submit_finals(self) -> None:
        """Submit the test cells of every pair whose tuning cells are all in."""
        for pair in list(self.untuned):
            tuning = [self.done.get(cell.key()) for cell in self.comparison.tuning(*pair)]
            if all(tuning):
                del self.untuned[pair]
                cells = self.comparison.final(*pair, best_lr([record for record in tuning if record]))
                self.n_finals[pair] = len(cells)
                self.submit(cells)

    def collect(self, finished: Iterable[Future[Record]]) -> None:
        for future in finished:
            del self.futures[future]
            record = future.result()
            self.append(record)
            self.done[record["cell"]] = (
                record  # a failed cell counts as done in this run, and is tried again in the next
            )
            self.progress(record, *self.counts())

    def counts(self) -> tuple[int, int]:
        n_tuning = sum(len(self.comparison.tuning(*pair)) for pair in self.comparison.pairs())
        return len(self.wanted & self.done.keys()), n_tuning + sum(self.n_finals.values())


def _start_worker() -> None:
    """One thread, deaf to Ctrl-C (the parent sees to that), and gone when the parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with(process: BaseProcess) -> None:
        process.join()
        os._exit(1)

    threading.Thread(target=leave_with, args=(parent,), daemon=True).start()
