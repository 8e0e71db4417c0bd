"""Clusters to start from, and the potentials that they are minimised in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from frankenstein.structures.potentials import apart, lennard_jones

__all__ = ["lennard_jones", "morse", "random_cluster"]

Potential = Callable[[np.ndarray], tuple[float, np.ndarray]]


def morse(rho: float) -> Potential:
    """Return the Morse potential of range `rho`, depth and distance of the minimum 1 (Doye and Wales 1997).

    Example:
        >>> energy, forces = morse(6.0)(np.array([[0.0, 0, 0], [1.0, 0, 0]]))
        >>> round(energy, 12), bool(abs(forces).max() < 1e-12)
        (-1.0, True)
    """

    def potential(positions: np.ndarray) -> tuple[float, np.ndarray]:
        vectors, squared = apart(positions)
        distance = np.sqrt(squared)
        decay = np.exp(rho * (1.0 - distance))  # 0 on the diagonal, where the distance is infinite
        push = 2.0 * rho * decay * (decay - 1.0) / distance
        return float(0.5 * (decay * (decay - 2.0)).sum()), np.einsum("ij,cij->ic", push, vectors)

    return potential


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
