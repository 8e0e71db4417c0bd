"""Every force call of a structure that still moves, on disk as it is made.

A descent is determined by what it is told. So nothing else need be saved: told the same again, it comes to the same
place bit by bit, without a call, whatever its optimizer remembers. A run that is killed loses the call it was waiting
for, and nothing else.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from frankenstein.models import Prediction

N_NUMBERS = 3 + 9 + 9  # beside positions and forces: energy, seconds, whether there is a stress; cell; stress
N_CHECK = 4  # bytes of the check sum


class Call(NamedTuple):
    """One force call.

    Attributes:
        positions: (n_atoms, 3), Angstrom, where it was made.
        cell: (3, 3), Angstrom.
        seconds: It took, with the step that led there.
        prediction: What was computed.
    """

    positions: np.ndarray
    cell: np.ndarray
    seconds: float
    prediction: Prediction


class Journal:
    """The calls of one descent.

    Args:
        path: The file; made by the first call.
        n_atoms: Of the structure.
    """

    def __init__(self, path: Path, n_atoms: int) -> None:
        self.path, self.n_atoms = path, n_atoms
        self.n_bytes = 8 * (N_NUMBERS + 6 * n_atoms) + N_CHECK

    def mend(self) -> None:
        """Cut off what a kill or a full disk has left of a call in the middle of being written."""
        try:
            n_good = sum(self.n_bytes for _ in self.calls())
            if n_good < self.path.stat().st_size:
                os.truncate(self.path, n_good)
        except FileNotFoundError:
            pass

    def calls(self) -> Iterator[Call]:
        """Yield the calls up to the first that is damaged."""
        try:
            with open(self.path, "rb") as file:
                while len(data := file.read(self.n_bytes)) == self.n_bytes:
                    if zlib.crc32(data[:-N_CHECK]).to_bytes(N_CHECK, "little") != data[-N_CHECK:]:
                        return
                    yield self._unpack(np.frombuffer(data[:-N_CHECK]))
        except FileNotFoundError:
            return

    def append(self, call: Call) -> None:
        """Write a call.

        Raises:
            OSError: It cannot be written (a full disk); what was written of it is cut off again, or the next run does.
        """
        energy, forces, stress = call.prediction
        head = [energy, call.seconds, float(stress is not None)]
        rest = (call.positions, call.cell, forces, np.zeros((3, 3)) if stress is None else stress)
        data = np.concatenate([head, *(np.asarray(array, dtype=float).ravel() for array in rest)]).tobytes()
        data += zlib.crc32(data).to_bytes(N_CHECK, "little")
        with open(self.path, "ab", buffering=0) as file:
            n_before = file.tell()
            try:
                n_written = file.write(data)
                if n_written != len(data):  # a disk that has just become full says so with the next byte
                    file.write(data[n_written:])
            except OSError:
                file.truncate(n_before)
                raise

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def _unpack(self, numbers: np.ndarray) -> Call:
        n = 3 * self.n_atoms
        positions, cell, forces, stress = np.split(numbers[3:], [n, n + 9, 2 * n + 9])
        return Call(
            positions.reshape(-1, 3),
            cell.reshape(3, 3),
            float(numbers[1]),
            Prediction(float(numbers[0]), forces.reshape(-1, 3), stress.reshape(3, 3) if numbers[2] else None),
        )
