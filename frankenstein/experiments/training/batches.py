"""The batches of a training: in exact order, one ahead of the loop, cut into parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from typing import Any

import torch
from accelerate.utils import find_batch_size, send_to_device, slice_tensors

from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.training.loop import Task


def shares(task: Task, first: int, n_steps: int, rank: int, n_ranks: int) -> Iterator[Any]:
    """Yield this process's share of the batch of each optimizer step from `first` to `n_steps`, counted from 0.

    Raises:
        ExperimentError: An epoch has fewer batches than it should.
    """
    if task.n_batches < 1:
        raise ExperimentError(
            f"an epoch has no batch of {task.batch_size} samples; choose a smaller batch or more samples"
        )
    step = first
    for epoch in count(first // task.n_batches):
        within = step - epoch * task.n_batches
        n_wanted = min(n_steps - step, task.n_batches - within)
        if n_wanted <= 0:
            return
        n_given = 0
        for batch in islice(task.batches(epoch, within, rank, n_ranks), n_wanted):
            n_given += 1
            yield batch
        if n_given < n_wanted:
            raise ExperimentError(
                f"epoch {epoch} gave {n_given} batches from number {within} on; its task says {task.n_batches} in all"
            )
        step += n_wanted


def parts(batch: Any, n_parts: int) -> list[Any]:
    """Return the batch cut into equal parts along the first dimension of its tensors: then their mean is its mean.

    Raises:
        ExperimentError: It cannot be cut evenly.
    """
    if n_parts == 1:
        return [batch]
    n_samples = find_batch_size(batch)
    if n_samples is None or n_samples % n_parts:
        raise ExperimentError(
            f"a process's share of a batch has {n_samples} samples, which cannot be accumulated in {n_parts} equal "
            "parts; change the batch size or accumulate"
        )
    size = n_samples // n_parts
    return [slice_tensors(batch, slice(i * size, (i + 1) * size)) for i in range(n_parts)]


class Ahead:
    """An iterator over batches on the device; the next one is made in a thread while the loop computes.

    Attributes:
        waited: Seconds that the loop waited for the latest batch.
    """

    def __init__(self, batches: Iterator[Any], device: torch.device) -> None:
        self.batches, self.device = batches, device
        self.waited = 0.0
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def __enter__(self) -> Ahead:
        self.next: Future[Any] = self.thread.submit(self._make)
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(cancel_futures=True)

    def take(self) -> Any:
        """Return the next batch.

        Raises:
            Exception: What making it raised; StopIteration becomes RuntimeError.
        """
        began = time.perf_counter()
        batch = self.next.result()
        self.next = self.thread.submit(self._make)
        self.waited = time.perf_counter() - began
        return batch

    def _make(self) -> Any:
        batch = next(self.batches, None)
        return send_to_device(batch, self.device)
