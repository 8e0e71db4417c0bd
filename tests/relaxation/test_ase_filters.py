"""Cells, bands and plain functions: all that ASE can optimize."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.filters import Filter, FrechetCellFilter, StrainFilter, UnitCellFilter
from ase.mep import NEB
from ase.optimize import BFGS
from ase.utils.abc import Optimizable
from ase_cases import Counting, cluster, crystal

from frankenstein.ase import Frankenstein
from frankenstein.relaxation.restart import from_json

FMAX = 0.001
ROUNDING = 1e-11  # of coordinates that went through a matrix logarithm and back


@pytest.mark.parametrize("cell_filter", [FrechetCellFilter, UnitCellFilter, StrainFilter])
def test_a_cell_relaxes(cell_filter):
    atoms, ideal = crystal(), bulk("Cu", cubic=True)
    if cell_filter is StrainFilter:
        atoms.set_scaled_positions((bulk("Cu", cubic=True) * (2, 1, 1)).get_scaled_positions())
    optimizer, path = Frankenstein(cell_filter(atoms), logfile=None), []
    for _ in optimizer.irun(fmax=FMAX, steps=100):
        path.append(optimizer.optimizable.get_x().reshape(-1, 3))
    assert optimizer.reason == "converged"
    assert np.linalg.norm(optimizer.atoms.get_forces(), axis=1).max() < FMAX
    assert np.linalg.norm(np.diff(path, axis=0), axis=2).max() <= 0.2 + ROUNDING
    ideal.calc = EMT()
    assert BFGS(FrechetCellFilter(ideal), logfile=None).run(fmax=1e-5)
    assert atoms.get_potential_energy() / 8 == pytest.approx(ideal.get_potential_energy() / 4, abs=1e-5)
    assert atoms.get_volume() / 8 == pytest.approx(ideal.get_volume() / 4, rel=1e-3)


def test_a_pressed_cell_reaches_its_pressure():
    atoms = crystal()
    pressure = 0.02  # eV/A^3
    assert Frankenstein(FrechetCellFilter(atoms, scalar_pressure=pressure), logfile=None).run(fmax=FMAX, steps=200)
    assert -atoms.get_stress()[:3] == pytest.approx(pressure, abs=2 * FMAX * len(atoms) / atoms.get_volume())


def test_a_filter_around_some_atoms_leaves_the_others():
    atoms = crystal()
    before = atoms.get_positions()
    assert Frankenstein(Filter(atoms, indices=[1, 2, 5]), logfile=None).run(fmax=FMAX)
    moved = np.flatnonzero((atoms.positions != before).any(axis=1))
    assert moved.tolist() == [1, 2, 5]


def band(calculator, **kwargs):
    first = fcc100("Al", size=(2, 2, 2), vacuum=7.0)
    add_adsorbate(first, "Au", 1.7, "hollow")
    first.set_constraint(FixAtoms(range(8)))
    last = first.copy()
    last[-1].x += last.cell[0, 0] / 2
    images = [first, *(first.copy() for _ in range(3)), last]
    for image in images:
        image.calc = calculator()
    for end in (first, last):
        Frankenstein(end, logfile=None).run(fmax=0.01)
    neb = NEB(images, method="improvedtangent", **kwargs)
    neb.interpolate()
    return neb


def test_a_band_finds_the_barrier_of_bfgs():
    barriers = []
    for kind in (Frankenstein, BFGS):
        neb = band(Counting)
        optimizer = kind(neb, logfile=None)
        n_before = [image.calc.n_calls for image in neb.images]
        assert optimizer.run(fmax=0.02, steps=200)
        if kind is Frankenstein:  # all images together are one call
            assert [image.calc.n_calls - n for image, n in zip(neb.images, n_before, strict=True)][1:-1] == [
                optimizer.force_calls
            ] * 3
            assert optimizer.force_calls == optimizer.nsteps + 1
        energies = [image.get_potential_energy() for image in neb.images]
        barriers.append(max(energies) - energies[0])
    assert 0.3 < barriers[1] < 0.5
    assert barriers[0] == pytest.approx(barriers[1], abs=0.005)  # of two bands within fmax


def test_a_band_whose_images_share_a_calculator_is_computed_once_per_step():
    """ASE asks for the forces of a band several times per step; one calculator remembers one image only."""
    calculator = Counting()
    neb = band(lambda: calculator, allow_shared_calculator=True)
    n_before = calculator.n_calls
    optimizer = Frankenstein(neb, logfile=None)
    optimizer.run(fmax=1e-6, steps=4)
    assert optimizer.force_calls == 5
    assert calculator.n_calls - n_before == len(neb.images) * optimizer.force_calls


def test_a_band_that_turns_its_images_keeps_the_memory():
    """It does so while it computes the forces: nobody else has moved the atoms."""
    images = [cluster(seed) for seed in (1, 1, 1, 2)]
    neb = NEB(images, method="improvedtangent", remove_rotation_and_translation=True)
    neb.interpolate()
    optimizer = Frankenstein(neb, logfile=None)
    optimizer.run(fmax=FMAX, steps=5)
    assert from_json(optimizer.state_dict()["state"]).n_steps == 5
    assert optimizer.force_calls == 6


class Bowl(Optimizable):
    """A curved bowl of any dimension that counts how often its gradient is computed."""

    def __init__(self, n):
        self.x, self.centre, self.n_calls = np.linspace(1.0, 2.0, n), 0.0, 0
        self.stiffness = np.linspace(1.0, 20.0, n)

    def ndofs(self):
        return len(self.x)

    def get_x(self):
        return self.x  # its own array: nothing may keep or change it

    def set_x(self, x):
        self.x = np.array(x)

    def get_gradient(self):
        self.n_calls += 1
        return self.stiffness * (self.x - self.centre)

    def get_value(self):
        return 0.5 * float(self.stiffness @ (self.x - self.centre) ** 2)

    def iterimages(self):
        return iter(())

    def gradient_norm(self, gradient):
        return float(abs(gradient).max())


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_a_plain_function_is_minimised_with_one_call_per_step(n):
    bowl = Bowl(n)
    optimizer, path = Frankenstein(bowl, logfile=None), []
    for _ in optimizer.irun(fmax=1e-6, steps=200):
        path.append(bowl.get_x().copy())
    assert optimizer.reason == "converged" and abs(bowl.x).max() < 1e-6
    assert bowl.n_calls == optimizer.force_calls == optimizer.nsteps + 1
    rows = np.diff(path, axis=0).reshape(len(path) - 1, -1, 3 if n % 3 == 0 else 1)
    longest = np.linalg.norm(rows, axis=2).max()
    assert 0.15 < longest <= 0.2 + ROUNDING


def test_a_function_that_changes_between_two_runs_is_asked_again():
    bowl = Bowl(2)
    optimizer = Frankenstein(bowl, logfile=None)
    assert optimizer.run(fmax=1e-6)
    bowl.centre = 5.0
    assert optimizer.run(fmax=1e-6)
    assert bowl.x == pytest.approx(5.0, abs=1e-6)
    assert bowl.n_calls == optimizer.force_calls


def test_a_maxstep_that_is_lowered_holds_on_a_misaligned_step_too():
    """Where the step limit is half of what it was before, not more than it."""
    bowl = Bowl(1)
    optimizer = Frankenstein(bowl, logfile=None)
    optimizer.run(fmax=1e-6, steps=1)
    before, bowl.centre, optimizer.maxstep = bowl.x[0], 100.0, 0.01
    optimizer.run(fmax=1e-6, steps=1)
    assert 0.0 < bowl.x[0] - before <= 0.01 + ROUNDING


def test_a_function_goes_on_from_its_state():
    whole, first, second = Bowl(4), Bowl(4), Bowl(4)
    Frankenstein(whole, logfile=None).run(fmax=1e-9, steps=12)
    optimizer = Frankenstein(first, logfile=None)
    optimizer.run(fmax=1e-9, steps=6)
    again = Frankenstein(second, logfile=None)
    again.load_state_dict(optimizer.state_dict())
    again.run(fmax=1e-9, steps=6)
    np.testing.assert_array_equal(second.x, whole.x)


def test_an_optimizer_takes_what_another_optimizes():
    """As basin hopping hands it over."""
    atoms = crystal()
    inner = Frankenstein(FrechetCellFilter(atoms), logfile=None).optimizable
    optimizer = Frankenstein(inner, logfile=None)
    assert optimizer.run(fmax=0.01) and optimizer.force_calls == atoms.calc.n_calls


def test_no_calculator_is_ase_s_own_error():
    with pytest.raises(RuntimeError, match="Atoms object has no calculator"):
        Frankenstein(Atoms("Cu"), logfile=None).run()
