"""A landscape: values on a grid in a plane, and all that a reader needs to judge and repeat it. One file of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.files import place
from frankenstein.analysis.landscape.grid import Grid
from frankenstein.analysis.landscape.journal import Journal, decoded, encoded
from frankenstein.analysis.landscape.plane import About, Plane, Track
from frankenstein.compare.store.provenance import provenance

FILE = "landscape.json"
FORMAT = 1


@dataclass(frozen=True)
class Landscape:
    """Values on a grid in a plane.

    Attributes:
        grid: The points; their extent is the scale of the picture.
        metrics: Values by name, each (n_rows, n_columns): a row has one y, a column one x.
        about: What the plane is: its kind, the normalisation and seed of its directions, the trajectories in it.
        norms: Of the directions, in the space of weights.
        plane: The plane's identity.
        data: Which data was used.
        seed: Of random numbers in the evaluation.
        batchnorm: What BatchNorm's running statistics were: "keep", those of the plane's origin; "recompute", those of
            each point; "none", the model has none.
        provenance: Versions, commit, system.
    """

    grid: Grid
    metrics: dict[str, NDArray[np.float64]]
    about: About
    norms: tuple[float, float]
    plane: str
    data: str
    seed: int
    batchnorm: str
    provenance: dict[str, Any]

    @classmethod
    def of(cls, plane: Plane, grid: Grid, journal: Journal) -> Landscape:
        """Return the landscape of a plane that was evaluated at all points of a grid."""
        points = [journal.points[spot] for spot in grid.points()]
        shape = len(grid.y), len(grid.x)
        metrics = {
            name: np.array([point["metrics"][name] for point in points]).reshape(shape) for name in points[0]["metrics"]
        }
        data, seed = journal.about["data"], journal.about["seed"]
        batchnorm = points[0]["batchnorm"]
        return cls(grid, metrics, plane.about, plane.norms, plane.identity, data, seed, batchnorm, provenance())

    def save(self, folder: Path | str) -> Path:
        """Write `landscape.json` into a folder and return its path.

        Raises:
            LandscapeError: It cannot be written.
        """
        path = Path(folder) / FILE
        values = {
            name: [[encoded(value) for value in row] for row in array.tolist()] for name, array in self.metrics.items()
        }
        content = {"format": FORMAT, **asdict(self), "metrics": values}
        try:
            place(path, json.dumps(content, indent=1, allow_nan=False).encode())
        except OSError as error:
            raise LandscapeError(f"cannot write {path}: {error.strerror or error}") from None
        return path

    @classmethod
    def load(cls, folder: Path | str) -> Landscape:
        """Return the landscape in a folder.

        Raises:
            LandscapeError: There is none, or its file is damaged.
        """
        path = Path(folder) / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            form = content.pop("format")
            if form == FORMAT:
                return cls(**_read(content))
        except FileNotFoundError:
            raise LandscapeError(f"{path} is missing: evaluate a grid to its end, or name another folder") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise LandscapeError(f"{path} is damaged; evaluate the grid again, its points may still be there") from None
        raise LandscapeError(f"{path} has the format {form}, this version reads {FORMAT}; update this package")


def _read(content: dict[str, Any]) -> dict[str, Any]:
    """Return what is in the file as what `Landscape` is made of."""
    grid = Grid(tuple(content["grid"]["x"]), tuple(content["grid"]["y"]))
    shape = len(grid.y), len(grid.x)
    metrics = {
        name: np.array([[decoded(value) for value in row] for row in rows]).reshape(shape)
        for name, rows in content["metrics"].items()
    }
    tracks = {name: Track(**track) for name, track in content["about"]["tracks"].items()}
    about = About(**{**content["about"], "origin": tuple(content["about"]["origin"]), "tracks": tracks})
    return {**content, "grid": grid, "metrics": metrics, "about": about, "norms": tuple(content["norms"])}
