"""The fused step for CUDA GPUs: all tensors of a group that are stored alike in one launch of a Triton kernel.

The kernel (cuda_rule.py) reads from a table where the tensors lie, and from a map which piece of which tensor each
program steps. Table and map stay on the device while addresses and sizes stay the same; then a step is one launch, and
one more where tensors do not divide into pieces. The host never waits for the device.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from frankenstein.kernels import Item, Options
from frankenstein.kernels.cpu import constants
from frankenstein.kernels.layout import PARAM_TYPES, STATE_TYPES, laid_out
from frankenstein.kernels.state import BLOCK, row_length
from frankenstein.rule import PRESETS

MIN_CAPABILITY = (7, 0)
"""What torch asks of a GPU for its own Triton kernels."""

BLOCKS = 4
"""Blocks that one program steps; cuda_rule.py has the same number."""

ALIGNMENT = 16
"""Bytes that a thread reads at once, where addresses allow it."""

N_WARPS = 4
"""That run one program: one for each block."""

MAX_MADE = 256
"""Tables and maps that are kept on devices."""

MAX_SPARE = 8
"""Buffers of one size for graphs to come; a captured step takes one for each kind of tensor."""


NUMBERS = (
    *("sign", "eps", "x_0", "beta1", "beta1_squared", "lr_gain", "lr_gain_low", "decay"),
    *("ratio_limit", "slack_low", "slack_high", "grad_limit"),
)
"""What the kernel takes of what the C library takes, in its order."""


class Kind(NamedTuple):
    """What the tensors of one launch have in common; storage as numbered in `layout.PARAM_TYPES` and `STATE_TYPES`."""

    device: torch.device
    param_storage: int
    state_storage: int
    is_compensated: bool


class Row(NamedTuple):
    """One tensor: addresses, 0 where there is nothing, and its elements and those of one of its rows."""

    theta: int
    grad: int
    m: int
    v: int
    x: int
    exponents: int
    compensation: int
    n: int
    row: int


def why_not() -> str | None:
    """Return why there is no kernel here, or None: on the current GPU."""
    return _missing() or _why_not_on(torch.cuda.current_device())


@lru_cache(maxsize=1)
def _missing() -> str | None:
    if not torch.cuda.is_available():
        return "CUDA: no GPU is here"
    if torch.version.hip is not None:
        return "CUDA: the GPU is AMD's, on which the kernel was never run"
    if importlib.util.find_spec("triton") is None:
        return "CUDA: triton is not installed"
    return None


@lru_cache(maxsize=64)
def _why_not_on(device_idx: int) -> str | None:
    if torch.cuda.get_device_capability(device_idx) < MIN_CAPABILITY:
        return "CUDA: the GPU is older than compute capability {}.{}".format(*MIN_CAPABILITY)
    try:
        _try_out(torch.device("cuda", device_idx))
    except Exception as error:  # whatever it is, the plain operations need neither Triton nor its C compiler
        first_line = next(iter(str(error).strip().splitlines()), "")
        return f"CUDA: triton fails here ({type(error).__name__}: {first_line})"
    return None


def _try_out(device: torch.device) -> None:
    """Step one number, which compiles the kernel and its launcher, and loads them."""
    param, grad, m, v, x = torch.zeros(5, 1, device=device)
    options = Options(1e-3, 1e-8, 0.9, 1e-3, 0.0, PRESETS["paper"], False, False, False)
    job, _ = batched([Item(param, grad, m, v, x, None, None)], options)
    job()


def prepared(items: Sequence[Item], options: Options) -> tuple[Callable[[], None], list[Item]]:
    """Return what steps the parameters that the kernel takes, and those that it does not take."""
    here = [item for item in items if _is_here(item.param.device)]
    elsewhere = [item for item in items if not _is_here(item.param.device)]
    job, rest = batched(here, options)
    return job, elsewhere + rest


def _is_here(device: torch.device) -> bool:
    return device.type == "cuda" and _missing() is None and _why_not_on(device.index) is None


def batched(items: Sequence[Item], options: Options) -> tuple[Callable[[], None], list[Item]]:
    """Return what steps tensors on a device that Triton knows, and those in formats that the kernel does not take."""
    rows: dict[Kind, list[Row]] = defaultdict(list)
    kept: list[Tensor] = []  # copies that must live until they are read
    written: list[tuple[Tensor, Tensor]] = []
    taken, rest = [], []
    for item in items:
        ready = laid_out(item, kept, written)
        if ready is None:
            rest.append(item)
        else:
            kind, row = _row(ready)
            rows[kind].append(row)
            taken.append(item.param)

    def run() -> None:
        for kind, of_kind in rows.items():
            launch(kind, of_kind, options)
        torch.autograd.graph.increment_version(taken)  # written behind autograd's back
        for tensor, copy in reversed(written):
            tensor.copy_(copy)
        kept.clear()

    return run, rest


def _row(item: Item) -> tuple[Kind, Row]:
    param, grad, m, v, x, exponents, compensation = item
    n = param.numel()
    kind = Kind(param.device, PARAM_TYPES[param.dtype], STATE_TYPES[m.dtype], compensation is not None)
    return kind, Row(
        param.data_ptr(),
        grad.data_ptr(),
        m.data_ptr(),
        v.data_ptr(),
        x.data_ptr(),
        0 if exponents is None else exponents.data_ptr(),
        0 if compensation is None else compensation.data_ptr(),
        n,
        n if exponents is None else row_length(param),
    )


# Tables ---------------------------------------------------------------------------------------------------------------


def table_of(rows: Sequence[Row]) -> np.ndarray:
    """Return what the kernel reads: int64 (n_tensors, 11).

    The columns are the seven addresses; elements in a row; blocks in a row; blocks; and how many blocks at the start
    are whole, lie one after the other and can be read 16 bytes at a time: a multiple of those that a program steps.
    """
    given = np.array(rows, dtype=np.int64).reshape(-1, len(Row._fields))
    addresses, n, row = given[:, :7], given[:, 7], given[:, 8]
    in_row = -(-row // BLOCK)
    n_blocks = np.where(row > 0, n // np.maximum(row, 1) * in_row, 0)
    is_aligned = (addresses[:, [0, 1, 2, 3, 4, 6]] % ALIGNMENT == 0).all(1)
    is_one_after_the_other = (row == n) | (row % BLOCK == 0)
    n_whole = np.where(is_aligned & is_one_after_the_other, n // (BLOCK * BLOCKS) * BLOCKS, 0)
    return np.column_stack([addresses, row, in_row, n_blocks, n_whole])


def pieces_of(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the map of tensors' blocks first to last: int32 (n_programs, 2) of tensor and block."""
    counts = -(-(last - first) // BLOCKS)
    tensors = np.repeat(np.arange(len(counts)), counts)
    earlier = np.repeat(np.cumsum(counts) - counts, counts)
    blocks = first[tensors] + (np.arange(len(tensors)) - earlier) * BLOCKS
    return np.column_stack([tensors, blocks]).astype(np.int32)


class Plan(NamedTuple):
    """What is launched: the table; and for each launch whether pieces are whole, how many there are, and the map."""

    table: Tensor
    launches: list[tuple[bool, int, Tensor]]


def _plan(device: torch.device, rows: Sequence[Row]) -> Plan:
    array = table_of(rows)
    n_blocks, n_whole = array[:, -2], array[:, -1]
    launches = []
    for is_whole, first, last in ((True, np.zeros_like(n_whole), n_whole), (False, n_whole, n_blocks)):
        n_pieces = int((-(-(last - first) // BLOCKS)).sum())
        if n_pieces:
            sizes = (first.tobytes(), last.tobytes())  # where only gradients have moved, the map is there
            make = partial(_upload, device, partial(pieces_of, first, last))
            launches.append((is_whole, n_pieces, _once(device, sizes, make)))
    return Plan(_upload(device, lambda: array), launches)


class _Made(NamedTuple):
    """What was made for a device, and the stream in whose order it got there."""

    value: Any
    stream: int


_made: OrderedDict[Hashable, _Made] = OrderedDict()
_spare: dict[int, list[Tensor]] = defaultdict(list)  # page-locked buffers, by bytes
_held: list[Any] = []  # what captured graphs read each time they run: about 100 bytes for each tensor and capture


def _once(device: torch.device, key: Hashable, make: Callable[[], Any]) -> Any:
    """Return what was made in an earlier step for the same key, or make it."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    is_captured = _is_captured(device)
    found = _made.get((device, key))
    # What another stream has made may not be there yet; but before a capture, all streams are waited for.
    if found is not None and (is_captured or found.stream == stream):
        _made.move_to_end((device, key))
        if is_captured:
            _held.append(found.value)
        return found.value
    value = make()
    if not is_captured:  # what a graph copies is there only when the graph has run: for nobody else
        _made[device, key] = _Made(value, stream)
        if len(_made) > MAX_MADE:
            _made.popitem(last=False)
    return value


def _is_captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _upload(device: torch.device, make: Callable[[], np.ndarray]) -> Tensor:
    """Return an array on the device, without waiting for it."""
    array = torch.from_numpy(make())
    if device.type != "cuda":
        return array
    spare = _spare[array.nbytes]
    if _is_captured(device):  # to lock new pages may not be allowed then
        buffer = spare.pop() if spare else _page_locked(array.nbytes)
        _held.append(buffer)
    else:  # torch does not use the memory of a buffer again before it has been read
        buffer = _page_locked(array.nbytes)
        if len(spare) < MAX_SPARE:
            spare.append(_page_locked(array.nbytes))
    staged = buffer.view(array.dtype).view(array.shape)
    return staged.copy_(array).to(device, non_blocking=True)


def _page_locked(n_bytes: int) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)


# The launch -----------------------------------------------------------------------------------------------------------


def launch(kind: Kind, rows: Sequence[Row], options: Options) -> None:
    """Step tensors of one kind, on the current stream of their device."""
    from frankenstein.kernels import cuda_rule

    lr = _rate(options.lr, kind.device)
    if not isinstance(lr, Tensor) and lr == 0.0:  # a pause; of a learning rate on the device the kernel knows
        return
    numbers = _numbers(lr, options)
    flags = (options.rule.rho_source == "second_moment", options.skip_nonfinite, *kind[1:])
    with _on(kind.device):
        plan = _once(kind.device, tuple(rows), partial(_plan, kind.device, rows))
        for is_whole, n_pieces, pieces in plan.launches:
            cuda_rule.step[(n_pieces,)](
                plan.table,
                pieces,
                lr if isinstance(lr, Tensor) else None,
                *numbers,
                *flags,
                is_whole,
                num_warps=N_WARPS,
                enable_fp_fusion=False,
            )


def _on(device: torch.device) -> AbstractContextManager:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _rate(lr: float | Tensor, device: torch.device) -> float | Tensor:
    """Return the learning rate as a number, or where only a device knows it, as a tensor on this one."""
    if not isinstance(lr, Tensor):
        return lr
    return lr.item() if lr.device.type == "cpu" and device.type != "cpu" else lr.to(device, non_blocking=True)


def _numbers(lr: float | Tensor, options: Options) -> list[float]:
    """Return the kernel's numbers, from `sign` to `weight_decay`."""
    rule = options.rule
    known = constants(options.base_lr if isinstance(lr, Tensor) else lr, options)
    numbers = [getattr(known, name) for name in NUMBERS]
    gap = 1.0 - options.momentum
    least, largest = rule.beta1_gap_range if rule.beta1_follows_lr else (gap, gap)
    return [*numbers, gap / options.base_lr**0.5, 1.0 - largest, 1.0 - least, options.weight_decay]
