"""The order in which images are trained on: from the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from frankenstein.experiments.data.sources import DataError

__all__ = ["Readable", "batches", "in_order", "order"]


class Readable(Protocol):
    """Images that are read by row numbers: `Images`, `ImageStream`."""

    def __len__(self) -> int: ...

    def read(self, picks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Return pixels, uint8, and labels for each tensor of row numbers, in that order."""


def order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of `n` rows that an epoch goes through, shape (n,), int64."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))


def batches(
    images: Readable, seed: int, epoch: int, batch_size: int, first: int = 0, rank: int = 0, n_ranks: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return one process's share of an epoch's batches; a short last batch is left out.

    Args:
        images: To train on.
        seed: Of the run.
        epoch: From 0.
        batch_size: Images of a batch, over all processes.
        first: Number of the batch to begin with.
        rank: Of this process; it takes the `rank`-th part of every batch.
        n_ranks: Processes.

    Returns:
        Pixels, shape (batch_size / n_ranks, 3, height, width), uint8, and labels, int64.

    Raises:
        DataError: There are fewer images than a batch has, or the processes cannot share it evenly.
    """
    if not 1 <= batch_size <= len(images):
        raise DataError(f"a batch has {batch_size} images and the split {len(images)}: choose a smaller batch")
    if batch_size % n_ranks:
        raise DataError(f"{n_ranks} processes cannot share a batch of {batch_size} evenly: choose a multiple")
    rows, share = order(len(images), seed, epoch), batch_size // n_ranks
    begins = (number * batch_size + rank * share for number in range(first, len(images) // batch_size))
    return images.read(rows[begin : begin + share] for begin in begins)


def in_order(images: Readable, batch_size: int, rank: int = 0, n_ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Return all images in their order, to be scored on; the last batch may be short.

    Args:
        images: To score on.
        batch_size: Images of a batch of this process.
        rank: Of this process; it takes every `n_ranks`-th image.
        n_ranks: Processes.
    """
    return images.read(torch.arange(rank, len(images), n_ranks).split(batch_size))
