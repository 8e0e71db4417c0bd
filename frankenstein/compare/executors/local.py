"""Worker processes of this machine."""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue
from typing import Any

from frankenstein.compare.executors import (
    ExecutorError,
    Job,
    WorkerError,
    hard_limit,
    one_line,
    run_job,
    settle,
    threads_for_children,
    timed_out,
)
from frankenstein.compare.interrupts import interrupts_held, start_tracker

STARTED = "started"  # a worker has the job: its time counts from now on
LEAVE_SECONDS = 3.0  # an idle worker may tidy up (locks that libraries made) before it is killed
LOOK_SECONDS = 1.0  # how often a worker that says nothing is looked at
ROUNDING = 1e-9  # 1 / 0.1 and the like

Task = tuple[Job, Future[dict[str, Any]]]


@contextmanager
def local_executor(n_workers: int | None, n_cpus: int, n_gpus: float) -> Iterator[LocalExecutor]:
    """Run jobs in processes of this machine; one that dies fails only its own job.

    Args:
        n_workers: Processes; None for as many as there are processors (and GPUs, where jobs ask for them).
        n_cpus: Threads of each job.
        n_gpus: GPUs of each job: 0, a fraction that shares one, or a whole number.

    Raises:
        ExecutorError: There are not enough GPUs.
    """
    places = [{"CUDA_VISIBLE_DEVICES": devices} for devices in gpu_slots(n_gpus, visible_gpus())] if n_gpus else None
    n_fitting = max(1, n_processors() // n_cpus)
    if places is None:
        places = [{}] * (n_workers or n_fitting)
    executor = LocalExecutor(places[: n_workers or n_fitting])
    with threads_for_children(n_cpus):
        try:
            yield executor
        finally:
            with interrupts_held():  # a second Ctrl-C waits until the workers are gone
                executor.stop()


class LocalExecutor:
    """Jobs stand in one queue; each place, a thread with a process of its own, takes the next."""

    def __init__(self, places: list[dict[str, str]]) -> None:
        self.n_parallel = len(places)
        self.tasks: SimpleQueue[Task | None] = SimpleQueue()
        self.places = [_Place(variables, self.tasks) for variables in places]
        with interrupts_held():  # threads and processes inherit that it is blocked: Ctrl-C is the parent's to handle
            start_tracker()
            for place in self.places:
                place.start()

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        """Return the future record of `job`; its exception is a WorkerError."""
        future: Future[dict[str, Any]] = Future()
        self.tasks.put((job, future))
        return future

    def stop(self) -> None:
        """End the processes, whatever they do."""
        try:
            while task := self.tasks.get_nowait():
                task[1].cancel()
        except Empty:
            pass
        for place in self.places:
            place.hang_up()
        for place in self.places:
            place.stop()
            self.tasks.put(None)
        for place in self.places:
            place.join()


class _Place(threading.Thread):
    """Runs one job at a time in a process, which it starts again when it has died."""

    def __init__(self, variables: dict[str, str], tasks: SimpleQueue[Task | None]) -> None:
        super().__init__(name="frankenstein-place", daemon=True)
        self.variables, self.tasks = variables, tasks
        self.lock = threading.Lock()  # a process is not started while they are being stopped
        self.is_stopped = False
        self.is_busy = False
        self.process: BaseProcess | None = None
        self.connection: Connection | None = None

    def run(self) -> None:
        while task := self.tasks.get():
            job, future = task
            if future.set_running_or_notify_cancel():
                try:
                    settle(future, self.answer(job))
                except Exception as error:
                    future.set_exception(error if isinstance(error, WorkerError) else WorkerError(one_line(error)))

    def answer(self, job: Job) -> dict[str, Any] | str:
        """Return what the process answers, or how it ended."""
        for _ in range(2):  # a worker that dies while it is idle costs no job
            answer = self.try_once(job)
            if answer is not None:
                return answer
        return "the worker processes end before they have the job"

    def try_once(self, job: Job) -> dict[str, Any] | str | None:
        """Return what the process answers, or how it ended; None if it had ended before it got the job."""
        process, connection = self.worker()
        has_started = False
        self.is_busy = True
        try:
            connection.send(job)
            answer = _receive(process, connection, None)
            if answer != STARTED:
                return answer
            has_started = True
            return _receive(process, connection, hard_limit(job))
        except TimeoutError:
            self.end()
            return timed_out(job)
        except (EOFError, OSError):  # the process is gone
            process.join()
            return how_it_ended(process.exitcode or 0) if has_started else None
        finally:
            self.is_busy = False

    def worker(self) -> tuple[BaseProcess, Connection]:
        """Return the process and its connection, started if there is none."""
        if self.process is not None and not self.process.is_alive():
            self.end()
        with self.lock:
            if self.is_stopped:
                raise WorkerError("stopped")
            if self.process is None or self.connection is None:
                context = multiprocessing.get_context("spawn")
                self.connection, other = context.Pipe()
                self.process = context.Process(target=_work, args=(other, self.variables), name="frankenstein-worker")
                self.process.start()
                other.close()
            return self.process, self.connection

    def end(self) -> None:
        """Kill the process; another is started for the next job."""
        with self.lock:
            if self.process is not None and self.connection is not None:
                self.process.kill()
                self.process.join()
                self.connection.close()
            self.process = self.connection = None

    def hang_up(self) -> None:
        """Tell an idle process to leave, and start no other."""
        with self.lock:
            self.is_stopped = True
            if self.connection is not None and not self.is_busy:
                self.connection.close()

    def stop(self) -> None:
        """End the process for good: one that is busy is killed."""
        with self.lock:
            self.is_stopped = True
            if self.process is not None:
                self.process.join(0.0 if self.is_busy else LEAVE_SECONDS)
                self.process.kill()
                self.process.join()


def _receive(process: BaseProcess, connection: Connection, seconds: float | None) -> Any:
    """Return the next message; TimeoutError if there is none in time, EOFError if the process has ended."""
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    while True:
        # A process that a cell forked keeps the pipes of a dead worker open: so look at the worker itself, too.
        multiprocessing.connection.wait(
            [connection, process.sentinel], max(0.0, min(LOOK_SECONDS, deadline - time.monotonic()))
        )
        is_alive = process.is_alive()
        if connection.poll():
            return connection.recv()
        if not is_alive:
            raise EOFError
        if time.monotonic() >= deadline:
            raise TimeoutError


def _work(connection: Connection, variables: dict[str, str]) -> None:
    """Answer jobs until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(variables)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        except Exception as error:  # a module of the job cannot be imported
            connection.send(one_line(error))
            continue
        connection.send(STARTED)
        answer = run_job(job)
        try:
            connection.send(answer)
        except OSError:  # the parent has just died
            return
        except Exception as error:  # no record of plain values
            connection.send(one_line(error))


def _leave_with_parent() -> None:
    """End this process with its parent, however busy it is."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def how_it_ended(exitcode: int) -> str:
    """Return what became of a process, from its exit code."""
    how = f"by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"with exit code {exitcode}"
    return f"the worker process was ended {how}" + (" (out of memory?)" if exitcode == -signal.SIGKILL else "")


def n_processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    n_gpus = torch.cuda.device_count()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(n_gpus)) if chosen is None else (name.strip() for name in chosen.split(","))
    return list(names)[:n_gpus]


def gpu_slots(n_gpus: float, gpus: list[str]) -> list[str]:
    """Share GPUs out among jobs.

    Args:
        n_gpus: GPUs of each job: a fraction that shares one, or a whole number.
        gpus: The names of those that are there.

    Returns:
        CUDA_VISIBLE_DEVICES of each job that runs at once; those that share a GPU come last, so that a few jobs have
        one each.

    Raises:
        ExecutorError: There are not enough, or a job asks for one and a half.

    >>> gpu_slots(0.5, ["0", "1"])
    ['0', '1', '0', '1']
    >>> gpu_slots(2, ["0", "1", "2", "3", "4"])
    ['0,1', '2,3']
    """
    if n_gpus <= 0 or (n_gpus > 1 and n_gpus != int(n_gpus)):
        raise ExecutorError(f"{n_gpus:g} GPUs for each run: give a fraction below 1 or a whole number")
    if n_gpus > len(gpus):
        there = f"{len(gpus)} of them" if gpus else "none"
        raise ExecutorError(f"each run asks for {n_gpus:g} GPU(s), and torch sees {there} here; ask for fewer")
    if n_gpus < 1:
        return gpus * int(1 / n_gpus + ROUNDING)
    size = int(n_gpus)
    return [",".join(gpus[first : first + size]) for first in range(0, len(gpus) - size + 1, size)]
