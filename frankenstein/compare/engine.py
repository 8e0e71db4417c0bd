"""Run the cells of a comparison: equal tuning budgets on the validation split, then fresh seeds on the test split."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from frankenstein.compare.catalog import catalog
from frankenstein.compare.cells import Cell, Job
from frankenstein.compare.comparison import Comparison, Pair, best_trial, losses
from frankenstein.compare.estimate import Estimate
from frankenstein.compare.executors import Executor, WorkerError
from frankenstein.compare.interrupts import interrupts_held
from frankenstein.compare.live import Live
from frankenstein.compare.optimizers import OptimizerSpec, Settings
from frankenstein.compare.problems.problem import Problem
from frankenstein.compare.store.records import Record, RecordError, Report, appending
from frankenstein.compare.tuning import Past, Tuner, make_tuner

QUEUE = 2  # jobs submitted for each one that can run: a worker never waits for the driver


class State(NamedTuple):
    """How far a comparison is."""

    n_done: int
    n_cells: int
    seconds_left: float | None


Progress = Callable[[Record | None, State], None]  # the record just finished (None: the start), and how far it is


@dataclass(frozen=True)
class Execution:
    """How cells are run.

    Attributes:
        executor: Makes the executor; entered when there is something to run.
        n_cpus: Threads of each cell.
        n_gpus: GPUs of each cell.
        timeout: Seconds that a cell may take.
        n_retries: How often a cell that failed is tried again in the same run.
        live: Where numbers go while a cell runs.
        leftover: Records that the workers of a driver that was killed finished without it.
        folder: Where each run gets a folder of its own, to go on from after a kill; it is removed when the run has
            ended. None: runs begin anew.
    """

    executor: Callable[[], AbstractContextManager[Executor]]
    n_cpus: int = 1
    n_gpus: float = 0.0
    timeout: float | None = None
    n_retries: int = 0
    live: Live = field(default_factory=Live)
    leftover: Callable[[], Iterable[Record]] = tuple
    folder: Path | None = None


def run(comparison: Comparison, folder: Path, execution: Execution, progress: Progress, report: Report) -> None:
    """Run the cells that `folder` does not hold yet, and append their records.

    Args:
        comparison: What to compare.
        folder: Run folder; made if absent, continued if not.
        execution: Where and how.
        progress: Called after each cell, and once at the start with None.
        report: Called with a line for the user where records were damaged.

    Raises:
        RecordError: The folder cannot be used, or a record cannot be written.
        ExecutorError: The executor cannot be started.
        KeyboardInterrupt: Ctrl-C; what was finished is recorded, what was under way is not.
    """
    with appending(folder, report) as (records, append):
        known = {record["cell"] for record in records}
        for record in execution.leftover():
            if record["cell"] not in known:
                append(record)
                records.append(record)
        _write_references(comparison, folder)
        work = _Run(comparison, execution, make_tuner(comparison.tuner, folder), append, records, progress)
        work.plan()
        if not work.pending:
            progress(None, work.state())
            return
        with execution.executor() as executor:
            progress(None, work.state())
            work.run(executor)


def _write_references(comparison: Comparison, folder: Path) -> None:
    """Keep the published curves beside the records: a report needs nothing but the folder."""
    problems = catalog(comparison.modules).problems
    path = folder / "references.json"
    try:
        old = json.loads(path.read_text()) if path.exists() else {}
        new = {name: [asdict(one) for one in problems[name].references] for name in comparison.problems}
        new = old | {name: references for name, references in new.items() if references}
        if new != old:
            path.write_text(json.dumps(new))
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot use {path}: {getattr(error, 'strerror', None) or error}") from None


class _Run:
    """The state of one `run`: what is done, what is under way, what follows from it."""

    def __init__(
        self,
        comparison: Comparison,
        execution: Execution,
        tuner: Tuner,
        append: Callable[[Record], None],
        records: list[Record],
        progress: Progress,
    ) -> None:
        self.comparison, self.execution, self.tuner = comparison, execution, tuner
        self.append, self.progress = append, progress
        self.done = {record["cell"]: record for record in records if record["outcome"] != "failed"}
        self.pending: deque[Job] = deque()
        self.futures: dict[Future[Record], Job] = {}
        self.trials: dict[Pair, list[list[Cell]]] = {pair: [] for pair in comparison.pairs()}
        self.untuned = dict.fromkeys(comparison.pairs())
        self.left = dict.fromkeys(comparison.pairs(), comparison.n_cells)  # cells not done yet
        self.n_cells = comparison.n_cells * len(self.left)
        self.n_parallel = 1
        self.estimate = Estimate()
        for record in records:
            self.estimate.add(record)

    def plan(self) -> None:
        """Queue what can be run now: the first trials of all pairs before the second ones, so that all are in sight."""
        if self.tuner.is_sequential:
            for pair in self.comparison.pairs():
                self.follow(pair)
            return
        for trial in range(self.comparison.n_trials):
            for pair in self.comparison.pairs():
                self.queue_trial(pair, trial, [])
        for pair in self.comparison.pairs():
            self.follow(pair)

    def run(self, executor: Executor) -> None:
        try:
            while self.pending or self.futures:
                self.n_parallel = executor.n_parallel
                while self.pending and len(self.futures) < QUEUE * self.n_parallel:
                    job = self.pending.popleft()
                    self.futures[executor.submit(job)] = job
                self.collect(wait(self.futures, return_when=FIRST_COMPLETED).done)
        except KeyboardInterrupt:
            with interrupts_held():  # a second Ctrl-C cannot cost a finished run
                self.collect([future for future in self.futures if future.done()])
            raise

    def queue(self, cells: Iterable[Cell]) -> None:
        execution, command = self.execution, self.comparison.command()
        for cell in cells:
            if cell.key in self.done:
                self.left[cell.problem, cell.optimizer] -= 1
            else:
                self.pending.append(
                    Job(
                        cell=cell,
                        command=command,
                        n_cpus=execution.n_cpus,
                        n_gpus=execution.n_gpus,
                        timeout=execution.timeout,
                        live=execution.live,
                        folder=execution.folder / cell.key if execution.folder else None,
                    )
                )

    def queue_trial(self, pair: Pair, trial: int, past: Past) -> None:
        problem, optimizer = self.specs(pair)
        settings = self.tuner.settings(pair[0], optimizer, optimizer.space(problem.lr_scale), trial, past)
        self.trials[pair].append(self.comparison.trial(pair, settings, trial))
        self.queue(self.trials[pair][-1])

    def follow(self, pair: Pair) -> None:
        """Queue what follows from the pair's trials that are in: its next trial, or its test cells."""
        while pair in self.untuned:
            trials = self.trials[pair]
            past = self.past(pair)
            if len(past) < len(trials):
                return
            if len(trials) < self.comparison.n_trials:
                self.queue_trial(pair, len(trials), past)
                continue
            del self.untuned[pair]
            problem, optimizer = self.specs(pair)
            best = optimizer.default
            if trials:
                self.tuner.finish(pair[0], optimizer, optimizer.space(problem.lr_scale), past)
                best = trials[best_trial(self.done[cell.key] for cells in trials for cell in cells)][0].settings
            final = self.comparison.final(pair, best)
            n_saved = self.comparison.n_final - len(final)
            self.left[pair] -= n_saved
            self.n_cells -= n_saved
            self.queue(final)

    def past(self, pair: Pair) -> list[tuple[Settings, float]]:
        """Return settings and loss of the pair's trials, as far as they are in without a gap."""
        past = []
        for cells in self.trials[pair]:
            records = [self.done[cell.key] for cell in cells if cell.key in self.done]
            if len(records) < len(cells):
                break
            past.append((cells[0].settings, next(iter(losses(records).values()))))
        return past

    def specs(self, pair: Pair) -> tuple[Problem, OptimizerSpec]:
        known = catalog(self.comparison.modules)
        return known.problems[pair[0]], known.optimizer(pair[1])

    def collect(self, finished: Iterable[Future[Record]]) -> None:
        for future in finished:
            job, error = self.futures[future], future.exception()
            if error:  # the worker died; an error of the cell itself is in its record
                why = str(error) if isinstance(error, WorkerError) else f"{type(error).__name__}: {error}"
                record = job.failed(why)
            else:
                record = future.result()
            with interrupts_held():  # what is written is counted
                self.append(record)
                del self.futures[future]
                self.take(job, record)

    def take(self, job: Job, record: Record) -> None:
        """Note a finished cell; one that failed is tried again as often as asked, and in the next run."""
        self.estimate.add(record)
        if record["outcome"] == "failed" and job.attempt <= self.execution.n_retries:
            self.pending.append(replace(job, attempt=job.attempt + 1))
        else:
            if job.folder and record["outcome"] != "failed":
                shutil.rmtree(job.folder, ignore_errors=True)
            pair = job.cell.problem, job.cell.optimizer
            self.left[pair] -= 1
            self.done[record["cell"]] = record
            self.follow(pair)
        self.progress(record, self.state())

    def state(self) -> State:
        n_left = sum(self.left.values())
        return State(self.n_cells - n_left, self.n_cells, self.estimate.left(self.left, self.n_parallel))
