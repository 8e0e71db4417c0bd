"""Models of which everything is known, and what worker processes are told to make."""

from __future__ import annotations

import torch
from torch import nn

from frankenstein.analysis.landscape import Subject

SIZES = torch.tensor([[3.0, 1.0, 0.5, 2.0], [0.1, 4.0, 0.2, 1.5], [2.5, 0.3, 0.7, 1.1]], dtype=torch.float64)


class Quadratic(nn.Module):
    """loss = sum(SIZES * weight**2) / 2 + bias**2: a Hessian with SIZES and 2 on its diagonal."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12, dtype=dtype).reshape(3, 4))
        self.bias = nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self):
        return (SIZES.to(self.weight) * self.weight**2).sum() / 2 + self.bias.square().sum()


class Normalised(nn.Module):
    """A network with BatchNorm and dropout, and a loss on batches of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.dropout, self.last = nn.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.dropout(self.norm(self.first(x))))


def batch(seed=0, n=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator), torch.randint(0, 2, (n,), generator=generator)


def loss(model):
    with torch.no_grad():
        return {"loss": float(model())}


def cross_entropy(model):
    x, y = batch()
    with torch.no_grad():
        output = model(x)
    return {"loss": nn.functional.cross_entropy(output, y), "accuracy": (output.argmax(1) == y).double().mean()}


def make_quadratic(device):
    return Subject(Quadratic().to(device), loss)


def make_normalised(device):
    x, _ = batch()
    return Subject(Normalised().to(device), cross_entropy, lambda model: model(x))


def make_broken(device):
    def evaluate(model):
        raise RuntimeError("no data here")

    return Subject(Quadratic().to(device), evaluate)


def make_nothing(device):
    return Quadratic().to(device)


def record(snapshots, model, n=6, seed=0, size=0.3):
    """Record a random walk of the model's weights."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(n):
        with torch.no_grad():
            for parameter in model.parameters():
                shape, dtype = parameter.shape, parameter.dtype
                parameter += size * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        snapshots.save(model, step)
    return snapshots


def save_for_ever(folder):
    """Record until killed; a process's main function."""
    from frankenstein.analysis.landscape import Snapshots

    model, step = nn.Linear(500, 400), 0
    while True:
        Snapshots(folder).save(model, step)
        step += 1
