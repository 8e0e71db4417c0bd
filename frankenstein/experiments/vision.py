"""Classifying images: what the training loop is given, and the `run` of a problem made of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frankenstein.compare.problems.problem import Budget, Measurements, Split
from frankenstein.experiments.models import NETWORKS, NORMALISATION
from frankenstein.experiments.training import Look, Loop, Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from frankenstein.compare.optimizers import Factory
    from frankenstein.experiments.data import Augment, Readable

__all__ = ["Vision", "augmentation", "data_folder"]

SCORED_AT_ONCE = 250  # images; fewer than a batch of training would need memory for, since no gradient is kept
VALIDATION_SHARE = 5  # one image of so many is held out of the training images where a run is scored on validation
VALIDATION_SEED = 20250304


def data_folder() -> Path | None:
    """Return the data folder of `$FRANKENSTEIN_DATA`, which the driver sets for its workers."""
    found = os.environ.get("FRANKENSTEIN_DATA")
    return Path(found) if found else None


@dataclass(frozen=True)
class Vision:
    """The `run` of a problem: a network trained on a data set of images, scored by its accuracy on another part of it.

    Attributes:
        network: A name in `frankenstein.experiments.models.NETWORKS`.
        dataset: A name in `frankenstein.experiments.data.SOURCES`.
        size: Height and width of what the network sees, in pixels.
        crop: What is random in training: see `Augment`.
        norm: A name in `NORMALISATION`.
        batch_size: Images of an optimizer step.
        recipe: How it is trained.
        stored: Short side of the images before they are cropped; None: as they are.
        is_streamed: Whether images are decoded when they are read, because they do not fit into memory.
        n_train: So many training images at most, the first of a fixed order.
        n_test: Likewise, of test images.
        n_validation: Likewise, of the training images that are held out where settings are chosen.
    """

    network: str
    dataset: str
    size: int
    crop: str
    norm: str
    batch_size: int
    recipe: Recipe | Callable[[Budget], Recipe]
    stored: int | None = None
    is_streamed: bool = False
    n_train: int | None = None
    n_test: int | None = None
    n_validation: int | None = None

    def __call__(self, make_optimizer: Factory, seed: int, budget: Budget) -> Measurements:
        """Train once.

        Raises:
            ExperimentError: The data or the weights cannot be had.
        """
        return self.train(make_optimizer, seed, budget)

    def train(self, make_optimizer: Factory, seed: int, budget: Budget, look: Look | None = None) -> Measurements:
        """Train once; `look` is shown the model and the step at every evaluation.

        Raises:
            ExperimentError: As above.
        """
        loop = Loop(lambda seed, budget: Classification(self, seed, budget), self.recipe, look)
        measured = loop(make_optimizer, seed, budget)
        measured.data = self.describe()
        return measured

    def describe(self) -> list[dict[str, Any]]:
        """Return the name, size and hash of what it is trained and scored on; it is checked on the way."""
        return [self.images(split).describe() for split in ("train", "test")]

    def made(self) -> nn.Module:
        """Return a new network, as convolutions are fastest with it."""
        import torch

        network: Any = NETWORKS[self.network](self.images("train").n_classes)
        made: nn.Module = network.to(memory_format=torch.channels_last)
        return made

    def images(self, split: str) -> Subset:
        """Return the training or test images."""
        return _images(self, split, data_folder())


@cache
def _images(vision: Vision, split: str, folder: Path | None) -> Subset:
    import torch

    from frankenstein.experiments.data import images, order, stream

    if vision.is_streamed:
        found: Any = stream(vision.dataset, split, folder, size=vision.stored or vision.size)
    else:
        found = images(vision.dataset, split, folder, size=vision.stored)
    n = vision.n_train if split == "train" else vision.n_test
    rows = None if n is None or n >= len(found) else torch.sort(order(len(found), VALIDATION_SEED, 0)[:n]).values
    return Subset(found, rows)


class Subset:
    """Some of the images, or all of them."""

    def __init__(self, images: Any, rows: Tensor | None) -> None:
        self.whole, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.whole) if self.rows is None else len(self.rows)

    def read(self, picks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Return pixels and labels for each tensor of row numbers, in that order."""
        return self.whole.read(picks if self.rows is None else (self.rows[pick] for pick in picks))

    def describe(self) -> dict[str, Any]:
        """Return name, size and hash."""
        return {**self.whole.table.describe(), "n_used": len(self)}

    @property
    def n_classes(self) -> int:
        """Classes that the data set has."""
        n: int = self.whole.table.source.n_classes
        return n


class Classification:
    """One training at one seed; what the loop asks for."""

    def __init__(self, vision: Vision, seed: int, budget: Budget) -> None:
        train, test = vision.images("train"), vision.images("test")
        self.model = vision.made()
        self.seed, self.batch_size = seed, vision.batch_size
        self.train, self.scored = _parts(train, test, budget.split, vision.n_validation)
        self.n_batches = len(self.train) // self.batch_size
        self.augment, self.plain = (augmentation(vision, crop) for crop in (vision.crop, "centre"))

    def batches(self, epoch: int, first: int, rank: int, n_ranks: int) -> Iterator[tuple[Tensor, Tensor]]:
        from frankenstein.experiments.data import batches

        return batches(self.train, self.seed, epoch, self.batch_size, first, rank, n_ranks)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], seed: int) -> Tensor:
        from torch.nn.functional import cross_entropy

        pixels, labels = batch
        return cross_entropy(model(_for(self.augment(pixels, seed))), labels)

    def score(self, model: nn.Module) -> dict[str, float]:
        from torch.nn.functional import cross_entropy

        from frankenstein.experiments.data import in_order

        device = next(model.parameters()).device
        n_right, loss = 0, 0.0
        for pixels, labels in in_order(self.scored, SCORED_AT_ONCE):
            labels = labels.to(device)
            logits = model(_for(self.plain(pixels.to(device)))).float()
            n_right += int((logits.argmax(1) == labels).sum())
            loss += cross_entropy(logits, labels, reduction="sum").item()
        return {"score": n_right / len(self.scored), "test_loss": loss / len(self.scored)}


def _for(images: Tensor) -> Tensor:
    """Return the batch as convolutions are fastest with it."""
    import torch

    return images.contiguous(memory_format=torch.channels_last)


def augmentation(vision: Vision, crop: Any) -> Augment:
    """Return what makes pixels into what the network is trained on, or with the crop "centre", scored on."""
    from frankenstein.experiments.data import Augment

    mean, std = NORMALISATION[vision.norm]
    return Augment(crop, vision.size, mean, std)


def _parts(train: Subset, test: Subset, split: Split, n_validation: int | None) -> tuple[Readable, Readable]:
    """Return what is trained and what is scored on: while settings are chosen, both are training images."""
    if split == "test":
        return train, test
    from frankenstein.experiments.data import order

    rows = order(len(train), VALIDATION_SEED, 1)
    n_held = len(train) // VALIDATION_SHARE
    return Subset(train, rows[n_held:]), Subset(train, rows[:n_held][:n_validation])
