"""Few-shot learning on drawn characters: tasks, the meta-training, its score, and the `run` of a problem made of it.

A task is to tell `n_ways` characters apart after `n_shots` drawings of each (the support), judged on other drawings
(the query).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from frankenstein.compare.executors.here import n_processes
from frankenstein.compare.optimizers import Factory
from frankenstein.compare.problems.problem import Budget, Measurements
from frankenstein.experiments.data import Images, images
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.maml import ConvNet, Maml, labels_of
from frankenstein.experiments.training import Loop, Recipe
from frankenstein.experiments.vision import data_folder

__all__ = ["FewShot", "draw"]

N_TURNS = 4  # a character turned by a multiple of 90 degrees is a class of its own, to train on
TASKS_AT_ONCE = 16  # on a process; 20 ways of 5 + 15 drawings with 64 filters take about 1 GB for each
SCORED_AT_ONCE = 10
SCORING_SEED = 20250304
HELD_OUT = 5  # one alphabet of so many is held out where a run is scored on validation
Z_95 = 1.96  # standard errors of a mean that a 95 % interval has to either side


@dataclass(frozen=True)
class FewShot:
    """The `run` of a problem: MAML on tasks drawn from the background alphabets, scored on held-out alphabets.

    The score is the mean accuracy over the queries of `n_scored` tasks, the same for every run; `half_width` is that of
    its 95 % interval over tasks. Classes are turned by multiples of 90 degrees in training only.

    Attributes:
        n_ways: Characters of a task.
        n_shots: Drawings of each that the inner loop sees.
        n_queries: Drawings of each that the outer loss is taken on.
        meta_batch: Tasks of an optimizer step.
        n_filters: Of each convolution.
        inner_lr: Learning rate of the inner loop.
        n_inner: Steps of the inner loop, in training and in scoring (Finn et al. have 1 and 3 at five ways).
        n_batches: Optimizer steps that are called an epoch.
        n_scored: Tasks of the score.
        n_scored_queries: Drawings of each character that a task of the score is judged on.
        is_first_order: Whether the inner gradient is taken as constant in the outer one (first-order MAML).
        dataset: A name in `frankenstein.experiments.data.SOURCES`.
    """

    n_ways: int
    n_shots: int
    n_queries: int = 15
    meta_batch: int = 64
    n_filters: int = 64
    inner_lr: float = 0.1
    n_inner: tuple[int, int] = (1, 1)
    n_batches: int = 100
    n_scored: int = 1000
    n_scored_queries: int = 15
    is_first_order: bool = False
    dataset: str = "omniglot_28px"

    def __call__(self, make_optimizer: Factory, seed: int, budget: Budget) -> Measurements:
        """Train once.

        Raises:
            ExperimentError: The data cannot be had, or are too few for the tasks.
        """
        n_parts = math.ceil(self.meta_batch / (TASKS_AT_ONCE * n_processes()))
        training = Loop(lambda seed, budget: MetaTraining(self, seed, budget), Recipe(accumulate=n_parts))
        measured = training(make_optimizer, seed, budget)
        measured.data = self.describe()
        return measured

    def describe(self) -> list[dict[str, Any]]:
        """Return the name, size and hash of what it is trained and scored on, checked on the way.

        Raises:
            ExperimentError: As above.
        """
        found = [self.characters(split) for split in ("train", "test")]
        found[0].check(self.n_ways, self.n_shots + self.n_queries, N_TURNS)
        found[1].check(self.n_ways, self.n_shots + self.n_scored_queries)
        return [{**one.images.table.describe(), "n_characters": len(one.rows)} for one in found]

    def characters(self, split: str) -> Characters:
        """Return the background ("train") or evaluation ("test") characters."""
        return _characters(self.dataset, split, data_folder())


# Tasks ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Characters:
    """Characters to draw tasks from.

    Attributes:
        images: Drawings, of which the first colour counts; ink is 255.
        rows: Numbers of the drawings of each character.
    """

    images: Images
    rows: Sequence[NDArray[np.int64]]

    def check(self, n_ways: int, n_drawings: int, n_turns: int = 1) -> None:
        """Check that tasks of so many ways, and drawings of each, can be drawn.

        Raises:
            ExperimentError: They cannot.
        """
        table = self.images.table
        if n_turns * len(self.rows) < n_ways:
            turned = f", {n_turns} classes each with those turned," if n_turns > 1 else ""
            raise ExperimentError(
                f"{table.origin}: split {table.split} has {len(self.rows)} characters{turned} and a task needs "
                f"{n_ways} classes; use the whole data set"
            )
        few = next((rows for rows in self.rows if len(rows) < n_drawings), None)
        if few is not None:
            label = int(self.images.labels[few[0]])
            raise ExperimentError(
                f"{table.where(int(few[0]))}: character {label} has {len(few)} drawings and a task needs {n_drawings} "
                "(shots and queries); take the character out or copy the file again"
            )

    def parts(self) -> tuple[Characters, Characters]:
        """Return characters to train on, and those of every fifth alphabet, to choose settings by."""
        of_row = self.images.table.column("alphabet").to_pylist()
        held = set(sorted(set(of_row))[::HELD_OUT])
        is_held = [of_row[rows[0]] in held for rows in self.rows]
        kept, others = (
            [rows for rows, is_in in zip(self.rows, is_held, strict=True) if is_in is not side]
            for side in (True, False)
        )
        return Characters(self.images, kept), Characters(self.images, others)


@cache
def _characters(dataset: str, split: str, folder: Path | None) -> Characters:
    found = images(dataset, split, folder)
    labels = found.labels.numpy()
    order = np.argsort(labels, kind="stable")
    firsts = np.unique(labels[order], return_index=True)[1]
    return Characters(found, np.split(order, firsts[1:]))


def draw(
    characters: Characters, few_shot: FewShot, n_queries: int, n_turns: int, seeds: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Return tasks, each of which follows from its own seed alone.

    Args:
        characters: To draw from: classes without replacement, and of each class drawings without replacement.
        few_shot: For ways and shots.
        n_queries: Drawings of each character in the query.
        n_turns: 4: a character turned by 90, 180 or 270 degrees is another class; 1: none is turned.
        seeds: Of each task.

    Returns:
        Support and query, shapes (n_tasks, n_ways, n_shots, height, width) and (n_tasks, n_ways, n_queries, height,
        width), uint8. The class of a drawing is its place along the second dimension.
    """
    picked, turns = zip(*(_picked(characters, few_shot, n_queries, n_turns, seed) for seed in seeds), strict=True)
    turn = torch.from_numpy(np.stack(turns))
    pixels = characters.images.pixels[torch.from_numpy(np.stack(picked)), 0]
    for n_quarters in range(1, n_turns):
        pixels[turn == n_quarters] = torch.rot90(pixels[turn == n_quarters], n_quarters, (-2, -1))
    return pixels[:, :, : few_shot.n_shots], pixels[:, :, few_shot.n_shots :]


def _picked(
    characters: Characters, few_shot: FewShot, n_queries: int, n_turns: int, seed: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of a task's drawings, shape (n_ways, n_shots + n_queries), and the turns of its classes."""
    generator = np.random.default_rng(seed)
    n_characters, n_drawings = len(characters.rows), few_shot.n_shots + n_queries
    classes = generator.choice(n_turns * n_characters, few_shot.n_ways, replace=False)
    rows = [generator.choice(characters.rows[i % n_characters], n_drawings, replace=False) for i in classes]
    return np.stack(rows), classes // n_characters


# Training and scoring -------------------------------------------------------------------------------------------------


class MetaTraining:
    """One training at one seed; what the loop asks for. Its samples are tasks."""

    def __init__(self, few_shot: FewShot, seed: int, budget: Budget) -> None:
        self.few_shot, self.seed = few_shot, seed
        network = ConvNet(few_shot.n_filters, few_shot.n_ways)
        self.model = Maml(network, few_shot.inner_lr, few_shot.n_inner, few_shot.is_first_order)
        self.batch_size, self.n_batches = few_shot.meta_batch, few_shot.n_batches
        self.train, self.scored = few_shot.characters("train"), few_shot.characters("test")
        if budget.split == "validation":
            self.train, self.scored = self.train.parts()

    def batches(self, epoch: int, first: int, rank: int, n_ranks: int) -> Iterator[tuple[Tensor, Tensor]]:
        share = self.batch_size // n_ranks
        for step in range(epoch * self.n_batches + first, (epoch + 1) * self.n_batches):
            seeds = [(self.seed, step, task) for task in range(rank * share, (rank + 1) * share)]
            yield draw(self.train, self.few_shot, self.few_shot.n_queries, N_TURNS, seeds)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], seed: int) -> Tensor:
        logits = model(*batch)
        return cross_entropy(logits.flatten(0, 1), labels_of(logits).repeat(len(logits)))

    def score(self, model: nn.Module) -> dict[str, float]:
        device, n_tasks = next(model.parameters()).device, self.few_shot.n_scored
        accuracies, losses = [], []
        for numbers in torch.arange(n_tasks).split(SCORED_AT_ONCE):
            seeds = [(SCORING_SEED, int(number)) for number in numbers]
            support, query = draw(self.scored, self.few_shot, self.few_shot.n_scored_queries, 1, seeds)
            logits = model(support.to(device), query.to(device)).float()
            labels = labels_of(logits).expand(logits.shape[:2])
            accuracies.append((logits.argmax(2) == labels).double().mean(1))
            losses.append(cross_entropy(logits.transpose(1, 2), labels, reduction="none").double().mean(1))
        accuracy = torch.cat(accuracies)
        return {
            "score": accuracy.mean().item(),
            "half_width": Z_95 * accuracy.std().item() / math.sqrt(n_tasks),
            "test_loss": torch.cat(losses).mean().item(),
        }
