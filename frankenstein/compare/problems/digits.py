"""Problems on handwritten digits: 1,797 real 8x8 images from inside scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from frankenstein.compare.problems.problem import Problem, Split
from frankenstein.compare.problems.splits import stratified_splits
from frankenstein.compare.training import Training

BATCH_SIZE = 64


@cache
def load_splits() -> dict[str, tuple[Tensor, Tensor]]:
    """Return images (n, 1, 8, 8) in [0, 1] and labels (n,) of the fixed stratified splits, 60/20/20."""
    from sklearn.datasets import load_digits

    splits = stratified_splits(*load_digits(return_X_y=True))
    return {
        name: (torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.as_tensor(y))
        for name, (x, y) in splits.items()
    }


class DigitsTask:
    """Minibatch training of a network; the score is taken on the split, in evaluation mode."""

    def __init__(
        self,
        network: Callable[[], nn.Module],
        loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
        score: Callable[[nn.Module, Tensor, Tensor], Tensor],
        seed: int,
        split: Split,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = network()
        self.criterion, self.metric = loss, score
        self.batches = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long)
        self.train_x, self.train_y = load_splits()["train"]
        self.split_x, self.split_y = load_splits()[split]

    def parameters(self) -> list[Tensor]:
        return list(self.network.parameters())

    def batch(self) -> Tensor:
        """Return the indices of the next batch: each epoch in a new order, the short last batch left out."""
        if len(self.order) < BATCH_SIZE:
            self.order = torch.randperm(len(self.train_x), generator=self.batches)
        batch, self.order = self.order[:BATCH_SIZE], self.order[BATCH_SIZE:]
        return batch

    def loss(self, batch: Tensor) -> Tensor:
        return self.criterion(self.network, self.train_x[batch], self.train_y[batch])

    def score(self) -> float:
        self.network.eval()
        value = self.metric(self.network, self.split_x, self.split_y).item()
        self.network.train()
        return value


def cross_entropy(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of the network's logits."""
    return functional.cross_entropy(network(images), labels)


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the share of images that the network classifies rightly."""
    return (network(images).argmax(1) == labels).float().mean()


def reconstruction(network: nn.Module, images: Tensor, _: Tensor) -> Tensor:
    """Return the mean squared error of the network's copy of the images."""
    return functional.mse_loss(network(images), images)


def cnn() -> nn.Module:
    """Return two convolutions with pooling, and a linear layer."""
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


def mlp() -> nn.Module:
    """Return a perceptron with two hidden layers of 64."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def autoencoder() -> nn.Module:
    """Return an autoencoder with a bottleneck of 8."""
    sizes = (64, 48, 8, 48, 64)
    layers = [layer for n, m in pairwise(sizes) for layer in (nn.Linear(n, m), nn.Tanh())]
    return nn.Sequential(nn.Flatten(), *layers[:-1], nn.Unflatten(1, (1, 8, 8)))


PROBLEMS = (
    Problem(
        name="digits-cnn",
        title="Small convolutional classifier on handwritten digits (6,090 parameters, batch 64)",
        metric="accuracy",
        is_higher_better=True,
        target=0.97,
        worst=0.1,
        n_steps=240,
        n_evals=24,
        lr_scale=10.0,
        run=Training(lambda seed, budget: DigitsTask(cnn, cross_entropy, accuracy, seed, budget.split)),
        load=load_splits,
    ),
    Problem(
        name="digits-mlp",
        title="Two-layer perceptron on handwritten digits (8,970 parameters, batch 64)",
        metric="accuracy",
        is_higher_better=True,
        target=0.96,
        worst=0.1,
        n_steps=240,
        n_evals=24,
        lr_scale=10.0,
        run=Training(lambda seed, budget: DigitsTask(mlp, cross_entropy, accuracy, seed, budget.split)),
        load=load_splits,
    ),
    Problem(
        name="digits-autoencoder",
        title="Autoencoder of handwritten digits, 64-48-8-48-64 (7,080 parameters, batch 64)",
        metric="mean squared error",
        is_higher_better=False,
        target=0.03,
        worst=0.2,
        n_steps=320,
        n_evals=32,
        lr_scale=10.0,
        run=Training(lambda seed, budget: DigitsTask(autoencoder, reconstruction, reconstruction, seed, budget.split)),
        load=load_splits,
    ),
)
