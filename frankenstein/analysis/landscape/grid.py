"""What is evaluated, and at which points of a plane."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.plane import Plane


class Subject(NamedTuple):
    """What is looked at.

    Attributes:
        model: The model.
        evaluate: Is given the model, in evaluation mode, and returns numbers by name, the loss first.
        recompute: Runs batches through the model it is given: BatchNorm's running statistics become those of these
            batches at every point. None: they are those of the snapshot at the plane's origin.
    """

    model: Module
    evaluate: Callable[[Module], Mapping[str, Any]]
    recompute: Callable[[Module], object] | None = None


@dataclass(frozen=True)
class Grid:
    """Points in a plane: all pairs.

    Attributes:
        x: Coordinates along the first direction, ascending.
        y: Along the second.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in (("x", self.x), ("y", self.y)):
            if len(values) < 2 or not np.isfinite(values).all() or not (np.diff(values) > 0).all():
                raise LandscapeError(f"the grid's {name} must be two or more finite numbers in ascending order")

    @classmethod
    def around(cls, plane: Plane, n_points: int = 25, margin: float = 0.2) -> Grid:
        """Return a grid around the trajectories in a plane.

        Args:
            plane: Of a trajectory.
            n_points: In each direction.
            margin: Added on every side, as a share of the trajectories' larger extent.
        """
        tracks = plane.about.tracks.values()
        places = np.array([[value for one in tracks for value in one.x], [value for one in tracks for value in one.y]])
        low, high = places.min(1), places.max(1)
        if (low == high).any():
            raise LandscapeError("the plane has no trajectory to go around; use Grid.square")
        room = margin * (high - low).max()
        axes = [np.linspace(a - room, b + room, n_points).tolist() for a, b in zip(low, high, strict=True)]
        return cls(tuple(axes[0]), tuple(axes[1]))

    @classmethod
    def square(cls, scale: float = 1.0, n_points: int = 25) -> Grid:
        """Return a grid from -scale to scale in both directions; with an odd number of points (0, 0) is one of them."""
        axis = tuple(np.linspace(-scale, scale, n_points).tolist())
        return cls(axis, axis)

    def points(self) -> list[tuple[int, int]]:
        """Return column and row of all points, row by row."""
        return [(column, row) for row in range(len(self.y)) for column in range(len(self.x))]


@dataclass(frozen=True)
class MeanOver:
    """Means over samples, however they are cut into batches; usable as `evaluate`.

    Attributes:
        batches: Of data, the same each time they are gone through.
        score: Is given the model and a batch, and returns tensors of one value for each sample, by name.
    """

    batches: Iterable[Any]
    score: Callable[[Module, Any], Mapping[str, Tensor]]

    def __call__(self, model: Module) -> dict[str, float]:
        """Return the means."""
        sums: dict[str, float] = {}
        n_samples = 0
        with torch.no_grad():
            for batch in self.batches:
                scores = self.score(model, batch)
                for name, values in scores.items():
                    sums[name] = sums.get(name, 0.0) + values.double().sum().item()
                n_samples += len(values)
        if not n_samples:
            raise LandscapeError("there is no batch of data to evaluate; a generator gives its batches only once")
        return {name: total / n_samples for name, total in sums.items()}
