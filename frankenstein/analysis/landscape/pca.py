"""The plane in which trainings move most: the first two principal components of their snapshots, out of core.

With T snapshots of P numbers, the principal components follow from the T x T matrix of the snapshots' inner products:
they are combinations of snapshots, and the matrix says which. It takes one pass over the files, a few columns of all
snapshots at a time, and a second pass adds the snapshots up to two directions. Memory is that of the columns, whatever
P is. A randomised SVD reads the files as often, more often if it is to be accurate, keeps a few vectors of length P in
memory, and is approximate; it is for matrices whose both sides are long, and T is small here.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.files import PIECE, Vector
from frankenstein.analysis.landscape.layout import Layout
from frankenstein.analysis.landscape.plane import About, Piece, Plane, Track, write_plane
from frankenstein.analysis.landscape.snapshots import Snapshot, Snapshots

WORK_BYTES = 1 << 28  # of the columns that are in memory at a time
TRAINING = "training"  # name of a trajectory that was given without one
MIN_SNAPSHOTS = 3  # two lie on a line
# The second component's variance over the first's below which it is rounding: of float64, over thousands of snapshots.
FLAT = 1e-12

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Points:
    """Snapshots as the rows of a matrix, measured from the origin."""

    rows: list[Snapshot]
    origin: Snapshot

    def pieces(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield the columns to take at a time, and the origin's numbers there."""
        size = self.origin.vector.size
        width = max(1, WORK_BYTES // (8 * len(self.rows)))
        for start in range(0, size, width):
            where = slice(start, min(start + width, size))
            yield where, self.origin.vector.read(where.start, where.stop)

    def differences(self, where: slice, base: NDArray[Any], checksums: list[int] | None = None) -> Array:
        """Return some columns of the matrix: (n_rows, n_columns), and take what was read into the checksums."""
        matrix = np.empty((len(self.rows), len(base)))
        for i, row in enumerate(self.rows):
            piece = row.vector.read(where.start, where.stop)
            if checksums is not None:
                checksums[i] = zlib.crc32(piece.data, checksums[i])
            np.subtract(piece, base, out=matrix[i], dtype=np.float64)
        return matrix


def trajectory_plane(
    trajectories: Snapshots | Mapping[str, Snapshots],
    folder: Path | str,
    *,
    origin: tuple[str, int] | None = None,
    steps: Collection[int] | None = None,
) -> Plane:
    """Make the plane of the first two principal components of one or several trainings' snapshots.

    It goes through the weights of one snapshot, as in Li et al. (arXiv:1712.09913, section 7), while the components are
    those about the mean. Directions have norm 1, so coordinates are distances in the space of weights; they point to
    the side of the mean on which the first snapshot of the first training lies.

    Args:
        trajectories: One training, or several by name, of the same model.
        folder: Where the plane is kept.
        origin: Training and step of the snapshot at (0, 0); the last of the first training unless it is given. A
            training without a name is "training".
        steps: Take the snapshots of these steps only.

    Raises:
        LandscapeError: There are fewer than three snapshots, they are of different models, all alike, or on a line,
            or one is damaged, missing, or not finite.
    """
    named = {TRAINING: trajectories} if isinstance(trajectories, Snapshots) else dict(trajectories)
    if not named:
        raise LandscapeError("no trajectory was given; a plane needs at least one")
    taken = {name: _taken(one, steps) for name, one in named.items()}
    layout = _layout(named)
    if sum(map(len, taken.values())) < MIN_SNAPSHOTS:
        where = ", ".join(f"{one.folder} ({len(taken[name])})" for name, one in named.items())
        raise LandscapeError(
            f"a plane needs at least {MIN_SNAPSHOTS} snapshots, and there are fewer in {where}; record more of them, "
            "or use random_plane"
        )
    taken = {name: there for name, there in taken.items() if there}
    first = next(iter(taken))
    at = origin or (first, taken[first][-1])
    if at[0] not in named:
        raise LandscapeError(f"the origin is of training {at[0]!r}; there are {', '.join(named)}")
    rows = [named[name].at(step) for name, taken_steps in taken.items() for step in taken_steps]
    points = _Points(rows, named[at[0]].at(at[1]))
    gram = _gram(points, layout)
    weights, shares = _components(gram)
    about = About("pca", "none", None, at, shares, _tracks(taken, gram, weights))
    return write_plane(Path(folder), about, layout, _directions(points, weights), points.origin.buffers())


def _taken(snapshots: Snapshots, steps: Collection[int] | None) -> list[int]:
    return [step for step in snapshots.steps() if steps is None or step in steps]


def _layout(named: Mapping[str, Snapshots]) -> Layout:
    first, *others = named.values()
    layout = first.layout()
    for other in others:
        cure = "trajectories in one plane must be of one model"
        layout.check_vectors(other.layout(), f"{other.folder} beside {first.folder}", cure)
    return layout


def _gram(points: _Points, layout: Layout) -> Array:
    """Return the inner products of all differences from the origin: (n_rows, n_rows)."""
    n = len(points.rows)
    gram, checksums, origin_checksum = np.zeros((n, n)), [0] * n, 0
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is looked for afterwards
        for where, base in points.pieces():
            origin_checksum = zlib.crc32(base.data, origin_checksum)
            matrix = points.differences(where, base, checksums)
            gram += matrix @ matrix.T
    points.origin.vector.compare(origin_checksum, points.origin.checksum)
    for row, checksum in zip(points.rows, checksums, strict=True):
        row.vector.compare(checksum, row.checksum)
    if not np.isfinite(gram).all():
        for row in (points.origin, *points.rows):
            check_finite(row.vector, layout, "leave it out with steps=[...]")
        raise LandscapeError(f"the snapshots in {row.vector.path.parent} are too far apart for float64; leave some out")
    return gram


def check_finite(vector: Vector, layout: Layout, cure: str) -> None:
    """Check that there is no NaN or infinity in a vector.

    Raises:
        LandscapeError: There is; the message names the parameter and says the cure.
    """
    for start in range(0, vector.size, PIECE):
        odd = np.flatnonzero(~np.isfinite(vector.read(start, min(start + PIECE, vector.size))))
        if len(odd):
            name = layout.name_at(start + int(odd[0]))
            raise LandscapeError(f"{vector.path} has a NaN or infinity in parameter {name!r}; {cure}")


def _components(gram: Array) -> tuple[Array, list[float]]:
    """Return how the directions follow from the rows, and the shares of the variance.

    Args:
        gram: The rows' inner products, (n_rows, n_rows).

    Returns:
        weights: (n_rows, 2); a direction is the sum of the rows with these weights.
        shares: Of all principal components, the largest first.

    Raises:
        LandscapeError: The rows are all alike, or on a line.
    """
    n = len(gram)
    centre = np.eye(n) - 1.0 / n
    variances, vectors = np.linalg.eigh(centre @ gram @ centre)
    variances, vectors = variances[::-1].clip(0.0), vectors[:, ::-1]
    if variances[0] == 0.0:
        raise LandscapeError(f"all {n} snapshots have the same weights; record a training that moves")
    if variances[1] < FLAT * variances[0]:
        raise LandscapeError(
            f"the {n} snapshots lie on a line, which does not make a plane; record more of them, or use random_plane"
        )
    signs = np.where(vectors[0, :2] < 0.0, -1.0, 1.0)  # eigenvectors have none of their own
    weights = signs * vectors[:, :2] / np.sqrt(variances[:2])  # sums to 0: centring changes nothing
    return weights, (variances[: n - 1] / variances.sum()).tolist()


def _directions(points: _Points, weights: Array) -> Iterator[Piece]:
    for where, base in points.pieces():
        first, second = weights.T @ points.differences(where, base)
        yield base, first, second


def _tracks(taken: Mapping[str, list[int]], gram: Array, weights: Array) -> dict[str, Track]:
    """Return where the rows lie: their inner products with the directions follow from those with each other."""
    places = gram @ weights
    distances = np.sqrt((gram.diagonal() - np.square(places).sum(1)).clip(0.0))
    tracks, start = {}, 0
    for name, steps in taken.items():
        mine = slice(start, start + len(steps))
        tracks[name] = Track(steps, places[mine, 0].tolist(), places[mine, 1].tolist(), distances[mine].tolist())
        start += len(steps)
    return tracks
