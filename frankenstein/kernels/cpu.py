"""The fused step for CPUs: the C library (`frankenstein.library`) called with the addresses of tensors.

Where it could not be compiled, `why_not` says so and the plain operations do the work.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from frankenstein import library
from frankenstein.kernels import Item, Options
from frankenstein.kernels.layout import PARAM_TYPES, STATE_TYPES, laid_out
from frankenstein.kernels.state import row_length
from frankenstein.rule import State

SERIAL_ELEMENTS = 32_768
"""Up to as many elements one thread is faster than several; it is also torch's bound."""


class _Options(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_float) for name in library.FLOATS),
        *((name, ctypes.c_int32) for name in library.FLAGS),
    ]


def why_not() -> str | None:
    """Return why there is no kernel here, or None."""
    found = library.library()
    return found if isinstance(found, str) else None


def best_set() -> int:
    """Return the best instruction set of this machine, an index of `frankenstein.library.SETS`.

    Raises:
        RuntimeError: There is no library.
    """
    return _loaded().frankenstein_best_set()


def _loaded() -> ctypes.CDLL:
    found = library.library()
    if isinstance(found, str):
        raise RuntimeError(f"There is no kernel for {found}")
    return found


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
        rows, numbers = np.array(table, dtype=np.int64), constants(float(lr), options)
        n_threads = torch.get_num_threads() if n_elements > SERIAL_ELEMENTS else 1
        if _loaded().frankenstein_step(rows.ctypes.data, len(table), ctypes.addressof(numbers), n_threads, best_set()):
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
    found = library.numbers(
        np, lr=lr, weight_decay=options.weight_decay, maximize=options.maximize, **options.of_rule()
    )
    return _Options(**found)


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
    names = ("x_t", "v_hat", "alignment", "rho", "xi", "w")
    out = torch.empty((len(names), *grad.shape))
    addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (grad, state.m, state.v, state.x)]
    _loaded().frankenstein_factors(
        ctypes.c_int64(grad.numel()),
        *addresses,
        ctypes.byref(constants(float(options.lr), options)),
        ctypes.c_void_p(out.data_ptr()),
        best_set() if instruction_set is None else instruction_set,
    )
    return dict(zip(names, out, strict=True))
