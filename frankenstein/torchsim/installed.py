"""The torch-sim that is installed, and which of its two conventions it follows."""

from __future__ import annotations

import importlib
import warnings
from importlib.metadata import version
from typing import Any

__all__ = ["HAS_TUPLES", "VERSION", "ModelInterface", "StateBase", "ts"]


def _import(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-sim loads with deprecation warnings of torch
        return importlib.import_module(module)


try:
    ts = _import("torch_sim")
    _optimizers = _import("torch_sim.optimizers")
    ModelInterface: Any = _import("torch_sim.models.interface").ModelInterface
except ModuleNotFoundError as error:
    raise ImportError(
        f"The package torch-sim-atomistic is not here (no module {error.name}): "
        "pip install '.[torchsim]' (in the checkout)"
    ) from error

HAS_TUPLES = hasattr(getattr(_optimizers, "OptimState", None), "set_constrained_forces")
"""Whether it takes an optimizer as (init, step), as from 0.5 on, or as the function that makes both, as 0.3 does."""

VERSION = version("torch-sim-atomistic")

if not HAS_TUPLES and not VERSION.startswith("0.3."):
    raise ImportError(f"torch-sim {VERSION} is not supported; allowed are 0.3, and 0.5 and later")

StateBase: Any = _optimizers.OptimState if HAS_TUPLES else ts.SimState
"""What the state of an optimizer is derived from."""
