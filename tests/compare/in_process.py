"""An executor for tests: runs each job in this process, when it is submitted."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import contextmanager

from frankenstein.compare.engine import Execution


class InProcess:
    n_parallel = 1

    def __init__(self, run):
        self.run = run
        self.n_run = 0

    def submit(self, job):
        future = Future()
        self.n_run += 1
        try:
            future.set_result(self.run(job))
        except Exception as error:  # a worker that dies
            future.set_exception(error)
        return future


def in_process(run=lambda job: job.run(), **options):
    """Return an execution, and the executor that counts its jobs."""
    executor = InProcess(run)

    @contextmanager
    def enter():
        yield executor

    return Execution(enter, **options), executor
