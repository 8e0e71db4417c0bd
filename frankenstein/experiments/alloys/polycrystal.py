"""Periodic polycrystals of random alloys: grains in Voronoi cells, each a crystal of its own orientation. Needs scipy.

The construction is that of Atomsk (P. Hirel, Comput. Phys. Commun. 197, 212 (2015)): an atom belongs to the nearest
seed, and of atoms that come too close across a grain boundary some are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import Voronoi, cKDTree
from scipy.spatial.transform import Rotation

__all__ = ["BASES", "Polycrystal", "build", "nearest_neighbour_distance"]

BASES = {
    "fcc": np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]),
    "bcc": np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]),
}
"""Atoms of the cubic unit cell, (n, 3), in lattice constants. The first is at the origin, the last its neighbour."""

IMAGES = np.stack(np.meshgrid(*3 * [[0, -1, 1]], indexing="ij"), axis=-1).reshape(-1, 3)
"""Of a periodic box, the box itself first: enough that the Voronoi cells of its own seeds are the periodic ones."""

WRITTEN_AT_ONCE = 100_000  # atoms: numbers of Python take ten times the memory of an array's


@dataclass(frozen=True, eq=False)
class Polycrystal:
    """Atoms in a periodic box.

    Attributes:
        cell: (3,) float64, edge lengths of the box, in Angstrom.
        positions: (n_atoms, 3) float64, from 0 on and below `cell`, in Angstrom.
        types: (n_atoms,) int64, from 1 on, as LAMMPS counts.
        grain_idx: (n_atoms,) int64, from 0 on, ascending: the row of `seeds` that is nearest.
        seeds: (n_grains, 3) float64, the points around which the grains grew, in Angstrom.
    """

    cell: np.ndarray
    positions: np.ndarray
    types: np.ndarray
    grain_idx: np.ndarray
    seeds: np.ndarray

    def write_lammps(self, path: str | Path, masses: Sequence[float]) -> None:
        """Write a data file for LAMMPS: `units metal`, `atom_style atomic`.

        Args:
            path: The file; what was there is replaced.
            masses: One for each type, in g/mol.

        Raises:
            ValueError: There are fewer masses than types, or one is not positive.
        """
        n_types = int(self.types.max(initial=1))
        if len(masses) < n_types or not all(0.0 < mass < math.inf for mass in masses):
            raise ValueError(f"Invalid masses: {list(masses)}; needed is a positive number for each of {n_types} types")
        lines = [
            f"polycrystal of {len(self.seeds)} grains, units metal\n",
            f"{len(self.positions)} atoms",
            f"{len(masses)} atom types\n",
            *(f"0.0 {float(length)!r} {axis}lo {axis}hi" for axis, length in zip("xyz", self.cell, strict=True)),
            "\nMasses\n",
            *(f"{number} {mass}" for number, mass in enumerate(masses, 1)),
            "\nAtoms # atomic\n",
        ]
        with Path(path).open("w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")
            for start in range(0, len(self.types), WRITTEN_AT_ONCE):
                at = slice(start, start + WRITTEN_AT_ONCE)
                rows = zip(self.types[at].tolist(), self.positions[at].tolist(), strict=True)
                file.writelines(
                    f"{number} {kind} {x:.10f} {y:.10f} {z:.10f}\n"
                    for number, (kind, (x, y, z)) in enumerate(rows, start + 1)
                )


def build(
    length_or_cell: float | Sequence[float],
    n_grains: int,
    *,
    n_types: int = 5,
    lattice_constant: float,
    seed: int,
    structure: str = "fcc",
    min_distance: float = 0.75,
) -> Polycrystal:
    """Fill a periodic box with randomly placed and turned grains of a random equiatomic alloy.

    The same arguments give the same atoms.

    Args:
        length_or_cell: Edge length of a cube, or those of a box (3,), in Angstrom.
        n_grains: How many; one whose Voronoi cell is tiny can be left without atoms.
        n_types: Kinds of atom. They are mixed at random; their numbers differ by at most one.
        lattice_constant: Of the cubic unit cell, in Angstrom.
        seed: Of all that is random, an integer from 0 on.
        structure: "fcc" or "bcc".
        min_distance: Share of the nearest-neighbour distance, from 0 on and below 1. Of two atoms that are not
            farther apart, which happens across grain boundaries only, one is left out.

    Raises:
        ValueError: An argument is outside its range.

    Example:
        >>> crystal = build(45.0, 3, lattice_constant=3.594, seed=0)
        >>> crystal.positions.shape, np.bincount(crystal.grain_idx)
        ((7318, 3), array([2663, 2436, 2219]))
    """
    cell = _checked_cell(length_or_cell, lattice_constant)
    _check(n_grains, n_types, seed, structure, min_distance)
    rng = np.random.default_rng(seed)
    seeds = rng.uniform(size=(n_grains, 3)) * cell
    rotations = Rotation.random(n_grains, rng)
    tree, corners = cKDTree(seeds, boxsize=cell), _corners(seeds, cell)
    grains = []
    for i, rotation in enumerate(rotations.as_matrix()):
        grains.append(_grain(i, tree, corners[i], lattice_constant * rotation, BASES[structure]))
    positions = np.concatenate(grains)
    kept = _apart(positions, cell, min_distance * nearest_neighbour_distance(structure, lattice_constant))
    grain_idx = np.repeat(np.arange(n_grains), [len(grain) for grain in grains])[kept]
    types = rng.permutation(np.arange(len(grain_idx)) % n_types + 1)
    return Polycrystal(cell, positions[kept], types, grain_idx, seeds)


def nearest_neighbour_distance(structure: str, lattice_constant: float) -> float:
    """Return how far apart neighbours are in the perfect crystal, in Angstrom."""
    return lattice_constant * float(np.linalg.norm(BASES[structure][-1]))


def _grain(i: int, tree: cKDTree, corners: np.ndarray, axes: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return the atoms of grain `i`, wrapped; the columns of `axes` are the edges of its unit cell."""
    seed, cell = tree.data[i], tree.boxsize
    in_lattice = corners @ np.linalg.inv(axes).T
    low, high = np.floor(in_lattice.min(0)).astype(int), np.floor(in_lattice.max(0)).astype(int) + 1
    layer = np.stack(np.meshgrid(0, *map(np.arange, low[1:], high[1:]), indexing="ij"), axis=-1).reshape(-1, 1, 3)
    sites = ((layer + basis) @ axes.T).reshape(-1, 3)
    found = []
    for n in range(low[0], high[0]):  # one layer of unit cells at a time: all sites of large grains would fill memory
        from_seed = sites + n * axes[:, 0]
        is_nearest_image = ((-cell / 2 <= from_seed) & (from_seed < cell / 2)).all(1)
        positions = _wrapped(seed + from_seed[is_nearest_image], cell)
        found.append(positions[tree.query(positions)[1] == i])
    return np.concatenate(found)


def _corners(seeds: np.ndarray, cell: np.ndarray) -> list[np.ndarray]:
    """Return, for each seed, the vertices (n, 3) of its periodic Voronoi cell, as seen from the seed."""
    voronoi = Voronoi((IMAGES[:, None] * cell + seeds).reshape(-1, 3))
    regions = [voronoi.regions[at] for at in voronoi.point_region[: len(seeds)]]
    return [voronoi.vertices[region] - seed for region, seed in zip(regions, seeds, strict=True)]


def _wrapped(positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    wrapped = positions % cell
    return np.where(wrapped < cell, wrapped, 0.0)  # of tiny negative numbers, the remainder is rounded up to the length


def _apart(positions: np.ndarray, cell: np.ndarray, distance: float) -> np.ndarray:
    """Return a mask (n,) that drops atoms, later ones first to go, until no two are within `distance`."""
    pairs = cKDTree(positions, boxsize=cell).query_pairs(distance, output_type="ndarray")
    kept = np.ones(len(positions), bool)
    for i, j in pairs[np.lexsort(pairs.T[::-1])].tolist():
        if kept[i]:
            kept[j] = False
    return kept


def _checked_cell(length_or_cell: float | Sequence[float], lattice_constant: float) -> np.ndarray:
    if not 0.0 < lattice_constant < math.inf:
        raise ValueError(f"Invalid lattice_constant: {lattice_constant!r}; allowed are positive numbers (A)")
    cell = np.array(length_or_cell, np.float64)
    if cell.shape not in ((), (3,)) or not (np.isfinite(cell) & (cell >= lattice_constant)).all():
        allowed = f"allowed are one or three numbers, none below the lattice constant, {lattice_constant:g} (A)"
        raise ValueError(f"Invalid length_or_cell: {length_or_cell!r}; {allowed}")
    return np.broadcast_to(cell, 3).copy()


def _check(n_grains: int, n_types: int, seed: int, structure: str, min_distance: float) -> None:
    for name, value, least in (("n_grains", n_grains, 1), ("n_types", n_types, 1), ("seed", seed, 0)):
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"Invalid {name}: {value!r}; allowed are integers from {least} on")
    if structure not in BASES:
        raise ValueError(f"Invalid structure: {structure!r}; allowed are {', '.join(BASES)}")
    if not 0.0 <= min_distance < 1.0:
        raise ValueError(f"Invalid min_distance: {min_distance!r}; allowed are numbers from 0 on and below 1")
