"""The C library of the fused step: where it is, what it takes, and the numbers that it is given.

`frankenstein.kernels.cpu` calls it with torch's tensors, `frankenstein.xla` with JAX's arrays; this file needs neither.
The library is compiled when the package is installed, and links against neither torch, XLA nor Python, so that one
library serves all versions of them.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np

from frankenstein.rule import PRESETS, SWITCHES, XI_GAIN, Rule, Scalar, beta1_at, gradient_limit

ABI = 2
"""What the library and this file agree on; an older library is not used."""

SETS = ("baseline", "AVX2", "AVX-512")
"""Instruction sets, as the library numbers them."""

LOG_LIMIT = 1.41
"""exp(rho_log_range[1]) / e; beyond it the fused kernels' logarithm is not accurate."""

FLOATS = (
    *("sign", "eps", "x_0", "beta1", "beta1_squared", "lr_gain", "lr_gain_low", "xi_gain", "decay"),
    *("ratio_limit", "slack_low", "slack_high", "grad_limit"),
)
FLAGS = ("rho_of_second_moment", "skip")


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | str:
    """Return the library, or why there is none."""
    folder = Path(__file__).with_name("kernels")
    found = [path for path in (folder / f"_cpu{suffix}" for suffix in EXTENSION_SUFFIXES) if path.exists()]
    if not found:
        return "a CPU: it was not compiled (install again where there is a C compiler)"
    try:
        loaded = ctypes.CDLL(str(found[0]))
        abi = loaded.frankenstein_abi()
    except (OSError, AttributeError) as error:
        return f"a CPU: {found[0]} cannot be loaded ({error})"
    if abi != ABI:
        return "a CPU: what was compiled is of another version (install again)"
    loaded.frankenstein_step.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    return loaded


@lru_cache(maxsize=64)
def unfusable(rule: Rule) -> str | None:
    """Return what of the rule the fused kernels lack, or None."""
    switched = [name for name in SWITCHES if getattr(rule, name) != getattr(PRESETS["paper"], name)]
    lacking = [name for name in switched if name != "beta1_follows_lr"]
    if lacking:
        return f"a rule with {' and '.join(lacking)} off"
    if math.exp(rule.rho_log_range[1] - 1.0) > LOG_LIMIT:
        return f"a rule with rho up to {rule.rho_log_range[1]}"
    return None


def numbers(
    xp: Any,
    *,
    lr: Scalar,
    eps: Scalar,
    momentum: Scalar,
    base_lr: Scalar,
    rule: Rule,
    weight_decay: float = 0.0,
    skip_nonfinite: bool = False,
    maximize: bool = False,
) -> dict[str, Scalar]:
    """Return what is the same for all elements of a step, by the names in `FLOATS` and `FLAGS`.

    From floats they are derived in float64; from arrays, traced ones too, in these arrays' precision.
    """
    beta1 = beta1_at(xp, lr, momentum=momentum, base_lr=base_lr, rule=rule)
    lr_gain = lr * XI_GAIN
    slack_high = math.exp(rule.rho_log_range[1]) - math.e
    return {
        "sign": -1.0 if maximize else 1.0,
        "eps": eps,
        "x_0": lr,
        "beta1": beta1,
        "beta1_squared": beta1 * beta1,
        "lr_gain": lr_gain,
        "lr_gain_low": lr_gain - float(np.float32(lr_gain)) if isinstance(lr_gain, float) else 0.0,
        "xi_gain": XI_GAIN,
        "decay": 1.0 - lr * weight_decay,
        "ratio_limit": math.inf if rule.ratio_limit is None else rule.ratio_limit,
        # sqrt(x_t) + 0.5 - P is at least -0.5: a lower bound of rho below that does nothing
        "slack_low": min(max(math.exp(rule.rho_log_range[0]) - math.e, -0.5), slack_high),
        "slack_high": slack_high,
        "grad_limit": gradient_limit(xp, xp.float32, eps),
        "rho_of_second_moment": rule.rho_source == "second_moment",
        "skip": skip_nonfinite,
    }
