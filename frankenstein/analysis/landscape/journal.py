"""What was evaluated so far: a line of JSON for each point, written when it is known, so that a kill loses none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from frankenstein.analysis.landscape.errors import LandscapeError

POINTS = "points.jsonl"
Point = dict[str, Any]  # "place": [column, row], "metrics": {name: value}, "batchnorm": what was done about it


class Journal:
    """The evaluated points of one landscape, in a folder.

    Args:
        folder: Made if absent.
        about: What is evaluated, as plain data; points of something else are refused.

    Raises:
        LandscapeError: The points that are there are of something else, or damaged, or cannot be read.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.path, self.about = folder / POINTS, about
        self.points: dict[tuple[int, int], Point] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lines = self._whole_lines()
            if lines:
                self._compare(_parsed(lines[0], self.path, 1))
            else:
                self._append(about)
        except OSError as error:
            raise LandscapeError(f"cannot use {self.path}: {error.strerror or error}") from None
        for number, line in enumerate(lines[1:], 2):
            self._take(_parsed(line, self.path, number))

    def add(self, point: Point) -> None:
        """Write a point down.

        Raises:
            LandscapeError: It has not the metrics of the others, or cannot be written.
        """
        self._take(point)
        try:
            self._append(point | {"metrics": {name: encoded(value) for name, value in point["metrics"].items()}})
        except OSError as error:
            raise LandscapeError(f"cannot write {self.path}: {error.strerror or error}") from None

    def _take(self, point: Point) -> None:
        try:
            column, row = point["place"]
            point = point | {"metrics": {name: decoded(value) for name, value in point["metrics"].items()}}
            for other in self.points.values():
                _same(point, other, self.path)
                break
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, LandscapeError):
                raise
            raise LandscapeError(f"{self.path} is damaged; remove it and evaluate again") from None
        self.points[column, row] = point

    def _whole_lines(self) -> list[str]:
        """Return the lines, and cut off the last one where a kill left half of it."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return whole.decode("utf-8", "replace").splitlines()

    def _compare(self, there: dict[str, Any]) -> None:
        for name, value in self.about.items():
            if there.get(name) != value:
                raise LandscapeError(
                    f"{self.path} is of another landscape: its {name} is {_short(there.get(name))}, this one's is "
                    f"{_short(value)}; name another folder, or remove it"
                )

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def encoded(value: float) -> float | str:
    """Return a number as JSON can hold it; it knows neither NaN nor infinity."""
    return value if math.isfinite(value) else str(value)


def decoded(value: float | str) -> float:
    """Return what `encoded` was given."""
    return float(value)


def _same(point: Point, other: Point, path: Path) -> None:
    for what in ("metrics", "batchnorm"):
        mine, theirs = (sorted(one[what]) if what == "metrics" else one[what] for one in (point, other))
        if mine != theirs:
            raise LandscapeError(
                f"{path}: point {point['place']} has the {what} {mine}, the points before it have {theirs}; evaluate "
                "all points in the same way, or name another folder"
            )


def _parsed(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise LandscapeError(f"{path} is damaged in line {number}; remove it and evaluate again")
    return parsed


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
