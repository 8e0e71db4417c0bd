from __future__ import annotations

import warnings

import pytest
import torch

from frankenstein.compare.catalog import catalog
from frankenstein.compare.optimizers import Factory, OptimizerSpec
from frankenstein.compare.problems.problem import Budget
from frankenstein.compare.training import Training, state_bytes

OPTIMIZERS = catalog().optimizers
BUDGET = Budget(20, 4, "test")


class Valley:
    """A badly scaled bowl: 100 x^2 + y^2, from (1, 1)."""

    def __init__(self, seed, budget):
        self.x = torch.ones(2, dtype=torch.float64, requires_grad=True)
        self.n_batches = 0

    def parameters(self):
        return [self.x]

    def batch(self):
        self.n_batches += 1
        return self.n_batches

    def loss(self, batch):
        assert batch == self.n_batches  # a step sees one batch, however often it asks
        return (torch.tensor([100.0, 1.0], dtype=torch.float64) * self.x.square()).sum()

    def score(self):
        return self.loss(self.n_batches).item()


def train(spec, task=Valley, budget=BUDGET, **settings):
    return Training(task)(Factory(spec, spec.default | settings), 0, budget)


def test_optimizers_with_a_closure():
    """L-BFGS evaluates the loss several times a step; the batch is the same, and steps are counted, not evaluations."""
    lbfgs = OptimizerSpec("lbfgs", "L-BFGS", "torch.optim:LBFGS", {"lr": 1.0}, uses_closure=True)
    measured = train(lbfgs)
    assert measured.n_steps_done == 20
    assert measured.curve["score"][0] == 101.0
    assert measured.curve["score"][-1] < 1e-12


def test_scores_are_taken_with_the_weights_that_are_meant_to_be_used(monkeypatch):
    """Schedule-free averages are what `eval()` puts in place; training goes on from the others."""
    modes = []

    class Recorded(torch.optim.SGD):
        def eval(self):
            modes.append("eval")

        def train(self):
            modes.append("train")

    monkeypatch.setattr(torch.optim, "Recorded", Recorded, raising=False)
    train(OptimizerSpec("recorded", "Recorded", "torch.optim:Recorded", {"lr": 1e-3}))
    assert modes == ["eval", "train"] * 5


@pytest.mark.parametrize("name", ["sophia", "frankenstein", "schedule-free"])
def test_the_seed_decides_though_an_optimizer_draws_at_random(name):
    curves = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            measured = Training(Network)(Factory(OPTIMIZERS[name], OPTIMIZERS[name].default), 0, BUDGET)
        curves.append(measured.curve["score"])
    assert curves[0] == curves[1]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train(OPTIMIZERS["sophia"], Network)
    assert torch.equal(torch.rand(1), expected)  # and the global generator is as it was


class Network(Valley):
    """Eight random inputs through a small network."""

    def __init__(self, seed, budget):
        super().__init__(seed, budget)
        self.network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        self.inputs = torch.randn(8, 3)

    def parameters(self):
        return list(self.network.parameters())

    def loss(self, batch):
        return (self.network(self.inputs) - 1.0).square().mean()


@pytest.mark.parametrize(("name", "expected"), [("sgd", 4), ("adam", 8), ("amsgrad", 12), ("lookahead", 12)])
def test_state_bytes(name, expected):
    """Bytes for each of 10,000 float32 parameters; counters of steps are a few bytes more."""
    parameter = torch.zeros(10_000, requires_grad=True)
    optimizer = OPTIMIZERS[name].make([parameter], {})
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert expected * 10_000 <= state_bytes(optimizer) <= expected * 10_000 + 100


def test_a_watch_sees_every_evaluation():
    seen = []
    measured = train(OPTIMIZERS["sgd"], budget=Budget(20, 4, "test", watch=lambda *point: seen.append(point)))
    assert [step for step, _ in seen] == measured.curve["step"] == [0, 5, 10, 15, 20]
    assert [numbers["score"] for _, numbers in seen] == measured.curve["score"]
    assert "train_loss" not in seen[0][1]
    assert seen[-1][1].keys() == {"score", "seconds", "train_loss"}


def test_train_loss_is_the_mean_since_the_last_evaluation():
    measured = train(OPTIMIZERS["sgd"], lr=0.0, budget=Budget(4, 2, "test"))
    assert measured.curve["train_loss"] == [None, 101.0, 101.0]


def test_divergence_stops_the_run():
    measured = train(OPTIMIZERS["sgd"], lr=1e10, budget=Budget(500, 500, "test"))
    assert measured.diverged == f"the score was not finite at step {measured.n_steps_done}"
    assert measured.n_steps_done < 100
