"""A small network on handwritten digits, with everything in it that a training may draw at random."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional

from frankenstein.compare.catalog import catalog
from frankenstein.compare.optimizers import Factory
from frankenstein.compare.problems.digits import load_splits
from frankenstein.compare.problems.problem import Budget, Measurements
from frankenstein.experiments.training import Loop, Recipe, cosine
from frankenstein.experiments.training.processes import accelerated

BATCH_SIZE = 24
LR = 3e-3


def network(dropout: float = 0.2, has_norm: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8) if has_norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(128, 10),
    )


class Digits:
    """Classification with noise on the images as augmentation."""

    def __init__(self, model: nn.Module, split: str, n_samples: int = 240, noise: float = 0.3) -> None:
        self.model, self.noise = model, noise
        self.batch_size = BATCH_SIZE
        x, y = load_splits()["train"]
        self.x, self.y = x[:n_samples], y[:n_samples]
        self.n_batches = n_samples // BATCH_SIZE
        self.split = load_splits()[split]

    def batches(self, epoch: int, first: int, rank: int, n_ranks: int) -> Any:
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(epoch))
        share = BATCH_SIZE // n_ranks
        for i in range(first, self.n_batches):
            begin = i * BATCH_SIZE + rank * share
            idx = order[begin : begin + share]
            yield self.x[idx], self.y[idx]

    def loss(self, model: nn.Module, batch: Any, seed: int) -> torch.Tensor:
        x, y = batch
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        return functional.cross_entropy(model(x), y)

    def score(self, model: nn.Module) -> dict[str, float]:
        x, y = self.split
        logits = model(x)
        return {
            "score": (logits.argmax(1) == y).float().mean().item(),
            "test_loss": functional.cross_entropy(logits, y).item(),
        }


def noisy(seed: int, budget: Budget) -> Digits:
    return Digits(network(), budget.split)


def plain(seed: int, budget: Budget) -> Digits:
    """Random in its first weights alone, and blind to what is in a batch together: the same on several processes."""
    return Digits(network(0.0, has_norm=False), budget.split, noise=0.0)


def factory(name: str = "sgd", **settings: float) -> Factory:
    spec = catalog().optimizers[name]
    return Factory(spec, spec.default | {"lr": LR} | settings)


def train(start: Any, recipe: Recipe, budget: Budget, name: str = "sgd", seed: int = 0) -> Measurements:
    return Loop(start, recipe)(factory(name), seed, budget)


def keeping(start: Any) -> tuple[Any, list[Any]]:
    """Return `start`, and a list to which it adds the task: its weights are looked at afterwards."""
    tasks: list[Any] = []

    def kept(seed: int, budget: Budget) -> Any:
        tasks.append(start(seed, budget))
        return tasks[-1]

    return kept, tasks


def weights(task: Digits) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def rich_recipe(n_steps: int) -> Recipe:
    return Recipe(cosine(n_steps, n_warmup=3), accumulate=2, clip_norm=1.0, checkpoint_seconds=0.0)


def train_to_file(folder: str, n_steps: int, target: str) -> None:
    """Train in a process that may be killed; write curve and weights to a file at the end."""
    torch.set_num_threads(1)
    start, tasks = keeping(noisy)
    measured = train(start, rich_recipe(n_steps), Budget(n_steps, 5, "test", folder=Path(folder)))
    torch.save({"curve": measured.curve, "weights": weights(tasks[0])}, target)


@contextmanager
def scaled(recipe: Recipe, device: str) -> Iterator[Accelerator]:
    """`accelerated`, with the scaled loss that precision fp16 has on a GPU; the scale grows every fourth step."""
    with accelerated(recipe, device) as accelerator:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
        yield accelerator
