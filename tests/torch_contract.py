"""What the tests of `frankenstein.torch` share: the table of settings, and bitwise comparison.

A setting is a set of constructor arguments; every test that is about "any optimizer of ours" runs over the table, so a
new argument needs one new row.
"""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import numpy as np
import torch

from frankenstein import rule as R
from frankenstein.torch import Frankenstein

STATE_KEYS = {"momentum_buffer", "second_moment", "squared_grad"}

SETTINGS = {
    "paper": {},
    "authors": {"rule": "authors"},
    "fine-tuning": {"lr": 1e-2, "momentum": 0.8, "base_lr": 2e-4, "eps": 1e-6},
    "decay": {"lr": 0.05, "weight_decay": 0.5},  # large enough to show in bfloat16
    "ablation": {"rule": replace(R.Rule(), use_xi=False, rho_log_range=(0.5, 1.0))},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "skip": {"nonfinite": "skip", "weight_decay": 0.1},
    "raise": {"nonfinite": "raise"},
    "tensor lr": {"lr": torch.tensor(3e-3, dtype=torch.float64), "weight_decay": 0.1},
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def make(params, **options):
    """An optimizer that shares nothing mutable (a tensor lr) with the table."""
    return Frankenstein(params, **copy.deepcopy(options))


def normal(shape, dtype, generator):
    """Normal numbers, drawn in float64 whatever the dtype; real and imaginary part are independent."""
    shape = (*shape, 2) if dtype.is_complex else shape
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (torch.view_as_complex(numbers) if dtype.is_complex else numbers).to(dtype)


def parameters(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [normal(shape, dtype, generator).requires_grad_() for shape in shapes]


def gradients(params, n_steps, seed=1):
    """One list of gradients per step: four decades, some zeros, like the parameters in shape and dtype."""
    generator = torch.Generator().manual_seed(seed)

    def one(param):
        numbers, power, keep = (normal(param.shape, torch.float64, generator) for _ in range(3))
        scale = 10.0 ** power.clamp(-2, 2) * (keep > -1.0)
        return (scale * (normal(param.shape, param.dtype, generator) if param.is_complex() else numbers)).to(
            param.dtype
        )

    return [[one(param) for param in params] for _ in range(n_steps)]


def train(optimizer, grads):
    """Step once per list of gradients; a gradient that is None is a parameter without one."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = None if grad is None else grad.clone()
        optimizer.step()
    return optimizer


def values(optimizer):
    """Detached copies of the parameters and, after them, of all state, in a fixed order."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state = [optimizer.state[p][key] for p in params if p in optimizer.state for key in sorted(optimizer.state[p])]
    return [tensor.detach().clone() for tensor in (*params, *state)]


def assert_bitwise(actual, expected):
    """Equal dtype, shape and numbers; NaN equals NaN."""
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape, f"tensor {i}: {a.dtype} {a.shape}, {b.dtype} {b.shape}"
        a, b = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (a.detach(), b.detach()))
        is_same = (a == b) | (a.isnan() & b.isnan())
        assert is_same.all(), f"tensor {i}: {a[~is_same][:5]} is not {b[~is_same][:5]}"


def assert_same(actual, expected):
    """Two optimizers with bitwise equal parameters and state, and equal options."""
    assert_bitwise(values(actual), values(expected))
    for a, b in zip(actual.param_groups, expected.param_groups, strict=True):
        assert {k: v for k, v in a.items() if k != "params"} == {k: v for k, v in b.items() if k != "params"}


def through_a_file(payload):
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def resumed(optimizer, **options):
    """A fresh optimizer, built with `options` only, on copies of the parameters, after a save and a load."""
    groups = [
        {"params": [param.detach().clone().requires_grad_(param.requires_grad) for param in group["params"]]}
        for group in optimizer.param_groups
    ]
    fresh = make(groups, **options)
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    return fresh


def rule_trajectory(theta, grads, lrs, *, weight_decay=0.0, maximize=False, rule="paper", **options):
    """The same run by `rule.update` on numpy float64 arrays: theta after each step."""
    options = {key: options[key] for key in ("eps", "momentum", "base_lr") if key in options}
    theta, path = np.asarray(theta, dtype="float64"), []
    state = R.init(np, theta)
    for grad, lr in zip(grads, map(float, lrs), strict=True):
        if grad is not None:
            grad = -np.asarray(grad, "float64") if maximize else np.asarray(grad, "float64")
            delta, state = R.update(np, grad, state, lr=lr, rule=R.as_rule(rule), **options)
            theta = theta * (1.0 - lr * weight_decay) + delta
        path.append(theta)
    return np.array(path)
