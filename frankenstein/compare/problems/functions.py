"""Analytic functions with minimum 0, in float64, each from a start that the seed jitters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from frankenstein.compare.problems.problem import Problem, Split
from frankenstein.compare.training import Training

FLOOR = 1e-16  # values below it count as it: float64 can hardly tell them apart


def beale(x: Tensor) -> Tensor:
    """Beale's function of (2,); minimum at (3, 0.5)."""
    a, b = x
    return (1.5 - a + a * b) ** 2 + (2.25 - a + a * b**2) ** 2 + (2.625 - a + a * b**3) ** 2


def rosenbrock(x: Tensor) -> Tensor:
    """Rosenbrock's valley, of (2,); minimum at (1, 1)."""
    a, b = x
    return (1 - a) ** 2 + 100 * (b - a**2) ** 2


def stairs(x: Tensor) -> Tensor:
    """Steps of height 2 pi, of (1,): the gradient 1 - cos|x| is 0 at every multiple of 2 pi, and 2 between them."""
    return (x.abs() - x.abs().sin()).sum()


class FunctionTask:
    """Minimise a function; validation and test differ in the jitter of the start."""

    def __init__(self, function: Callable[[Tensor], Tensor], start: list[float], seed: int, split: Split) -> None:
        jitter = torch.Generator().manual_seed(2 * seed + (split == "test"))
        noise = torch.randn(len(start), generator=jitter, dtype=torch.float64)
        self.function = function
        self.x = (torch.tensor(start, dtype=torch.float64) + 0.2 * noise).requires_grad_()

    def parameters(self) -> list[Tensor]:
        return [self.x]

    def batch(self) -> None:
        return None

    def loss(self, batch: None) -> Tensor:
        return self.function(self.x)

    def score(self) -> float:
        return math.log10(max(self.function(self.x).item(), FLOOR))


def _problem(
    name: str, title: str, function: Callable[[Tensor], Tensor], start: list[float], **options: Any
) -> Problem:
    return Problem(
        name=name,
        title=title,
        metric="log10 of the final value",
        is_higher_better=False,
        worst=3.0,
        n_steps=500,
        n_evals=50,
        run=Training(lambda seed, budget: FunctionTask(function, start, seed, budget.split)),
        **options,
    )


PROBLEMS = (
    _problem("beale", "Beale's function from about (1, 1.5)", beale, [1.0, 1.5], target=-4.0, lr_scale=30.0),
    _problem(
        "rosenbrock", "Rosenbrock's valley from about (-1.2, 1)", rosenbrock, [-1.2, 1.0], target=-2.0, lr_scale=30.0
    ),
    _problem(
        "stairs",
        "|x| - sin|x| from about 20: gradients between 0 and 2, periodically",
        stairs,
        [20.0],
        target=-4.0,
        lr_scale=3000.0,  # the way is long: most want a rate above 3
    ),
)
