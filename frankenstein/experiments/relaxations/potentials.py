"""Pair potentials of clusters in reduced units, no cutoff: energy and forces in one vectorised call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["lennard_jones", "morse", "random_cluster"]

Potential = Callable[[np.ndarray], tuple[float, np.ndarray]]


def lennard_jones(positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Return energy and forces of a Lennard-Jones cluster, epsilon = sigma = 1.

    Args:
        positions: (n_atoms, 3).

    Returns:
        energy: A number.
        forces: (n_atoms, 3).

    Example:
        >>> energy, forces = lennard_jones(np.array([[0.0, 0, 0], [2 ** (1 / 6), 0, 0]]))
        >>> round(energy, 12), bool(abs(forces).max() < 1e-12)
        (-1.0, True)
    """
    apart, squared = _apart(positions)
    inverse = 1.0 / squared
    sixth = inverse * inverse * inverse
    push = sixth * (48.0 * sixth - 24.0) * inverse  # force over distance
    return float(2.0 * (sixth * (sixth - 1.0)).sum()), np.einsum("ij,cij->ic", push, apart)


def morse(rho: float) -> Potential:
    """Return the Morse potential of range `rho`, depth and distance of the minimum 1 (Doye and Wales 1997).

    Example:
        >>> energy, forces = morse(6.0)(np.array([[0.0, 0, 0], [1.0, 0, 0]]))
        >>> round(energy, 12), bool(abs(forces).max() < 1e-12)
        (-1.0, True)
    """

    def potential(positions: np.ndarray) -> tuple[float, np.ndarray]:
        apart, squared = _apart(positions)
        distance = np.sqrt(squared)
        decay = np.exp(rho * (1.0 - distance))  # 0 on the diagonal, where the distance is infinite
        push = 2.0 * rho * decay * (decay - 1.0) / distance
        return float(0.5 * (decay * (decay - 2.0)).sum()), np.einsum("ij,cij->ic", push, apart)

    return potential


def _apart(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors between all atoms, (3, n, n), and their squared lengths, infinite on the diagonal."""
    columns = np.ascontiguousarray(positions.T)
    apart = columns[:, :, None] - columns[:, None, :]
    squared = apart[0] * apart[0] + apart[1] * apart[1] + apart[2] * apart[2]
    squared.flat[:: len(positions) + 1] = np.inf
    return apart, squared


def random_cluster(n_atoms: int, rng: np.random.Generator, *, closest: float = 0.5, reach: float = 0.8) -> np.ndarray:
    """Return a compact cluster by OptBench's rule: atoms one by one, at random near one that is there.

    Args:
        n_atoms: How many.
        rng: Where the randomness comes from.
        closest: No atom comes nearer than this to another.
        reach: A new atom is at most this far from the one that it is put beside.

    Returns:
        (n_atoms, 3) positions.
    """
    atoms = np.zeros((1, 3))
    while len(atoms) < n_atoms:
        shift = rng.uniform(-reach, reach, 3)
        new = atoms[rng.integers(len(atoms))] + shift
        if shift @ shift <= reach * reach and ((atoms - new) ** 2).sum(1).min() >= closest * closest:
            atoms = np.vstack([atoms, new])
    return atoms
