"""A convex problem on real data in its own units: 569 tumours, 30 measurements, from inside scikit-learn."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from frankenstein.compare.problems.problem import Problem, Split
from frankenstein.compare.problems.splits import stratified_splits
from frankenstein.compare.training import Training

BATCH_SIZE = 32


@cache
def load_splits() -> dict[str, tuple[Tensor, Tensor]]:
    """Return features (n, 30) and labels (n,) of the fixed stratified splits, 60/20/20; features are only centred."""
    from sklearn.datasets import load_breast_cancer

    splits = stratified_splits(*load_breast_cancer(return_X_y=True))
    centre = splits["train"][0].mean(axis=0)
    return {
        name: (torch.as_tensor(x - centre, dtype=torch.float32), torch.as_tensor(y, dtype=torch.float32))
        for name, (x, y) in splits.items()
    }


class LogisticTask:
    """Logistic regression in minibatches from zero weights; the seed decides the order of the batches."""

    def __init__(self, seed: int, split: Split) -> None:
        self.weight = torch.zeros(1, 30, requires_grad=True)
        self.bias = torch.zeros(1, requires_grad=True)
        self.batches = torch.Generator().manual_seed(seed)
        self.train_x, self.train_y = load_splits()["train"]
        self.split_x, self.split_y = load_splits()[split]

    def parameters(self) -> list[Tensor]:
        return [self.weight, self.bias]

    def batch(self) -> Tensor:
        return torch.randint(len(self.train_x), (BATCH_SIZE,), generator=self.batches)

    def loss(self, batch: Tensor) -> Tensor:
        return self.log_loss(self.train_x[batch], self.train_y[batch])

    def score(self) -> float:
        return self.log_loss(self.split_x, self.split_y).item()

    def log_loss(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(functional.linear(x, self.weight, self.bias)[:, 0], y)


PROBLEMS = (
    Problem(
        name="tumours-logistic",
        title="Logistic regression on 30 unscaled features, from 0.001 to 1,000 (31 parameters, batch 32)",
        metric="log loss",
        is_higher_better=False,
        target=0.2,
        worst=5.0,
        n_steps=300,
        n_evals=30,
        run=Training(lambda seed, budget: LogisticTask(seed, budget.split)),
        load=load_splits,
    ),
)
