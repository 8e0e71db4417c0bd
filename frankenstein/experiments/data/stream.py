"""A split of images that is too large for memory, decoded batch by batch while the last ones are trained on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frankenstein.experiments.data.decode import decode, records
from frankenstein.experiments.data.images import labels_of
from frankenstein.experiments.data.sources import DataError
from frankenstein.experiments.data.tables import Table, load

__all__ = ["ImageStream", "stream"]

AHEAD = 2  # batches that are decoded while one is trained on
PART = 8  # images that a thread takes at once


@dataclass(frozen=True)
class ImageStream:
    """A split of images on the disk; it is read as `Images` is.

    Images are decoded by threads: decoding and resizing do not hold Python's lock, and threads need neither a fork of
    a process that has threads nor a copy of every batch from one process to another.

    Attributes:
        labels: Shape (n,), int64.
        table: Where they come from.
        size: Of the images: the short side is resized to it and the middle kept.
        n_threads: Threads that decode.
    """

    labels: Tensor
    table: Table
    size: int
    n_threads: int

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, picks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Return pixels and labels for each tensor of row numbers, in that order.

        Raises:
            DataError: An image is damaged.
        """
        under_way: deque[tuple[Tensor, list[Future[NDArray[np.uint8]]]]] = deque()
        threads = ThreadPoolExecutor(self.n_threads, thread_name_prefix="decode")
        try:
            for rows in picks:
                under_way.append((rows, [threads.submit(self._decode, part) for part in rows.split(PART)]))
                if len(under_way) > AHEAD:
                    yield self._batch(*under_way.popleft())
            while under_way:
                yield self._batch(*under_way.popleft())
        finally:
            threads.shutdown(cancel_futures=True)

    def _decode(self, rows: Tensor) -> NDArray[np.uint8]:
        found = (decode(self.table, row, records(self.table, row, 1)[0], self.size) for row in rows.tolist())
        return np.stack(list(found))

    def _batch(self, rows: Tensor, parts: list[Future[Any]]) -> tuple[Tensor, Tensor]:
        pixels = np.concatenate([part.result() for part in parts])
        return torch.from_numpy(pixels), self.labels[rows]


def stream(name: str, split: str, folder: Path | None, *, size: int, n_threads: int | None = None) -> ImageStream:
    """Return a split of a data set of any size; images are decoded when they are read.

    Args:
        name: One of `SOURCES`.
        split: "train" or "test".
        folder: The data folder, or None.
        size: The short side is resized to so many pixels and the middle kept. Random crops are then taken from that
            square (`Augment`), not from the whole of the file's image.
        n_threads: Threads that decode; None: all processors', shared with the other processes that `torchrun` started.

    Raises:
        DataError: The data are missing or not what they should be.
    """
    table = load(name, split, folder)
    if "image" not in table.source.columns:
        raise DataError(f"{name} has no images; it has: {', '.join(table.source.columns)}")
    n_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return ImageStream(labels_of(table), table, size, n_threads or max(1, (os.cpu_count() or 1) // n_processes))
