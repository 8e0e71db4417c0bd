"""The rule on one parameter after the other, in plain tensor operations: every device, every dtype, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frankenstein.kernels import Item, Options
from frankenstein.kernels.state import noise, read, write
from frankenstein.rule import State, gradient_limit, update


def step(items: Sequence[Item], options: Options) -> None:
    """Move parameters by the rule and their decoupled weight decay; write parameters and state."""
    for item in items:
        grad, theta, before, rate = prepared(item, options)
        dither = noise(theta, grad) if needs_noise(item) else None
        grad = -grad if options.maximize else grad
        if options.differentiable:
            before = State(*(tensor.clone() for tensor in before))
        delta, after = update(torch, grad, before, lr=rate, **options.of_rule())
        moved = (theta * (1 - rate * options.weight_decay) if options.weight_decay else theta) + delta
        if options.skip_nonfinite and options.weight_decay:
            moved = torch.where(is_usable(grad, options.eps), moved, theta)
        finish(item, moved, after, dither)


def prepared(item: Item, options: Options) -> tuple[Tensor, Tensor, State, float | Tensor]:
    """Return gradient, parameter and state in the dtype of the arithmetic, and the learning rate there."""
    dtype = compute_dtype(item.param)
    grad = real(item.grad).to(dtype)
    theta = real(item.param).to(dtype, copy=options.differentiable)
    if item.compensation is not None:
        theta = theta + item.compensation.to(dtype)
    lr = options.lr
    # Two 0-dim tensors promote each other: a float64 lr would make a float32 scalar parameter's state float64.
    rate = lr.reshape(()).to(grad.device, grad.dtype) if isinstance(lr, Tensor) else float(lr)
    return grad, theta, read(*map(real, (item.m, item.v, item.x)), exponents=item.exponents), rate


def finish(item: Item, moved: Tensor, after: State, dither: Tensor | None) -> None:
    """Write parameter and state."""
    if item.compensation is None:
        item.param.copy_(torch.view_as_complex(moved) if item.param.is_complex() else moved)
    else:
        item.param.copy_(moved)
        item.compensation.copy_(moved - item.param.to(moved.dtype))
    write(State(*map(real, (item.m, item.v, item.x))), after, exponents=item.exponents, noise=dither)


def needs_noise(item: Item) -> bool:
    """Whether the state is rounded by chance."""
    return item.m.dtype in (torch.bfloat16, torch.uint8)


def real(tensor: Tensor) -> Tensor:
    """View a complex tensor as pairs of real numbers: the rule treats them as independent parameters."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def compute_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype of the arithmetic: at least float32."""
    return torch.float64 if param.dtype in (torch.float64, torch.complex128) else torch.float32


def is_usable(grad: Tensor, eps: float) -> Tensor:
    """Return where a gradient is finite and in the valid range."""
    return grad.abs() <= gradient_limit(torch, grad.dtype, eps)  # False for NaN
