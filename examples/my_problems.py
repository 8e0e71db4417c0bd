"""A problem and an optimizer of your own, for `frankenstein compare --module examples/my_problems.py`."""

import torch
from sklearn.datasets import load_diabetes

from frankenstein.compare.optimizers import DECAY, OptimizerSpec
from frankenstein.compare.problems.problem import Problem
from frankenstein.compare.training import Training


class Diabetes:
    """Linear regression on 442 patients; everything random follows from the seed."""

    def __init__(self, seed, budget):
        x, y = (torch.as_tensor(a, dtype=torch.float32) for a in load_diabetes(return_X_y=True, scaled=False))
        self.x, self.y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
        self.scored = slice(0, 88) if budget.split == "validation" else slice(88, 176)
        self.weights = torch.zeros(10, requires_grad=True)
        self.random = torch.Generator().manual_seed(seed)

    def parameters(self):
        return [self.weights]

    def batch(self):
        return torch.randint(176, 442, (32,), generator=self.random)

    def loss(self, rows):
        return (self.x[rows] @ self.weights - self.y[rows]).square().mean()

    def score(self):
        return self.loss(self.scored).item()


PROBLEMS = [
    Problem(
        name="diabetes",
        title="Linear regression of the progress of diabetes (10 parameters, batch 32)",
        metric="squared error",
        is_higher_better=False,
        target=0.56,
        worst=10.0,
        n_steps=200,
        n_evals=20,
        run=Training(Diabetes),
    )
]
# `module:Class`, the published default of what is tuned, and what is tuned beside the learning rate
OPTIMIZERS = [OptimizerSpec("nadam", "NAdam", "torch.optim:NAdam", {"lr": 2e-3, "betas[0]": 0.9}, ("betas[0]", DECAY))]
