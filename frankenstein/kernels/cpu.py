"""The fused step for CPUs: the C library beside this file, called with the addresses of tensors.

The library is compiled when the package is installed. Nothing in it links against torch or Python, so that one library
serves all versions of both. Where it could not be compiled, `why_not` says so and the plain operations do the work.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from frankenstein.kernels import Item, Options
from frankenstein.kernels.layout import PARAM_TYPES, STATE_TYPES, laid_out
from frankenstein.kernels.state import row_length
from frankenstein.rule import XI_GAIN, State, gradient_limit

ABI = 1
"""What the library and this file agree on; an older library is not used."""

SETS = ("baseline", "AVX2", "AVX-512")
"""Instruction sets, as the library numbers them."""

SERIAL_ELEMENTS = 32_768
"""Up to as many elements one thread is faster than several; it is also torch's bound."""

_FLOATS = (
    *("sign", "eps", "x_0", "beta1", "beta1_squared", "lr_gain", "lr_gain_low", "xi_gain", "decay"),
    *("ratio_limit", "slack_low", "slack_high", "grad_limit"),
)


class _Options(ctypes.Structure):
    _fields_ = [(name, ctypes.c_float) for name in _FLOATS] + [
        ("rho_of_second_moment", ctypes.c_int32),
        ("skip", ctypes.c_int32),
    ]


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | str:
    """Return the library, or why there is none."""
    found = importlib.util.find_spec("frankenstein.kernels._cpu")
    if found is None or found.origin is None:
        return "a CPU: it was not compiled (install again where there is a C compiler)"
    try:
        library = ctypes.CDLL(found.origin)
        abi = library.frankenstein_abi()
    except (OSError, AttributeError) as error:
        return f"a CPU: {found.origin} cannot be loaded ({error})"
    if abi != ABI:
        return "a CPU: what was compiled is of another version (install again)"
    library.frankenstein_step.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    return library


def why_not() -> str | None:
    """Return why there is no kernel here, or None."""
    library = _library()
    return library if isinstance(library, str) else None


def best_set() -> int:
    """Return the best instruction set of this machine, an index of `SETS`.

    Raises:
        RuntimeError: There is no library.
    """
    return _loaded().frankenstein_best_set()


def _loaded() -> ctypes.CDLL:
    library = _library()
    if isinstance(library, str):
        raise RuntimeError(f"There is no kernel for {library}")
    return library


def prepared(items: Sequence[Item], options: Options) -> tuple[Callable[[], None], list[Item]]:
    """Return what steps the parameters that the kernel takes, and those that it does not take."""
    table: list[tuple[int, ...]] = []
    kept: list[Tensor] = []  # copies that must live until they are read
    written: list[tuple[Tensor, Tensor]] = []
    taken: list[Item] = []
    rest: list[Item] = []
    n_elements = 0
    for item in items:
        ready = laid_out(item, kept, written) if item.param.device.type == "cpu" else None
        if ready is None:
            rest.append(item)
        else:
            taken.append(item)
            table.append(_row(ready))
            n_elements += ready.param.numel()

    def run() -> None:
        if not table:
            return
        lr = options.lr.item() if isinstance(options.lr, Tensor) else options.lr
        if lr == 0.0:  # a pause
            return
        library, rows, numbers = _loaded(), np.array(table, dtype=np.int64), constants(float(lr), options)
        n_threads = torch.get_num_threads() if n_elements > SERIAL_ELEMENTS else 1
        if library.frankenstein_step(rows.ctypes.data, len(table), ctypes.addressof(numbers), n_threads, best_set()):
            raise MemoryError("no memory for a step; nothing was changed")
        torch.autograd.graph.increment_version([item.param for item in taken])  # written behind autograd's back
        for tensor, copy in reversed(written):
            tensor.copy_(copy)
        kept.clear()

    return run, rest


def _row(item: Item) -> tuple[int, ...]:
    """Return the row of the library's table."""
    param, grad, m, v, x, exponents, compensation = item
    n = param.numel()
    return (
        param.data_ptr(),
        grad.data_ptr(),
        m.data_ptr(),
        v.data_ptr(),
        x.data_ptr(),
        exponents.data_ptr() if exponents is not None else 0,
        compensation.data_ptr() if compensation is not None else 0,
        n,
        row_length(param) if exponents is not None else n,
        PARAM_TYPES[param.dtype],
        STATE_TYPES[m.dtype],
    )


def constants(lr: float, options: Options) -> _Options:
    """Return the numbers of a step that are the same for all elements, derived in float64."""
    rule = options.rule
    beta1 = options.momentum
    if rule.beta1_follows_lr:  # eq. 3
        low, high = rule.beta1_gap_range
        beta1 = 1.0 - min(max((1.0 - options.momentum) * (lr / options.base_lr) ** 0.5, low), high)
    slack_high = math.exp(rule.rho_log_range[1]) - math.e
    return _Options(
        sign=-1.0 if options.maximize else 1.0,
        eps=options.eps,
        x_0=lr,
        beta1=beta1,
        beta1_squared=beta1 * beta1,
        lr_gain=lr * XI_GAIN,
        lr_gain_low=lr * XI_GAIN - float(np.float32(lr * XI_GAIN)),
        xi_gain=XI_GAIN,
        decay=1.0 - lr * options.weight_decay,
        ratio_limit=math.inf if rule.ratio_limit is None else rule.ratio_limit,
        # sqrt(x_t) + 0.5 - P is at least -0.5: a lower bound of rho below that does nothing
        slack_low=min(max(math.exp(rule.rho_log_range[0]) - math.e, -0.5), slack_high),
        slack_high=slack_high,
        grad_limit=gradient_limit(torch, torch.float32, options.eps),
        rho_of_second_moment=rule.rho_source == "second_moment",
        skip=options.skip_nonfinite,
    )


def factors(grad: Tensor, state: State, options: Options, instruction_set: int | None = None) -> dict[str, Tensor]:
    """Return what the kernel computes for `frankenstein.rule.factors`: x_t, v_hat, alignment, rho, xi and w.

    Args:
        grad: Contiguous float32 tensor of any shape. Never modified.
        state: Like it. Never modified.
        options: Those of a step; `lr` a number above 0.
        instruction_set: An index of `SETS`, at most `best_set()`; None: that.

    Raises:
        RuntimeError: There is no library.
    """
    library = _loaded()
    names = ("x_t", "v_hat", "alignment", "rho", "xi", "w")
    out = torch.empty((len(names), *grad.shape))
    addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (grad, state.m, state.v, state.x)]
    library.frankenstein_factors(
        ctypes.c_int64(grad.numel()),
        *addresses,
        ctypes.byref(constants(float(options.lr), options)),
        ctypes.c_void_p(out.data_ptr()),
        best_set() if instruction_set is None else instruction_set,
    )
    return dict(zip(names, out, strict=True))
