"""The rule on lists of tensors: `frankenstein.rule.update` itself, with torch's `_foreach` operations beneath.

One operation on a list is one launch on a GPU, where one for each tensor would wait for the host. The numbers are those
of `plain.py`, bit for bit. The intermediate results of a whole list exist at once: lists are of bounded size.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from frankenstein.kernels import Item, Options, plain
from frankenstein.kernels.state import noise
from frankenstein.rule import State, update

MAX_ELEMENTS = 2**22
"""Elements of a list of more than one tensor: no launch is short then, and what lies between takes 300 MiB at most."""


def step(items: Sequence[Item], options: Options) -> None:
    """Move parameters by the rule and their decoupled weight decay; write parameters and state."""
    groups: dict[Any, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.param.device, plain.compute_dtype(item.param)].append(item)
    for group in groups.values():
        for part in _parts(group):
            _step(part, options)


def _parts(items: list[Item]) -> Iterator[list[Item]]:
    part: list[Item] = []
    n_elements = 0
    for item in items:
        n_elements += item.param.numel()
        if part and n_elements > MAX_ELEMENTS:
            yield part
            part, n_elements = [], item.param.numel()
        part.append(item)
    yield part


def _step(items: list[Item], options: Options) -> None:
    ready = [plain.prepared(item, options) for item in items]
    grads, thetas = Many([one[0] for one in ready]), Many([one[1] for one in ready])
    before = State(*(Many(list(parts)) for parts in zip(*(one[2] for one in ready), strict=True)))
    rate = ready[0][3]
    dithers = [
        noise(theta, grad) if plain.needs_noise(item) else None
        for item, theta, grad in zip(items, thetas.tensors, grads.tensors, strict=True)
    ]
    grads = -grads if options.maximize else grads
    delta, after = update(Lists, grads, before, lr=rate, **options.of_rule())
    moved = (thetas * (1 - rate * options.weight_decay) if options.weight_decay else thetas) + delta
    if options.skip_nonfinite and options.weight_decay:
        usable = [plain.is_usable(grad, options.eps) for grad in grads.tensors]
        moved = Lists.where(Many(usable), moved, thetas)
    for i, item in enumerate(items):
        plain.finish(item, moved.tensors[i], State(*(part.tensors[i] for part in after)), dithers[i])


class Many:
    """A list of tensors that calculates as one array does: with another list, with a number, or with a 0-dim tensor."""

    def __init__(self, tensors: list[Tensor] | tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    @property
    def dtype(self) -> torch.dtype:
        """That of all of them."""
        return self.tensors[0].dtype

    def __add__(self, other: Any) -> Many:
        return Many(torch._foreach_add(self.tensors, _bare(other)))

    def __mul__(self, other: Any) -> Many:
        return Many(torch._foreach_mul(self.tensors, _bare(other)))

    def __sub__(self, other: Any) -> Many:
        return Many(torch._foreach_sub(self.tensors, _bare(other)))

    def __truediv__(self, other: Any) -> Many:
        return Many(torch._foreach_div(self.tensors, _bare(other)))

    def __rtruediv__(self, other: Any) -> Many:
        return Many(torch._foreach_mul(torch._foreach_reciprocal(self.tensors), other))

    def __neg__(self) -> Many:
        return Many(torch._foreach_neg(self.tensors))

    def __eq__(self, other: Any) -> Many:  # type: ignore[override]
        return _each(operator.eq, self, other)

    def __le__(self, other: Any) -> Many:
        return _each(operator.le, self, other)

    def __and__(self, other: Any) -> Many:
        return _each(operator.and_, self, other)

    __hash__ = None  # type: ignore[assignment]
    __radd__, __rmul__ = __add__, __mul__
    __rand__ = __and__


def _bare(value: Any) -> Any:
    return value.tensors if isinstance(value, Many) else value


def _each(function: Callable[..., Tensor], *values: Any) -> Many:
    """Call a function that has no form for lists, once for each tensor."""
    n = next(len(value.tensors) for value in values if isinstance(value, Many))
    columns = [value.tensors if isinstance(value, Many) else [value] * n for value in values]
    return Many([function(*row) for row in zip(*columns, strict=True)])


def _one_or_many(name: str) -> Callable[..., Any]:
    one, many = getattr(torch, name), getattr(torch, f"_foreach_{name}")
    return lambda value: Many(many(value.tensors)) if isinstance(value, Many) else one(value)


class Lists:
    """The array namespace of `Many`, for `frankenstein.rule`; 0-dim tensors pass through to torch."""

    finfo = torch.finfo
    abs, sqrt, exp = map(staticmethod, map(_one_or_many, ("abs", "sqrt", "exp")))
    log, tanh, atan = map(staticmethod, map(_one_or_many, ("log", "tanh", "atan")))

    @staticmethod
    def where(condition: Any, yes: Any, no: Any) -> Any:
        """torch.where, for each tensor."""
        if not any(isinstance(value, Many) for value in (condition, yes, no)):
            return torch.where(condition, yes, no)
        return _each(torch.where, condition, yes, no)

    @staticmethod
    def maximum(a: Many, b: Many) -> Many:
        """torch.maximum, for each pair."""
        return Many(torch._foreach_maximum(a.tensors, b.tensors))

    @staticmethod
    def clip(value: Any, low: float, high: float) -> Any:
        """torch.clip, for each tensor."""
        if isinstance(value, Many):
            return Many(torch._foreach_clamp_min(torch._foreach_clamp_max(value.tensors, high), low))
        return torch.clip(value, low, high)

    @staticmethod
    def zeros_like(value: Many) -> Many:
        """torch.zeros_like, for each tensor."""
        return _each(torch.zeros_like, value)

    @staticmethod
    def ones_like(value: Many) -> Many:
        """torch.ones_like, for each tensor."""
        return _each(torch.ones_like, value)

    @staticmethod
    def full_like(value: Many, fill: float) -> Many:
        """torch.full_like, for each tensor."""
        return _each(torch.full_like, value, fill)
