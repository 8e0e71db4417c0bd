"""The jobs of a run in several processes, each with its own calculator. What comes out is what one process gives."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from frankenstein.compare.executors import threads_for_children
from frankenstein.compare.interrupts import interrupts_held, start_tracker
from frankenstein.structures.calculators import CalculatorError, load
from frankenstein.structures.running import Ended, Job, Outcome, Round, Task, nothing_computed, run

TELL_SECONDS = 0.1  # how often a worker tells how far it is
LOCK = "workers.lock"

Loading = tuple[str, str, int]
"""The arguments of `calculators.load`."""


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    jobs: dict[tuple[str, str], Job] = field(default_factory=dict)  # that it has and has not ended


def run_in_processes(
    task: Task, loading: Loading, jobs: deque[Job], n_workers: int, ended: Ended, after_round: Round
) -> None:
    """Work in `n_workers` processes until there are no jobs.

    A process that dies fails the jobs it had; another takes its place.

    Args:
        task: What to do.
        loading: What makes the calculator, in each process.
        jobs: Taken from its left end.
        n_workers: Processes.
        ended: Called with the outcome of every job.
        after_round: Called with the number of calls just made and the largest force where they were made.

    Raises:
        OSError: A file cannot be written.
        CalculatorError: No process could make the calculator.
    """
    n_workers = min(n_workers, len(jobs))
    n_threads = max(1, (os.cpu_count() or 1) // n_workers)
    workers: list[_Worker] = []
    try:
        for _ in range(n_workers):
            workers.append(_start(task, loading, n_threads))
        while workers:
            _serve(workers, jobs, ended, after_round, lambda: _start(task, loading, n_threads))
    finally:
        with interrupts_held():
            for worker in workers:
                worker.process.kill()  # the journals are whole, or are mended
                worker.process.join()


def _serve(
    workers: list[_Worker], jobs: deque[Job], ended: Ended, after_round: Round, start: Callable[[], _Worker]
) -> None:
    """Answer those that have something to say."""
    ready = multiprocessing.connection.wait([worker.connection for worker in workers])
    for worker in [worker for worker in workers if worker.connection in ready]:
        try:
            kind, *content = worker.connection.recv()
            if kind == "next":
                worker.connection.send(_handed_out(worker, jobs))
        except (EOFError, OSError):  # its end of the pipe is closed: it has ended, one way or another
            kind, content = "gone", ["a worker process ended before it had anything to do"]
        if kind == "round":
            after_round(*content)
        elif kind == "ended":
            del worker.jobs[content[0]["name"], content[0]["optimizer"]]
            ended(*content)
        elif kind == "error":
            raise OSError(*content)
        elif kind in ("gone", "unable"):
            workers.remove(worker)
            worker.process.join()
            for job in worker.jobs.values():
                ended(_lost(job, worker.process.exitcode or 0))
            if worker.jobs and jobs:
                workers.append(start())
            elif jobs and not workers:
                raise CalculatorError(*content)


def _handed_out(worker: _Worker, jobs: deque[Job]) -> Job | None:
    """Take the next job for this worker; None if there are none."""
    if not jobs:
        return None
    job = jobs.popleft()
    worker.jobs[job.name, job.method] = job
    return job


def _lost(job: Job, exitcode: int) -> Outcome:
    how = signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
    more = " (out of memory?)" if exitcode == -signal.SIGKILL else ""
    return nothing_computed(job, f"the worker process ended with {how}{more}")


def _start(task: Task, loading: Loading, n_threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    with (
        threads_for_children(n_threads),
        interrupts_held(),
    ):  # it inherits that it is blocked: Ctrl-C is the parent's to handle
        start_tracker()
        connection, other = context.Pipe()
        process = context.Process(target=_work, args=(other, task, loading), name="frankenstein-relax")
        process.start()
        other.close()
    return _Worker(process, connection)


def _work(connection: Connection, task: Task, loading: Loading) -> None:
    """Ask for jobs and do them until there are none. The process's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    told_at, n_calls = time.monotonic(), 0

    def next_job() -> Job | None:
        connection.send(("next",))
        job: Job | None = connection.recv()
        return job

    def after_round(n: int, largest: float) -> None:
        nonlocal told_at, n_calls
        n_calls += n
        if time.monotonic() - told_at > TELL_SECONDS:
            connection.send(("round", n_calls, largest))
            told_at, n_calls = time.monotonic(), 0

    def ended(outcome: Outcome) -> None:
        connection.send(("ended", outcome))

    try:
        with in_use(task.folder):
            run(task, load(*loading), next_job, ended, after_round)
        connection.send(("round", n_calls, 0.0))
    except (EOFError, BrokenPipeError):  # the parent has gone
        pass
    except CalculatorError as error:
        connection.send(("unable", str(error)))
    except OSError as error:
        connection.send(("error", error.errno, error.strerror, error.filename))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Hold the folder as one of its workers does."""
    with open(folder / LOCK, "ab") as file:
        _flock(file, "LOCK_SH")
        yield


def wait_for_workers(folder: Path) -> None:
    """Wait until the workers of a run that was killed have noticed: they may be in the middle of a call."""
    with open(folder / LOCK, "ab") as file:
        _flock(file, "LOCK_EX")


def _flock(file: Any, how: str) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(file, getattr(fcntl, how))
