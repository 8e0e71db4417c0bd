"""The Lennard-Jones potential of a cluster, in one vectorised call."""

from __future__ import annotations

import numpy as np

__all__ = ["apart", "lennard_jones"]


def lennard_jones(positions: np.ndarray, epsilon: float = 1.0, sigma: float = 1.0) -> tuple[float, np.ndarray]:
    """Return energy and forces of a Lennard-Jones cluster, all pairs, no cutoff.

    Args:
        positions: (n_atoms, 3), in the unit of `sigma`.
        epsilon: Depth of the well, in the unit of the energy.
        sigma: Distance at which the energy of a pair is 0.

    Returns:
        energy: A number.
        forces: (n_atoms, 3).

    Example:
        >>> energy, forces = lennard_jones(np.array([[0.0, 0, 0], [2 ** (1 / 6), 0, 0]]))
        >>> round(energy, 12), bool(abs(forces).max() < 1e-12)
        (-1.0, True)
    """
    vectors, squared = apart(positions)
    inverse = 1.0 / squared
    sixth = sigma**6 * (inverse * inverse * inverse)
    push = sixth * (48.0 * sixth - 24.0) * inverse  # force over distance
    return epsilon * float(2.0 * (sixth * (sixth - 1.0)).sum()), epsilon * np.einsum("ij,cij->ic", push, vectors)


def apart(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors between all atoms, (3, n, n), and their squared lengths, infinite on the diagonal."""
    columns = np.ascontiguousarray(positions.T)
    vectors = columns[:, :, None] - columns[:, None, :]
    squared = vectors[0] * vectors[0] + vectors[1] * vectors[1] + vectors[2] * vectors[2]
    squared.flat[:: len(positions) + 1] = np.inf
    return vectors, squared
