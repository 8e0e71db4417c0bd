"""The Frankenstein optimizer for JAX: `frankenstein.rule` as a gradient transformation of optax."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    from optax import GradientTransformationExtraArgs, safe_increment
except ModuleNotFoundError as error:
    if error.name not in ("jax", "optax"):
        raise
    needs = f"frankenstein.optax needs {error.name}; pip install '.[jax]' (in the checkout)"
    raise ImportError(needs, name=error.name) from error

from frankenstein import xla
from frankenstein.options import check_numbers
from frankenstein.rule import Rule, State, as_rule, update

__all__ = ["FrankensteinState", "frankenstein"]

ArrayTree = Any
ScalarOrSchedule = Any  # a number, a 0-d array, or a function of the step count


class FrankensteinState(NamedTuple):
    """What the transformation remembers; trees like the parameters, None where these are.

    Attributes:
        count: Steps so far, () int32: what a schedule is given.
        momentum_buffer: Momentum, a displacement of the parameters.
        second_moment: Second moment with relaxed maximum.
        squared_grad: Squared gradient of the step before; 0 before the first step.
    """

    count: jax.Array  # type: ignore[assignment]  # the method of tuples is of no use here
    momentum_buffer: ArrayTree
    second_moment: ArrayTree
    squared_grad: ArrayTree


def frankenstein(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    eps: float = 1e-8,
    momentum: float = 0.9,
    base_lr: float = 1e-3,
    weight_decay: float = 0.0,
    mask: ArrayTree | Callable[[ArrayTree], ArrayTree] | None = None,
    rule: str | Rule = "paper",
    skip_nonfinite: bool = False,
    fused: bool | None = None,
) -> GradientTransformationExtraArgs:
    """Return the Frankenstein optimizer (Algorithm 1 of arXiv:2503.02147) for optax.

    The learning rate is part of the recursion, so a schedule goes in here: neither `scale_by_learning_rate` nor
    `scale_by_schedule` behind it is the same optimizer.

    State has the parameters' dtype, at least float32, and their sharding; the updates have the dtype of the gradients.
    Complex parameters are two real ones; as everywhere in optax, `jax.grad` must be conjugated for them.

    Args:
        learning_rate: A number or 0-d array, at least 0, or a schedule: a function of the step count, from 0 on. Where
            it is 0, nothing changes.
        eps: Floor of the squared gradient, at least 1.2e-38.
        momentum: First momentum coefficient (beta1) at `learning_rate == base_lr`, in [0, 1); it follows the learning
            rate by eq. 3.
        base_lr: Learning rate at which beta1 is `momentum`; the paper suggests 1e-3 from scratch and 2e-4 for
            fine-tuning.
        weight_decay: Decoupled: parameters shrink by `learning_rate * weight_decay` each step.
        mask: What decays: a tree of booleans like the parameters (or a prefix of theirs), or a function of the
            parameters that returns one. None: everything.
        rule: `"paper"`, `"authors"` (the constants of the authors' released code), or a `frankenstein.rule.Rule`.
        skip_nonfinite: Elements whose gradient is NaN, infinite or beyond `frankenstein.rule.gradient_limit` neither
            move nor change their state.
        fused: Whether float32 state is stepped by the C library, as a custom call of XLA. None: where everything is
            on one CPU device. True: there, or an error. False: never, as `jax.export` wants it.

    Raises:
        TypeError: The learning rate is something else.
        RuntimeError: `fused` is True, and there is no library for this rule or these devices.
        ValueError: An argument is outside its range, or the rule is none; or weight decay is not 0, and `update` is
            given no parameters.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from frankenstein.optax import frankenstein
        >>> params = {"w": jnp.ones(2)}
        >>> optimizer = frankenstein(1e-3)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"w": jnp.ones(2)}, state, params)
        >>> print(f"{optax.apply_updates(params, updates)['w'][0]:.6f}")
        0.998101
    """
    _check(learning_rate, eps=eps, momentum=momentum, base_lr=base_lr, weight_decay=weight_decay)
    constants = {"eps": eps, "momentum": momentum, "base_lr": base_lr}
    rule = as_rule(rule)
    if fused and (reason := xla.why_not(rule)):
        raise RuntimeError(f"fused=True: there is no kernel for {reason}; fused=None takes it where there is one")
    step = partial(_step, constants=constants, rule=rule, skip_nonfinite=skip_nonfinite, fused=fused)
    decay: Any = weight_decay  # traced, where it is injected
    has_decay = not isinstance(decay, Real) or decay != 0

    def init_fn(params: ArrayTree) -> FrankensteinState:
        buffers = (_map(lambda param: jnp.zeros_like(param, _at_least_float32(param)), params) for _ in range(3))
        return FrankensteinState(jnp.zeros((), jnp.int32), *buffers)

    def update_fn(
        updates: ArrayTree, state: FrankensteinState, params: ArrayTree | None = None, **_: Any
    ) -> tuple[ArrayTree, FrankensteinState]:
        if has_decay and params is None:
            raise ValueError("weight decay needs the parameters: optimizer.update(grads, state, params)")
        count, *buffers = state
        lr = learning_rate(count) if callable(learning_rate) else learning_rate
        deltas, *buffers = step(updates, buffers, lr)
        if has_decay:
            decays = jax.tree.map(lambda _: True, params) if mask is None else mask(params) if callable(mask) else mask
            deltas = _decayed(deltas, params, decays, lr, decay)
        deltas = _map(lambda delta, grad: delta.astype(grad.dtype), deltas, updates)
        return deltas, FrankensteinState(safe_increment(count), *buffers)

    return GradientTransformationExtraArgs(init_fn, update_fn)


def _check(learning_rate: Any, **numbers: Any) -> None:
    """Check the types and ranges that are known before a trace."""
    if isinstance(learning_rate, bool) or not (
        isinstance(learning_rate, Real) or callable(learning_rate) or _is_scalar(learning_rate)
    ):
        raise TypeError(
            f"learning_rate is {learning_rate!r}; it must be a number, a 0-d array or a schedule (a function of the "
            "step count)"
        )
    if isinstance(learning_rate, Real):
        check_numbers(learning_rate=learning_rate)
    check_numbers(**{name: value for name, value in numbers.items() if not _is_scalar(value)})


def _is_scalar(value: Any) -> bool:
    """Whether it is an array of one number, traced or not: `optax.inject_hyperparams` makes arguments such."""
    return hasattr(value, "dtype") and getattr(value, "shape", None) == ()


def _map(function: Callable[..., Any], tree: ArrayTree, *others: ArrayTree) -> ArrayTree:
    """Map over the leaves of `tree`; None stays None."""
    return jax.tree.map(
        lambda leaf, *more: None if leaf is None else function(leaf, *more), tree, *others, is_leaf=lambda x: x is None
    )


def _at_least_float32(array: Any) -> Any:
    return jnp.promote_types(array.dtype, jnp.float32)


def _step(
    grads: ArrayTree,
    buffers: list[ArrayTree],
    lr: Any,
    *,
    constants: dict[str, Any],
    fused: bool | None,
    **options: Any,
) -> list[ArrayTree]:
    """Return the displacements, and the next state: trees like the gradients."""
    tree: Any
    leaves, tree = jax.tree.flatten(grads, is_leaf=lambda leaf: leaf is None)
    moved: list[Any] = [(None,) * 4 for _ in leaves]
    is_fused = fused is not False and xla.why_not(options["rule"]) is None
    singles: list[int] = []
    reals: list[jax.Array] = []
    states: list[State] = []
    for i, (grad, *state) in enumerate(zip(leaves, *map(tree.flatten_up_to, buffers), strict=True)):
        if grad is None:
            continue
        real, before = _as_real(grad).astype(state[0].real.dtype), State(*map(_as_real, state))
        if is_fused and real.dtype == jnp.float32:
            singles.append(i)
            reals.append(real)
            states.append(before)
        else:
            # What is traced (a schedule, an injected number of low precision) is computed with in the state's dtype.
            moved[i] = update(jnp, real, before, **_cast({"lr": lr, **constants}, real.dtype), **options)
    if singles:
        steps = xla.step(reals, states, **_cast({"lr": lr, **constants}, jnp.float32), **options)
        for i, *one in zip(singles, *steps, strict=True):
            moved[i] = tuple(one)
    for i, grad in enumerate(leaves):
        if grad is not None:
            delta, state = moved[i]
            moved[i] = tuple(_as_complex(one) if jnp.iscomplexobj(grad) else one for one in (delta, *state))
    return [tree.unflatten([one[i] for one in moved]) for i in range(4)]


def _cast(scalars: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Return numbers as floats, which the compiler folds into the step; arrays in this dtype."""
    return {
        name: float(value) if isinstance(value, Real) else jnp.asarray(value, dtype) for name, value in scalars.items()
    }


def _as_real(array: jax.Array) -> jax.Array:
    return jnp.stack([array.real, array.imag]) if jnp.iscomplexobj(array) else array


def _as_complex(array: jax.Array) -> jax.Array:
    return jax.lax.complex(array[0], array[1])


def _decayed(deltas: ArrayTree, params: ArrayTree, decays: ArrayTree, lr: Any, weight_decay: Any) -> ArrayTree:
    """Return the displacements with the decay of the parameters that decay."""

    def decayed(delta: jax.Array, param: jax.Array) -> jax.Array:
        scalars = _cast({"lr": lr, "weight_decay": weight_decay}, delta.real.dtype)
        return delta - scalars["lr"] * scalars["weight_decay"] * param.astype(delta.dtype)

    def part(decays: bool, delta: ArrayTree, param: ArrayTree) -> ArrayTree:
        return _map(decayed, delta, param) if decays else delta

    return jax.tree.map(part, decays, deltas, params)
