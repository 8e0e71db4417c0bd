"""Problems: where a run starts, what it minimises, how it is scored.

Everything random in a problem (initial weights, batches, start) follows from the seed alone, so every optimizer meets
the same problem. The data come from inside scikit-learn: 1,797 real 8x8 images of handwritten digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

Split = Literal["validation", "test"]

# Half decades, wide enough that the best learning rate of most optimizers lies inside.
LR_GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)


class Task(Protocol):
    """One problem at one seed, ready to be trained."""

    def parameters(self) -> list[Tensor]:
        """Return the tensors to optimize."""

    def loss(self) -> Tensor:
        """Return the training loss of the next batch, a scalar with a graph."""

    def score(self) -> float:
        """Return the metric on the split the task was made for."""


@dataclass(frozen=True)
class Problem:
    """A problem to compare optimizers on.

    Attributes:
        name: Name on the command line and in records.
        title: One line for people.
        metric: What `Task.score` returns.
        is_higher_better: Direction of the metric.
        target: Score that "steps to target" waits for; fixed beforehand.
        worst: Score of a run that diverges; scores beyond it count as it, so that means exist.
        n_steps: Steps of one run.
        n_evals: How often the score is taken on the way, evenly spread.
        start: Makes the task from a seed and a split.
        version: Raised when the problem changes, so that old records are not mixed with new ones.
        lr_grid: Learning rates that every optimizer may try: the tuning budget.
    """

    name: str
    title: str
    metric: str
    is_higher_better: bool
    target: float
    worst: float
    n_steps: int
    n_evals: int
    start: Callable[[int, Split], Task]
    version: int = 1
    lr_grid: tuple[float, ...] = LR_GRID

    def bounded(self, score: float) -> float:
        """Return `score`, or `worst` where that is better than it or it is NaN."""
        if math.isnan(score):
            return self.worst
        return max(score, self.worst) if self.is_higher_better else min(score, self.worst)

    def reaches_target(self, score: float) -> bool:
        """Say whether `score` is as good as the target."""
        return score >= self.target if self.is_higher_better else score <= self.target


# Digits ---------------------------------------------------------------------------------------------------------------


@cache
def _digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Return images (n, 1, 8, 8) in [0, 1] and labels (n,) of the fixed stratified splits, 60/20/20."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_x, rest_x, train_y, rest_y = train_test_split(images, labels, test_size=0.4, random_state=0, stratify=labels)
    val_x, test_x, val_y, test_y = train_test_split(rest_x, rest_y, test_size=0.5, random_state=0, stratify=rest_y)

    def tensors(x: object, y: object) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.as_tensor(y)

    return {"train": tensors(train_x, train_y), "validation": tensors(val_x, val_y), "test": tensors(test_x, test_y)}


class _DigitsTask:
    """Minibatch training of a network on the digits; the score is taken on the split."""

    def __init__(self, network: Callable[[], nn.Module], seed: int, split: Split, batch_size: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = network()
        self.batches = torch.Generator().manual_seed(seed)
        self.batch_size = batch_size
        self.train_x, self.train_y = _digits()["train"]
        self.split_x, self.split_y = _digits()[split]
        self.order = torch.empty(0, dtype=torch.long)

    def parameters(self) -> list[Tensor]:
        return list(self.network.parameters())

    def batch(self) -> Tensor:
        """Return the indices of the next batch: each epoch in a new order, the short last batch left out."""
        if len(self.order) < self.batch_size:
            self.order = torch.randperm(len(self.train_x), generator=self.batches)
        batch, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        return batch


class _Classify(_DigitsTask):
    def loss(self) -> Tensor:
        batch = self.batch()
        return functional.cross_entropy(self.network(self.train_x[batch]), self.train_y[batch])

    def score(self) -> float:
        return (self.network(self.split_x).argmax(1) == self.split_y).float().mean().item()


class _Autoencode(_DigitsTask):
    def loss(self) -> Tensor:
        images = self.train_x[self.batch()]
        return functional.mse_loss(self.network(images), images)

    def score(self) -> float:
        return functional.mse_loss(self.network(self.split_x), self.split_x).item()


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def _autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 48),
        nn.Tanh(),
        nn.Linear(48, 8),
        nn.Tanh(),
        nn.Linear(8, 48),
        nn.Tanh(),
        nn.Linear(48, 64),
        nn.Unflatten(1, (1, 8, 8)),
    )


# Analytic functions ---------------------------------------------------------------------------------------------------


def _beale(x: Tensor) -> Tensor:
    a, b = x
    return (1.5 - a + a * b) ** 2 + (2.25 - a + a * b**2) ** 2 + (2.625 - a + a * b**3) ** 2


def _rosenbrock(x: Tensor) -> Tensor:
    a, b = x
    return (1 - a) ** 2 + 100 * (b - a**2) ** 2


def _stairs(x: Tensor) -> Tensor:
    """Steps of height 2 pi: the gradient 1 - cos|x| falls to zero at every multiple of 2 pi and is 2 between them."""
    return (x.abs() - x.abs().sin()).sum()


class _Minimise:
    """A function with minimum 0 in float64, from a start that the seed jitters; both splits differ in the jitter."""

    def __init__(self, function: Callable[[Tensor], Tensor], start: list[float], seed: int, split: Split) -> None:
        jitter = torch.Generator().manual_seed(2 * seed + (split == "test"))
        noise = torch.randn(len(start), generator=jitter, dtype=torch.float64)
        self.function = function
        self.x = (torch.tensor(start, dtype=torch.float64) + 0.2 * noise).requires_grad_()

    def parameters(self) -> list[Tensor]:
        return [self.x]

    def loss(self) -> Tensor:
        return self.function(self.x)

    def score(self) -> float:
        return math.log10(max(self.function(self.x).item(), 1e-16))


def _analytic(
    name: str, title: str, function: Callable[[Tensor], Tensor], start: list[float], target: float
) -> Problem:
    return Problem(
        name=name,
        title=title,
        metric="log10 of the final value",
        is_higher_better=False,
        target=target,
        worst=3.0,
        n_steps=500,
        n_evals=50,
        start=lambda seed, split: _Minimise(function, start, seed, split),
    )


PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        Problem(
            name="digits-cnn",
            title="Small convolutional classifier on handwritten digits (6,090 parameters, batch 64)",
            metric="accuracy",
            is_higher_better=True,
            target=0.97,
            worst=0.1,
            n_steps=240,
            n_evals=24,
            start=lambda seed, split: _Classify(_cnn, seed, split, batch_size=64),
        ),
        Problem(
            name="digits-mlp",
            title="Two-layer perceptron on handwritten digits (8,970 parameters, batch 64)",
            metric="accuracy",
            is_higher_better=True,
            target=0.96,
            worst=0.1,
            n_steps=400,
            n_evals=40,
            start=lambda seed, split: _Classify(_mlp, seed, split, batch_size=64),
        ),
        Problem(
            name="digits-autoencoder",
            title="Autoencoder of handwritten digits, 64-48-8-48-64 (7,080 parameters, batch 64)",
            metric="mean squared error",
            is_higher_better=False,
            target=0.03,
            worst=0.2,
            n_steps=600,
            n_evals=40,
            start=lambda seed, split: _Autoencode(_autoencoder, seed, split, batch_size=64),
        ),
        _analytic("beale", "Beale's function from about (1, 1.5)", _beale, [1.0, 1.5], target=-4.0),
        _analytic("rosenbrock", "Rosenbrock's valley from about (-1.2, 1)", _rosenbrock, [-1.2, 1.0], target=-2.0),
        _analytic(
            "stairs", "|x| - sin|x| from about 20: gradients between 0 and 2, periodically", _stairs, [20.0], -4.0
        ),
    )
}
