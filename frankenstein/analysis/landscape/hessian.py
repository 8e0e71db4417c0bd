"""Products of the Hessian with vectors, right for every operation that has a second derivative.

curvlinops differentiates the gradient forward, under `vmap`. There, torch 2.13 has the gradient of `LayerNorm`'s weight
wrong: the Hessian is not symmetric any more and its eigenvalues are off, without a word, and `GroupNorm` is refused.
Differentiating the gradient backward has neither trouble.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():  # curvlinops' own requirements use what torch has deprecated
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    from curvlinops import HessianLinearOperator, hutchinson_trace

__all__ = ["Hessian", "hutchinson_trace"]


class Hessian(HessianLinearOperator):
    """curvlinops' Hessian, with products by two backward passes."""

    def gradient(self) -> list[Tensor]:
        """Return the gradient of the loss over all batches; curvlinops' own refuses parameters that do nothing."""
        total = [torch.zeros_like(one) for one in self._params]
        for inputs, targets in self._loop_over_data():
            factor = self._get_normalization_factor(inputs, targets)
            loss = self._loss_func(self._model_func(inputs), targets)
            for one, of_batch in zip(total, self._gradient(loss), strict=True):
                one.add_(of_batch, alpha=factor)
        return total

    def _matmat_batch(self, X: Any, y: Tensor, M: list[Tensor]) -> list[Tensor]:
        """Return the Hessian of one batch times a matrix, whose columns are along the last axis of each tensor."""
        with torch.enable_grad():
            loss = self._loss_func(self._model_func(X), y)
            gradient = self._gradient(loss, create_graph=True)
            columns = [
                self._gradient(
                    torch.stack([(one * of[..., i]).sum() for one, of in zip(gradient, M, strict=True)]).sum()
                )
                for i in range(M[0].shape[-1])
            ]
        return [torch.stack(parts, dim=-1) for parts in zip(*columns, strict=True)]

    def _gradient(self, value: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        """Return the gradient; zeros for parameters that the value does not depend on."""
        if not value.requires_grad:  # the gradient of a loss that is linear
            return tuple(torch.zeros_like(one) for one in self._params)
        return torch.autograd.grad(
            value, self._params, create_graph=create_graph, retain_graph=True, allow_unused=True, materialize_grads=True
        )
