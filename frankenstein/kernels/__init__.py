"""One optimizer step on the tensors of a parameter group, by whichever implementation of the rule is the fastest there.

    plain.py     `frankenstein.rule.update`, one parameter after the other: every device and dtype; what is compiled
    foreach.py   the same function on lists of tensors: a launch per operation instead of one per operation and tensor
    cpu.py       one pass over memory in C, on all cores (cpu.c, cpu_rule.h)
    cuda.py      one pass over memory in Triton, all tensors in one launch
    layout.py    what the two ask of tensors before they read them by address
    state.py     how the state is stored: float32, bfloat16, 8 bits

The rule is stated in `frankenstein/rule.py`; the two fused kernels are the only restatements, tested against it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from frankenstein.kernels.state import is_dtensor
from frankenstein.library import unfusable
from frankenstein.rule import Rule, State


@dataclass(frozen=True)
class Options:
    """What a step of a parameter group is done with; the names are the optimizer's."""

    lr: float | Tensor
    eps: float
    momentum: float
    base_lr: float
    weight_decay: float
    rule: Rule
    skip_nonfinite: bool
    maximize: bool
    differentiable: bool

    def of_rule(self) -> dict[str, Any]:
        """Return what `frankenstein.rule.update` takes beside `lr`, which has to be where the gradient is."""
        names = ("eps", "momentum", "base_lr", "rule", "skip_nonfinite")
        return {name: getattr(self, name) for name in names}


class Item(NamedTuple):
    """A parameter with what its step needs."""

    param: Tensor
    grad: Tensor
    m: Tensor
    v: Tensor
    x: Tensor
    exponents: Tensor | None
    compensation: Tensor | None


@dataclass
class Batch:
    """The parameters of a group that have a gradient, and what belongs to them: lists of one length.

    Attributes:
        params: Any shapes.
        grads: Like the parameters; never modified.
        states: `State` of lists, in one of the formats of `frankenstein.kernels.state`.
        exponents: Of 8-bit state; None for others.
        compensations: What the parameter's own precision could not hold, in its dtype; None where it is not kept.
    """

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: State = field(default_factory=lambda: State([], [], []))
    exponents: list[Tensor | None] = field(default_factory=list)
    compensations: list[Tensor | None] = field(default_factory=list)

    def lists(self) -> tuple[list, ...]:
        """Return the seven lists, in the order of `Item`."""
        return self.params, self.grads, *self.states, self.exponents, self.compensations

    def items(self) -> list[Item]:
        """Return one `Item` for each parameter."""
        return [Item(*item) for item in zip(*self.lists(), strict=True)]


def step(batch: Batch, options: Options, *, foreach: bool | None, fused: bool | None) -> None:
    """Move the parameters by one step; write parameters and state.

    Args:
        batch: What to step.
        options: With what.
        foreach: True: `foreach.py` for all; None: where it is faster; False: never.
        fused: True: a fused kernel for all, or an error; None: where there is one; False: never.

    Raises:
        RuntimeError: `fused` is True, and there is a parameter that no kernel takes. Nothing has changed then.
    """
    from frankenstein.kernels import plain

    # The compiler fuses on its own; but of sharded parameters it would trace the sharding of each operation.
    is_traced = torch.compiler.is_compiling() and not fused and not any(map(is_dtensor, batch.params))
    if options.differentiable or is_traced:
        plain.step(batch.items(), options)
    else:
        _step_eagerly(batch, options, foreach, fused)


@torch._disable_dynamo
def _step_eagerly(batch: Batch, options: Options, foreach: bool | None, fused: bool | None) -> None:
    from frankenstein.kernels import cpu, cuda, plain
    from frankenstein.kernels import foreach as lists

    items = [_local(item) for item in batch.items()]
    rest = items
    jobs = []
    if fused is not False and foreach is not True and unfusable(options.rule) is None:
        for kernel in (cpu, cuda):
            if rest and kernel.why_not() is None:
                job, rest = kernel.prepared(rest, options)
                jobs.append(job)
    if fused and rest:
        raise RuntimeError(_refusal(rest[0], options.rule))
    for job in jobs:
        job()
    one_by_one: list[Item] = []
    in_lists: list[Item] = []
    for item in rest:
        in_list = item.param.device.type == "cuda" if foreach is None else foreach
        (in_lists if in_list else one_by_one).append(item)
    lists.step(in_lists, options)
    plain.step(one_by_one, options)


def _local(item: Item) -> Item:
    """Return this process's part of sharded tensors: every operation is elementwise."""
    if not is_dtensor(item.param):
        return item
    parts = item._replace(grad=local_gradient(item.param, item.grad))
    local: Any = (one.to_local() if one is not None and is_dtensor(one) else one for one in parts)
    return Item(*local)


def local_gradient(param: Tensor, grad: Tensor) -> Tensor:
    """Return this process's part of a gradient, sharded as its parameter is."""
    if not (is_dtensor(param) and is_dtensor(grad)):
        return grad
    return (grad if grad.placements == param.placements else grad.redistribute(placements=param.placements)).to_local()


def _refusal(item: Item, rule: Rule) -> str:
    from frankenstein.kernels import cpu, cuda

    reason = unfusable(rule)
    if reason is None:
        kernel = {"cpu": cpu, "cuda": cuda}.get(item.param.device.type)
        reason = kernel.why_not() if kernel else f"tensors on {item.param.device.type}"
    if reason is None:
        reason = f"a parameter of dtype {item.param.dtype} with a gradient of dtype {item.grad.dtype}"
    return f"fused=True: there is no kernel for {reason}; fused=None takes it where there is one"
