"""The tables of docs/optimizers.md, made from the optimizers of `frankenstein compare`."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from frankenstein.compare.baselines import OPTIMIZERS
from frankenstein.compare.optimizers import OptimizerSpec

SIDE = 64  # state is measured on a matrix of 64 x 64 float32
# Not in the table of the optimizers that run: title, why, source.
QUOTED = (("AdaFisher", "quoted only: no maintained package has it", "Gomes et al., arXiv:2405.16397"),)


def optimizers_markdown() -> str:
    """Return two tables: the updates side by side, and what is constant, tuned and stored."""
    return f"{rules()}\n\n{settings()}"


def rules() -> str:
    lines = ["| optimizer | update | source |", "|---|---|---|"]
    for spec in OPTIMIZERS:
        equations = "<br>".join(rf"$\displaystyle {equation}$" for equation in spec.rule.split(r" \quad "))
        lines.append(f"| {spec.title} | {equations} | {spec.source} |")
    lines += [f"| {title} | {why} | {source} |" for title, why, source in QUOTED]
    return "\n".join(lines)


def settings() -> str:
    lines = [
        "| name | class | lr | also tuned | weight decay | constants | state, bytes per parameter |",
        "|---|---|---|---|---|---|---|",
    ]
    for spec in OPTIMIZERS:
        cells = [f"`{spec.name}`", f"`{class_of(spec)}`", f"{spec.default['lr']:g}", second(spec)]
        cells += [f"{constants(spec).get('weight_decay', 0):g}", constants_text(spec), f"{state_bytes(spec):.3g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def class_of(spec: OptimizerSpec) -> str:
    """Return where the class comes from, by the name users import."""
    if spec.target.startswith("frankenstein.compare."):  # a function that composes classes
        return f"pytorch_optimizer.{type(made(spec)[0]).__name__}"
    return spec.target.replace(":", ".")


def second(spec: OptimizerSpec) -> str:
    assert spec.second is not None, f"{spec.name} has one tuned argument only; the comparison tunes two"
    name, interval = spec.second
    return f"`{name}` {spec.default[name]:g} ({interval.low:g} to {interval.high:g})"


def constants(spec: OptimizerSpec) -> dict[str, Any]:
    """Return the constructor's numbers, with the options that the comparison sets."""
    module, _, name = spec.target.partition(":")
    arguments = signature(getattr(import_module(module), name)).parameters.values()
    numbers = {a.name: a.default for a in arguments if isinstance(a.default, (float, int, tuple))}
    return {name: value for name, value in numbers.items() if not isinstance(value, bool)} | spec.options


def constants_text(spec: OptimizerSpec) -> str:
    """Return the constants that are neither tuned nor 0, those set by the comparison in bold."""
    tuned = {name.split("[")[0] for name in spec.default} - {"betas"} | {"weight_decay"} | set(spec.tied)
    texts = [f"`{name} = lr`" for name in spec.tied]
    for name, value in constants(spec).items():
        text = f"`{name} = {value:g}`" if isinstance(value, float) else f"`{name} = {value}`"
        texts += [f"**{text}**" if name in spec.options else text] if value and name not in tuned else []
    return ", ".join(texts)


def state_bytes(spec: OptimizerSpec) -> float:
    """Return the bytes of state per parameter after one step on a square matrix."""
    optimizer, param = made(spec)
    loss = param.square().sum()
    param.grad = torch.autograd.grad(loss, param, **spec.backward)[0]
    optimizer.step()
    tensors = [leaf for leaf in tree_leaves(optimizer.state_dict()) if isinstance(leaf, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / param.numel()


def made(spec: OptimizerSpec) -> tuple[torch.optim.Optimizer, torch.Tensor]:
    """Return the optimizer at its defaults, and its only parameter."""
    param = torch.nn.Parameter(torch.arange(1.0, SIDE**2 + 1).reshape(SIDE, SIDE) / SIDE**2)
    return spec.make([param], spec.default), param
