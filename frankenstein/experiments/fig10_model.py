"""The over-adaptation test of Wilson et al. (arXiv:1705.08292, section 3.3) as the paper has it: data and training.

Sample i has the label y_i and the inputs y_i, 1, 1 and, in five columns of its own, 1 + 2 (1 - y_i) ones (appendix D of
arXiv:2503.02147). A column of its own tells a model all about its sample and nothing about any other: a model that
leans on such columns fits the training samples and fails on new ones.

The text leaves open what the authors' released script says: y is 1 with probability 0.8 and otherwise 0, n = 2,000
samples have d = 6 n + 1 inputs (Wilson et al. ask for d > 6 n; the text has "n = 6"), and the first 70 % are for
training. Wilson et al. have the labels -1 and 1, and the text allows them too: `batch128-signed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from frankenstein.compare.catalog import catalog
from frankenstein.compare.optimizers import OptimizerSpec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "N_EPOCHS",
    "N_INPUTS",
    "N_SAMPLES",
    "N_TRAIN",
    "P_POSITIVE",
    "SETTINGS",
    "Curves",
    "Models",
    "Setting",
    "labels",
    "loss",
    "settings_of",
    "spec",
    "train",
]

N_SAMPLES = 2000
N_TRAIN = 1400
N_INPUTS = 6 * N_SAMPLES + 1
P_POSITIVE = 0.8
N_EPOCHS = 80
LR = 1e-3
LR_OF = {"sgd": 1e-2}


@dataclass(frozen=True)
class Setting:
    """One panel of the figure.

    Attributes:
        name: In records.
        title: For people.
        batch_size: Samples of a step.
        negative: Label of the samples that are not 1: 0 or -1.
    """

    name: str
    title: str
    batch_size: int
    negative: int


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("batch4", "batch size 4", 4, 0),
        Setting("batch128", "batch size 128", 128, 0),
        Setting("batch128-signed", "batch size 128, labels -1 and 1", 128, -1),
    )
}


class Curves(NamedTuple):
    """What training gives, after 0, 1, ... epochs.

    Attributes:
        train_loss: (n_seeds, n_epochs + 1) mean logistic loss of the training samples.
        test_loss: (n_seeds, n_epochs + 1) the same of the test samples.
        test_error: (n_seeds, n_epochs + 1) share of the test samples on the wrong side, or on the boundary.
    """

    train_loss: Tensor
    test_loss: Tensor
    test_error: Tensor


def labels(generator: Any, negative: int) -> Tensor:
    """Return the labels of all samples, training ones first: float64 (n_samples,), each 1 or `negative`."""
    import torch

    draws = torch.rand(N_SAMPLES, generator=generator, dtype=torch.float64)
    return torch.where(draws < P_POSITIVE, 1.0, float(negative))


class Models:
    """Linear models without bias, one for each seed, side by side in one flat parameter.

    Only what can differ from its neighbour is kept. A test sample's own columns are 0 in all training samples, so their
    weights stay 0. The columns 2 and 3, and those of one training sample, are equal in all training samples: from equal
    starts an elementwise optimizer keeps their weights equal, and one number stands for each such group.
    The parameter is flat because Ranger treats matrices in a way of its own.

    Attributes:
        parameter: What the optimizer is given, with its gradient.
        first: (n_models, 1) weights of column 1, a view of the parameter.
        second: (n_models, 1) of column 2, and of column 3.
        own: (n_models, n_train) of each of a training sample's own columns.
    """

    def __init__(self, n_models: int) -> None:
        import torch

        self.parameter = torch.zeros(n_models * (2 + N_TRAIN), dtype=torch.float64, requires_grad=True)
        self.parameter.grad = torch.zeros_like(self.parameter)
        weights = self.parameter.detach().view(n_models, -1)
        gradient = self.parameter.grad.view(n_models, -1)
        self.first, self.second, self.own = weights[:, :1], weights[:, 1:2], weights[:, 2:]
        self.gradient, self.own_gradient = gradient, gradient[:, 2:]

    def scores(self, y: Tensor, own: Tensor | float) -> Tensor:
        """Return the logits of samples with labels y (n_models, n); `own` are the weights of their own columns."""
        return self.first * y + 2.0 * self.second + (3.0 - 2.0 * y) * own

    def set_gradient(self, rows: Tensor, y: Tensor, sign: Tensor) -> None:
        """Set the gradient of the mean logistic loss of the training samples `rows` (n_models, batch_size)."""
        import torch

        margin = sign * self.scores(y, self.own.gather(1, rows))
        slope = torch.sigmoid(-margin) * sign / -rows.shape[1]  # never 1 - sigmoid, which is 0 from margin 37 on
        self.gradient.zero_()
        self.gradient[:, 0] = (slope * y).sum(1)
        self.gradient[:, 1] = slope.sum(1)
        self.own_gradient.scatter_(1, rows, slope)


def train(setting: Setting, method: str, seeds: Sequence[int], n_epochs: int = N_EPOCHS) -> Curves:
    """Train the logistic model from zeros once for each seed; labels and order of the samples follow from the seed.

    All seeds take their steps together. An elementwise optimizer gives each exactly what it gives it alone; one that
    takes norms over a parameter (LAMB) does not, and must not be run here.

    Args:
        setting: Batch size and labels. A short last batch is kept.
        method: Name of an optimizer of `frankenstein compare`; at its published settings but for the learning rate.
        seeds: One for each model.
        n_epochs: Passes over the training samples.
    """
    import torch

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    y = torch.stack([labels(generator, setting.negative) for generator in generators])
    models = Models(len(seeds))
    optimizer = spec(method).make([models.parameter], settings_of(method))
    points = [_evaluate(models, y)]
    for _ in range(n_epochs):
        order = torch.stack([torch.randperm(N_TRAIN, generator=generator) for generator in generators])
        ordered = y.gather(1, order)
        batches = [t.split(setting.batch_size, 1) for t in (order, ordered, _sign(ordered))]
        for rows, y_rows, sign in zip(*batches, strict=True):
            models.set_gradient(rows, y_rows, sign)
            optimizer.step()
        points.append(_evaluate(models, y))
    return Curves(*(torch.stack(column, 1) for column in zip(*points, strict=True)))


def _sign(y: Tensor) -> Tensor:
    """Return +1.0 where the label is 1, else -1.0."""
    return (y > 0).to(y.dtype) * 2.0 - 1.0


def loss(margin: Tensor) -> Tensor:
    """Return the logistic loss log(1 + exp(-margin)), to the last digits also where it is 1e-300."""
    import torch

    return torch.log1p(torch.exp(-margin.abs())) + torch.clamp(-margin, min=0.0)


def _evaluate(models: Models, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    margins = _sign(y[:, :N_TRAIN]) * models.scores(y[:, :N_TRAIN], models.own)
    new = _sign(y[:, N_TRAIN:]) * models.scores(y[:, N_TRAIN:], 0.0)
    return loss(margins).mean(1), loss(new).mean(1), (new <= 0.0).double().mean(1)


def spec(method: str) -> OptimizerSpec:
    """Return the optimizer of that name."""
    return catalog(()).optimizer(method)


def settings_of(method: str) -> dict[str, float]:
    """Return what differs from the optimizer's published settings."""
    return {"lr": LR_OF.get(method, LR)}
