"""What both fused kernels ask of tensors before they read them by address."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frankenstein.kernels import Item
from frankenstein.kernels.plain import real

PARAM_TYPES = {torch.float32: 0, torch.bfloat16: 1}
STATE_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}
"""The kernels' numbers of the dtypes that they read."""


def laid_out(item: Item, kept: list[Tensor], written: list[tuple[Tensor, Tensor]]) -> Item | None:
    """Return the item with tensors in which the same element has the same place, all of them real.

    Args:
        item: A parameter with what its step needs.
        kept: Gets copies that must live until the kernel has read them.
        written: Gets pairs of a tensor and the copy in which it is stepped, to be copied back last to first.

    Returns:
        The item to step, or None where the plain operations must do. Then nothing was added to either list.
    """
    param, grad, m, v, x, exponents, compensation = item
    if grad.dtype != param.dtype or not v.dtype == x.dtype == m.dtype:
        return None
    is_complex = param.dtype == torch.complex64
    if not is_complex and (param.dtype not in PARAM_TYPES or m.dtype not in STATE_TYPES):
        return None
    others = [grad, m, v, x, *(one for one in (exponents, compensation) if one is not None)]
    if any(one.device != param.device for one in others) or not (exponents is None or exponents.is_contiguous()):
        return None
    if param.is_conj() or param.is_neg():
        param = param.resolve_conj().resolve_neg()
        written.append((item.param, param))
    if grad.is_conj() or grad.is_neg():
        grad = grad.resolve_conj().resolve_neg()
        kept.append(grad)
    if is_complex:
        param, grad, m, v, x = map(real, (param, grad, m, v, x))
    parts = [param, grad, m, v, x] if compensation is None else [param, grad, m, v, x, compensation]
    if not all(part.is_contiguous() for part in parts) and not (exponents is None and _are_alike(parts)):
        copies = [part.contiguous() for part in parts]
        written += [(part, copy) for i, (part, copy) in enumerate(zip(parts, copies, strict=True)) if i != 1]
        param, grad, m, v, x = copies[:5]
        compensation = None if compensation is None else copies[5]
        kept.append(grad)
    return Item(param, grad, m, v, x, exponents, compensation)


def _are_alike(parts: Sequence[Tensor]) -> bool:
    """Whether the same element has the same place in all of them, and no place is empty."""
    strides, n_inside = parts[0].stride(), 1
    for stride, size in sorted(zip(strides, parts[0].shape, strict=True)):
        if size != 1:
            if stride != n_inside:
                return False
            n_inside *= size
    return all(part.stride() == strides for part in parts)
