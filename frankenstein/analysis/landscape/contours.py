"""Contour lines of values on a grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.grid import Grid
from frankenstein.compare.report.charts.chart import Row, rounded

N_LEVELS = 12


def levels(values: NDArray[np.float64], is_log: bool, name: str) -> NDArray[np.float64]:
    """Return the values of contour lines: in equal steps, or equal ratios, from the lowest value to the highest.

    Raises:
        LandscapeError: No value is finite, or `is_log` and not all are positive; the message calls them by name.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise LandscapeError(f"no value of {name!r} is finite; evaluate a smaller grid")
    low, high = finite.min(), finite.max()
    if is_log and low <= 0.0:
        raise LandscapeError(f"{name!r} goes down to {low:.4g}, which has no logarithm; draw it without is_log")
    spaced = np.geomspace if is_log else np.linspace
    return spaced(low, high, N_LEVELS + 2)[1:-1] if high > low else np.empty(0)


def contour_rows(grid: Grid, values: NDArray[np.float64], drawn: NDArray[np.float64]) -> list[Row]:
    """Return the points of the lines: where they are, of which line, in which order.

    Raises:
        ImportError: contourpy is not installed.
    """
    try:
        from contourpy import contour_generator
    except ModuleNotFoundError as error:
        needs = "contour lines need contourpy; pip install '.[analysis]' (in the checkout)"
        raise ImportError(needs, name="contourpy") from error
    generator = contour_generator(grid.x, grid.y, np.ma.masked_invalid(values))
    rows: list[Row] = []
    n_lines = 0
    for level in drawn.tolist():
        for line in generator.lines(level):
            rows += [
                {"cx": rounded(x), "cy": rounded(y), "line": n_lines, "place": place, "level": rounded(level)}
                for place, (x, y) in enumerate(np.asarray(line).tolist())
            ]
            n_lines += 1
    return rows
