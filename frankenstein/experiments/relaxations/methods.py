"""The methods that are compared, and one run of one of them, its force calls counted at the function.

ASE's optimizers run as they come, with their own defaults; nothing is tuned for or against them. All see the same
function, stop by the same criterion at the same tolerance, and every new geometry that they ask about is one call.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.utils.abc import Optimizable

from frankenstein.ase import Frankenstein
from frankenstein.relaxation import RelaxationRule
from frankenstein.structures.methods import METHODS as OPTIMIZERS
from frankenstein.structures.methods import optimizer_class

__all__ = ["METHODS", "VARIANTS", "Method", "Outcome", "PairCluster", "descend", "find_method"]


@dataclass(frozen=True)
class Method:
    """A minimiser: `run(optimizable, fmax)` moves the optimizable until its largest force is at most `fmax`."""

    title: str
    run: Callable[[Optimizable, float], Any]


@dataclass(frozen=True)
class Outcome:
    """How one run ended.

    Attributes:
        calls: Geometries of which the forces were computed.
        energy: At the last of them that was finite.
        fmax: Largest force there.
        reason: `converged`, `maxcalls`, `nonfinite`, or `failed: ...` with what the method said.
        seconds: Wall time.
    """

    calls: int
    energy: float
    fmax: float
    reason: str
    seconds: float


def _ase(name: str) -> Callable[[Optimizable, float], Any]:
    return lambda optimizable, fmax: optimizer_class(name)(optimizable, logfile=None).run(fmax=fmax)


def _variant(**constants: Any) -> Callable[[Optimizable, float], Any]:
    def run(optimizable: Optimizable, fmax: float) -> Any:
        optimizer = Frankenstein(optimizable, logfile=None)
        optimizer.rule = RelaxationRule(**constants)
        return optimizer.run(fmax=fmax)

    return run


def steepest_descent(optimizable: Optimizable, fmax: float, first_step: float = 0.1, maxstep: float = 0.2) -> None:
    """Steepest descent with the step length of GROMACS: 1.2 times longer after a success, a fifth after a failure.

    The most pulled atom moves by the step length, along the forces.
    """
    step = first_step
    x, energy, gradient = optimizable.get_x(), optimizable.get_value(), optimizable.get_gradient()
    while not optimizable.converged(gradient, fmax):
        trial = x - step * gradient / optimizable.gradient_norm(gradient)
        optimizable.set_x(trial)
        new = optimizable.get_value()
        if new < energy:
            x, energy, gradient = trial, new, optimizable.get_gradient()
            step = min(1.2 * step, maxstep)
        else:
            step *= 0.2


METHODS: dict[str, Method] = {
    **{name: Method(method.title, _ase(name)) for name, method in OPTIMIZERS.items()},
    "sd": Method("steepest descent", steepest_descent),
}
"""By the names used on the command line and in records."""

OFF = 1e-9  # of the alignment: no pair is turned
VARIANTS: dict[str, Method] = {
    "frankenstein": METHODS["frankenstein"],
    "memory-1": Method("memory of 1 step", _variant(memory=1)),
    "memory-5": Method("memory of 5 steps", _variant(memory=5)),
    "memory-20": Method("memory of 20 steps", _variant(memory=20)),
    "no-maximum": Method("no relaxed maximum of the curvature", _variant(alignment=OFF)),
    "no-acceleration": Method("no acceleration", _variant(acceleration=1.0)),
    "no-reset": Method("no momentum reset", _variant(shrink=1.0)),
    "none": Method("none of the three", _variant(alignment=OFF, acceleration=1.0, shrink=1.0)),
}
"""The rule with a part of it switched off, for the ablation."""


def find_method(name: str) -> Method:
    """Return the method, or the variant, of that name."""
    return METHODS.get(name) or VARIANTS[name]


def descend(method: str, inner: Optimizable, fmax: float, maxcalls: int) -> Outcome:
    """Run a method from where the optimizable is.

    Args:
        method: One of `METHODS` or `VARIANTS`.
        inner: What is minimised; it is moved.
        fmax: Largest force at the end, in its unit.
        maxcalls: Most force calls.

    Returns:
        How it ended. What the method raises is an outcome too.
    """
    counted = _Counted(inner, maxcalls)
    begin = time.perf_counter()
    reason = "stopped early"
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of runs that go astray; how they end is recorded
            find_method(method).run(counted, fmax)
    except _Over as over:
        reason = str(over)
    except Exception as error:
        reason = f"failed: {type(error).__name__}: {' '.join(str(error).split())}"
    seconds = time.perf_counter() - begin
    if counted.fmax <= fmax:
        reason = "converged"
    return Outcome(counted.calls, counted.energy, counted.fmax, reason, seconds)


class _Over(Exception):
    """A run is at its end; the message is the reason."""


class _Counted(Optimizable):
    """An optimizable whose geometries are evaluated once each, and counted."""

    def __init__(self, inner: Optimizable, maxcalls: int) -> None:
        self.inner, self.maxcalls = inner, maxcalls
        self.calls, self.energy, self.fmax = 0, math.nan, math.inf
        self._x: np.ndarray | None = None
        self._value, self._gradient = math.nan, np.zeros(0)

    def ndofs(self) -> int:
        return int(self.inner.ndofs())

    def get_x(self) -> np.ndarray:
        return np.array(self.inner.get_x())

    def set_x(self, x: np.ndarray) -> None:
        self.inner.set_x(np.array(x))

    def get_value(self) -> float:
        self._evaluate()
        return self._value

    def get_gradient(self) -> np.ndarray:
        self._evaluate()
        return self._gradient.copy()

    def iterimages(self) -> Iterator[Any]:
        return iter(self.inner.iterimages())

    def gradient_norm(self, gradient: np.ndarray) -> float:
        return float(self.inner.gradient_norm(gradient))

    def converged(self, gradient: np.ndarray, fmax: float) -> bool:
        """Say whether the tolerance is met; ASE's own test is strict, this one is that of the protocol."""
        return self.gradient_norm(gradient) <= fmax

    def _evaluate(self) -> None:
        x = self.inner.get_x()
        if self._x is not None and np.array_equal(x, self._x):
            return
        if not np.isfinite(x).all():
            raise _Over("nonfinite")
        if self.calls >= self.maxcalls:
            raise _Over("maxcalls")
        self.calls += 1
        gradient, value = np.array(self.inner.get_gradient()), float(self.inner.get_value())
        if not (math.isfinite(value) and np.isfinite(gradient).all()):
            raise _Over("nonfinite")
        self._x, self._value, self._gradient = np.array(x), value, gradient
        self.energy, self.fmax = value, self.gradient_norm(gradient)


class PairCluster(Optimizable):
    """A cluster in a potential that is a plain function: ASE's optimizers at a hundredth of the cost of `Atoms`."""

    def __init__(self, positions: np.ndarray, potential: Callable[[np.ndarray], tuple[float, np.ndarray]]) -> None:
        self.positions, self.potential = np.array(positions, dtype=float), potential
        self._at: np.ndarray | None = None

    def ndofs(self) -> int:
        """How many coordinates."""
        return int(self.positions.size)

    def get_x(self) -> np.ndarray:
        """The coordinates, flat."""
        return self.positions.ravel().copy()

    def set_x(self, x: np.ndarray) -> None:
        """Move there."""
        self.positions = np.array(x).reshape(-1, 3)

    def _evaluate(self) -> None:
        if self._at is not self.positions:
            self._at = self.positions
            self._energy, self._forces = self.potential(self.positions)

    def get_gradient(self) -> np.ndarray:
        """Minus the forces, flat."""
        self._evaluate()
        return -self._forces.ravel()

    def get_value(self) -> float:
        """The energy."""
        self._evaluate()
        return self._energy

    def iterimages(self) -> Iterator[Any]:
        """The cluster as argon."""
        from ase import Atoms

        yield Atoms(f"Ar{len(self.positions)}", self.positions)
