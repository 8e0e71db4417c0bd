"""The printed form of the estimator, and a model with layers of all kinds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

# float64 sums of some thousand terms
EXACT = 1e-10
KERNELS = ["linear", "rbf"]


def printed_hsic(x: np.ndarray, y: np.ndarray, kernel: str = "linear", bandwidth: float = 0.8) -> float:
    """Song et al. (2012), eq. 5, as it is printed."""

    def zero_diagonal(rows):
        rows = rows.reshape(len(rows), -1)
        if kernel == "linear":
            matrix = rows @ rows.T
        else:
            distances = np.linalg.norm(rows[:, None] - rows, axis=-1)
            differing = np.sort(distances[np.triu(distances > 0)])
            width = bandwidth * differing[(len(differing) - 1) // 2]  # the lower of the two in the middle
            matrix = np.exp(-(distances**2) / (2 * width**2))
        return matrix - np.diag(np.diag(matrix))

    n, k, m, one = len(x), zero_diagonal(x), zero_diagonal(y), np.ones(len(x))
    sums = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    return (np.trace(k @ m) + sums) / (n * (n - 3))


def printed_cka(batches, **how) -> float:
    """Of pairs of activations, one a batch, each weighted by its samples."""
    cross, ours, theirs = (
        sum(len(x) * printed_hsic(*pair(x, y), **how) for x, y in batches)
        for pair in (lambda x, y: (x, y), lambda x, y: (x, x), lambda x, y: (y, y))
    )
    return cross / math.sqrt(ours * theirs)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def related(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two representations, of 6 and 4 features, that have something in common."""
    x, noise = random(n, 6, seed=seed), random(n, 4, seed=seed + 1000)
    return x, np.maximum(x[:, :4], 0) + 0.3 * noise


class Reused(nn.Module):
    """Layers of all kinds: one called three times, outputs of several tensors, one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)
        self.act = nn.ReLU(inplace=True)
        self.pair, self.named = Pair(), Named()
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.act(self.first(x))
        x = self.act(x - 0.3)
        x = self.pair(x)[1]["rows"]
        x = self.named(x).out
        return self.act(self.last(x))


class Pair(nn.Module):
    def forward(self, x):
        return None, {"loss": x.sum(), "rows": 2 * x, "more": x[:1]}


@dataclass
class Output:
    loss: torch.Tensor
    out: torch.Tensor


class Named(nn.Module):
    def forward(self, x):
        return Output(x.sum(), x - 0.1)


def reused_outputs(model: Reused, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        first = model.first(x)
        act = first.relu()
        again = (act - 0.3).relu()
        pair, named = 2 * again, 2 * again - 0.1
        last = model.last(named)
        return [first, act, again, pair, named, last, last.relu()]


NAMES = ("first", "act", "act:1", "pair", "named", "last", "act:2")


def seeded(make, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def inputs(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *(shape or (6,)), generator=torch.Generator().manual_seed(seed))


def hooks_of(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
