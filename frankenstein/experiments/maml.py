"""MAML (Finn et al., ICML 2017): a network that is trained to adapt itself to a task by gradient descent.

The inner loop adapts the network to a task's support; the optimizer moves the weights that the inner loop starts from,
by the gradient of the loss on the task's query, through the inner loop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

__all__ = ["ConvNet", "Maml", "labels_of"]

N_LAYERS = 4
EPS = 1e-5  # added to variances, as batch normalisation has it


class _BatchNorm(nn.Module):
    """Normalise each channel by mean and variance over the batch itself, in training and in scoring.

    Written out, because the derivative of torch's own under `vmap`, taken once more, is wrong in its fifth digit
    (torch 2.13); this one is exact and as fast.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(n_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        scale = self.weight * torch.rsqrt(variance + EPS)
        return x * scale + (self.bias - mean * scale)


class ConvNet(nn.Module):
    """The network of Finn et al. for Omniglot: four convolutions of stride 2, the mean over the rest, a linear layer.

    Convolutions have no bias, which normalisation would take away.
    """

    def __init__(self, n_filters: int, n_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(N_LAYERS):
            layers.append(nn.Conv2d(n_filters if i else 1, n_filters, 3, stride=2, padding=1, bias=False))
            layers += [_BatchNorm(n_filters), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(n_filters, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (n, 1, height, width), to logits, (n, n_classes)."""
        logits: Tensor = self.last(self.layers(x).mean((2, 3)))
        return logits


class Maml(nn.Module):
    """A network that adapts itself to the support of each task before it answers the query.

    The inner loop is differentiated exactly, or, if `is_first_order`, with its gradients taken as constant. All tasks
    are adapted at once, each with weights of its own.

    Args:
        network: Called on images, shape (n, 1, height, width); without running statistics.
        inner_lr: Learning rate of the inner loop.
        n_inner: Steps of the inner loop, in training mode and in evaluation mode.
        is_first_order: See above.
    """

    def __init__(
        self, network: nn.Module, inner_lr: float, n_inner: tuple[int, int] = (1, 1), is_first_order: bool = False
    ) -> None:
        super().__init__()
        self.network, self.inner_lr, self.n_inner, self.is_first_order = network, inner_lr, n_inner, is_first_order

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Return the logits of the query after the inner loop, shape (n_tasks, n_ways * n_queries, n_ways).

        Args:
            support: Pixels from 0 to 255, shape (n_tasks, n_ways, n_shots, height, width).
            query: Likewise, (n_tasks, n_ways, n_queries, height, width).
        """
        weights: dict[str, Tensor] = dict(self.network.named_parameters())
        answers = vmap(self._answer, in_dims=(None, 0, 0))
        logits: Tensor = answers(weights, self._prepared(support), self._prepared(query))
        return logits

    def _prepared(self, pixels: Tensor) -> Tensor:
        """Return images for the network, shape (n_tasks, n, 1, height, width), in [0, 1]."""
        dtype = next(self.network.parameters()).dtype
        return pixels.flatten(1, 2).unsqueeze(2).to(dtype) / 255

    def _answer(self, weights: dict[str, Tensor], support: Tensor, query: Tensor) -> Tensor:
        """Return the logits of one task."""

        def loss(weights: dict[str, Tensor]) -> Tensor:
            logits = functional_call(self.network, weights, (support,))
            return cross_entropy(logits, labels_of(logits))

        for _ in range(self.n_inner[0] if self.training else self.n_inner[1]):
            gradient = grad(loss)(weights)
            if self.is_first_order:
                gradient = {name: value.detach() for name, value in gradient.items()}
            weights = {name: value - self.inner_lr * gradient[name] for name, value in weights.items()}
        logits: Tensor = functional_call(self.network, weights, (query,))
        return logits


def labels_of(logits: Tensor) -> Tensor:
    """Return the classes of a task's drawings, in the order of `draw`, shape (n_ways * n_drawings,).

    Args:
        logits: Of the drawings, shape (..., n_ways * n_drawings, n_ways).
    """
    n_drawings, n_ways = logits.shape[-2:]
    return torch.arange(n_ways, device=logits.device).repeat_interleave(n_drawings // n_ways)
