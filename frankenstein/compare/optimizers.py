"""Optimizers that can be compared: torch's own and ours, each with its published defaults."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

Settings = dict[str, float]  # what tuning chooses, by argument name


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer as users meet it: a class, its published defaults and what is tuned.

    Attributes:
        name: Name on the command line and in records.
        title: Name for people.
        target: `module:Class`.
        default: The class's own default of what is tuned, which the "untuned" rows use.
        options: Further arguments of the constructor.
        tied: Arguments that take the value of the learning rate, whatever tuning makes it.
    """

    name: str
    title: str
    target: str
    default: Settings
    options: dict[str, Any] = field(default_factory=dict)
    tied: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        """Return everything that decides what the optimizer does, as plain data."""
        return {"class": self.target, "default": self.default, "options": self.options, "tied": list(self.tied)}

    def make(self, params: Iterable[Tensor], settings: Settings) -> Optimizer:
        """Return the optimizer on `params`."""
        module, _, cls = self.target.partition(":")
        tied = dict.fromkeys(self.tied, settings["lr"])
        optimizer: Optimizer = getattr(import_module(module), cls)(params, **self.options, **settings, **tied)
        return optimizer


_OURS = "frankenstein.torch:Frankenstein"
_SPECS = (
    OptimizerSpec("frankenstein", "Frankenstein", _OURS, {"lr": 1e-3}),
    OptimizerSpec("frankenstein-tied", "Frankenstein (base_lr = lr)", _OURS, {"lr": 1e-3}, tied=("base_lr",)),
    OptimizerSpec("sgd", "SGD (Nesterov)", "torch.optim:SGD", {"lr": 1e-3}, {"momentum": 0.9, "nesterov": True}),
    OptimizerSpec("rmsprop", "RMSprop", "torch.optim:RMSprop", {"lr": 1e-2}),
    OptimizerSpec("adam", "Adam", "torch.optim:Adam", {"lr": 1e-3}),
    OptimizerSpec("adamw", "AdamW", "torch.optim:AdamW", {"lr": 1e-3}),
    OptimizerSpec("amsgrad", "AMSGrad", "torch.optim:Adam", {"lr": 1e-3}, {"amsgrad": True}),
    OptimizerSpec("frankenstein-authors", "Frankenstein (authors)", _OURS, {"lr": 1e-3}, {"rule": "authors"}),
)
OPTIMIZERS: dict[str, OptimizerSpec] = {spec.name: spec for spec in _SPECS}
DEFAULT_OPTIMIZERS = ("frankenstein", "frankenstein-tied", "sgd", "rmsprop", "adam", "adamw", "amsgrad")
