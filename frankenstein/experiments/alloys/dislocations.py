"""Dislocations, crystal structures and grains of an fcc crystal, found by OVITO. Needs OVITO, which needs no display.

OVITO: A. Stukowski, Modelling Simul. Mater. Sci. Eng. 18, 015012 (2010).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["BURGERS_VECTORS", "STRUCTURES", "Analysis", "analyse", "grains"]

STRUCTURES = ("other", "fcc", "hcp", "bcc")
"""By OVITO's numbers."""

BURGERS_VECTORS = {
    "1/2<110>": (0.0, 1 / 2, 1 / 2),  # perfect
    "1/6<112>": (1 / 6, 1 / 6, 1 / 3),  # Shockley partial
    "1/6<110>": (0.0, 1 / 6, 1 / 6),  # stair-rod
    "1/3<100>": (0.0, 0.0, 1 / 3),  # Hirth
    "1/3<111>": (1 / 3, 1 / 3, 1 / 3),  # Frank
}
"""Of the types of dislocation that OVITO names in fcc crystals; absolute components in lattice constants, ascending."""

SAME_VECTOR = 1e-3  # OVITO's vectors are exact but for single precision


@dataclass(frozen=True, eq=False)
class Analysis:
    """The dislocations of a crystal, and the structure around its atoms.

    Attributes:
        lines: One (k, 3) float64 array for each segment, in Angstrom: points along it. A segment that crosses a wall of
            the box goes on outside.
        line_types: The type of each segment: a key of `BURGERS_VECTORS`, or "other".
        length_by_type: Total length in Angstrom of each type, those without segments too.
        structures: (n_atoms,) int64, an index of `STRUCTURES` for each atom.
    """

    lines: list[np.ndarray]
    line_types: list[str]
    length_by_type: dict[str, float]
    structures: np.ndarray

    @property
    def n_segments(self) -> int:
        """Number of dislocation segments."""
        return len(self.lines)

    @property
    def length(self) -> float:
        """Total length of the dislocations, in Angstrom."""
        return sum(self.length_by_type.values())

    @property
    def structure_fractions(self) -> dict[str, float]:
        """Share of the atoms in each of `STRUCTURES`."""
        counts = np.bincount(self.structures, minlength=len(STRUCTURES)) / len(self.structures)
        return dict(zip(STRUCTURES, counts.tolist(), strict=True))


def analyse(cell: np.ndarray, positions: np.ndarray) -> Analysis:
    """Find the dislocations of an fcc crystal, and the structure around each atom.

    Dislocations by the dislocation extraction algorithm (DXA), A. Stukowski, V. V. Bulatov, A. Arsenlis, Modelling
    Simul. Mater. Sci. Eng. 20, 085007 (2012), structures by adaptive common neighbour analysis, A. Stukowski, ibid. 20,
    045021 (2012), both with OVITO's settings. The same atoms give the same result, lines in the same order.

    Args:
        cell: (3,) edge lengths of a periodic box, in Angstrom. Never modified.
        positions: (n_atoms, 3) in Angstrom, inside the box or not. Never modified.

    Raises:
        ValueError: `cell` or `positions` has another shape, is empty, or holds numbers that make no sense.
        RuntimeError: OVITO refuses, as it does where the box is shorter than two lattice constants.
        ImportError: OVITO is not installed.
    """
    modifiers, data = _ovito(cell, positions)
    lattice = modifiers.DislocationAnalysisModifier.Lattice.FCC
    data.apply(modifiers.DislocationAnalysisModifier(input_crystal_structure=lattice))
    neighbours = modifiers.CommonNeighborAnalysisModifier()  # DXA has structures too, but takes bcc for disorder
    neighbours.structures[neighbours.Type.ICO].enabled = False
    data.apply(neighbours)
    found = list(data.dislocations.lines)
    line_types = [_line_type(line.true_burgers_vector) for line in found]
    length_by_type = dict.fromkeys([*BURGERS_VECTORS, "other"], 0.0)
    for line, line_type in zip(found, line_types, strict=True):
        length_by_type[line_type] += line.length
    structures = np.array(data.particles["Structure Type"], np.int64)
    return Analysis([np.array(line.points) for line in found], line_types, length_by_type, structures)


def grains(cell: np.ndarray, positions: np.ndarray) -> int:
    """Return the number of grains of at least 100 atoms.

    Polyhedral template matching gives each atom an orientation, graph clustering joins neighbours of like orientation,
    both with OVITO's settings. Those find the grains of a polycrystal as built; rarely, a small one counts as two.

    Args:
        cell: (3,) edge lengths of a periodic box, in Angstrom. Never modified.
        positions: (n_atoms, 3) in Angstrom, inside the box or not. Never modified.

    Raises:
        ValueError: `cell` or `positions` has another shape, is empty, or holds numbers that make no sense.
        ImportError: OVITO is not installed.
    """
    modifiers, data = _ovito(cell, positions)
    data.apply(modifiers.PolyhedralTemplateMatchingModifier(output_orientation=True))
    data.apply(modifiers.GrainSegmentationModifier())
    return int(data.attributes["GrainSegmentation.grain_count"])


def _ovito(cell: np.ndarray, positions: np.ndarray) -> tuple[Any, Any]:
    """Return OVITO's module of modifiers, and the atoms as it takes them."""
    cell, positions = np.asarray(cell, np.float64), np.asarray(positions, np.float64)
    if cell.shape != (3,) or not ((cell > 0.0) & np.isfinite(cell)).all():
        raise ValueError(f"Invalid cell: {cell.tolist()}; allowed are three positive numbers (A)")
    if positions.ndim != 2 or positions.shape[1] != 3 or len(positions) == 0 or not np.isfinite(positions).all():
        raise ValueError(f"Invalid positions: shape {positions.shape}; allowed are finite numbers, (n_atoms, 3) (A)")
    try:
        from ovito import modifiers
        from ovito.data import DataCollection
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ovito":
            raise
        needs = "the analysis of dislocations needs OVITO; pip install '.[alloys]' (in the checkout)"
        raise ImportError(needs, name="ovito") from error
    data: Any = DataCollection()
    data.create_cell(np.diag(cell), pbc=(True, True, True))
    data.create_particles(count=len(positions)).create_property("Position", data=positions)
    return modifiers, data


def _line_type(burgers_vector: np.ndarray) -> str:
    components = np.sort(np.abs(burgers_vector))
    for name, expected in BURGERS_VECTORS.items():
        if np.allclose(components, expected, rtol=0.0, atol=SAME_VECTOR):
            return name
    return "other"
