"""The relaxation rule: the Frankenstein optimizer's ideas with a step-size control that converges on atoms.

The rule of `frankenstein.rule` does not converge on atoms (see docs/relaxation.md): a step per coordinate, tied to a
learning rate, rattles. Section 2.1 of arXiv:2503.02147 already asks, after FIRE, for a momentum that looks at where it
leads; here that is done for whole systems, with no learning rate and no unit. Per system, with sums over its atoms, g
the gradient, u the last displacement:

    P    misalignment of u and g: eq. 4 of z = (g . u) / |g_prev . u|. 0.5: the step ended at the bottom of its line.
         Beyond P(z = 1) the slope is as steep uphill as it was downhill: the momentum is reset to half the step
         limit; otherwise the limit grows again, up to `maxstep`.
    v    relaxed maximum: the curvature of a stored pair (u, change of g) is never taken below a share of the largest
         that it can have, |change of g| / |u|, so that a saddle or an overshoot cannot turn the step around.
    xi   acceleration: along what the memory has not seen, the step is the largest xi of eq. 13 times the secant step.
    m    the momentum: instead of one fading displacement, the last `memory` displacements with the changes of the
         gradient along them, applied as in the limited-memory BFGS method (Nocedal 1980). This was added.

No energy is used and there is no line search: one gradient per step. Processes that share a system must exchange two
sums and three maxima over the atoms, whatever the memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from frankenstein.relaxation.systems import Systems, is_number
from frankenstein.rule import XI_GAIN

__all__ = ["RelaxationRule", "State", "init", "misalignment", "update"]

Array = Any  # numpy.ndarray or torch.Tensor, float64

LEAST_STEP = 1e-8  # of the step before: a shorter one is the sign of a curvature that is no longer that of the place


@dataclass(frozen=True)
class RelaxationRule:
    """The constants of the rule: one set for everything; see docs/relaxation.md for how they were found.

    Attributes:
        memory: How many displacements are remembered, with the changes of the gradient along them. It costs
            `2 memory + 2` numbers per coordinate.
        first_step: The first step moves the most pulled atom by this share of `maxstep`.
        acceleration: Of the step along directions that the memory has not seen; the largest xi of eq. 13.
        alignment: Smallest cosine between a displacement and the change of the gradient along it.
        reset_slope: The step limit shrinks when the slope along the last step went from -1 to more than this.
        shrink: Factor on the step limit when it does.
        grow: Factor on the step limit when it does not, up to `maxstep`.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    memory: int = 60
    first_step: float = 0.8
    acceleration: float = XI_GAIN
    alignment: float = 0.4
    reset_slope: float = 1.0
    shrink: float = 0.5
    grow: float = 1.3

    def __post_init__(self) -> None:
        if not (isinstance(self.memory, int | np.integer) and self.memory >= 1):
            raise ValueError(f"Invalid memory: {self.memory!r}; allowed are whole numbers of at least 1")
        for name, low, high in (
            ("first_step", 0.0, 1.0),
            ("acceleration", 0.0, math.inf),
            ("alignment", 0.0, 1.0),
            ("reset_slope", 0.0, math.inf),
            ("shrink", 0.0, 1.0),
            ("grow", 1.0, math.inf),
        ):
            value = getattr(self, name)
            if not (is_number(value) and max(low, 1e-300) <= value <= high):
                raise ValueError(f"Invalid {name}: {value!r}; allowed are numbers above {low:g} and up to {high:g}")


class State(NamedTuple):
    """What the rule remembers, float64 unless said; `init` makes it, and the field names are a file format.

    Attributes:
        n_steps: (n_systems,) integers: steps taken. 0 marks a fresh system, so batches may mix old and new ones.
        n_pairs: (n_systems,) integers: pairs stored so far; the next one goes to slot `n_pairs % memory`.
        step_limit: (n_systems,) largest displacement of an atom now, at most `maxstep`.
        gradient: (n_atoms, n_dims) of the step before.
        displacement: (n_atoms, n_dims) of the step before, as it was carried out.
        directions: (n_atoms, memory, n_dims) remembered displacements, each of norm 1 over its system.
        changes: (n_atoms, memory, n_dims) the changes of the gradient along them, each of norm 1.
        curvatures: (n_systems, memory) norm of the change over norm of the displacement; 1 in empty slots.
        direction_change_inv: (n_systems, memory, memory) inverse of the matrix of the products of directions (rows)
            with changes that are not older (columns).
        direction_change_diag: (n_systems, memory) its diagonal before inversion; 1 in empty slots.
        change_change: (n_systems, memory, memory) products of changes.
        secant: (n_systems,) the last step's inverse curvature |u . change| / |change|^2.
    """

    n_steps: Array
    n_pairs: Array
    step_limit: Array
    gradient: Array
    displacement: Array
    directions: Array
    changes: Array
    curvatures: Array
    direction_change_inv: Array
    direction_change_diag: Array
    change_change: Array
    secant: Array


PER_ATOM = ("gradient", "displacement", "directions", "changes")
"""Fields of `State` with one row per atom; the others have one per system."""


def init(gradient: Array, systems: Systems, rule: RelaxationRule, step_limit: float) -> State:
    """Return the state of fresh systems.

    Args:
        gradient: (n_atoms, n_dims) array that tells the shape, framework and device.
        systems: The systems of the batch.
        rule: The constants.
        step_limit: Largest displacement of an atom at first, in the unit of the positions; usually `maxstep`.

    Returns:
        The state before the first step.
    """
    xp, n_systems, memory = systems.xp, systems.n_systems, rule.memory
    n_atoms, n_dims = gradient.shape
    where = {} if not hasattr(gradient, "new_zeros") else {"device": gradient.device}

    def zeros(*shape: int, dtype: Any = xp.float64) -> Array:
        return xp.zeros(shape, dtype=dtype, **where)

    return State(
        n_steps=zeros(n_systems, dtype=xp.int64),
        n_pairs=zeros(n_systems, dtype=xp.int64),
        step_limit=zeros(n_systems) + step_limit,
        gradient=zeros(n_atoms, n_dims),
        displacement=zeros(n_atoms, n_dims),
        directions=zeros(n_atoms, memory, n_dims),
        changes=zeros(n_atoms, memory, n_dims),
        curvatures=zeros(n_systems, memory) + 1.0,
        direction_change_inv=zeros(n_systems, memory, memory) + xp.eye(memory, dtype=xp.float64, **where),
        direction_change_diag=zeros(n_systems, memory) + 1.0,
        change_change=zeros(n_systems, memory, memory),
        secant=zeros(n_systems),
    )


def misalignment(slope: float) -> float:
    """Return P of eq. 4 for the slope at the end of a step, in units of the slope at its start.

    The rule itself compares slopes, which is the same.

    Args:
        slope: Gradient times displacement at the end, over its absolute value at the start: -1 where nothing
            changed, 0 at the bottom of the line, 1 where it climbs as steeply as it fell.

    Returns:
        P in [0, 1], 0.5 at the bottom of the line.
    """
    return 0.5 + (2.0 / math.pi) * math.atan(math.tanh(0.5 * slope))


def update(
    state: State, gradient: Array, systems: Systems, rule: RelaxationRule, maxstep: float
) -> tuple[Array, State]:
    """Take one step.

    Args:
        state: Of the step before. Its arrays are reused: do not use it afterwards. Where the step that was carried
            out differs from the one returned before (constraints), put it into `displacement` first.
        gradient: (n_atoms, n_dims) float64, finite: energy's derivative at the present positions. Never modified.
        systems: The systems of the batch, as in `init`.
        rule: The constants.
        maxstep: Largest displacement of an atom in one step, in the unit of the positions.

    Returns:
        displacement: (n_atoms, n_dims), to be added to the positions.
        state: For the next step.
    """
    xp = systems.xp
    state, slope, along = _remember(state, gradient, systems, rule)
    is_misaligned = slope > rule.reset_slope  # P grows with the slope
    limit = xp.where(
        is_misaligned, state.step_limit * rule.shrink, xp.clip(state.step_limit * rule.grow, None, maxstep)
    )
    limit = xp.where(state.n_steps == 0, state.step_limit, limit)
    # scalars below are (n_systems,); a zero gradient gives a zero step
    pull = systems.longest(gradient)
    first = rule.first_step * limit / xp.where(pull > 0.0, pull, xp.ones_like(pull))
    scale = xp.where(state.n_pairs > 0, rule.acceleration * state.secant, first)
    before = systems.longest(state.displacement)
    direction = _quasi_newton(state, gradient, systems, scale, *along)
    longest = systems.longest(direction)
    shorten = xp.where(longest > limit, limit / xp.where(longest > 0.0, longest, xp.ones_like(longest)), 1.0)
    # where atoms came apart that had overlapped, the last secant says nothing any more: measure the curvature here
    is_least = longest < LEAST_STEP * before
    least = LEAST_STEP * before / xp.where(pull > 0.0, pull, xp.ones_like(pull))

    def step(direction: Array, gradient: Array) -> Array:
        along, down = (systems.spread(scalar)[:, None] for scalar in (shorten, least))
        return xp.where(systems.spread(is_least)[:, None], -gradient * down, -direction * along)

    displacement = systems.map(step, (direction, gradient), out=direction)
    return displacement, state._replace(
        n_steps=state.n_steps + 1, step_limit=limit, gradient=gradient, displacement=displacement
    )


def _remember(
    state: State, gradient: Array, systems: Systems, rule: RelaxationRule
) -> tuple[State, Array, tuple[Array, Array]]:
    """Store the last displacement with the change of the gradient along it.

    Returns:
        The state, the slope at the end of that displacement, and the products of the gradient with all remembered
        displacements and changes, (n_systems, memory) each.
    """
    xp = systems.xp
    vectors = (state.displacement, gradient, state.gradient)

    def products(u: Array, gradient: Array, gradient_before: Array) -> list[tuple[Array, Array]]:
        change = gradient - gradient_before
        return [(u, u), (change, change), (u, change), (u, gradient), (u, gradient_before)]

    uu, cc, uc, ug, before = systems.inner(products, vectors)
    one = xp.ones_like(uu)
    slope = ug / xp.where(before != 0.0, abs(before), one)
    is_new = (uu > 0.0) & (cc > 0.0) & xp.isfinite(uu * cc)
    uu, cc, uc = (xp.where(is_new, value, one) for value in (uu, cc, uc))
    # relaxed maximum: turn the change towards the displacement until its curvature is a share of the largest possible
    lift = xp.clip(rule.alignment * xp.sqrt(uu * cc) - uc, 0.0, None) / uu
    lifted_cc = cc + lift * (2.0 * uc + lift * uu)
    norm_u, norm_c = xp.sqrt(uu), xp.sqrt(lifted_cc)
    secant = xp.where(is_new, abs(uc) / cc, state.secant)

    def pair(u: Array, gradient: Array, gradient_before: Array) -> tuple[Array, Array]:
        by_lift, by_u, by_c = (systems.spread(scalar)[:, None] for scalar in (lift, norm_u, norm_c))
        return u / by_u, (gradient - gradient_before + by_lift * u) / by_c

    slots = state.n_pairs % rule.memory
    tables = (state.directions, state.changes)
    with_directions, with_changes, *along = systems.store_and_dot(tables, slots, is_new, pair, vectors, gradient)
    # the new pair's row and column take the place of the oldest's
    rows = xp.nonzero(is_new)[0] if xp.__name__ == "numpy" else xp.nonzero(is_new)[:, 0]
    slot = slots[rows]
    diag = with_directions[rows, slot]
    inverse = state.direction_change_inv
    inverse[rows, slot, :] = 0.0
    inverse[rows, :, slot] = -_times(inverse, with_directions)[rows] / diag[:, None]
    inverse[rows, slot, slot] = 1.0 / diag
    state.direction_change_diag[rows, slot] = diag
    state.change_change[rows, slot, :] = with_changes[rows]
    state.change_change[rows, :, slot] = with_changes[rows]
    state.curvatures[rows, slot] = (norm_c / norm_u)[rows]
    return state._replace(n_pairs=state.n_pairs + is_new, secant=secant), slope, (along[0], along[1])


def _quasi_newton(
    state: State, gradient: Array, systems: Systems, scale: Array, along_directions: Array, along_changes: Array
) -> Array:
    """Return inverse Hessian times gradient, as limited-memory BFGS has it with `scale` times one at the start.

    The two loops over the pairs are two triangular systems, solved by the inverse kept in the state.
    """
    xp = systems.xp
    back = _times(state.direction_change_inv, along_directions)
    rest = along_changes - _times(state.change_change, back)
    forth = state.direction_change_diag * back / state.curvatures - scale[:, None] * rest
    forth = _times(xp.swapaxes(state.direction_change_inv, 1, 2), forth)
    tables, weights = (state.directions, state.changes), (forth, -scale[:, None] * back)
    return systems.combine(scale, gradient, tables, weights, out=state.displacement)


def _times(matrices: Array, vectors: Array) -> Array:
    """Multiply (n_systems, memory, memory) by (n_systems, memory): (n_systems, memory)."""
    return (matrices * vectors[:, None, :]).sum(-1)  # not `@`: its last bits would depend on the batch in torch
