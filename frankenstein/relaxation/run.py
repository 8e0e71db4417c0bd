"""Minimise one function, or relax many systems at once, counting every call and saying why each stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from frankenstein.relaxation.rule import PER_ATOM, RelaxationRule, State, init, update
from frankenstein.relaxation.systems import Systems, is_number, namespace, row_norms, to_numpy

__all__ = ["REASONS", "Minimum", "Relaxed", "minimize", "relax"]

Array = Any  # numpy.ndarray or torch.Tensor

Reason = Literal["converged", "maxcalls", "nonfinite", "stalled", "timeout", "stopped"]

REASONS: dict[str, str] = {
    "converged": "the largest force is within the tolerance at the returned positions",
    "maxcalls": "the calls that were allowed are used up",
    "nonfinite": "the energy or a force is not finite; the last good positions are returned",
    "stalled": "the next step is too small to change the positions in floating point",
    "timeout": "the time that was allowed is used up",
    "stopped": "the callback asked to stop",
}
"""Why a run ends, and what that means."""


@dataclass(frozen=True)
class Minimum:
    """Where `minimize` ended.

    Attributes:
        x: Of the shape of `x0`.
        fun: Value there.
        grad: Gradient there, of the shape of `x0`.
        gnorm: Largest norm of a row of the gradient (of a component, for a vector).
        converged: Whether `gnorm <= gtol` at `x`.
        reason: One of `REASONS`.
        calls: How often the function was called.
    """

    x: Array
    fun: float
    grad: Array
    gnorm: float
    converged: bool
    reason: Reason
    calls: int


@dataclass(frozen=True)
class Relaxed:
    """Where `relax` ended, in the order of the systems that were given.

    Attributes:
        positions: (n_atoms, n_dims), of the type that was given.
        energies: (n_systems,) at these positions.
        fmax: (n_systems,) largest force on an atom at these positions.
        converged: (n_systems,) whether `fmax` is within the tolerance.
        reasons: One of `REASONS` for each system.
        calls: (n_systems,) integers: how often its forces were computed.
    """

    positions: Array
    energies: np.ndarray
    fmax: np.ndarray
    converged: np.ndarray
    reasons: tuple[Reason, ...]
    calls: np.ndarray


def minimize(
    value_and_grad: Callable[[Array], tuple[Any, Array]],
    x0: Array,
    *,
    gtol: float = 1e-5,
    maxcalls: int = 10_000,
    maxstep: float | None = None,
    timeout: float | None = None,
    rule: RelaxationRule | None = None,
    callback: Callable[[Array, float, float], None] | None = None,
) -> Minimum:
    """Minimise a smooth function of which value and gradient come from one call.

    Args:
        value_and_grad: Called with an array like `x0`; returns the value (a number) and the gradient (like `x0`).
        x0: Where to start, numpy array or torch tensor of any shape. The last axis holds what belongs together (the
            coordinates of an atom); the entries of a vector stand alone. Never modified.
        gtol: Ends when no row of the gradient has a larger norm (no component of a vector is larger).
        maxcalls: Most calls.
        maxstep: Longest step of a row, in the unit of `x0`. None: no limit beyond the one that the rule keeps, and the
            first step changes the steepest row by 0.1 or by a tenth of the largest entry of `x0`, whichever is more.
        timeout: Most seconds.
        rule: Constants other than the published ones.
        callback: Called with x, value and gradient norm after every call; `StopIteration` ends the run.

    Returns:
        Where it ended and why.

    Raises:
        ValueError: An argument is outside its range, or the function returned a gradient of another shape.

    Example:
        >>> import numpy as np
        >>> result = minimize(lambda x: (x @ x, 2 * x), np.array([3.0, -4.0]), gtol=1e-6)
        >>> result.converged, bool(abs(result.x).max() < 1e-6)
        (True, True)
    """
    xp, x0 = namespace(x0), _detached(x0)
    shape = tuple(x0.shape)
    if math.prod(shape) == 0:
        raise ValueError(f"Invalid x0: its shape {shape} has no entries")
    rows = (-1, shape[-1]) if len(shape) > 1 else (-1, 1)
    rule = rule or RelaxationRule()
    _check_positive(gtol=gtol)
    if maxstep is None:
        limit, maxstep = max(1.0, float(abs(x0).max())) * 0.1 / rule.first_step, math.inf
    else:
        limit = maxstep

    def energy_and_forces(positions: Array, _: np.ndarray) -> tuple[Array, Array]:
        value, gradient = value_and_grad(positions.reshape(shape))
        gradient = gradient if hasattr(gradient, "shape") else xp.asarray(gradient)
        if tuple(gradient.shape) != shape:
            raise ValueError(f"Invalid gradient: its shape is {tuple(gradient.shape)}, that of x {shape}")
        return xp.asarray(_detached(value)).reshape(1), -_detached(gradient).reshape(rows)

    def each(_: np.ndarray, positions: Array, energies: np.ndarray, fmax: np.ndarray) -> None:
        if callback is not None:
            callback(positions.reshape(shape), float(energies[0]), float(fmax[0]))

    run = _Run(energy_and_forces, x0.reshape(rows), None, rule, fmax=gtol, maxstep=maxstep, step_limit=limit)
    relaxed = run.finish(maxcalls, timeout, each)
    return Minimum(
        x=relaxed.positions.reshape(shape),
        fun=float(relaxed.energies[0]),
        grad=run.final_gradient.reshape(shape),
        gnorm=float(relaxed.fmax[0]),
        converged=bool(relaxed.converged[0]),
        reason=relaxed.reasons[0],
        calls=int(relaxed.calls[0]),
    )


def relax(
    energy_and_forces: Callable[[Array, np.ndarray], tuple[Array, Array]],
    positions: Array,
    system_idx: Array | None = None,
    *,
    fmax: float,
    maxstep: float = 0.2,
    maxcalls: int = 10_000,
    timeout: float | None = None,
    rule: RelaxationRule | None = None,
    callback: Callable[[np.ndarray, Array, np.ndarray, np.ndarray], None] | None = None,
) -> Relaxed:
    """Relax one structure, or many in one batch; those that are done leave it.

    A system's path does not depend on the others. Atoms whose force is always zero stay where they are.

    Args:
        energy_and_forces: Called with the positions (n_active_atoms, n_dims) of the systems that still move and their
            numbers (n_active,), ascending; returns energies (n_active,) and forces (n_active_atoms, n_dims).
        positions: (n_atoms, n_dims), numpy array or torch tensor, on any device. Never modified.
        system_idx: (n_atoms,) integers, ascending: the system of each atom. None: one system.
        fmax: A system ends when no atom feels a larger force, in the unit of the forces.
        maxstep: Longest step of an atom, in the unit of the positions.
        maxcalls: Most force calls of one system.
        timeout: Most seconds of the whole batch.
        rule: Constants other than the published ones.
        callback: Called after every call with the active systems' numbers, positions, energies and largest forces;
            `StopIteration` ends the run.

    Returns:
        Positions and one entry per system.

    Raises:
        ValueError: An argument is outside its range, or the function returned an array of another shape.

    Example:
        >>> import numpy as np
        >>> springs = np.array([1.0, 30.0])  # two systems of one atom each, on springs
        >>> def energy_and_forces(positions, systems):
        ...     k = springs[systems]
        ...     return 0.5 * k * (positions**2).sum(1), -k[:, None] * positions
        >>> result = relax(energy_and_forces, np.ones((2, 3)), np.array([0, 1]), fmax=1e-3)
        >>> result.reasons, bool(abs(result.positions).max() < 1e-3)
        (('converged', 'converged'), True)
    """
    return _Run(
        energy_and_forces, positions, system_idx, rule or RelaxationRule(), fmax=fmax, maxstep=maxstep,
        step_limit=maxstep,
    ).finish(maxcalls, timeout, callback)  # fmt: skip


class _Run:
    """A batch on its way down: the systems that still move, and the results of all."""

    def __init__(
        self,
        energy_and_forces: Callable[[Array, np.ndarray], tuple[Array, Array]],
        positions: Array,
        system_idx: Array | None,
        rule: RelaxationRule,
        *,
        fmax: float,
        maxstep: float,
        step_limit: float,
    ) -> None:
        xp, positions = namespace(positions), _detached(positions)
        if positions.ndim != 2 or 0 in positions.shape:
            raise ValueError(f"Invalid positions: their shape is {tuple(positions.shape)}; wanted is (n_atoms, n_dims)")
        _check_positive(fmax=fmax, maxstep=maxstep)
        if system_idx is None:
            system_idx = xp.zeros_like(positions[:, 0], dtype=xp.int64)
        system_idx = _integers(system_idx, xp, positions)
        if tuple(system_idx.shape) != (len(positions),):
            raise ValueError(f"Invalid system_idx: its shape is {tuple(system_idx.shape)}, for {len(positions)} atoms")
        self.energy_and_forces, self.rule, self.fmax, self.maxstep = energy_and_forces, rule, fmax, maxstep
        self.xp, self.systems = xp, Systems(system_idx)
        n_systems = self.systems.n_systems
        # of the systems that still move: numbers, atoms among all, positions now and one step before
        self.numbers = np.arange(n_systems)
        self.atoms = xp.arange(len(positions), **_device(positions))
        dtype = positions.dtype if _is_float(positions) else xp.float64
        self.positions = self.previous = xp.asarray(positions, dtype=dtype) + 0
        self.gradient = xp.zeros_like(self.positions, dtype=xp.float64)
        self.state = init(self.gradient, self.systems, rule, step_limit)
        # the results, of all systems
        self.final = self.positions + 0
        self.final_gradient = self.gradient + math.nan
        self.energies, self.largest = np.full(n_systems, math.nan), np.full(n_systems, math.nan)
        self.calls = np.zeros(n_systems, int)
        self.reasons: list[Reason] = ["stopped"] * n_systems

    def finish(self, maxcalls: int, timeout: float | None, callback: Callable[..., None] | None) -> Relaxed:
        """Step until every system has a reason to stop."""
        if not (isinstance(maxcalls, int | np.integer) and maxcalls >= 1):
            raise ValueError(f"Invalid maxcalls: {maxcalls!r}; allowed are whole numbers of at least 1")
        if timeout is not None and not (is_number(timeout) and timeout > 0.0):
            raise ValueError(f"Invalid timeout: {timeout!r}; allowed are numbers above 0 and None")
        end = math.inf if timeout is None else time.monotonic() + timeout
        while len(self.numbers):
            self._leave(self._evaluate(), "nonfinite")
            if callback is not None and len(self.numbers):
                try:
                    callback(self.numbers, self.positions, self.energies[self.numbers], self.largest[self.numbers])
                except StopIteration:
                    end = -math.inf
            self._leave(self.largest[self.numbers] <= self.fmax, "converged")
            self._leave(self.calls[self.numbers] >= maxcalls, "maxcalls")
            if time.monotonic() >= end:
                self._leave(self.numbers >= 0, "timeout" if math.isfinite(end) else "stopped")
            if len(self.numbers):
                self._leave(self._step(), "stalled")
        return Relaxed(
            positions=self.final,
            energies=self.energies,
            fmax=self.largest,
            converged=np.array([reason == "converged" for reason in self.reasons]),
            reasons=tuple(self.reasons),
            calls=self.calls,
        )

    def _evaluate(self) -> np.ndarray:
        """Call the function; return which systems have something that is not finite. Those are set back."""
        energies, forces = (self._array(values) for values in self.energy_and_forces(self.positions, self.numbers))
        if len(self.numbers) == 1 and tuple(energies.shape) == ():
            energies = energies.reshape(1)
        if tuple(energies.shape) != self.numbers.shape or forces.shape != self.positions.shape:
            raise ValueError(
                f"Invalid energies or forces: their shapes are {tuple(energies.shape)} and {tuple(forces.shape)}; "
                f"wanted are {self.numbers.shape} and {tuple(self.positions.shape)}"
            )
        energies = to_numpy(energies)
        gradient = -self.xp.asarray(forces, dtype=self.xp.float64)
        is_good = np.isfinite(energies) & np.isfinite(to_numpy(self.systems.sum(abs(gradient))).sum(1))
        good = self.numbers[is_good]
        self.calls[self.numbers] += 1
        self.energies[good] = energies[is_good]
        self.largest[good] = to_numpy(self.systems.max(row_norms(gradient)))[is_good]
        if is_good.all():
            self.gradient = gradient
        else:
            keep = self.xp.asarray(np.repeat(is_good, self.systems.counts)[:, None], **_device(gradient))
            self.gradient = self.xp.where(keep, gradient, self.gradient)
            self.positions = self.xp.where(keep, self.positions, self.previous)
        return ~is_good

    def _array(self, values: Any) -> Array:
        """Return what the function returned as an array beside the positions."""
        return _detached(values) if hasattr(values, "shape") else self.xp.asarray(values, **_device(self.positions))

    def _step(self) -> np.ndarray:
        """Take a step; return which systems have not moved at all."""
        with np.errstate(over="ignore", invalid="ignore"):  # of a function without a bound; the next call tells
            displacement, self.state = update(self.state, self.gradient, self.systems, self.rule, self.maxstep)
        self.previous = self.positions
        self.positions = self.positions + self.xp.asarray(displacement, dtype=self.positions.dtype)
        moved = self.xp.asarray(self.positions != self.previous, dtype=self.xp.float64)
        return to_numpy(self.systems.sum(moved)).sum(1) == 0.0

    def _leave(self, is_over: np.ndarray, reason: Reason) -> None:
        """Take the systems for which `is_over` (n_active,) holds out of the batch; note where they ended."""
        if not is_over.any():
            return
        for number in self.numbers[is_over]:
            self.reasons[number] = reason
        _, gone = self.systems.select(is_over)
        where = self.atoms[gone]
        self.final[where] = self.positions[gone]
        known = np.isfinite(self.energies[self.numbers[is_over]])  # else there is no gradient to tell
        told = self.xp.asarray(np.repeat(known, self.systems.counts[is_over]), **_device(self.gradient))
        self.final_gradient[where[told]] = self.gradient[gone[told]]
        self.numbers = self.numbers[~is_over]
        if len(self.numbers) == 0:
            return
        self.systems, kept = self.systems.select(~is_over)
        self.atoms, self.positions, self.previous = self.atoms[kept], self.positions[kept], self.previous[kept]
        self.gradient = self.gradient[kept]
        systems = self.xp.asarray(np.flatnonzero(~is_over), **_device(self.gradient))
        self.state = State(
            **{name: field[kept if name in PER_ATOM else systems] for name, field in self.state._asdict().items()}
        )


def _integers(system_idx: Any, xp: Any, positions: Array) -> Array:
    """Return the indices as integers beside the positions, whatever they were given as."""
    numbers = to_numpy(system_idx) if hasattr(system_idx, "shape") else np.asarray(system_idx)
    if numbers.dtype.kind not in "iu" or (numbers.size and numbers.min() < 0):
        raise ValueError("Invalid system_idx: allowed are whole numbers of at least 0, the system of each atom")
    return xp.asarray(numbers, dtype=xp.int64, **_device(positions))


def _check_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (is_number(value) and value > 0.0):
            raise ValueError(f"Invalid {name}: {value!r}; allowed are numbers above 0")


def _detached(array: Array) -> Array:
    """Return a tensor without the history of its gradient, and anything else as it is."""
    return array.detach() if hasattr(array, "detach") else array


def _is_float(array: Array) -> bool:
    return array.is_floating_point() if hasattr(array, "is_floating_point") else array.dtype.kind == "f"


def _device(array: Array) -> dict[str, Any]:
    return {} if isinstance(array, np.ndarray) else {"device": array.device}
