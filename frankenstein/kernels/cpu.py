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
from frankenstein.kernels.plain import real
from frankenstein.kernels.state import row_length
from frankenstein.rule import XI_GAIN, State, gradient_limit

ABI = 1
"""What the library and this file agree on; an older library is not used."""

SETS = ("baseline", "AVX2", "AVX-512")
"""Instruction sets, as the library numbers them."""

SERIAL_ELEMENTS = 32_768
"""Up to as many elements one thread is faster than several; it is also torch's bound."""

PARAM_TYPES = {torch.float32: 0, torch.bfloat16: 1}
STATE_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}
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
        row = _row(item, kept, written)
        if row is None:
            rest.append(item)
        else:
            taken.append(item)
            table.append(row)
            n_elements += row[7]

    def run() -> None:
        if not table:
            return
        lr = options.lr.item() if isinstance(options.lr, Tensor) else options.lr
        if lr == 0.0:  # a pause
            return
        library, rows, constants = _loaded(), np.array(table, dtype=np.int64), _constants(float(lr), options)
        n_threads = torch.get_num_threads() if n_elements > SERIAL_ELEMENTS else 1
        if library.frankenstein_step(
            rows.ctypes.data, len(table), ctypes.addressof(constants), n_threads, library.frankenstein_best_set()
        ):
            raise MemoryError("no memory for a step; nothing was changed")
        torch.autograd.graph.increment_version([item.param for item in taken])  # written behind autograd's back
        for tensor, copy in reversed(written):
            tensor.copy_(copy)
        kept.clear()

    return run, rest


def _row(item: Item, kept: list[Tensor], written: list[tuple[Tensor, Tensor]]) -> tuple[int, ...] | None:
    """Return the parameter's row of the library's table, or None where the plain operations must do.

    Tensors that do not lie in memory alike are stepped in copies, which `written` pairs with what they are copies of.
    """
    param, grad, m, v, x, exponents, compensation = item
    if param.device.type != "cpu" or grad.dtype != param.dtype:
        return None
    if param.is_conj() or param.is_neg():
        param = param.resolve_conj().resolve_neg()
        written.append((item.param, param))
    grad = grad.resolve_conj().resolve_neg()
    kept.append(grad)
    if param.dtype == torch.complex64:
        param, grad, m, v, x = map(real, (param, grad, m, v, x))
    param_type, state_type = PARAM_TYPES.get(param.dtype), STATE_TYPES.get(m.dtype)
    if param_type is None or state_type is None or not v.dtype == x.dtype == m.dtype:
        return None
    parts = [param, grad, m, v, x] if compensation is None else [param, grad, m, v, x, compensation]
    if not all(part.is_contiguous() for part in parts) and not (exponents is None and _are_alike(parts)):
        copies = [part.contiguous() for part in parts]
        written += [(part, copy) for i, (part, copy) in enumerate(zip(parts, copies, strict=True)) if i != 1]
        param, grad, m, v, x = copies[:5]
        compensation = None if compensation is None else copies[5]
        kept.append(grad)
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
        param_type,
        state_type,
    )


def _are_alike(parts: Sequence[Tensor]) -> bool:
    """Whether the same element has the same place in all of them, and no place is empty."""
    strides, n_inside = parts[0].stride(), 1
    for stride, size in sorted(zip(strides, parts[0].shape, strict=True)):
        if size != 1:
            if stride != n_inside:
                return False
            n_inside *= size
    return all(part.stride() == strides for part in parts)


def _constants(lr: float, options: Options) -> _Options:
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
        ctypes.byref(_constants(float(options.lr), options)),
        ctypes.c_void_p(out.data_ptr()),
        best_set() if instruction_set is None else instruction_set,
    )
    return dict(zip(names, out, strict=True))
