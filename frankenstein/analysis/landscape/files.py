"""Files that appear whole or not at all; flat vectors among them, `.npy`, written and read in pieces.

A trajectory is read with plain reads. Pages of a mapped file count as the process's memory until the system wants them
back, and 20 GB of snapshots would look, to a batch system with a limit, like a process of 20 GB.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frankenstein.analysis.landscape.errors import LandscapeError

PIECE = 1 << 22  # numbers that are read at once where nobody asks for less: 16 MiB of float32


def place(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    half = path.with_name(f"{path.name}.half")
    try:
        half.write_bytes(content)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


@dataclass(frozen=True)
class Vector:
    """A vector in a file.

    Attributes:
        path: The file.
        size: Its length.
        dtype: Of its numbers.
        offset: Of the first number, in bytes.
    """

    path: Path
    size: int
    dtype: np.dtype[Any]
    offset: int

    @classmethod
    def open(cls, path: Path, size: int, dtype: np.dtype[Any]) -> Vector:
        """Return the vector in a file, of which only the header is read.

        Raises:
            LandscapeError: The file is absent, cut short, or holds something else.
        """
        try:
            mapped = np.load(path, mmap_mode="r")
        except FileNotFoundError:
            raise LandscapeError(f"{path} is missing; restore it, or make it again") from None
        except (OSError, ValueError, EOFError) as error:
            why = str(error).partition("\n")[0]
            raise LandscapeError(f"{path} is damaged ({why}); restore it, or make it again") from None
        if not isinstance(mapped, np.memmap) or mapped.shape != (size,) or mapped.dtype != dtype:
            raise LandscapeError(
                f"{path} holds {mapped.dtype} of shape {mapped.shape}, expected {dtype} of shape ({size},); "
                "it is another model's, or damaged: restore it, or make it again"
            )
        return cls(path, size, dtype, mapped.offset)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the numbers from start to stop, in memory of their own.

        Raises:
            LandscapeError: The file has become shorter, or cannot be read.
        """
        try:
            piece = np.fromfile(self.path, self.dtype, stop - start, offset=self.offset + start * self.dtype.itemsize)
        except OSError as error:
            raise LandscapeError(f"cannot read {self.path}: {error.strerror or error}") from None
        if len(piece) != stop - start:
            raise LandscapeError(f"{self.path} is cut short; restore it, or make it again")
        return piece

    def mapped(self) -> NDArray[Any]:
        """Return the vector mapped into memory, read-only: for what is read over and over, by several processes."""
        return np.memmap(self.path, self.dtype, "r", self.offset, (self.size,))

    def check(self, checksum: int) -> None:
        """Check the contents.

        Raises:
            LandscapeError: They are not those that were written.
        """
        found = 0
        for start in range(0, self.size, PIECE):
            found = zlib.crc32(self.read(start, min(start + PIECE, self.size)).data, found)
        self.compare(found, checksum)

    def compare(self, found: int, checksum: int) -> None:
        """Compare the CRC-32 of what was read with that of what was written.

        Raises:
            LandscapeError: They differ.
        """
        if found != checksum:
            raise LandscapeError(f"{self.path} is damaged (its checksum is wrong); restore it, or make it again")


class VectorWriter:
    """Writes a vector in pieces into a file that its user renames after the block; an error in the block removes it.

    Attributes:
        checksum: CRC-32 of what was written so far.
    """

    def __init__(self, half: Path, size: int, dtype: np.dtype[Any]) -> None:
        self.half, self.size, self.dtype = half, size, dtype
        self.checksum = 0

    def __enter__(self) -> VectorWriter:
        self.file = self.half.open("wb")
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.size,)}
        np.lib.format.write_array_header_1_0(self.file, header)
        return self

    def write(self, piece: NDArray[Any]) -> None:
        """Add numbers to the vector."""
        data = np.ascontiguousarray(piece, self.dtype).data
        self.checksum = zlib.crc32(data, self.checksum)
        self.file.write(data)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.file.close()
        if kind is not None:
            self.half.unlink(missing_ok=True)
