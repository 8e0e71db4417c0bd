"""What the numbers that every front-end takes may be, and what is said of others."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

__all__ = ["check_numbers"]

MIN_EPS = 2.0**-126  # the smallest normal float32: a smaller eps is 0 there, and then 0 / 0

_ALLOWED = {
    "lr": (0.0, math.inf, "a finite number >= 0"),
    "eps": (MIN_EPS, math.inf, f"a finite number >= {MIN_EPS:.2g} (smaller is 0 in float32)"),
    "momentum": (0.0, 1.0, "a number in [0, 1)"),
    "base_lr": (math.ulp(0.0), math.inf, "a finite number > 0"),
    "weight_decay": (0.0, math.inf, "a finite number >= 0"),
}
_ALLOWED |= {"learning_rate": _ALLOWED["lr"], "epsilon": _ALLOWED["eps"]}  # as optax and Keras call them


def check_numbers(**numbers: Any) -> None:
    """Check arguments by their names: lr or learning_rate, eps or epsilon, momentum, base_lr, weight_decay.

    Raises:
        ValueError: One is outside its range; the message names the first.
    """
    for name, value in numbers.items():
        _check(name, value, *_ALLOWED[name])


def _check(name: str, value: Any, low: float, high: float, allowed: str) -> None:
    """Check that `low <= value < high`, and that it is a number: a string or a bool is a slip in some configuration."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) < high:
        raise ValueError(f"Invalid {name}: {value!r}; allowed is {allowed}")
