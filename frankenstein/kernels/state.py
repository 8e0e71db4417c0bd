"""How the optimizer's state is stored: in float32, in bfloat16, or in 8 bits with an exponent for each block.

The rule computes in float32 whatever the storage. Numbers of bfloat16 and 8 bits are rounded up or down by chance, in
proportion to their distance (stochastic rounding), so that changes smaller than the spacing count in the mean: a moving
average that is rounded to the nearest stops short of its goal. The chance comes from the bits of gradient and
parameter: there is no generator to save, and a run that goes on from a checkpoint goes on as it would have.

8 bits: three bits of mantissa, as float32 has them, and the exponent relative to the largest of the block, so that
numbers that do not change are stored exactly, whatever their neighbours do.

    momentum_buffer                 sign, then 0 for zero, 127 for what is not finite; down to 1.25 * 2^-15 times the
                                    largest power of two in the block, smaller ones are zero
    second_moment, squared_grad     0 for zero, 255 for what is not finite; down to 1.25 * 2^-31, smaller ones are that

A block is 256 elements along the trailing dimensions; none reaches over two rows, so that a parameter sharded along
dimension 0 has sharded state. Blocks' exponents are one more tensor, `block_exponents` (rows, blocks in a row, 3), of
the biased exponents of float32. What is smaller than 4,096 elements, has fewer than two dimensions or
rows shorter than 64, stays float32.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from frankenstein.rule import STATE_KEYS, State

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

BLOCK = 256
MIN_ELEMENTS, MIN_ROW = 4096, 64
EXPONENTS = "block_exponents"
COMPENSATION = "compensation"
FORMATS = ("float32", "bfloat16", "8bit")
STORAGE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "8bit": torch.uint8}
LOW_PRECISION = (torch.bfloat16, torch.float16)
# What has state of its own dtype whatever `state_dtype` says.
WIDE = {torch.float64: torch.float64, torch.complex64: torch.complex64, torch.complex128: torch.complex128} | {
    torch.complex32: torch.complex64
}

SALT = (1, 0x9E3779B1, 0xC2B2AE3D)  # of m, v and x
_MASK = 0xFFFFFFFF


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether the tensor is sharded over processes; then torch.distributed.tensor, which is slow to load, is there."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def sharding(param: Tensor) -> tuple[Any, ...] | None:
    """Return mesh and placements of a sharded parameter, None of another."""
    return (param.device_mesh, param.placements) if is_dtensor(param) else None


def summed(counts: Tensor, place: Any) -> Tensor:
    """Return what all processes of a `sharding` counted together; elsewhere the counts as they are."""
    if not isinstance(place, tuple):
        return counts
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = place
    kinds = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
    return DTensor.from_local(counts, mesh, kinds, run_check=False).full_tensor()


def storage_of(param: Tensor, state_dtype: str) -> torch.dtype:
    """Return the dtype in which the parameter's state is stored: what was asked for, where it is of use."""
    if param.dtype in WIDE:
        return WIDE[param.dtype]
    return torch.float32 if state_dtype == "8bit" and not _fits_blocks(param) else STORAGE[state_dtype]


def _fits_blocks(param: Tensor) -> bool:
    if param.dim() < 2 or param.numel() < MIN_ELEMENTS or row_length(param) < MIN_ROW:
        return False
    if not is_dtensor(param):
        return True
    # Rows must be whole on every process, and countable: those of torch's own Shard(0) are.
    shards: list[Any] = [placement for placement in param.placements if not placement.is_replicate()]
    whole = len(shards) <= 1 and all(type(one).__name__ == "Shard" and one.dim == 0 for one in shards)
    return whole


def row_length(tensor: Tensor) -> int:
    """Return the elements of one row: a vector is one row."""
    return tensor.numel() // tensor.shape[0] if tensor.dim() > 1 and tensor.shape[0] else tensor.numel()


def new(param: Tensor, state_dtype: str) -> dict[str, Tensor]:
    """Return the state before the first step, zero in every format."""
    dtype = storage_of(param, state_dtype)
    if dtype != torch.uint8:
        return {key: torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format) for key in STATE_KEYS}
    entry = {key: torch.zeros_like(param, dtype=dtype, memory_format=torch.contiguous_format) for key in STATE_KEYS}
    n_rows = param.shape[0] if param.dim() > 1 else 1
    shape = (n_rows, -(-row_length(param) // BLOCK), 3)
    if is_dtensor(param):
        from torch.distributed.tensor import zeros

        placed: dict[str, Any] = {"device_mesh": param.device_mesh, "placements": param.placements}
        entry[EXPONENTS] = zeros(*shape, dtype=torch.uint8, **placed)
    else:
        entry[EXPONENTS] = torch.zeros(shape, dtype=torch.uint8, device=param.device)
    return entry


def converted(param: Tensor, entry: dict[str, Tensor], state_dtype: str) -> dict[str, Tensor]:
    """Return the state in another format; numbers are rounded to the nearest, for there is no gradient to ask."""
    fresh = new(param, state_dtype)
    values = read(*(_local(entry[key]) for key in STATE_KEYS), exponents=_local(entry.get(EXPONENTS)))
    targets = State(*(_local(fresh[key]) for key in STATE_KEYS))
    write(targets, values, exponents=_local(fresh.get(EXPONENTS)), noise=None)
    return fresh


def _local(tensor: Any) -> Any:
    return tensor.to_local() if tensor is not None and is_dtensor(tensor) else tensor


def noise(theta: Tensor, grad: Tensor) -> Tensor:
    """Return 32 bits for each element, as int64, from the bits of float32 parameter and gradient."""
    bits = [tensor.contiguous().view(torch.int32).to(torch.int64) & _MASK for tensor in (grad, theta)]
    h = (bits[0] * 0x9E3779B1 + bits[1] * 0x85EBCA77) & _MASK
    h = _times(h ^ (h >> 16), 0x21F0AAAD)
    h = _times(h ^ (h >> 15), 0xD35A2D97)
    return h ^ (h >> 15)


def _times(h: Tensor, factor: int) -> Tensor:
    """Multiply modulo 2^32: the product of two 32-bit numbers may overflow int64, but its low bits are right."""
    return (h * factor) & _MASK


def read(m: Tensor, v: Tensor, x: Tensor, *, exponents: Tensor | None) -> State:
    """Return the state as float32, or in its own dtype if that is wider."""
    if exponents is None:
        return State(*(tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in (m, v, x)))
    return State(*(_decode(codes, exponents[..., k], k == 0) for k, codes in enumerate((m, v, x))))


def write(stored: State, values: State, *, exponents: Tensor | None, noise: Tensor | None) -> None:
    """Store float32 values in place; `noise` is that of the function of this name, None rounds to the nearest."""
    for k, (target, value) in enumerate(zip(stored, values, strict=True)):
        if target.numel() == 0:  # a process's part of a sharded parameter may be empty
            continue
        if exponents is not None:
            codes, exponents[..., k] = _encode(value, None if noise is None else _times(noise, SALT[k]), k == 0)
            target.copy_(codes)
        elif target.dtype == torch.bfloat16 and noise is not None:
            target.copy_(_to_bfloat16(value, _times(noise, SALT[k]) >> 16))
        else:
            target.copy_(value)


def _to_bfloat16(values: Tensor, noise: Tensor) -> Tensor:
    bits = values.contiguous().view(torch.int32).to(torch.int64) & _MASK
    rounded = (bits + noise) & 0xFFFF0000
    rounded = torch.where(rounded >= 1 << 31, rounded - (1 << 32), rounded)  # as a signed number
    return torch.where(values.isfinite(), rounded.to(torch.int32).view(torch.float32), values).to(torch.bfloat16)


def _in_blocks(tensor: Tensor, fill: int) -> Tensor:
    """View rows as (rows, blocks, 256), the last block of each row filled up."""
    rows = tensor.reshape(tensor.shape[0] if tensor.dim() > 1 else 1, -1)
    short = -rows.shape[1] % BLOCK
    return torch.nn.functional.pad(rows, (0, short), value=fill).reshape(rows.shape[0], -1, BLOCK)


def _out_of_blocks(blocks: Tensor, like: Tensor) -> Tensor:
    n_rows = like.shape[0] if like.dim() > 1 else 1
    return blocks.reshape(n_rows, -1)[:, : row_length(like)].reshape(like.shape)


def _base(exponents: Tensor, top: int) -> Tensor:
    """Return what is added to a code to make the upper 12 bits of a float32."""
    return exponents.to(torch.int32)[..., None] * 8 + 7 - top


def _decode(codes: Tensor, exponents: Tensor, has_sign: bool) -> Tensor:
    if codes.numel() == 0:
        return torch.zeros(codes.shape, dtype=torch.float32, device=codes.device)
    top = 126 if has_sign else 254
    blocks = _in_blocks(codes, 0).to(torch.int32)
    sizes = blocks & 127 if has_sign else blocks
    bits = (sizes + _base(exponents, top)) << 20
    values = torch.where(sizes == 0, 0.0, bits.view(torch.float32))
    values = torch.where(sizes > top, torch.nan, values)
    return _out_of_blocks(torch.where(blocks > 127, -values, values) if has_sign else values, codes)


def _encode(values: Tensor, noise: Tensor | None, has_sign: bool) -> tuple[Tensor, Tensor]:
    """Return codes of the shape of `values`, and the exponents (rows, blocks)."""
    top = 126 if has_sign else 254
    negative = values.signbit() if has_sign else torch.zeros_like(values, dtype=torch.bool)
    sizes = values.abs() if has_sign else torch.where(values < 0, 0.0, values)  # a negative v is as good as 0
    bits = sizes.contiguous().view(torch.int32).to(torch.int64)
    steps = (bits + ((1 << 19) if noise is None else noise >> 12)) >> 20
    steps = torch.where(bits < 0x00800000, 0, steps.clamp(max=0x7F7))  # what is not normal is zero
    steps = torch.where(sizes.isfinite(), steps, -1)
    blocks = _in_blocks(steps, 0).to(torch.int32)
    exponents = (blocks.amax(-1).clamp(min=0) >> 3).to(torch.uint8)
    codes = (blocks - _base(exponents, top)).clamp(min=0 if has_sign else 1)
    codes = torch.where(blocks == 0, 0, torch.where(blocks < 0, top + 1, codes))
    codes = _out_of_blocks(codes, values)
    return torch.where(negative, codes | 128, codes).to(torch.uint8), exponents
