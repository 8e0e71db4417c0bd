"""The over-adaptation test: its inputs, its loss, and that many models at once are each what they are alone."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch

from frankenstein.compare.catalog import catalog
from frankenstein.experiments import fig10_model
from frankenstein.experiments.fig10 import METHODS
from frankenstein.experiments.fig10_logs import least_loss_of_adam
from frankenstein.experiments.fig10_model import SETTINGS, Models, labels, loss, train

EXACT = 4e-16  # two roundings of float64
SAME_COURSE = 1e-13  # sums in another order, in some hundred steps (measured: at most 2e-15)
N_SAMPLES, N_TRAIN = 200, 140  # the dense reference is small


def draws(seed, negative):
    return labels(torch.Generator().manual_seed(seed), negative)


def test_labels_are_positive_with_probability_0_8():
    share = torch.stack([draws(seed, 0) for seed in range(20)]).mean().item()
    assert abs(share - 0.8) < 4 * np.sqrt(0.8 * 0.2 / (20 * fig10_model.N_SAMPLES))
    assert sorted(draws(0, -1).unique().tolist()) == [-1.0, 1.0]
    assert torch.equal(draws(3, 0) > 0, draws(3, -1) > 0) and not torch.equal(draws(3, 0), draws(4, 0))


@pytest.mark.parametrize("margin", [-800.0, -40.0, -1.0, 0.0, 1e-9, 1.0, 36.8, 40.0, 700.0])
def test_the_loss_is_exact(margin):
    with mpmath.workdps(400):
        expected = float(mpmath.log1p(mpmath.exp(-mpmath.mpf(margin))))
    assert loss(torch.tensor(margin, dtype=torch.float64)).item() == pytest.approx(expected, rel=EXACT, abs=0.0)


@pytest.mark.parametrize("y", [1.0, 0.0])
def test_gradients_are_exact_where_the_sigmoid_is_1(y):
    models = Models(1)
    models.second[:] = 30.0 if y else -30.0  # a margin of 60: sigmoid(60) - 1 is 0 in float64
    rows, labels_of_rows = torch.tensor([[5, 7]]), torch.full((1, 2), y, dtype=torch.float64)
    models.set_gradient(rows, labels_of_rows, 2.0 * labels_of_rows - 1.0)
    gradient = models.parameter.grad
    slope = (-1.0 if y else 1.0) * np.exp(-60.0)  # exp(60) outweighs 1 by 26 digits
    expected = torch.zeros_like(gradient)
    expected[[0, 1, 2 + 5, 2 + 7]] = torch.tensor([slope * y, slope, slope / 2, slope / 2], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=EXACT, atol=0.0)


def dense(y):
    """All inputs as appendix D of the paper writes them, counting from 1."""
    x = np.zeros((len(y) + 1, 6 * len(y) + 2))
    for i, y_i in enumerate(y.tolist(), start=1):
        x[i, 1] = y_i
        x[i, [2, 3]] = 1.0
        first, last = 4 + 5 * (i - 1), 4 + 5 * (i - 1) + 2 * (1 - int(y_i))
        x[i, first : last + 1] = 1.0
    return torch.from_numpy(x[1:, 1:])


def train_dense(setting, method, seed, n_epochs):
    """A plain linear layer on the whole inputs: autograd, and nothing left out."""
    generator = torch.Generator().manual_seed(seed)
    y = labels(generator, setting.negative)
    x, positive = dense(y), (y > 0).double()
    weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = catalog(()).optimizer(method).make([weights], {"lr": 1e-2 if method == "sgd" else 1e-3})
    mean_loss = torch.nn.functional.binary_cross_entropy_with_logits
    points = []
    for epoch in range(n_epochs + 1):
        if epoch:
            for rows in torch.randperm(N_TRAIN, generator=generator).split(setting.batch_size):
                optimizer.zero_grad()
                mean_loss(x[rows] @ weights, positive[rows]).backward()
                optimizer.step()
        with torch.no_grad():
            parts = [mean_loss(x[part] @ weights, positive[part]) for part in (slice(N_TRAIN), slice(N_TRAIN, None))]
            is_wrong = (x[N_TRAIN:] @ weights) * (2.0 * positive[N_TRAIN:] - 1.0) <= 0.0
            points.append([*map(float, parts), float(is_wrong.double().mean())])
    return np.array(points).T


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_left_out_of_the_models_changes_nothing(name, method, monkeypatch):
    monkeypatch.setattr(fig10_model, "N_SAMPLES", N_SAMPLES)
    monkeypatch.setattr(fig10_model, "N_TRAIN", N_TRAIN)
    n_epochs = 8 if SETTINGS[name].batch_size == 4 else 100
    curves = train(SETTINGS[name], method, [7], n_epochs)
    expected = train_dense(SETTINGS[name], method, 7, n_epochs)
    assert expected[0, -1] < 0.98 * np.log(2.0), "nothing was learnt, so nothing is compared"
    np.testing.assert_allclose([part[0].numpy() for part in curves], expected, rtol=SAME_COURSE)


@pytest.mark.parametrize("name", SETTINGS)
def test_seeds_together_are_exactly_the_seeds_alone(name):
    def is_the_same(method):
        together, alone = train(SETTINGS[name], method, [3, 1, 2], 2), train(SETTINGS[name], method, [1], 2)
        return all(torch.equal(many[1], one[0]) for many, one in zip(together, alone, strict=True))

    assert {method: is_the_same(method) for method in METHODS} == dict.fromkeys(METHODS, True)
    assert not is_the_same("lamb"), "one that takes norms cannot, or the comparison sees nothing"


def test_adam_cannot_outrun_its_bound():
    weights = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=1e-3)
    for _ in range(16):
        optimizer.zero_grad()
        loss(weights.sum()).backward()
        optimizer.step()
    reached = loss(weights.sum()).item()
    assert least_loss_of_adam(16, 1e-3, 8) <= reached < np.log(2.0)
    assert least_loss_of_adam(16, 1e-3, 8) > 0.5  # what the report says of the authors' 0.0067
