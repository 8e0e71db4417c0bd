"""What is worked out once and kept on this machine: decoded images, checksums."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frankenstein.experiments.data.sources import DataError

__all__ = ["VARIABLE", "check_room", "folder", "kept_array", "writing"]

VARIABLE = "FRANKENSTEIN_CACHE"
SEAL_BYTES = 4  # a CRC-32 behind the array: a file that was cut, or changed, does not fit it


def folder() -> Path:
    """Return the cache folder: `$FRANKENSTEIN_CACHE`, or `~/.cache/frankenstein`."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "frankenstein")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of `path`, and turn a failure to write there into one line.

    Raises:
        DataError: The disk is full, or the folder may not be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        why = error.strerror or error
        raise DataError(f"cannot write {path}: {why}; name another cache folder by {VARIABLE}") from None


def check_room(path: Path, n_bytes: int) -> None:
    """Check that the disk of `path` has room for that many bytes.

    Raises:
        DataError: It has not; the message says how much is needed and how much is there.
    """
    free = shutil.disk_usage(path).free
    if free < n_bytes:
        needs, has = (f"{n / 1e9:.3g} GB" for n in (n_bytes, free))
        raise DataError(f"the cache in {path} needs {needs} and the disk has {has}; name another folder by {VARIABLE}")


def kept_array(path: Path, shape: tuple[int, ...], fill: Callable[[NDArray[np.uint8]], None]) -> NDArray[np.uint8]:
    """Return the array that is kept in a file, mapped into memory; make the file where it is absent or damaged.

    The file appears whole or not at all, and processes that ask at the same time wait for the first.

    Args:
        path: An `.npy` file.
        shape: Of the array.
        fill: Writes the array's contents; what it raises is passed on, and nothing is kept.

    Returns:
        A uint8 array. Pages that are written to are private to this process.

    Raises:
        DataError: There is no room, or the folder may not be written to.
    """
    from filelock import FileLock

    with writing(path):
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    try:
        found = _read(path, shape)
        if found is None:
            _write(path, shape, fill)
            found = _read(path, shape)
    finally:
        lock.release()
    if found is None:
        raise DataError(f"{path} does not hold what was just written to it; name another folder by {VARIABLE}")
    return found


def _read(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Return the array, or None where the file is absent, damaged or of another shape."""
    try:
        # "c": torch wants memory that it may write to, and the file must never change
        array: NDArray[np.uint8] = np.load(path, mmap_mode="c")
        with path.open("rb") as file:
            file.seek(-SEAL_BYTES, os.SEEK_END)
            seal = file.read()
    except (OSError, ValueError, EOFError):
        return None
    if array.shape != shape or array.dtype != np.uint8 or seal != _seal(array):
        return None
    return array


def _write(path: Path, shape: tuple[int, ...], fill: Callable[[NDArray[np.uint8]], None]) -> None:
    half = path.with_suffix(".half")  # of one process at a time; what a killed one left is written over
    with writing(half):
        check_room(path.parent, int(np.prod(shape)))
    array = np.empty(shape, np.uint8)
    fill(array)
    try:
        with writing(half):
            with half.open("wb") as file:
                np.save(file, array)
                file.write(_seal(array))
            half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def _seal(array: NDArray[np.uint8]) -> bytes:
    return zlib.crc32(array.data).to_bytes(SEAL_BYTES, "little")
