"""The memory of the relaxation rule as JSON, to the last bit: what a run leaves behind to go on later."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from frankenstein.relaxation.rule import State
from frankenstein.relaxation.systems import to_numpy

__all__ = ["VERSION", "array_from_json", "array_to_json", "check_name", "from_json", "read", "to_json", "write"]

VERSION = 1
"""Of the format; it grows when a field of `State` is added, removed or changes its meaning."""

INTEGERS = ("n_steps", "n_pairs")
"""Fields of `State` that are int64; the others are float64."""

AXES = {
    "n_steps": "s", "n_pairs": "s", "step_limit": "s", "gradient": "ad", "displacement": "ad", "directions": "amd",
    "changes": "amd", "curvatures": "sm", "direction_change_inv": "smm", "direction_change_diag": "sm",
    "change_change": "smm", "secant": "s",
}  # fmt: skip
"""Of each field: systems, atoms, dimensions, memory."""

JSON = dict[str, Any]


def array_to_json(array: Any) -> JSON:
    """Return an array (numpy, or torch on any device) as its shape and its base64 coded bytes, little-endian."""
    array = to_numpy(array)
    kind = "<i8" if array.dtype.kind in "iu" else "<f8"
    data = np.ascontiguousarray(array, dtype=kind).tobytes()
    return {"dtype": kind, "shape": list(array.shape), "base64": base64.b64encode(data).decode("ascii")}


def array_from_json(data: Any, name: str, dtype: str = "<f8") -> np.ndarray:
    """Return the array, equal to the last bit.

    Args:
        data: From `array_to_json`.
        name: What it is, for the message.
        dtype: "<f8" or "<i8", which it must be.

    Raises:
        ValueError: It is damaged, of another type, or not finite.
    """
    try:
        found, shape = data["dtype"], tuple(data["shape"])
        content = base64.b64decode(data["base64"], validate=True)
        is_whole = found == dtype and all(type(n) is int and n >= 0 for n in shape)
    except (TypeError, KeyError, ValueError):
        is_whole = False
    if not is_whole or len(content) != 8 * math.prod(shape):
        raise ValueError(f"Invalid {name}: wanted are dtype {dtype!r}, the shape, and as many numbers in base64")
    array = (
        np.frombuffer(content, dtype=dtype).reshape(shape).astype(dtype[1:])
    )  # astype copies: frombuffer's is frozen
    if not np.isfinite(array).all():
        raise ValueError(f"Invalid {name}: it has numbers that are not finite")
    return array


def to_json(state: State) -> JSON:
    """Return the state as a dictionary that `json.dumps` takes.

    Args:
        state: Of numpy arrays or torch tensors.

    Returns:
        A version and one entry per field.

    Example:
        >>> import json
        >>> import numpy as np
        >>> from frankenstein.relaxation import RelaxationRule, Systems, init
        >>> state = init(np.zeros((2, 3)), Systems(np.array([0, 0])), RelaxationRule(), 0.2)
        >>> again = from_json(json.loads(json.dumps(to_json(state))))
        >>> all(np.array_equal(old, new) for old, new in zip(state, again))
        True
    """
    return {"version": VERSION} | {name: array_to_json(field) for name, field in state._asdict().items()}


def from_json(data: Any) -> State:
    """Return the state, equal to the last bit, as numpy arrays.

    Args:
        data: From `to_json`.

    Raises:
        ValueError: The version is another one, a field is missing or damaged, its shape does not fit to the others, or
            it is not finite; the message names it.
    """
    if not isinstance(data, dict) or "version" not in data:
        raise ValueError("Invalid state: no version; wanted is what to_json returns")
    if data["version"] != VERSION:
        raise ValueError(f"Invalid state: version {data['version']!r}; this Frankenstein reads version {VERSION}")
    missing = [name for name in State._fields if name not in data]
    if missing:
        raise ValueError(f"Invalid state: {missing[0]} is missing")
    state = State(
        **{name: array_from_json(data[name], name, "<i8" if name in INTEGERS else "<f8") for name in State._fields}
    )
    _check_shapes(state)
    for name in INTEGERS:
        if (getattr(state, name) < 0).any():
            raise ValueError(f"Invalid {name}: it is negative")
    return state


def check_name(path: Any) -> None:
    """Raise ValueError unless a restart file can have this name: before a run, not at its first force call."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ValueError(f"Invalid restart: {path!r}; allowed is the name of a file, run.json say")
    name = os.fsdecode(path)
    if os.path.isdir(name):
        example = os.path.join(name, "run.json")
        raise ValueError(f"Invalid restart: {name} is a folder; give a file in it, {example} say")
    folder = os.path.dirname(name)
    if folder and not os.path.isdir(folder):
        raise ValueError(f"Invalid restart: {name} would be in the folder {folder}, which is not there; make it first")


def write(path: str | os.PathLike[str], data: Any) -> None:
    """Write JSON in one piece: a reader finds the file of before or the new one, whenever this is interrupted."""
    part = Path(f"{os.fspath(path)}.part")
    try:
        with part.open("w", encoding="ascii") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):  # it may not have come to be
            part.unlink()
        raise


def read(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="ascii"))
    except ValueError:  # UnicodeDecodeError is one, too
        message = f"Could not decode {os.fspath(path)} as JSON"
    raise ValueError(message)


def _check_shapes(state: State) -> None:
    """Raise ValueError, naming the first field whose shape does not fit to `gradient` and `curvatures`."""
    if state.gradient.ndim != 2 or state.curvatures.ndim != 2:
        raise ValueError("Invalid gradient or curvatures: both have two axes")
    sizes = dict(zip("adsm", state.gradient.shape + state.curvatures.shape, strict=True))
    for name, axes in AXES.items():
        field, wanted = getattr(state, name), tuple(sizes[axis] for axis in axes)
        if field.shape != wanted:
            raise ValueError(f"Invalid {name}: its shape is {field.shape}; {wanted} fits to the other fields")
