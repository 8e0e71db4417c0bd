"""This process itself; under `torchrun`, all of its processes at once, which share each run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from frankenstein.compare.executors import ExecutorError, Job

__all__ = ["follow", "here", "n_processes", "rank"]


def n_processes() -> int:
    """Return how many processes share a run: 1, or those that `torchrun` has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return which of them this is, from 0: that one keeps the records."""
    return int(os.environ.get("RANK", "0"))


class Here:
    """Runs a job when it is submitted."""

    n_parallel = 1

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        """Return the record of `job`.

        Raises:
            ExecutorError: It failed, and other processes wait for it: they cannot go on.
        """
        future: Future[dict[str, Any]] = Future()
        _tell(job)
        future.set_result(_run(job))
        return future


@contextmanager
def here() -> Iterator[Here]:
    """Run jobs in this process, the first of those that share them."""
    yield Here()
    _tell(None)
    _part()


def follow() -> None:
    """Run what the first process runs, until it has ended; for the other processes.

    Raises:
        ExecutorError: A run has failed here.
    """
    while (job := _tell(None)) is not None:
        _run(job)
    _part()


def _run(job: Job) -> dict[str, Any]:
    record = job.run()
    if n_processes() > 1 and record["outcome"] == "failed":
        raise ExecutorError(f"a run that {n_processes()} processes share has failed: {record['reason']}")
    return record


def _tell(job: Job | None) -> Job | None:
    """Return the first process's job, on all of them."""
    if n_processes() == 1:
        return job
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available())  # without it Accelerate takes no notice of the others on CPUs
    said = [job]
    broadcast_object_list(said)
    return said[0]


def _part() -> None:
    """End what connects the processes."""
    if n_processes() > 1:
        from torch import distributed

        distributed.destroy_process_group()
