"""What an optimizer is here: a class, its published defaults, and the space that tuning may search."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

Settings = dict[str, float]  # what tuning chooses, by argument name; "betas[0]" is an item of a tuple

LR_DECADES = 2.0  # the learning rate is searched over so many decades on either side of the published default
_ITEM = re.compile(r"(\w+)\[(\d+)\]")


@dataclass(frozen=True)
class Range:
    """An interval that tuning searches.

    Attributes:
        low: Smallest value.
        high: Largest value.
        scale: "log": evenly in log(value). "decay": evenly in log(1 - value), for momentum and decay rates. "linear".
    """

    low: float
    high: float
    scale: Literal["log", "decay", "linear"] = "log"

    def at(self, unit: float) -> float:
        """Return the value at `unit` in [0, 1] of the way, to three significant digits of what is even.

        Examples:
            >>> Range(1e-4, 1.0).at(0.5), Range(0.7, 0.997, "decay").at(0.5)
            (0.01, 0.97)
        """
        if self.scale == "linear":
            return float(f"{self.low + unit * (self.high - self.low):.3g}")
        if self.scale == "log":
            return float(f"{self.low * (self.high / self.low) ** unit:.3g}")
        complement = (1.0 - self.low) * ((1.0 - self.high) / (1.0 - self.low)) ** unit
        return round(1.0 - float(f"{complement:.3g}"), 12)

    def unit(self, value: float) -> float:
        """Return where `value` lies, in [0, 1]; the inverse of `at`, up to its rounding.

        Examples:
            >>> Range(1e-4, 1.0).unit(0.01)
            0.5
        """
        low, high = self.low, self.high
        if self.scale == "log":
            low, high, value = math.log(low), math.log(high), math.log(value)
        elif self.scale == "decay":
            low, high, value = (math.log1p(-min(v, 1.0 - 1e-12)) for v in (low, high, value))
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def scaled(self, factor: float) -> Range:
        """Return the interval with both ends multiplied by `factor`."""
        return Range(self.low * factor, self.high * factor, self.scale)

    def config(self) -> list[Any]:
        """Return it as plain data."""
        return [self.low, self.high, self.scale]


DECAY = Range(0.7, 0.997, "decay")  # two decades of 1 - value, around 0.97


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer as users meet it: a class, its published defaults and what is tuned.

    The learning rate is always tuned, over four decades around its default (times the problem's `lr_scale`), and one
    further argument over two: the same size of search for everyone.

    Attributes:
        name: Name on the command line and in records.
        title: Name for people.
        target: `module:Class`, or `module:function` of the same arguments.
        default: The published default of everything that is tuned, which the "untuned" runs use.
        second: What is tuned beside the learning rate: argument and interval.
        options: Further arguments of the constructor.
        tied: Arguments that take the value of the learning rate, whatever tuning makes it.
        is_rate: Whether `second` is measured in learning rates, and so moves with the problem's `lr_scale`.
        backward: Arguments of `loss.backward` (`create_graph` for optimizers that take second derivatives).
        uses_closure: Whether `step` evaluates the loss itself, on the same batch, perhaps several times.
        rule: The update, in LaTeX.
        source: Where rule and defaults were published.
    """

    name: str
    title: str
    target: str
    default: Settings
    second: tuple[str, Range] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    tied: tuple[str, ...] = ()
    is_rate: bool = False
    backward: dict[str, Any] = field(default_factory=dict)
    uses_closure: bool = False
    rule: str = ""
    source: str = ""

    def space(self, lr_scale: float) -> dict[str, Range]:
        """Return the search space on a problem: the interval of every argument that is tuned."""
        centre = self.default["lr"] * lr_scale
        space = {"lr": Range(centre * 10**-LR_DECADES, centre * 10**LR_DECADES)}
        if self.second:
            name, interval = self.second
            space[name] = interval.scaled(lr_scale) if self.is_rate else interval
        return space

    def config(self) -> dict[str, Any]:
        """Return everything that decides what the optimizer does, as plain data."""
        return {
            "class": self.target,
            "default": self.default,
            "second": [self.second[0], *self.second[1].config()] if self.second else None,
            "options": self.options,
            "tied": list(self.tied),
        }

    def load(self) -> Any:
        """Return the class or function, imported."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)

    def make(self, params: Iterable[Tensor], settings: Settings) -> Optimizer:
        """Return the optimizer on `params`; what `settings` does not name is at its default."""
        settings = self.default | settings
        target = self.load()
        arguments = self.options | dict.fromkeys(self.tied, settings["lr"])
        for key, value in settings.items():
            if item := _ITEM.fullmatch(key):
                whole = list(arguments.get(item[1]) or signature(target).parameters[item[1]].default)
                whole[int(item[2])] = value
                arguments[item[1]] = tuple(whole)
            else:
                arguments[key] = value
        optimizer: Optimizer = target(params, **arguments)
        return optimizer


@dataclass(frozen=True)
class Factory:
    """An optimizer with its settings chosen: call it on parameters."""

    spec: OptimizerSpec
    settings: Settings

    def __call__(self, params: Iterable[Tensor]) -> Optimizer:
        """Return the optimizer on `params`."""
        return self.spec.make(params, self.settings)
