"""Where each parameter of a model lies in one flat vector."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.kernels.state import is_dtensor

COMPILED = "_orig_mod."  # what torch.compile puts into the names of a module's parameters
FSDP1 = "_fsdp_wrapped_module"
DOUBLE = ("float64", "complex128")


@dataclass(frozen=True)
class Part:
    """One parameter.

    Attributes:
        name: In the model without wrappers.
        shape: Its shape.
        dtype: As torch names it; a complex number takes two places.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Places in the vector."""
        return prod(self.shape) * (2 if self.dtype.startswith("complex") else 1)


@dataclass(frozen=True)
class Layout:
    """The parameters of a model in the order in which they lie in the vector."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, model: Module, names: Collection[str] | None = None) -> Layout:
        """Return the layout of a model's parameters; of those named only, unless `names` is None.

        Raises:
            LandscapeError: A name is not there, a parameter is no floating-point number, or there are none.
        """
        found = parameters_of(model, names)
        for name, value in found.items():
            if not (value.is_floating_point() or value.is_complex()):
                raise LandscapeError(
                    f"parameter {name!r} is {_dtype(value)}: only floating-point weights have a landscape; leave it "
                    "out with Snapshots(..., parameters=[...])"
                )
        return cls(tuple(Part(name, tuple(value.shape), _dtype(value)) for name, value in found.items()))

    @classmethod
    def from_config(cls, config: list[dict[str, Any]]) -> Layout:
        """Return the layout that `config` described."""
        return cls(tuple(Part(one["name"], tuple(one["shape"]), one["dtype"]) for one in config))

    def config(self) -> list[dict[str, Any]]:
        """Return it as plain data."""
        return [{**asdict(part), "shape": list(part.shape)} for part in self.parts]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parameters' names."""
        return tuple(part.name for part in self.parts)

    @cached_property
    def size(self) -> int:
        """Length of the vector."""
        return sum(part.size for part in self.parts)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the vector: float64 if a parameter is, or else float32, which holds float16 and bfloat16 exactly."""
        return np.dtype("<f8" if any(part.dtype in DOUBLE for part in self.parts) else "<f4")

    def places(self) -> Iterator[tuple[Part, slice]]:
        """Yield each parameter and where it lies."""
        start = 0
        for part in self.parts:
            yield part, slice(start, start + part.size)
            start += part.size

    def name_at(self, place: int) -> str:
        """Return the name of the parameter that lies at a place of the vector."""
        return next(part.name for part, where in self.places() if where.start <= place < where.stop)

    def check(self, other: Layout, what: str, cure: str) -> None:
        """Check that another layout has the same names and shapes; dtypes may differ.

        Args:
            other: The other.
            what: Whose layout it is, for the message.
            cure: What to do.

        Raises:
            LandscapeError: It differs; the message names the first parameter that does.
        """
        mine, theirs = ({part.name: part.shape for part in one.parts} for one in (self, other))
        for name in [*mine, *theirs]:
            if mine.get(name) != theirs.get(name):
                has, expects = (_shape(shapes.get(name)) for shapes in (theirs, mine))
                raise LandscapeError(f"{what}: parameter {name!r} is {has}, expected {expects}; {cure}")
        if list(mine) != list(theirs):
            raise LandscapeError(f"{what}: the parameters come in another order than expected; {cure}")

    def check_vectors(self, other: Layout, what: str, cure: str) -> None:
        """Check that vectors of another layout can be compared with those of this one.

        Raises:
            LandscapeError: As `check`; or the numbers are of another dtype.
        """
        self.check(other, what, cure)
        if other.dtype != self.dtype:
            raise LandscapeError(f"{what}: the weights are {other.dtype}, expected {self.dtype}; {cure}")

    def check_model(self, model: Module) -> None:
        """Check that a model has the parameters of this layout; it may have more.

        Raises:
            LandscapeError: It has not; the message names the first parameter that is missing or of another shape.
        """
        there = set(parameters_of(model))
        mine = Layout.of(model, [name for name in self.names if name in there] or None)
        self.check(mine, "the model", "give the model that was recorded")


def parameters_of(model: Module, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return a model's parameters, shared ones once, in the model's order, whatever it is wrapped in.

    Raises:
        LandscapeError: A name is not there, there are no parameters, or they lie where this cannot read them.
    """
    found: dict[str, Tensor] = {
        name.replace(COMPILED, ""): value for name, value in unwrapped(model).named_parameters()
    }
    for name, value in found.items():
        if FSDP1 in name or hasattr(value, "ds_id"):
            raise LandscapeError(
                f"parameter {name!r} is a piece that FSDP1 or DeepSpeed made; shard with torch's fully_shard, or give "
                "the model with its whole weights"
            )
    if names is not None:
        for name in names:
            if name not in found:
                raise LandscapeError(f"the model has no parameter {name!r}; it has {_some(list(found))}")
        found = {name: value for name, value in found.items() if name in names}
    if not found:
        raise LandscapeError("the model has no parameters; a landscape needs at least one")
    return found


def unwrapped(model: Module) -> Module:
    """Return the model inside of DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, COMPILED[:-1], None), Module):
            model = getattr(model, COMPILED[:-1])
        else:
            return model


def numbers(value: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a parameter's numbers, flat, on the CPU; of a sharded one all of them, for which every process must ask.

    It may be a view of the parameter's own memory.
    """
    value = value.detach()
    if is_dtensor(value):
        value = value.full_tensor()
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    return value.to("cpu", torch.float64 if dtype.itemsize == 8 else torch.float32).reshape(-1).numpy()


def tensor(vector: NDArray[Any], part: Part) -> Tensor:
    """Return a piece of the vector in its parameter's shape; shares its memory."""
    flat = torch.from_numpy(vector)
    if part.dtype.startswith("complex"):
        return torch.view_as_complex(flat.reshape(*part.shape, 2))
    return flat.reshape(part.shape)


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"of shape {shape}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
