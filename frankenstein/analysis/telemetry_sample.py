"""What the next step of an optimizer will read, on a sample of each group's elements, for telemetry.

The sample is evenly spaced along the group's elements in a row, so that each counts alike, whatever tensor it is in,
and the cost does not grow with the network. It stays the same as long as the same parameters have gradients.

It is gathered where the parameters are, and comes to the host in one transfer: the only wait for the device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from frankenstein.kernels import Item, local_gradient
from frankenstein.kernels import state as formats
from frankenstein.kernels.plain import compute_dtype, real
from frankenstein.rule import STATE_KEYS, State
from frankenstein.torch import Frankenstein

# A prime: with a power of two, the samples of a matrix whose rows are one would all lie in a few columns. Of so many,
# the median is that of a quantile within 0.5 +- 0.016 of all elements, and the 1 % quantile within 0.01 +- 0.003.
MAX_SAMPLE = 4093

NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class Part(NamedTuple):
    """Sampled elements, shape (n,): arrays in the dtype of the arithmetic, and on the way there tensors."""

    weight: Any
    grad: Any
    m: Any
    v: Any
    x: Any


class Sample(NamedTuple):
    """What is known of a group beside its options.

    Attributes:
        group_idx: The group.
        n_elements: Its elements with a gradient; on this process, where parameters are sharded.
        lr: Its learning rate.
        parts: The elements that were sampled, those of one dtype together.
    """

    group_idx: int
    n_elements: int
    lr: float
    parts: list[Part]


@torch.no_grad()
def take(optimizer: Frankenstein) -> list[Sample]:
    """Return a sample of each group that has gradients; nothing of the optimizer changes."""
    found: list[tuple[int, int, int]] = []
    tensors: list[Tensor] = []
    for i, group in enumerate(optimizer.param_groups):
        n_elements, parts = _gathered(optimizer, group)
        if parts:
            found.append((i, n_elements, len(parts)))
            tensors += [*parts, group["lr"]] if isinstance(group["lr"], Tensor) else parts
    arrays = iter(_on_the_host(tensors))
    samples = []
    for i, n_elements, n_parts in found:
        parts_of_it = [Part(*next(arrays).reshape(len(Part._fields), -1)) for _ in range(n_parts)]
        lr = optimizer.param_groups[i]["lr"]
        samples.append(Sample(i, n_elements, float(next(arrays)[0] if isinstance(lr, Tensor) else lr), parts_of_it))
    return samples


def _on_the_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Return tensors as flat arrays, all of them in one transfer."""
    if not tensors:
        return []
    # Of several dtypes together come the widest: no number changes.
    together = torch.cat([tensor.reshape(-1).to(tensors[0].device) for tensor in tensors]).cpu().numpy()
    arrays = np.split(together, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    dtypes = [NUMPY.get(tensor.dtype, np.float64) for tensor in tensors]
    return [array.astype(dtype, copy=False) for array, dtype in zip(arrays, dtypes, strict=True)]


def _gathered(optimizer: Frankenstein, group: dict[str, Any]) -> tuple[int, list[Tensor]]:
    """Return the number of elements, and for each dtype of the arithmetic a tensor of the fields of `Part` in a row."""
    params = [param for param in group["params"] if param.grad is not None and param.grad.layout == torch.strided]
    sizes = [_local(param).numel() * (2 if param.is_complex() else 1) for param in params]
    alike: dict[torch.dtype, list[Part]] = defaultdict(list)
    for param, places in _places(params, sizes):
        alike[compute_dtype(param)].append(_picked(_read(optimizer, group, param), places))
    parts = []
    for dtype, picked in alike.items():
        pieces = [piece.to(params[0].device) for kind in zip(*picked, strict=True) for piece in kind]
        parts.append(torch.cat(pieces).to(dtype))
    return sum(sizes), parts


def _places(params: Sequence[Tensor], sizes: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parameters with the places in them that are in the sample; one that has none is left out."""
    n_elements = sum(sizes)
    n_sampled = min(n_elements, MAX_SAMPLE)
    in_the_row: dict[torch.device, Tensor] = {}
    offset = 0
    for param, size in zip(params, sizes, strict=True):
        if size:
            first, last = (-(-end * n_sampled // n_elements) for end in (offset, offset + size))
            device = param.device
            if first < last:
                if device not in in_the_row:
                    in_the_row[device] = torch.arange(n_sampled, device=device) * n_elements // n_sampled
                yield param, in_the_row[device][first:last] - offset
        offset += size


def _read(optimizer: Frankenstein, group: dict[str, Any], param: Tensor) -> Item:
    """Return what the step of a parameter will read, real and of this process; the optimizer's state stays as it is."""
    entry: dict[str, Tensor] = optimizer.state.get(param, {})
    if STATE_KEYS[0] not in entry:
        entry = formats.new(param, group["state_dtype"])
    elif entry[STATE_KEYS[0]].dtype != formats.storage_of(param, group["state_dtype"]):
        entry = formats.converted(param, entry, group["state_dtype"])
    is_compensated = group["kahan_sum"] is not False and param.dtype in formats.LOW_PRECISION
    compensation = entry.get(formats.COMPENSATION) if is_compensated else None
    assert param.grad is not None
    weight, grad, m, v, x = map(
        real, (_local(param), local_gradient(param, param.grad), *(_local(entry[key]) for key in STATE_KEYS))
    )
    return Item(weight, grad, m, v, x, *map(_local, (entry.get(formats.EXPONENTS), compensation)))


def _local(tensor: Any) -> Any:
    return tensor.to_local() if tensor is not None and formats.is_dtensor(tensor) else tensor


def _picked(item: Item, places: Tensor) -> Part:
    """Return the elements at `places` as tensors, which may be of several dtypes yet."""
    weight = _at(item.param, places)
    if item.compensation is not None:
        weight = weight.float() + _at(item.compensation, places).float()
    if item.exponents is None:
        state = State(*(_at(tensor, places) for tensor in (item.m, item.v, item.x)))
    else:
        state = _decoded(item, places)
    return Part(weight, _at(item.grad, places), *state)


def _at(tensor: Tensor, places: Tensor) -> Tensor:
    """Return `tensor.reshape(-1)[places]`, which would copy the whole tensor first if it is not contiguous."""
    if tensor.is_contiguous():
        return tensor.view(-1).index_select(0, places)
    indices = []
    for size in reversed(tensor.shape):
        indices.append(places % size)
        places = places // size
    return tensor[tuple(reversed(indices))]


def _decoded(item: Item, places: Tensor) -> State:
    """Return 8-bit state at `places`, without decoding all of it."""
    assert item.exponents is not None
    length, n_blocks = formats.row_length(item.m), item.exponents.shape[1]
    blocks = places // length * n_blocks + places % length // formats.BLOCK
    exponents = item.exponents.reshape(-1, len(STATE_KEYS)).index_select(0, blocks).long()
    codes = (_at(tensor, places).long() for tensor in (item.m, item.v, item.x))
    tables = enumerate(zip(_tables(places.device), codes, strict=True))
    return State(*(table[exponents[:, k], code] for k, (table, code) in tables))


@cache
def _tables(device: torch.device) -> State:
    """Return the numbers that 8-bit codes stand for, (exponents, codes): a row is a block that has all codes in it."""
    codes = torch.arange(256, device=device).to(torch.uint8).repeat(256, 1)
    exponents = torch.arange(256, device=device).to(torch.uint8)[:, None, None].repeat(1, 1, len(STATE_KEYS))
    return formats.read(codes, codes, codes, exponents=exponents)
