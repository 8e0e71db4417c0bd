"""The fused step for JAX on CPUs: the C library (`frankenstein.library`) as a custom call of XLA, on XLA's threads.

XLA's own step of the rule passes over memory six times and computes its arc tangent one element after the other; the
library passes over it once. It is taken where everything is computed on one CPU device; there nothing can be sharded.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frankenstein.library import FLAGS, FLOATS, library, numbers, unfusable
from frankenstein.rule import Rule, State, update

__all__ = ["step", "why_not"]

TARGET = "frankenstein_xla_step"
SCALARS = ("lr", "eps", "momentum", "base_lr")

Array = Any
Scalar = Any  # a float, or a 0-d float32 array


@lru_cache(maxsize=1)
def _unregistered() -> str | None:
    """Make the handler known to XLA; return why it cannot be, or None."""
    found = library()
    if isinstance(found, str):
        return found
    try:
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(found.frankenstein_xla_step), platform="cpu")
    except Exception as error:  # of whatever class: another version of JAX, or of its interface
        return f"a CPU in JAX {jax.__version__} ({error})"
    return None


def why_not(rule: Rule) -> str | None:
    """Return why the library does not take steps of this rule here, or None."""
    if jax.default_backend() != "cpu" or jax.device_count() != 1:
        return f"{jax.device_count()} devices of {jax.default_backend()}; there is one for a single CPU device"
    return unfusable(rule) or _unregistered()


def step(
    grads: list[Array], states: list[State], *, rule: Rule, skip_nonfinite: bool, **scalars: Scalar
) -> tuple[list[Array], list[State]]:
    """Return what `frankenstein.rule.update` returns, for each of the arrays.

    Args:
        grads: float32 arrays of any shapes.
        states: Of the same shapes, float32.
        rule: One that `why_not` accepts.
        skip_nonfinite: As for `update`.
        scalars: lr, eps, momentum and base_lr.
    """
    floats = tuple((name, scalars[name]) for name in SCALARS if isinstance(scalars[name], float))
    arrays = [scalars[name] for name in SCALARS if not isinstance(scalars[name], float)]
    flat = [array for grad, state in zip(grads, states, strict=True) for array in (grad, *state)]
    out = _step_of(rule, skip_nonfinite, floats)(*arrays, *flat)
    return list(out[::4]), [State(*out[i + 1 : i + 4]) for i in range(0, len(out), 4)]


@lru_cache(maxsize=256)
def _step_of(rule: Rule, skip_nonfinite: bool, floats: tuple[tuple[str, float], ...]) -> Any:
    """Return the step with these constants: a function of the other scalars, and of four arrays for each tensor."""
    constants: dict[str, Any] = {"rule": rule, "skip_nonfinite": skip_nonfinite, **dict(floats)}
    names = [name for name in SCALARS if name not in constants]
    n_scalars = len(names)

    def in_xla(*operands: Array) -> tuple[Array, ...]:
        options = constants | dict(zip(names, operands, strict=False))
        out: list[Array] = []
        for i in range(n_scalars, len(operands), 4):
            delta, state = update(jnp, operands[i], State(*operands[i + 1 : i + 4]), **options)
            out += [delta, *state]
        return tuple(out)

    @jax.custom_batching.custom_vmap
    def in_library(*operands: Array) -> tuple[Array, ...]:
        found = numbers(jnp, **constants, **dict(zip(names, operands, strict=False)))
        ordered = [found[name] for name in (*FLOATS, *FLAGS)]
        given: Any = np.array(ordered, np.float32) if n_scalars == 0 else jnp.array(ordered, jnp.float32)
        arrays = operands[n_scalars:]
        call = jax.ffi.ffi_call(
            TARGET,
            [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays],
            input_output_aliases={i + 1: i for i in range(len(arrays))},  # in place, the displacement over the gradient
        )
        return tuple(call(given, *arrays))

    @in_library.def_vmap
    def batched(size: int, is_batched: list[bool], *operands: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        n_out = len(operands) - n_scalars
        if any(is_batched[:n_scalars]):
            out = jax.vmap(in_xla, [0 if one else None for one in is_batched], 0)(*operands)
        else:
            whole = [
                array if one else jnp.broadcast_to(array, (size, *array.shape))
                for array, one in zip(operands[n_scalars:], is_batched[n_scalars:], strict=True)
            ]
            out = in_library(*operands[:n_scalars], *whole)
        return out, (True,) * n_out

    @jax.custom_jvp
    def step(*operands: Array) -> tuple[Array, ...]:
        return in_library(*operands)

    @step.defjvp
    def differentiated(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> Any:
        return jax.jvp(in_xla, primals, tangents)

    return step
