"""Two random directions with filter normalisation (Li et al., arXiv:1712.09913, section 4).

Each filter of a direction, the weights that make one output, is scaled to the norm of the filter whose weights it is
added to: what is drawn then does not depend on the scale of weights, which means nothing before a normalisation layer.
Biases and the parameters of BatchNorm, all of one dimension, are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.files import PIECE, Vector
from frankenstein.analysis.landscape.layout import Layout
from frankenstein.analysis.landscape.pca import TRAINING, check_finite
from frankenstein.analysis.landscape.plane import About, Piece, Plane, Track, write_plane
from frankenstein.analysis.landscape.snapshots import Snapshots


def random_plane(snapshots: Snapshots, folder: Path | str, *, seed: int, step: int | None = None) -> Plane:
    """Make a plane of two random directions through one snapshot.

    A filter is a slice of the first dimension: a row of a linear layer, a word of an embedding. A coordinate of 1 adds
    to each filter a random one of its own norm. The numbers depend on the seed and not on the device.

    Args:
        snapshots: One is enough; a trajectory is not drawn in a random plane, in which it would hardly move.
        folder: Where the plane is kept.
        seed: Of the directions, 0 or more.
        step: Of the snapshot at (0, 0); the last unless it is given.

    Raises:
        LandscapeError: There is no snapshot, it is damaged or not finite, or no parameter has two dimensions.
    """
    if seed < 0:
        raise LandscapeError(f"seed {seed}: seeds are 0 or more")
    layout = snapshots.layout()
    snapshot = snapshots.at(max(snapshots.steps(), default=0) if step is None else step)
    snapshot.vector.check(snapshot.checksum)
    check_finite(snapshot.vector, layout, "take another step")
    track = Track([snapshot.step], [0.0], [0.0], [0.0])
    about = About("random", "filter", seed, (TRAINING, snapshot.step), [], {TRAINING: track})
    return write_plane(Path(folder), about, layout, _pieces(snapshot.vector, layout, seed), snapshot.buffers())


def _pieces(vector: Vector, layout: Layout, seed: int) -> Iterator[Piece]:
    generators = [np.random.default_rng([seed, which]) for which in range(2)]
    for part, place in layout.places():
        n_filters = part.shape[0] if len(part.shape) > 1 and part.size else 0
        width = part.size // n_filters if n_filters else 1
        n_rows = max(1, PIECE // width)
        for start in range(place.start, place.stop, n_rows * width):
            weights = vector.read(start, min(start + n_rows * width, place.stop))
            if not n_filters:
                yield weights, np.zeros_like(weights), np.zeros_like(weights)
                continue
            filters = weights.reshape(-1, width)
            first, second = (_like(filters, generator) for generator in generators)
            yield weights, first, second


def _like(filters: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return random filters of the same norms, flat."""
    drawn = generator.standard_normal(filters.shape, filters.dtype.type)
    scale = _norms(filters) / np.maximum(_norms(drawn), np.finfo(float).tiny)
    return (drawn * scale).astype(filters.dtype).reshape(-1)


def _norms(filters: np.ndarray) -> np.ndarray:
    squares = np.square(filters, dtype=np.float64)
    return np.sqrt(squares.sum(1))[:, None]  # row by row: einsum's last bit depends on how many rows there are
