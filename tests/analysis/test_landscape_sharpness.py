"""Eigenvalues and trace of Hessians that are known: of a quadratic, of least squares, and one that is written out."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from landscape_cases import Normalised, batch
from torch import nn

from frankenstein.analysis.landscape import LandscapeError
from frankenstein.analysis.landscape.sharpness import sharpness

DOUBLE = 1e-8  # eigenvalues in float64, with ten digits of the largest asked for
SINGLE = 1e-4  # and in float32, with five
DIFFERENCES = 1e-7  # of a matrix of differences with step 1e-5
N_ERRORS = 4  # standard errors that an estimate may be off; more happens once in 16,000 draws
SPREAD = 0.35  # of a standard error that is itself estimated, of 200 samples of few values each


def least_squares(dtype=torch.float64):
    """A linear layer with mean squared error: its Hessian is 2 X'X / n."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(30, 1, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False, dtype=dtype)
    batches = [(x[:20].to(dtype), y[:20].to(dtype)), (x[20:].to(dtype), y[20:].to(dtype))]
    return model, batches, (2 * x.T @ x / 30).numpy()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, DOUBLE), (torch.float32, SINGLE)])
def test_least_squares(dtype, tolerance):
    model, batches, hessian = least_squares(dtype)
    found = sharpness(model, nn.MSELoss(), batches, n_largest=3, n_smallest=2, n_samples=200)
    expected = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose(found.largest, expected[:-4:-1], rtol=tolerance)
    np.testing.assert_allclose(found.smallest, expected[:2], rtol=tolerance)
    assert abs(found.trace - np.trace(hessian)) < N_ERRORS * found.trace_error
    # Hutchinson with random signs: variance 2 (|H|^2 - |diagonal|^2) of each sample
    variance = 2 * (np.square(hessian).sum() - np.square(hessian.diagonal()).sum())
    assert found.trace_error == pytest.approx(math.sqrt(variance / 200), rel=SPREAD)


def test_a_summed_loss():
    model, batches, hessian = least_squares()
    found = sharpness(model, nn.MSELoss(reduction="sum"), batches, n_largest=1, n_smallest=0)
    assert found.largest == pytest.approx([30 * np.linalg.eigvalsh(hessian)[-1]], rel=DOUBLE)
    assert found.smallest == []


class Diagonal(nn.Module):
    """sum(sizes * theta^2) / 2, as the output of a model: the trace is exact, whatever the signs."""

    sizes = torch.tensor([5.0, -3.0, 2.0, 1.0, 0.5], dtype=torch.float64)

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))

    def forward(self, x):
        return x * (self.sizes * self.theta**2).sum() / 2


class Output(nn.Module):
    """The loss is what the model returns."""

    reduction = "mean"

    def forward(self, output, target):
        return (output + 0 * target).mean()


def test_a_saddle():
    ones = torch.ones(4, dtype=torch.float64)
    found = sharpness(Diagonal(), Output(), [(ones, ones)], n_largest=2, n_smallest=1, n_samples=3)
    assert found.largest == pytest.approx([5.0, 2.0], rel=DOUBLE)
    assert found.smallest == pytest.approx([-3.0], rel=DOUBLE)
    assert found.trace == pytest.approx(5.5, rel=DOUBLE)
    assert found.trace_error < DOUBLE


def written_out(model, loss, x, y, step=1e-5):
    """Return the Hessian over the trained parameters, by differences of gradients: right whatever the operations."""
    trained = [value for value in model.parameters() if value.requires_grad]

    def gradient():
        return torch.cat([one.reshape(-1) for one in torch.autograd.grad(loss(model(x), y), trained)])

    rows = []
    for value in trained:
        flat = value.data.view(-1)
        for i, before in enumerate(flat.tolist()):
            flat[i] = before + step
            above = gradient()
            flat[i] = before - step
            rows.append((above - gradient()) / (2 * step))
            flat[i] = before
    return torch.stack(rows).numpy()


def test_a_network_with_batchnorm_and_dropout():
    """In evaluation mode, over the parameters that are trained; the model and random numbers are as they were."""
    torch.manual_seed(0)
    model = Normalised().double()
    x, y = batch()
    x = x.double()
    model(x)
    model.first.bias.requires_grad_(False)
    model.zero_grad()
    model.first.weight.grad = torch.ones(4, 3, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    batches = [(x[:10], y[:10]), (x[10:], y[10:])]
    found = sharpness(model, nn.CrossEntropyLoss(), batches, n_largest=4, n_smallest=2, n_samples=40)
    assert model.training and model.dropout.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.first.weight.grad, torch.ones(4, 3)) and model.last.weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), random_state)
    hessian = written_out(model.eval(), nn.functional.cross_entropy, x, y)
    assert hessian.shape == (30, 30)
    expected = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose(found.largest, expected[:-5:-1], rtol=DIFFERENCES)
    np.testing.assert_allclose(found.smallest, expected[:2], rtol=DIFFERENCES)
    assert abs(found.trace - np.trace(hessian)) < N_ERRORS * found.trace_error


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dtype=torch.float64)
        self.last = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, x):
        return self.last(self.encoder(x).mean(1))


def test_attention():
    torch.manual_seed(0)
    model, x, y = Attention().eval(), torch.randn(6, 3, 4, dtype=torch.float64), torch.randint(0, 2, (6,))
    model.encoder.linear1.requires_grad_(False)  # keeps the matrix small
    found = sharpness(model, nn.CrossEntropyLoss(), [(x, y)], n_largest=2, n_smallest=1, n_samples=2)
    expected = np.linalg.eigvalsh(written_out(model, nn.functional.cross_entropy, x, y))
    np.testing.assert_allclose(found.largest, expected[:-3:-1], rtol=DIFFERENCES)
    np.testing.assert_allclose(found.smallest, expected[:1], rtol=DIFFERENCES)


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.RMSNorm(6)], ids=lambda one: type(one).__name__
)
def test_normalisation_layers(norm):
    """Guards against derivatives of derivatives that torch has wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), norm, nn.Linear(6, 2)).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    found = sharpness(model, nn.MSELoss(), [(x, y)], n_largest=3, n_smallest=1, n_samples=2)
    expected = np.linalg.eigvalsh(written_out(model, nn.functional.mse_loss, x, y))
    np.testing.assert_allclose(found.largest, expected[:-4:-1], rtol=DIFFERENCES)


class Named(nn.Module):
    """Takes inputs by name, and has a parameter that does nothing."""

    def __init__(self):
        super().__init__()
        self.layer, self.idle = nn.Linear(6, 1, bias=False, dtype=torch.float64), nn.Parameter(torch.ones(2).double())

    def forward(self, inputs):
        return self.layer(inputs["x"])


def test_inputs_by_name():
    model, batches, hessian = least_squares()
    named = Named()
    named.layer = model
    found = sharpness(named, nn.MSELoss(), [({"x": x}, y) for x, y in batches], n_largest=1, n_samples=200)
    assert found.largest == pytest.approx([np.linalg.eigvalsh(hessian)[-1]], rel=DOUBLE)
    assert found.smallest == pytest.approx([0.0], abs=DOUBLE)  # of the idle parameters
    assert abs(found.trace - np.trace(hessian)) < N_ERRORS * found.trace_error


def test_a_loss_without_curvature():
    ones = torch.ones(4, 6, dtype=torch.float64)
    found = sharpness(least_squares()[0], Output(), [(ones, ones[:, :1])], n_largest=1, n_smallest=0, n_samples=2)
    assert found.largest == [0.0] and found.trace == 0.0


class Counted(nn.Linear):
    """How often it was called: once for every product and batch."""

    n_calls = 0

    def forward(self, x):
        self.n_calls += 1
        return super().forward(x)


def test_a_coarse_tolerance_takes_fewer_products():
    """Of a spectrum whose largest values lie close together, where the iteration is slow."""
    torch.manual_seed(0)
    sizes = torch.linspace(1, 2, 400, dtype=torch.float64).sqrt()
    x, y = torch.diag(sizes), torch.zeros(400, 1, dtype=torch.float64)
    found = {}
    for tolerance in (None, 1e-2):
        model = Counted(400, 1, bias=False, dtype=torch.float64)
        options = {"n_largest": 1, "n_smallest": 0, "n_samples": 2, "tolerance": tolerance}
        found[tolerance] = sharpness(model, nn.MSELoss(reduction="sum"), [(x, y)], **options).largest[0], model.n_calls
    assert found[None][0] == pytest.approx(4.0, rel=DOUBLE)
    assert found[1e-2][0] == pytest.approx(4.0, rel=1e-2)
    assert found[1e-2][1] < found[None][1] / 2


def test_the_seed_decides_the_trace():
    model, batches, _ = least_squares()
    options = {"n_largest": 1, "n_smallest": 0, "n_samples": 3}
    one, again, other = (sharpness(model, nn.MSELoss(), batches, seed=seed, **options).trace for seed in (1, 1, 2))
    assert one == again != other


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) * torch.rand(1, dtype=x.dtype)


def broken(model):
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    return model


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"n_largest": 6},
            "6 largest and 1 smallest eigenvalues were asked for; of 6 trained parameters there are 1 to 5",
        ),
        ({"n_largest": 0}, "0 largest"),
        ({"n_samples": 1}, "1 samples have no standard error; take 2 or more"),
        ({"tolerance": 1e-11}, "tolerance is 1e-11; it must be at least 1e-10, of that precision, and below 1"),
        ({"tolerance": 1.0}, "tolerance is 1.0"),
        ({"loss": nn.MSELoss(reduction="none")}, "the loss MSELoss has no `reduction` of 'mean' or 'sum'"),
        ({"batches": []}, "batches must be a collection that is gone through many times"),
        ({"batches": iter([(torch.ones(1, 6), torch.ones(1, 1))])}, "batches must be a collection"),
        (
            {"model": nn.Linear(6, 1, dtype=torch.bfloat16)},
            "must all be float32 or all float64, and are torch.bfloat16",
        ),
        ({"model": nn.Linear(6, 1).requires_grad_(False)}, "and are none"),
        ({"model": broken(nn.Linear(6, 1, dtype=torch.float64))}, "the gradient has a NaN or infinity; check the loss"),
        ({"model": Noisy(6, 1, dtype=torch.float64)}, "the gradient is not the same when it is computed twice"),
    ],
)
def test_what_cannot_be_is_one_line(changed, message):
    model, batches, _ = least_squares()
    arguments = {"model": model, "loss": nn.MSELoss(), "batches": batches} | changed
    with pytest.raises(LandscapeError) as caught:
        sharpness(**arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["curvlinops", "scipy"])
def test_what_is_missing_is_named(name, monkeypatch):
    monkeypatch.delitem(sys.modules, "frankenstein.analysis.landscape.hessian", raising=False)
    for module in [name, *(one for one in sys.modules if one.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    model, batches, _ = least_squares()
    with pytest.raises(ImportError, match=rf"sharpness needs {name}; pip install '.\[analysis\]'"):
        sharpness(model, nn.MSELoss(), batches)
