"""A split of images that is too large for memory, decoded by worker processes batch by batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frankenstein.experiments.data.decode import decode, records
from frankenstein.experiments.data.images import labels_of
from frankenstein.experiments.data.sources import DataError
from frankenstein.experiments.data.tables import Table, load

__all__ = ["ImageStream", "stream"]


@dataclass(frozen=True)
class ImageStream:
    """A split of images on the disk; it is read as `Images` is.

    Attributes:
        labels: Shape (n,), int64.
        table: Where they come from.
        size: Of the images: the short side is resized to it and the middle kept.
        n_workers: Processes that decode; 0: this one does.
    """

    labels: Tensor
    table: Table
    size: int
    n_workers: int

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, picks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Return pixels and labels for each tensor of row numbers, in that order.

        Raises:
            DataError: An image is damaged.
        """
        loader = DataLoader(
            _Decoded(self),
            batch_sampler=(rows.tolist() for rows in picks),
            num_workers=self.n_workers,
            collate_fn=_as_is,
            # Its own: a loader draws a seed, and a run that goes on after a kill must not draw once more than one
            # that was not killed.
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


def stream(name: str, split: str, folder: Path | None, *, size: int, n_workers: int | None = None) -> ImageStream:
    """Return a split of a data set of any size; images are decoded when they are read.

    Args:
        name: One of `SOURCES`.
        split: "train" or "test".
        folder: The data folder, or None.
        size: The short side is resized to so many pixels and the middle kept. Random crops are then taken from that
            square (`Augment`), not from the whole of the file's image.
        n_workers: Processes that decode; None: one for each processor.

    Raises:
        DataError: The data are missing or not what they should be.
    """
    table = load(name, split, folder)
    if "image" not in table.source.columns:
        raise DataError(f"{name} has no images; it has: {', '.join(table.source.columns)}")
    return ImageStream(labels_of(table), table, size, (os.cpu_count() or 1) if n_workers is None else n_workers)


_Batch = tuple[Tensor, Tensor]


class _Decoded(Dataset[_Batch | DataError]):
    """Batches by their row numbers, for a loader's workers.

    A damaged image is returned as the error: raised in a worker, it would reach the user as a traceback.
    """

    def __init__(self, stream: ImageStream) -> None:
        self.stream = stream

    def __getitems__(self, rows: list[int]) -> _Batch | DataError:
        table, size = self.stream.table, self.stream.size
        try:
            pixels = [decode(table, row, records(table, row, 1)[0], size) for row in rows]
        except DataError as error:
            return error
        return torch.from_numpy(np.stack(pixels)), self.stream.labels[rows]


def _as_is(batch: Any) -> Any:
    return batch
