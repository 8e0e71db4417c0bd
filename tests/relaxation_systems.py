"""Small systems with forces in closed form, for the tests of the relaxation rule and its front-ends."""

from __future__ import annotations

import numpy as np


def random_cluster(n_atoms: int, seed: int, *, closest: float = 0.5, reach: float = 0.8) -> np.ndarray:
    """Return a compact cluster: each atom at random near one before, none closer than `closest` to another."""
    rng = np.random.default_rng(seed)
    atoms = np.zeros((1, 3))
    while len(atoms) < n_atoms:
        shift = rng.uniform(-reach, reach, 3)
        new = atoms[rng.integers(len(atoms))] + shift
        if shift @ shift <= reach**2 and ((atoms - new) ** 2).sum(1).min() >= closest**2:
            atoms = np.vstack([atoms, new])
    return atoms


def lennard_jones(positions: np.ndarray, epsilon: float = 1.0, sigma: float = 1.0) -> tuple[float, np.ndarray]:
    """Return energy and forces of a cluster, no cutoff."""
    apart = positions[:, None] - positions[None]
    squared = (apart**2).sum(-1)
    np.fill_diagonal(squared, np.inf)
    sixth = (sigma**2 / squared) ** 3
    pull = 24.0 * epsilon * (2.0 * sixth**2 - sixth) / squared
    return 2.0 * epsilon * (sixth**2 - sixth).sum(), (pull[:, :, None] * apart).sum(1)


def batched(energy_and_forces, sizes):
    """Return the function for `relax` that evaluates one structure after the other; `sizes` of all systems."""

    def evaluate(positions, systems):
        parts = np.split(positions, np.cumsum(np.asarray(sizes)[systems])[:-1])
        results = [energy_and_forces(part) for part in parts]
        return np.array([energy for energy, _ in results]), np.concatenate([forces for _, forces in results])

    return evaluate


def literal_step(pairs, gradient, secant, limit, rule):
    """Return the rule's displacement as the two loops of limited-memory BFGS state it, pair by pair.

    Args:
        pairs: All (displacement, change of the gradient) so far, oldest first, as they happened.
        gradient: (n_atoms, 3).
        secant: |u . change| / |change|^2 of the last pair; None at the first step.
        limit: The step limit.
        rule: The constants.
    """
    lifted = []
    for u, change in pairs[-rule.memory :]:
        floor = rule.alignment * np.linalg.norm(change) / np.linalg.norm(u)  # of the curvature along u
        curvature = (u * change).sum() / (u * u).sum()
        lifted.append((u, change + max(0.0, floor - curvature) * u))
    if secant is None:
        direction = gradient * rule.first_step * limit / np.linalg.norm(gradient, axis=1).max()
    else:
        q, shares = gradient.copy(), []
        for u, change in reversed(lifted):
            share = (u * q).sum() / (u * change).sum()
            q = q - share * change
            shares.append(share)
        direction = rule.acceleration * secant * q
        for (u, change), share in zip(lifted, reversed(shares), strict=True):
            direction = direction + u * (share - (change * direction).sum() / (u * change).sum())
    longest = np.linalg.norm(direction, axis=1).max()
    return -direction * min(1.0, limit / longest)
