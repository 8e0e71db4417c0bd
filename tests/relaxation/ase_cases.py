"""Structures and calculators that the tests of the ASE front-end share."""

from __future__ import annotations

import numpy as np
from ase.build import bulk
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from ase.cluster import Icosahedron


class Counting(EMT):
    """EMT that counts, can fail, and whose forces depend on nothing but the structure.

    ASE's own keeps its neighbour list while atoms move little, and the order in that list is in the last bits.
    """

    def __init__(self, fails_at=None, failure=None):
        super().__init__()
        self.n_calls, self.fails_at, self.failure = 0, fails_at, failure

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        self.n_calls += 1
        super().calculate(atoms, list(properties), all_changes)
        if self.n_calls == self.fails_at:
            self.failure(self.results)


def nan_forces(results):
    results["forces"][0, 1] = np.nan


def inf_forces(results):
    results["forces"][-1] = np.inf


def nan_energy(results):
    results["energy"] = results["free_energy"] = np.nan


def crash(results):
    raise RuntimeError("the calculator crashed")


def cluster(seed=1, **failure):
    """13 copper atoms, well shaken."""
    atoms = Icosahedron("Cu", 2)
    atoms.rattle(0.3, seed=seed)
    atoms.calc = Counting(**failure)
    return atoms


def crystal(seed=1, **failure):
    """8 copper atoms in a strained periodic cell."""
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.set_cell(atoms.cell @ (np.eye(3) + np.array([[0.03, 0.01, 0.0], [0.01, 0.0, 0.0], [0.0, 0.0, -0.02]])))
    atoms.rattle(0.1, seed=seed)
    atoms.calc = Counting(**failure)
    return atoms
