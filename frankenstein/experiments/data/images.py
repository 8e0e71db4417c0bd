"""A split of images in memory, decoded once on a machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache as kept_in_process
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frankenstein.experiments.data import cache
from frankenstein.experiments.data.decode import decode, dimensions, records
from frankenstein.experiments.data.sources import DataError
from frankenstein.experiments.data.tables import Table, load

__all__ = ["Images", "images", "labels_of"]

BLOCK = 128  # images that a thread takes at once: handed over one by one, small ones take twice as long
DECODING = 1  # raised when decoding gives other pixels, so that no array of an older version is used


@dataclass(frozen=True)
class Images:
    """A split of images in memory.

    Attributes:
        pixels: Shape (n, 3, height, width), uint8.
        labels: Shape (n,), int64.
        table: Where they come from.
    """

    pixels: Tensor
    labels: Tensor
    table: Table

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, picks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Return pixels and labels for each tensor of row numbers, in that order."""
        for rows in picks:
            yield self.pixels[rows], self.labels[rows]


@kept_in_process
def images(name: str, split: str, folder: Path | None, *, size: int | None = None) -> Images:
    """Return a split of a data set that fits into memory, decoded.

    Decoding is done once on a machine: the pixels are kept in the cache folder (`$FRANKENSTEIN_CACHE`, else
    `~/.cache/frankenstein`) and mapped from there; all runs in a process share them.

    Args:
        name: One of `SOURCES`.
        split: "train" or "test".
        folder: The data folder, or None.
        size: The short side is resized to so many pixels and the middle kept; None: all have the same size already.

    Raises:
        DataError: The data are missing or damaged, images differ in size, or the cache has no room.
    """
    table = load(name, split, folder)
    if "image" not in table.source.columns:
        raise DataError(f"{name} has no images; it has: {', '.join(table.source.columns)}")
    height, width = dimensions(table, 0) if size is None else (size, size)
    path = cache.folder() / "images" / f"{name}-{split}-{table.sha256[:16]}-{height}x{width}-{DECODING}.npy"
    pixels = cache.kept_array(path, (len(table), 3, height, width), lambda array: _decode_all(table, size, array))
    return Images(torch.from_numpy(pixels), labels_of(table), table)


def labels_of(table: Table) -> Tensor:
    """Return the labels, shape (n,), int64."""
    return torch.from_numpy(table.column("label").to_numpy().astype(np.int64))


def _decode_all(table: Table, size: int | None, pixels: NDArray[np.uint8]) -> None:
    def block(first: int) -> None:
        for row, record in enumerate(records(table, first, BLOCK), first):
            found = decode(table, row, record, size)
            if found.shape != pixels.shape[1:]:
                this, that = (f"{shape[-1]} x {shape[-2]}" for shape in (found.shape, pixels.shape))
                raise DataError(f"{table.where(row)}: the image has {this} pixels and the first has {that}")
            pixels[row] = found

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(block, range(0, len(table), BLOCK)):
            pass  # an exception comes out here, that of the first damaged row
