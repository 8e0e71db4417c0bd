"""A plane through a model's weights: a point and two directions, in a folder of its own.

plane.json                        what it is, and where trajectories lie in it
origin.npy                        the weights at (0, 0), one vector
direction-1.npy direction-2.npy   what is added to them for each unit of x and of y
origin.pt                         the buffers that belong to the origin
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from frankenstein.analysis.landscape.buffers import packed, read_buffers
from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.files import Vector, VectorWriter, place
from frankenstein.analysis.landscape.layout import Layout

PLANE = "plane.json"
FORMAT = 1
VECTORS = ("origin.npy", "direction-1.npy", "direction-2.npy")
BUFFERS = "origin.pt"

Piece = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # of the origin and the two directions, of the same length


@dataclass(frozen=True)
class Track:
    """Where the snapshots of one training lie, seen in a plane.

    Attributes:
        steps: Of the snapshots.
        x: Their coordinates along the first direction.
        y: Along the second.
        distance: How far each is from the plane, in the space of weights.
    """

    steps: list[int]
    x: list[float]
    y: list[float]
    distance: list[float]


@dataclass(frozen=True)
class About:
    """What a plane is, besides its vectors.

    Attributes:
        kind: "pca" or "random".
        normalisation: Of the directions: "none" (they have norm 1) or "filter" (Li et al.).
        seed: Of random directions; None where nothing is random.
        origin: The training and the step whose weights lie at (0, 0).
        explained_variance: Share of the trajectories' variance along each principal component, the largest first.
        tracks: Of the trainings, by name.
    """

    kind: str
    normalisation: str
    seed: int | None
    origin: tuple[str, int]
    explained_variance: list[float]
    tracks: dict[str, Track]


@dataclass(frozen=True)
class Plane:
    """A plane in a folder; its vectors stay on disk.

    Attributes:
        folder: Where it is.
        about: What it is.
        layout: Where the parameters lie in the vectors.
        norms: Of the two directions.
        checksums: Of the files.
    """

    folder: Path
    about: About
    layout: Layout
    norms: tuple[float, float]
    checksums: dict[str, int]

    @classmethod
    def open(cls, folder: Path | str) -> Plane:
        """Return the plane in a folder.

        Raises:
            LandscapeError: There is none, or a file of it is missing, cut short or another format's.
        """
        path = Path(folder) / PLANE
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
            if described["format"] != FORMAT:
                raise LandscapeError(f"{path} has the format {described['format']}, this version reads {FORMAT}")
            about = described["about"]
            about["tracks"] = {name: Track(**track) for name, track in about["tracks"].items()}
            about["origin"] = tuple(about["origin"])
            norms = (described["norms"][0], described["norms"][1])
            layout = Layout.from_config(described["parameters"])
            plane = cls(Path(folder), About(**about), layout, norms, described["checksums"])
        except FileNotFoundError:
            raise LandscapeError(f"{path} is missing: make a plane there, or name another folder") from None
        except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError):
            raise LandscapeError(f"{path} is damaged; make the plane again") from None
        plane.vectors()
        return plane

    def vectors(self) -> tuple[Vector, Vector, Vector]:
        """Return the origin and the two directions, on disk.

        Raises:
            LandscapeError: A file is missing, cut short or holds something else.
        """
        size, dtype = self.layout.size, self.layout.dtype
        origin, first, second = (Vector.open(self.folder / name, size, dtype) for name in VECTORS)
        return origin, first, second

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers of the origin, on the CPU.

        Raises:
            LandscapeError: The file is missing or damaged.
        """
        return read_buffers(self.folder / BUFFERS, self.checksums[BUFFERS])

    def check(self) -> None:
        """Read all files once.

        Raises:
            LandscapeError: One is missing, or not what was written.
        """
        self.check_identity()
        for vector in self.vectors():
            vector.check(self.checksums[vector.path.name])
        self.buffers()

    def check_identity(self) -> None:
        """Check that the folder still holds this plane.

        Raises:
            LandscapeError: It holds another one, or none.
        """
        if Plane.open(self.folder).identity != self.identity:
            raise LandscapeError(f"{self.folder} holds another plane by now; open it again, or make this one elsewhere")

    def config(self) -> dict[str, Any]:
        """Return what it is as plain data."""
        return {
            "format": FORMAT,
            "about": asdict(self.about),
            "norms": list(self.norms),
            "checksums": self.checksums,
            "parameters": self.layout.config(),
        }

    @cached_property
    def identity(self) -> str:
        """16 hexadecimal digits that follow from what the plane is and from its vectors."""
        return hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode()).hexdigest()[:16]


def write_plane(
    folder: Path, about: About, layout: Layout, pieces: Iterable[Piece], buffers: dict[str, Tensor]
) -> Plane:
    """Write a plane into a folder, in place of one that is there.

    Args:
        folder: Made if absent.
        about: What it is.
        layout: Of the vectors.
        pieces: The vectors from begin to end.
        buffers: Of the origin.

    Raises:
        LandscapeError: The folder cannot be written to, or a direction is zero.
    """
    squares = [0.0, 0.0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PLANE).unlink(missing_ok=True)  # a kill from here on leaves no plane, and not half of two
        writers = [VectorWriter(folder / f"{name}.half", layout.size, layout.dtype) for name in VECTORS]
        with ExitStack() as stack:
            for writer in writers:
                stack.enter_context(writer)
            for piece in pieces:
                for writer, numbers in zip(writers, piece, strict=True):
                    writer.write(numbers)
                squares = [total + _square(numbers) for total, numbers in zip(squares, piece[1:], strict=True)]
            if not all(squares):
                raise LandscapeError(
                    "a direction of the plane is zero: no parameter has two or more dimensions and weights that are "
                    "not zero; use the plane of a trajectory"
                )
        for writer, name in zip(writers, VECTORS, strict=True):
            writer.half.replace(folder / name)
        content = packed(buffers)
        place(folder / BUFFERS, content)
        checksums = {name: writer.checksum for name, writer in zip(VECTORS, writers, strict=True)}
        checksums[BUFFERS] = zlib.crc32(content)
        plane = Plane(folder, about, layout, (squares[0] ** 0.5, squares[1] ** 0.5), checksums)
        place(folder / PLANE, json.dumps(plane.config(), indent=1).encode())
    except OSError as error:
        raise LandscapeError(f"cannot write {error.filename or folder}: {error.strerror or error}") from None
    return plane


def _square(numbers: NDArray[Any]) -> float:
    wide = numbers.astype(float)
    return float(wide @ wide)
