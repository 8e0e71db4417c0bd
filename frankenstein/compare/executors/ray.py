"""Tasks of a Ray cluster.

What the nodes share: the same installation of this package, and the user's modules at the same paths. Ray decides which
node runs a job; when a node is lost, the jobs that it was running are lost and the others go on.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from types import ModuleType
from typing import Any

from frankenstein.compare.executors import (
    ExecutorError,
    Job,
    JobQueue,
    WorkerError,
    hard_limit,
    one_line,
    run_job,
    settle,
    threads_for_children,
    timed_out,
)
from frankenstein.compare.executors.local import LOOK_SECONDS, ROUNDING, n_processors
from frankenstein.compare.interrupts import interrupts_held

# Ray prints what its nodes report between the lines of the driver; the record of a failed run says it already.
QUIET = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1", "RAY_ENABLE_AUTO_CONNECT": "0"}

SILENT: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}

CONNECT_SECONDS = 10.0


@contextmanager
def ray_executor(n_workers: int | None, address: str | None, n_cpus: int, n_gpus: float) -> Iterator[RayExecutor]:
    """Run jobs as tasks of a Ray cluster.

    Args:
        n_workers: Jobs that run at once; None for as many as the cluster holds.
        address: The cluster: "auto" for the one of this machine, "host:port", or "ray://host:port". None starts one
            on this machine, for as long as the executor lives.
        n_cpus: Threads of each job.
        n_gpus: GPUs of each job.

    Raises:
        ExecutorError: Ray is not installed, the cluster does not answer, or no node of it can hold a job.
    """
    ray = _import_ray()
    executor = None
    with threads_for_children(n_cpus), _polite_kill_kept():
        try:
            if address:
                _connect(ray, address)
            else:
                _start(ray, (n_workers or max(1, n_processors() // n_cpus)) * n_cpus)
            executor = RayExecutor(ray, n_workers, n_cpus, n_gpus)
            if executor.n_fitting() == 0:
                where = f"the Ray cluster at {address}" if address else "a Ray cluster of this machine"
                what = f"the {n_cpus} processor(s) and {n_gpus:g} GPU(s) that each run asks for"
                raise ExecutorError(f"no node of {where} has {what}; ask for fewer")
            yield executor
        finally:
            with interrupts_held():  # a second Ctrl-C waits until the workers are gone
                if executor is not None:
                    executor.queue.close()  # before: a job that is started later would start Ray again
                ray.shutdown()


class RayExecutor:
    """Hands jobs to Ray, and what comes back to their futures."""

    def __init__(self, ray: ModuleType, n_workers: int | None, n_cpus: int, n_gpus: float) -> None:
        self.ray, self.n_workers, self.n_cpus, self.n_gpus = ray, n_workers, n_cpus, n_gpus
        self.run = ray.remote(max_retries=0)(_run)
        self.queue = JobQueue(n_workers, self._start)
        self.finished: SimpleQueue[tuple[Job, float, Future[Any], Future[dict[str, Any]]]] = SimpleQueue()
        threading.Thread(target=self._settle, name="frankenstein-ray", daemon=True).start()

    @property
    def n_parallel(self) -> int:
        """Return how many jobs fit on the nodes that are there now, at least one: jobs may wait for a node."""
        return min(max(1, self.n_fitting()), self.n_workers or self.n_fitting())

    def n_fitting(self) -> int:
        """Return how many jobs fit on the nodes that are there now."""
        return sum(
            _n_fitting(node["Resources"], self.n_cpus, self.n_gpus) for node in self.ray.nodes() if node["Alive"]
        )

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        """Return the future record of `job`; its exception is a WorkerError."""
        with interrupts_held():
            return self.queue.submit(job)

    def _start(self, job: Job, future: Future[dict[str, Any]]) -> None:
        began = time.monotonic()
        task = self.run.options(num_cpus=job.n_cpus, num_gpus=job.n_gpus).remote(job, hard_limit(job))
        # Ray calls back in a thread of its own, where nothing of Ray may be called.
        task.future().add_done_callback(lambda answer: self.finished.put((job, began, answer, future)))

    def _settle(self) -> None:
        while True:
            job, began, answer, future = self.finished.get()
            error = answer.exception()
            if error is None:
                settle(future, answer.result())
            else:
                future.set_exception(WorkerError(_why(self.ray, error, job, time.monotonic() - began)))


def _run(job: Job, kill_after: float | None) -> dict[str, Any] | str:
    """Run a job on its node."""
    is_done = threading.Event()
    threading.Thread(target=_leave_with_node, args=(os.getppid(), is_done), daemon=True).start()
    try:
        return run_job(job, kill_after)
    finally:
        is_done.set()


def _leave_with_node(node: int, is_done: threading.Event) -> None:
    """End this process with the node process that started it; Ray itself lets it work on, for a minute or for good."""
    while not is_done.wait(LOOK_SECONDS):
        if os.getppid() != node:
            os._exit(1)


def _n_fitting(resources: dict[str, float], n_cpus: int, n_gpus: float) -> int:
    """Return how many jobs fit on a node."""
    n_jobs = int(resources.get("CPU", 0) / n_cpus)
    if not n_gpus:
        return n_jobs
    gpus = int(resources.get("GPU", 0))
    return min(n_jobs, gpus * int(1 / n_gpus + ROUNDING) if n_gpus < 1 else int(gpus / n_gpus))


def _why(ray: ModuleType, error: BaseException, job: Job, seconds: float) -> str:
    """Return in one line why Ray has no record of a job, `seconds` after it was handed over."""
    limit = hard_limit(job)
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        # The worker ends itself at the limit, and Ray does not say how it ended; what lived that long was ended by it.
        # Only a job that waited for a place that long and then crashed is told wrong.
        if limit is not None and seconds >= limit:
            return timed_out(job)
        return "the worker process died (killed, or out of memory?)"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "the worker process was ended by Ray: its node ran out of memory"
    if isinstance(error, ray.exceptions.NodeDiedError):
        return "the node that ran it was lost"
    if isinstance(error, ray.exceptions.TaskCancelledError):
        return "cancelled"
    return one_line(getattr(error, "cause", None) or error)


def _import_ray() -> ModuleType:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)  # read when Ray is imported, and by the processes that it starts
    try:
        import ray
    except ImportError:
        raise ExecutorError("Ray is not installed; pip install '.[ray]' (in the checkout)") from None
    if ray.is_initialized():
        raise ExecutorError("this process is connected to a Ray cluster already; call ray.shutdown() first")
    return ray


def _start(ray: ModuleType, n_processors: int) -> None:
    try:
        ray.init("local", num_cpus=n_processors, include_dashboard=False, **SILENT)
    except Exception as error:
        raise ExecutorError(f"Ray cannot be started on this machine: {one_line(error)}") from None


def _connect(ray: ModuleType, address: str) -> None:
    hint = "start one (ray start --head), or leave the address out to run on this machine"
    try:
        host, separator, port = address.removeprefix("ray://").rpartition(":")
        if separator:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address, **SILENT)
    except Exception as error:
        raise ExecutorError(f"no Ray cluster answers at {address} ({one_line(error)}); {hint}") from None


@contextmanager
def _polite_kill_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces when it connects."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
