"""What the tests of the rule share: array namespaces, trajectories, gradients that are hard to follow."""

from __future__ import annotations

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import torch

from frankenstein import rule as R

# float64 rounding over a few hundred steps of a contracting recursion, against 50 digits.
ORACLE_TOLERANCE = 1e-12
# A few float32 roundings (2^-24 each) in a chain of about twenty operations.
FLOAT32_TOLERANCE = 2e-6

jax.config.update("jax_enable_x64", True)
NAMESPACES = {"numpy": np, "torch": torch, "jax": jnp, "strict": array_api_strict}


def asarray(xp, value, dtype="float64"):
    return (
        xp.asarray(np.asarray(value, dtype=dtype))
        if xp is not torch
        else torch.from_numpy(np.array(value, dtype=dtype))
    )


def trajectory(xp, theta, grads, lrs, *, preset="paper", weight_decay=0.0, dtype="float64", **options):
    """Run the rule; return theta after each step, as numpy, and the last state."""
    theta = asarray(xp, theta, dtype)
    state = R.init(xp, theta)
    path = []
    for grad, lr in zip(grads, map(float, lrs), strict=True):
        theta = theta * (1.0 - lr * weight_decay)
        delta, state = R.update(xp, asarray(xp, grad, dtype), state, lr=lr, rule=R.as_rule(preset), **options)
        theta = theta + delta
        path.append(np.asarray(theta))
    return np.array(path), state


def hard_gradients(n_steps, n_params, seed):
    """Six decades, zeros, sign flips, plateaus and jumps: each column another kind."""
    rng = np.random.default_rng(seed)
    sign = rng.choice([-1.0, 1.0], (n_steps, n_params))
    grads = sign * 10.0 ** rng.uniform(-3, 3, (n_steps, n_params))
    grads[:, 0] = 1e-3 * np.cos(np.arange(n_steps))  # smooth and small
    grads[:, 1] *= rng.random(n_steps) < 0.5  # half of them zero
    grads[n_steps // 2 :, 2] = 0.7  # constant: momentum aligns, P saturates
    return grads
