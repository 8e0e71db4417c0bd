"""Buffers that belong to weights, running statistics of BatchNorm above all: of any dtype, in a file of their own."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module

from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.layout import COMPILED, unwrapped


def buffers_of(model: Module) -> dict[str, Tensor]:
    """Return the buffers that are saved with a model; the others follow from its code."""
    inner = unwrapped(model)
    saved = inner.state_dict(keep_vars=True).keys()
    return {name.replace(COMPILED, ""): value for name, value in inner.named_buffers() if name in saved}


def put_buffers(model: Module, buffers: dict[str, Tensor]) -> None:
    """Copy buffers into the model's own.

    Raises:
        LandscapeError: They are another model's.
    """
    own = buffers_of(model)
    for name in [*buffers, *own]:
        if name not in own or name not in buffers or own[name].shape != buffers[name].shape:
            raise LandscapeError(
                f"buffer {name!r} of the model is not that of the snapshot; give the model that was recorded"
            )
    with torch.no_grad():
        for name, value in buffers.items():
            own[name].copy_(value)


def packed(buffers: dict[str, Tensor]) -> bytes:
    """Return buffers as the content of a file."""
    file = io.BytesIO()
    torch.save({name: value.detach().cpu() for name, value in buffers.items()}, file)
    return file.getvalue()


def read_buffers(path: Path, checksum: int) -> dict[str, Tensor]:
    """Return the buffers in a file, on the CPU.

    Raises:
        LandscapeError: The file is missing, or not what was written.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise LandscapeError(f"{path} is missing; restore it, or make it again") from None
    except OSError as error:
        raise LandscapeError(f"cannot read {path}: {error.strerror or error}") from None
    if zlib.crc32(content) != checksum:
        raise LandscapeError(f"{path} is damaged (its checksum is wrong); restore it, or make it again")
    buffers: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return buffers
