"""Where cells run: processes of this machine, a Ray cluster, or Slurm.

    local.py   worker processes of this machine, GPUs handed out in slots
    ray.py     tasks of a Ray cluster, or of one that is started here
    slurm.py   one Slurm job for each cell

An executor takes jobs and gives futures. It is entered with `with`: leaving stops the workers and waits for nothing.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol

# A job ends itself at its timeout; one that cannot, since it hangs in compiled code, is ended this much later.
GRACE_SECONDS = 10.0

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
STDERR = 2


class Job(Protocol):
    """One cell to run; picklable."""

    @property
    def key(self) -> str:
        """Name of the cell; the same cell always has the same."""

    @property
    def n_cpus(self) -> int:
        """Threads that it may use."""

    @property
    def n_gpus(self) -> float:
        """GPUs that it asks for: 0, a fraction that shares one, or a whole number."""

    @property
    def timeout(self) -> float | None:
        """Seconds that it may take; `run` sees to it, and the executor where `run` hangs. None: no limit."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The user's modules, files or dotted names; `run` imports them."""

    def run(self) -> dict[str, Any]:
        """Run the cell and return its record; an error of the cell itself is in the record."""


class Executor(Protocol):
    """Runs jobs, many at once."""

    @property
    def n_parallel(self) -> int:
        """Return how many jobs can run at once, as of now."""

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        """Return the future record of `job`; its exception is a WorkerError."""


class WorkerError(Exception):
    """A job ended without a record: its process was killed, ran out of memory, hung; the message is one line."""


class ExecutorError(Exception):
    """Jobs cannot be run as asked; the message is one line for the user."""


class JobQueue:
    """Starts jobs in the order they come, at most `n_places` at once; None for no limit."""

    def __init__(self, n_places: int | None, start: Callable[[Job, Future[dict[str, Any]]], None]) -> None:
        self.n_free, self.start = n_places, start
        self.waiting: deque[tuple[Job, Future[dict[str, Any]]]] = deque()
        self.is_closed = False
        self.lock = threading.Lock()

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        """Start `job`, or keep it until one that was started is done."""
        future: Future[dict[str, Any]] = Future()
        with self.lock:
            if self.is_closed:
                future.cancel()
                return future
            if self.n_free == 0:
                self.waiting.append((job, future))
                return future
            if self.n_free is not None:
                self.n_free -= 1
        self._start(job, future)
        return future

    def close(self) -> None:
        """Cancel the jobs that wait; no other is started any more."""
        with self.lock:
            self.is_closed = True
            waiting = list(self.waiting)
            self.waiting.clear()
        for _, future in waiting:
            future.cancel()

    def _start(self, job: Job, future: Future[dict[str, Any]]) -> None:
        future.set_running_or_notify_cancel()
        future.add_done_callback(self._next)
        self.start(job, future)

    def _next(self, _: Future[dict[str, Any]]) -> None:
        with self.lock:
            if not self.waiting:
                if self.n_free is not None:
                    self.n_free += 1
                return
            job, future = self.waiting.popleft()
        self._start(job, future)


def hard_limit(job: Job) -> float | None:
    """Return the seconds after which a job is ended from outside."""
    return None if job.timeout is None else job.timeout + GRACE_SECONDS


def timed_out(job: Job) -> str:
    """Return why a job that was ended from outside has no record."""
    return f"timed out after {job.timeout:g} s; it did not stop by itself and was killed"


def run_job(job: Job, kill_after: float | None = None) -> dict[str, Any] | str:
    """Run a job in a worker process.

    Args:
        job: The job.
        kill_after: Seconds until the process is ended, whatever it does; None for no limit.

    Returns:
        The record, or one line that says why there is none.
    """
    _limit_threads(job.n_cpus)
    if kill_after is not None:  # needs no Python to run: ends a process that hangs in compiled code as well
        faulthandler.dump_traceback_later(kill_after, exit=True, file=STDERR)
    try:
        return job.run()
    except BaseException as error:  # SystemExit as well: a worker survives the code that it runs
        return one_line(error)
    finally:
        if kill_after is not None:
            faulthandler.cancel_dump_traceback_later()


def settle(future: Future[dict[str, Any]], answer: dict[str, Any] | str) -> None:
    """Give a future what `run_job` returned."""
    if isinstance(answer, str):
        future.set_exception(WorkerError(answer))
    else:
        future.set_result(answer)


def one_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _limit_threads(n_cpus: int) -> None:
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(n_cpus)))
    if "torch" in sys.modules:  # else it reads OMP_NUM_THREADS when it is imported
        sys.modules["torch"].set_num_threads(n_cpus)


@contextmanager
def threads_for_children(n_cpus: int) -> Iterator[None]:
    """Let the processes started meanwhile use `n_cpus` threads each; libraries read it when they are loaded."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(n_cpus)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
