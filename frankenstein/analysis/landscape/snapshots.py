"""The weights of a model along a training: in a folder, one file for each snapshot.

    layout.json                                            names, shapes and dtypes of the parameters
    step-000000100.weights-1a2b3c4d.buffers-5e6f7a8b.npy   all parameters as one vector
    step-000000100.buffers-5e6f7a8b.pt                     what belongs to them: running statistics of BatchNorm

Names end with the CRC-32 of the content, so that damage is noticed. A file is written under another name and renamed,
the weights last: a snapshot is there once its weights are, and a kill on the way loses nothing that was there before.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from frankenstein.analysis.landscape.buffers import buffers_of, packed, put_buffers, read_buffers
from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.files import Vector, VectorWriter, place
from frankenstein.analysis.landscape.layout import Layout, numbers, parameters_of, tensor
from frankenstein.kernels.state import is_dtensor

LAYOUT = "layout.json"
FORMAT = 1
NAME = re.compile(r"step-(\d+)\.weights-([0-9a-f]{8})\.buffers-([0-9a-f]{8})\.npy")


@dataclass(frozen=True)
class Snapshot:
    """One snapshot.

    Attributes:
        step: When it was taken.
        vector: Its weights, on disk.
        checksum: Of the weights.
        buffers_path: Where its buffers are.
        buffers_checksum: Of that file.
    """

    step: int
    vector: Vector
    checksum: int
    buffers_path: Path
    buffers_checksum: int

    def weights(self) -> NDArray[Any]:
        """Return the weights as one vector, (n,).

        Raises:
            LandscapeError: The file is damaged.
        """
        self.vector.check(self.checksum)
        return self.vector.read(0, self.vector.size)

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers, on the CPU.

        Raises:
            LandscapeError: The file is missing or damaged.
        """
        return read_buffers(self.buffers_path, self.buffers_checksum)


class Snapshots:
    """The snapshots of one training in a folder; none of them is kept in memory.

    Args:
        folder: Made by the first `save`.
        parameters: Names of those to record; None for all. Of a large model that is frozen but for a few parameters,
            recording those few saves the rest.

    Examples:
        >>> import tempfile
        >>> model = torch.nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     snapshots = Snapshots(folder)
        ...     for step in range(3):
        ...         snapshots.save(model, step)
        ...     snapshots.steps(), snapshots.at(2).weights().shape
        ([0, 1, 2], (8,))
    """

    def __init__(self, folder: Path | str, parameters: Collection[str] | None = None) -> None:
        self.folder = Path(folder)
        self.parameters = None if parameters is None else frozenset(parameters)

    def save(self, model: Module, step: int) -> None:
        """Record the model's weights and buffers.

        Of several processes all may call it, and where parameters are sharded (`fully_shard`) all must; the main one
        writes. Snapshots of later steps are dropped: an earlier run made them after this step, and the training has
        gone back to it. A file that cannot be written is said on standard error, and not the end of the training.

        Args:
            model: Never modified; what DistributedDataParallel or torch.compile wrap around it is left out.
            step: 0 or more, in whatever unit: steps, epochs.

        Raises:
            LandscapeError: The model is not the one of the snapshots that are there.
        """
        if step < 0:
            raise LandscapeError(f"step {step} cannot be recorded: steps are 0 or more")
        layout = Layout.of(model, self.parameters)
        values = list(parameters_of(model, self.parameters).values())
        if not _is_main():
            values = [value for value in values if is_dtensor(value)]
        pieces = (numbers(value, layout.dtype) for value in values)
        try:
            if _is_main():
                self._write(layout, pieces, buffers_of(model), step)
        except OSError as error:
            why = error.strerror or error
            print(f"no snapshot of step {step} in {self.folder}: {why}; the training goes on", file=sys.stderr)
        finally:
            for _ in pieces:  # of sharded parameters: all processes gather all of them, whatever happened here
                pass

    def steps(self) -> list[int]:
        """Return the steps of the snapshots that are there, in order."""
        return sorted(self._files())

    def layout(self) -> Layout:
        """Return where the parameters lie in the vectors.

        Raises:
            LandscapeError: There are no snapshots, or their description is damaged.
        """
        path = self.folder / LAYOUT
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
            form, layout = described["format"], Layout.from_config(described["parameters"])
        except FileNotFoundError:
            raise LandscapeError(f"{path} is missing: record snapshots there, or name another folder") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise LandscapeError(f"{path} is damaged; restore it, or record the training again") from None
        if form != FORMAT:
            raise LandscapeError(f"{path} has the format {form}, this version reads {FORMAT}; update this package")
        return layout

    def at(self, step: int) -> Snapshot:
        """Return one snapshot.

        Raises:
            LandscapeError: There is none of this step, or its file is damaged.
        """
        layout, files = self.layout(), self._files()
        if step not in files:
            there = f"{len(files)}, of steps {min(files)} to {max(files)}" if files else "none"
            raise LandscapeError(f"{self.folder} has no snapshot of step {step}; there are {there}")
        path = files[step]
        _, weights, buffers = _parts(path)
        vector = Vector.open(path, layout.size, layout.dtype)
        return Snapshot(step, vector, int(weights, 16), self._buffers_path(step, int(buffers, 16)), int(buffers, 16))

    def load(self, model: Module, step: int) -> None:
        """Put a snapshot's weights and buffers into the model.

        Raises:
            LandscapeError: There is none of this step, it is damaged, or another model's; the model is as before.
        """
        layout, snapshot = self.layout(), self.at(step)
        layout.check_model(model)
        values = parameters_of(model)
        weights, buffers = snapshot.weights(), snapshot.buffers()
        put_buffers(model, buffers)
        with torch.no_grad():
            for part, where in layout.places():
                values[part.name].copy_(tensor(weights[where], part))

    def _write(self, layout: Layout, pieces: Iterator[NDArray[Any]], buffers: dict[str, Tensor], step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / LAYOUT).exists():
            self.layout().check_vectors(
                layout, f"step {step} for {self.folder}", "record another model in another folder"
            )
        else:
            text = json.dumps({"format": FORMAT, "parameters": layout.config()}, indent=1)
            place(self.folder / LAYOUT, text.encode())
        content = packed(buffers)
        half = self.folder / "weights.half"
        with VectorWriter(half, layout.size, layout.dtype) as writer:
            for piece in pieces:
                writer.write(piece)
        files = self._files()
        if later := [old for old in files if old > step]:
            print(f"{self.folder}: {len(later)} snapshots of steps after {step} are dropped", file=sys.stderr)
        buffers_path = self._buffers_path(step, zlib.crc32(content))
        path = self.folder / f"step-{step:09}.weights-{writer.checksum:08x}.{buffers_path.stem.partition('.')[2]}.npy"
        place(buffers_path, content)
        half.replace(path)
        for old in files:
            if old >= step:
                self._remove(files[old], path, buffers_path)

    def _remove(self, path: Path, *kept: Path) -> None:
        """Remove a snapshot's files, the weights first, but not those that are to be kept."""
        step, _, buffers = _parts(path)
        for old in (path, self._buffers_path(step, int(buffers, 16))):
            if old not in kept:
                old.unlink(missing_ok=True)

    def _files(self) -> dict[int, Path]:
        """Return the file of each step's weights; of two, which a kill may leave, the newer."""
        found = [path for path in self.folder.glob("step-*.npy") if NAME.fullmatch(path.name)]
        return {_parts(path)[0]: path for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)}

    def _buffers_path(self, step: int, checksum: int) -> Path:
        return self.folder / f"step-{step:09}.buffers-{checksum:08x}.pt"


def _parts(path: Path) -> tuple[int, str, str]:
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), match[2], match[3]


def _is_main() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
