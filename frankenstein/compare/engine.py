"""Run the cells of a comparison: equal tuning budgets on the validation split, then fresh seeds on the test split."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from frankenstein.compare.cells import Cell, failure, finish, run_cell
from frankenstein.compare.interrupts import interrupts_blocked
from frankenstein.compare.optimizers import OPTIMIZERS
from frankenstein.compare.problems import PROBLEMS
from frankenstein.compare.records import Record, Report, appending
from frankenstein.compare.summary import best_lr

# Test seeds are 0, 1, 2, ...; tuning takes others, so that no start and no batch is seen twice.
TUNING_SEEDS = (1_000_000, 1_000_001, 1_000_002)
MAX_SEEDS = 10_000

Progress = Callable[[Record | None, int, int], None]  # the record just finished, cells done, cells in all
Submit = Callable[[Cell], Future[Record]]


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
        rates = PROBLEMS[problem].lr_grid
        return [Cell(problem, optimizer, lr, seed, "validation") for lr in rates for seed in TUNING_SEEDS]

    def final(self, problem: str, optimizer: str, lr: float) -> list[Cell]:
        """Return the test cells: the learning rate that tuning chose, and the untuned default."""
        rates = dict.fromkeys((lr, OPTIMIZERS[optimizer].default["lr"]))
        return [Cell(problem, optimizer, rate, seed, "test") for rate in rates for seed in range(self.n_seeds)]

    def command(self) -> str:
        """Return the command that asks for it."""
        names = f"--problems {' '.join(self.problems)} --optimizers {' '.join(self.optimizers)}"
        return f"frankenstein compare {names} --seeds {self.n_seeds}"

    def max_cells(self) -> int:
        """Return the number of cells if no tuned learning rate is the default."""
        return sum(len(self.tuning(*pair)) + 2 * self.n_seeds for pair in self.pairs())


def run(comparison: Comparison, folder: Path, n_workers: int | None, progress: Progress, report: Report) -> None:
    """Run the cells that `folder` does not hold yet, and append their records.

    Args:
        comparison: What to compare.
        folder: Run folder; made if absent, continued if not.
        n_workers: Worker processes, one thread each; None takes one for each processor this process may use.
        progress: Called after each cell, and once at the start with None.
        report: Called with a line for the user where records were damaged.

    Raises:
        RecordError: The folder cannot be used, or a record cannot be written.
        KeyboardInterrupt: Ctrl-C; what was finished is recorded, what was under way is not.
    """
    with appending(folder, report) as (records, append):
        n_workers = min(n_workers or n_processors(), comparison.max_cells())
        with local_workers(n_workers, comparison.command()) as submit:
            _Run(comparison, submit, append, records, progress).run()


class _Run:
    """The state of one `run`: what is done, what is under way, what follows from it."""

    def __init__(
        self,
        comparison: Comparison,
        submit: Submit,
        append: Callable[[Record], None],
        records: list[Record],
        progress: Progress,
    ) -> None:
        self.comparison, self.start, self.append, self.progress = comparison, submit, append, progress
        self.done = {record["cell"]: record for record in records if record["outcome"] != "failed"}
        self.futures: dict[Future[Record], Cell] = {}
        self.untuned = dict.fromkeys(comparison.pairs())
        self.wanted: set[str] = set()
        self.n_cells = comparison.max_cells()

    def run(self) -> None:
        for pair in self.comparison.pairs():
            self.submit(self.comparison.tuning(*pair))
        self.submit_finals()
        self.progress(None, *self.counts())
        try:
            while self.futures:
                self.collect(wait(self.futures, return_when=FIRST_COMPLETED).done)
                self.submit_finals()
        except KeyboardInterrupt:
            with interrupts_blocked():  # a second Ctrl-C cannot cost a finished run
                self.collect([future for future in self.futures if future.done()])
            raise

    def submit(self, cells: Iterable[Cell]) -> None:
        for cell in cells:
            self.wanted.add(cell.key())
            if cell.key() not in self.done:
                self.futures[self.start(cell)] = cell

    def submit_finals(self) -> None:
        """Submit the test cells of every pair whose tuning cells are all in."""
        for pair in list(self.untuned):
            tuning = [self.done.get(cell.key()) for cell in self.comparison.tuning(*pair)]
            trials = [record for record in tuning if record]
            if len(trials) == len(tuning):
                del self.untuned[pair]
                cells = self.comparison.final(*pair, best_lr(trials))
                self.n_cells += len(cells) - 2 * self.comparison.n_seeds
                self.submit(cells)

    def collect(self, finished: Iterable[Future[Record]]) -> None:
        for future in finished:
            cell = self.futures[future]
            error = future.exception()
            if error:  # the worker died; an error of the cell itself is in its record
                record = finish(cell, failure(cell, _why(error)), 0.0, self.comparison.command())
            else:
                record = future.result()
            self.append(record)
            del self.futures[future]
            self.done[record["cell"]] = record  # a failed cell is tried again in the next run, not in this one
            self.progress(record, *self.counts())

    def counts(self) -> tuple[int, int]:
        return len(self.wanted & self.done.keys()), self.n_cells


def _why(error: BaseException) -> str:
    code = getattr(error, "exitcode", None)
    if code is None:
        return f"{type(error).__name__}: {error}"
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"the worker process was ended {how}" + (" (out of memory?)" if code == -signal.SIGKILL else "")


@contextmanager
def local_workers(n_workers: int, command: str) -> Iterator[Submit]:
    """Yield a function that runs a cell in one of `n_workers` processes; one that dies fails only its own cell."""
    from pebble import ProcessPool

    if os.name == "posix":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # its start, with the first process, would let interrupts through again
    context = multiprocessing.get_context("spawn")
    pool = ProcessPool(n_workers, initializer=_start_worker, context=context)

    def submit(cell: Cell) -> Future[Record]:
        with interrupts_blocked():  # the pool's threads and processes inherit it: Ctrl-C is the parent's to handle
            inner: Future[Record] = pool.schedule(run_cell, args=(cell, command))
        return inner

    try:
        yield submit
        pool.close()
        pool.join()
    except BaseException:
        with interrupts_blocked():  # a second Ctrl-C waits until the workers are gone
            pool.stop()
            pool.join()
        raise


def _start_worker() -> None:
    """One thread, and gone when the parent is."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with(process: BaseProcess) -> None:
        process.join()
        os._exit(1)

    threading.Thread(target=leave_with, args=(parent,), daemon=True).start()


def n_processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
