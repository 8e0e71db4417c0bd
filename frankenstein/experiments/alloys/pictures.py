"""Pictures of a polycrystal: a slice through it, and its dislocations. Needs matplotlib, but no display."""

from __future__ import annotations

import io
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from frankenstein.experiments.alloys.dislocations import STRUCTURES, Analysis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["dislocation_lines", "slice_by_grain", "slice_by_structure"]

STRUCTURE_COLOURS = {"other": "#555555", "fcc": "#b3d4ea", "hcp": "#d55e00", "bcc": "#0072b2"}
LINE_COLOURS = {  # OVITO's hues, of a palette that everybody can tell apart
    "1/2<110>": "#0072b2",
    "1/6<112>": "#009e73",
    "1/6<110>": "#cc79a7",
    "1/3<100>": "#e69f00",
    "1/3<111>": "#56b4e9",
    "other": "#d55e00",
}
SIZE = (5.6, 4.4)  # inches
DPI = 100
THICKNESS = 3.0  # of a slice, in Angstrom: between one and two layers of atoms
DIAMETER = 2.2  # of an atom, in Angstrom: somewhat less than the distance of neighbours


def slice_by_structure(cell: np.ndarray, positions: np.ndarray, structures: np.ndarray) -> bytes:
    """Return a slice across the z axis, through the middle, coloured by the structure around each atom, as PNG.

    Args:
        cell: (3,) edge lengths of the periodic box, in Angstrom. Never modified.
        positions: (n_atoms, 3) in Angstrom, inside the box or not.
        structures: (n_atoms,) as in `Analysis.structures`.
    """
    from matplotlib.patches import Patch

    figure = _slice(cell, positions, np.array([STRUCTURE_COLOURS[name] for name in STRUCTURES])[structures])
    shares = np.bincount(structures, minlength=len(STRUCTURES)) / len(structures)
    patches = [
        Patch(color=STRUCTURE_COLOURS[name], label=f"{name} ({share:.1%})")
        for name, share in zip(STRUCTURES, shares, strict=True)
        if share > 0.0
    ]
    figure.legend(handles=patches, loc="outside right upper", fontsize=8, frameon=False)
    return _png(figure)


def slice_by_grain(cell: np.ndarray, positions: np.ndarray, grain_idx: np.ndarray) -> bytes:
    """Return a slice across the z axis, through the middle, coloured by grain, as PNG: 20 colours, then again.

    Args:
        cell: (3,) edge lengths of the periodic box, in Angstrom. Never modified.
        positions: (n_atoms, 3) in Angstrom, inside the box or not.
        grain_idx: (n_atoms,) as in `Polycrystal.grain_idx`.
    """
    from matplotlib import colormaps

    return _png(_slice(cell, positions, colormaps["tab20"](np.asarray(grain_idx) % 20)))


def dislocation_lines(cell: np.ndarray, analysis: Analysis) -> bytes:
    """Return the dislocations in the box, coloured by the type of their Burgers vector, as PNG.

    Args:
        cell: (3,) edge lengths of the periodic box, in Angstrom. Never modified.
        analysis: Of the atoms in it.
    """
    figure = _figure()
    title = f"{analysis.n_segments} dislocation segments, {analysis.length / 10.0:.1f} nm"
    axes: Any = figure.add_subplot(projection="3d", title=title)
    corners = [np.array(corner) for corner in product((0.0, 1.0), repeat=3)]
    edges = [np.array([a, b]) * cell for a, b in product(corners, corners) if sorted(b - a) == [0.0, 0.0, 1.0]]
    axes.plot(*_joined(edges), color="#999999", linewidth=0.8)
    for name, colour in LINE_COLOURS.items():
        lines = [line for line, type_ in zip(analysis.lines, analysis.line_types, strict=True) if type_ == name]
        if lines:
            label = f"{name} ({analysis.length_by_type[name] / 10.0:.1f} nm)"
            pieces = [piece for line in lines for piece in _wrapped(line, cell)]
            axes.plot(*_joined(pieces), color=colour, linewidth=1.6, label=label)
    axes.set(xlim=(0.0, cell[0]), ylim=(0.0, cell[1]), zlim=(0.0, cell[2]))
    axes.set_box_aspect(cell.copy())  # matplotlib scales the array it is given
    axes.set_axis_off()
    if analysis.lines:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return _png(figure)


def _wrapped(line: np.ndarray, cell: np.ndarray) -> list[np.ndarray]:
    """Return the line inside the periodic box: its pieces, without those that cross a wall."""
    image = np.floor(line / cell)
    cuts = np.flatnonzero((image[1:] != image[:-1]).any(1)) + 1
    return [piece for piece in np.split(line - image * cell, cuts) if len(piece) > 1]


def _joined(lines: list[np.ndarray]) -> np.ndarray:
    """Return x, y and z (3, n) of all lines, with gaps between them."""
    gap = np.full((1, 3), np.nan)
    return np.concatenate([part for line in lines for part in (line, gap)] or [gap]).T


def _slice(cell: np.ndarray, positions: np.ndarray, colours: np.ndarray) -> Figure:
    """Return a figure of the atoms in the middle; `colours` has one for each of all atoms."""
    from matplotlib.collections import EllipseCollection

    wrapped = positions % cell
    is_shown = np.abs(wrapped[:, 2] - cell[2] / 2.0) < THICKNESS / 2.0
    figure = _figure()
    title = f"{cell[0] / 10.0:.1f} nm x {cell[1] / 10.0:.1f} nm, a slice of {THICKNESS / 10.0:.1f} nm"
    axes = figure.add_subplot(
        title=title, aspect="equal", xlim=(0.0, cell[0]), ylim=(0.0, cell[1]), xticks=[], yticks=[]
    )
    size = [DIAMETER]
    axes.add_collection(
        EllipseCollection(
            size,
            size,
            [0.0],
            units="xy",
            offsets=wrapped[is_shown, :2],
            offset_transform=axes.transData,
            facecolors=colours[is_shown],
            antialiased=False,  # soft edges make the file several times larger
        )
    )
    return figure


def _figure() -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=SIZE, dpi=DPI, layout="constrained")


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()
