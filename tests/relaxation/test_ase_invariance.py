"""What must not matter: where a structure is, how it is turned, the order of its atoms, and the units."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase_cases import cluster, crystal
from scipy.spatial.transform import Rotation

from frankenstein.ase import Frankenstein

FMAX = 0.01
GROWN_ROUNDING = 1e-6  # A; the last bits of 20 steps over a rugged surface, amplified at each


def relaxed(atoms, fmax=FMAX, **kwargs):
    optimizer = Frankenstein(atoms, logfile=None, **kwargs)
    path = [atoms.get_positions() for _ in optimizer.irun(fmax=fmax)]
    assert optimizer.reason == "converged"
    return np.array(path)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("make", [cluster, crystal])
def test_turning_moving_and_relabelling(make, seed):
    path = relaxed(make(seed))
    rng = np.random.default_rng(seed)
    order, turn = rng.permutation(len(path[0])), Rotation.random(rng=rng).as_matrix()
    shift = rng.uniform(-5.0, 5.0, 3)
    atoms = make(seed)[order]
    atoms.calc = make().calc
    atoms.set_cell(atoms.cell @ turn)
    atoms.set_positions(atoms.positions @ turn + shift)
    np.testing.assert_allclose((relaxed(atoms) - shift) @ turn.T, path[:, order], atol=GROWN_ROUNDING)


class Units(Calculator):
    """EMT in other units of length and energy."""

    implemented_properties = ("energy", "free_energy", "forces")

    def __init__(self, length, energy):
        super().__init__()
        self.length, self.energy, self.calculator = length, energy, cluster().calc

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        copy = atoms.copy()
        copy.positions = atoms.positions / self.length
        copy.calc = self.calculator
        energy, forces = copy.get_potential_energy() * self.energy, copy.get_forces() * self.energy / self.length
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}


@pytest.mark.parametrize("length, energy", [(1.8897, 0.03675), (0.1, 96.485), (4.0, 1024.0)])
def test_the_units_do_not_matter(length, energy):
    path, atoms = relaxed(cluster()), cluster()
    atoms.positions *= length
    atoms.calc = Units(length, energy)
    scaled = relaxed(atoms, FMAX * energy / length, maxstep=0.2 * length)
    np.testing.assert_allclose(scaled / length, path, atol=0 if length == 4.0 else GROWN_ROUNDING)
