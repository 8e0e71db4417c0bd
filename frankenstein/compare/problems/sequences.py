"""Problems on the same digits, read row by row as sequences of eight tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from frankenstein.compare.problems.digits import DigitsTask, accuracy, cross_entropy, load_splits
from frankenstein.compare.problems.problem import Problem
from frankenstein.compare.training import Training


class Recurrent(nn.Module):
    """A gated recurrent unit over the rows; its last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, 10) of images (n, 1, 8, 8)."""
        logits: Tensor = self.head(self.gru(images.squeeze(1))[0][:, -1])
        return logits


class Block(nn.Module):
    """A pre-norm transformer block of width 32 with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (n, 8, 32) of tokens of the same shape."""
        normed = self.norms[0](tokens)
        # With the weights asked for, attention is plain matrix products, which can be differentiated twice.
        tokens = tokens + self.attention(normed, normed, normed, need_weights=True)[0]
        mixed: Tensor = tokens + self.mlp(self.norms[1](tokens))
        return mixed


class Transformer(nn.Module):
    """Two blocks over the rows; the mean token is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, 32)
        self.position = nn.Parameter(0.02 * torch.randn(8, 32))
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, 10) of images (n, 1, 8, 8)."""
        tokens = self.embedding(images.squeeze(1)) + self.position
        logits: Tensor = self.head(self.blocks(tokens).mean(1))
        return logits


def _problem(name: str, title: str, network: Callable[[], nn.Module], **options: Any) -> Problem:
    return Problem(
        name=name,
        title=title,
        metric="accuracy",
        is_higher_better=True,
        worst=0.1,
        n_steps=240,
        n_evals=24,
        lr_scale=10.0,
        run=Training(lambda seed, budget: DigitsTask(network, cross_entropy, accuracy, seed, budget.split)),
        load=load_splits,
        **options,
    )


PROBLEMS = (
    _problem(
        "digits-gru",
        "Recurrent classifier of handwritten digits, row by row (8,842 parameters, batch 64)",
        Recurrent,
        target=0.93,
    ),
    _problem(
        "digits-transformer",
        "Transformer of two blocks on handwritten digits, row by row (18,026 parameters, batch 64)",
        Transformer,
        target=0.95,
    ),
)
