from __future__ import annotations

import threading

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from relax_cases import cluster

from frankenstein.models import Prediction
from frankenstein.structures.calculators import LennardJones, load
from frankenstein.structures.descents import Descent, Terms
from frankenstein.structures.methods import METHODS, OURS, RIVALS, optimizer

TERMS = Terms(fmax=0.01, maxcalls=2_000, maxstep=0.1, has_cell=False)
ROUNDING = 1e-9  # of EMT's sums in another order, in a force of 0.01


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("relax-")] == []


def descend(start, method, terms, evaluate):
    """Tell a descent its forces until it ends."""
    descent = Descent(start, method, terms)
    while descent.reason is None:
        (prediction,) = evaluate([descent.atoms.copy()], terms.has_cell)
        descent.tell(prediction)
    return descent


class Counting(LennardJones):
    """Counts how often it computes."""

    n_calls = 0

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.n_calls += 1


@pytest.mark.parametrize("method", METHODS)
def test_a_descent_is_what_the_optimizer_does_by_itself(method):
    start, alone = cluster(3, 13), cluster(3, 13)
    alone.calc = Counting()
    assert optimizer(method, alone, TERMS.maxstep).run(fmax=TERMS.fmax)
    descent = descend(start, method, TERMS, load("lj").evaluate)
    assert descent.reason == "converged"
    assert descent.n_calls == alone.calc.n_calls
    np.testing.assert_array_equal(descent.last.positions, alone.positions)
    assert len(descent.energies) == len(descent.largest) == descent.n_calls
    assert descent.largest[-1] < TERMS.fmax
    np.testing.assert_array_equal(start.positions, cluster(3, 13).positions)


def test_with_a_cell_its_forces_are_small_as_well():
    start = bulk("Cu", cubic=True)
    start.rattle(0.05, seed=1)
    start.set_cell(start.cell * 1.04, scale_atoms=True)
    terms = Terms(fmax=0.01, maxcalls=200, maxstep=0.2, has_cell=True)
    descent = descend(start, OURS, terms, load("emt").evaluate)
    assert descent.reason == "converged"
    end = start.copy()
    end.calc = EMT()
    filtered = FrechetCellFilter(end)  # strain is measured from the start
    end.set_cell(descent.last.cell)
    end.set_positions(descent.last.positions)
    assert np.linalg.norm(filtered.get_forces(), axis=1).max() == pytest.approx(descent.largest[-1], rel=ROUNDING)
    stress = abs(end.get_stress()).max() * end.get_volume() / len(end)  # what ASE's filter calls a force on the cell
    assert stress < 2 * terms.fmax  # they differ by the strain
    assert abs(start.get_volume() - end.get_volume()) > 1.0


def test_fixed_atoms_stay():
    start = cluster(4)
    start.set_constraint(FixAtoms([0, 5]))
    descent = descend(start, OURS, TERMS, load("lj").evaluate)
    assert descent.reason == "converged"
    np.testing.assert_array_equal(descent.last.positions[[0, 5]], start.positions[[0, 5]])
    assert descent.largest[-1] < TERMS.fmax


@pytest.mark.parametrize("method", [OURS, *RIVALS])
def test_the_calls_that_are_allowed_are_the_most_that_are_made(method):
    terms = Terms(fmax=1e-9, maxcalls=7, maxstep=0.1, has_cell=False)
    descent = descend(cluster(5, 13), method, terms, load("lj").evaluate)
    assert (descent.reason, descent.n_calls, len(descent.energies)) == ("maxcalls", 7, 7)


def test_a_start_that_has_converged_takes_one_call():
    end = descend(cluster(6), OURS, TERMS, load("lj").evaluate)
    again = cluster(6)
    again.positions = end.last.positions
    assert (descend(again, OURS, TERMS, load("lj").evaluate).n_calls) == 1


@pytest.mark.parametrize("method", [OURS, "fire", "cg"])
@pytest.mark.parametrize("what", ["energy", "forces"])
def test_the_last_good_geometry_is_kept_when_a_number_is_not_finite(method, what):
    descent, told = Descent(cluster(7), method, TERMS), []
    for _ in range(4):
        energy, forces = LennardJones().energy_and_forces(descent.atoms.positions)
        told.append(descent.atoms.positions.copy())
        descent.tell(Prediction(energy, forces, None))
    energy, forces = LennardJones().energy_and_forces(descent.atoms.positions)
    if what == "energy":
        energy = float("inf")
    else:
        forces[1, 2] = np.nan
    descent.tell(Prediction(energy, forces, None))
    assert (descent.reason, descent.n_calls) == ("nonfinite", 5)
    assert "call 5" in descent.message
    np.testing.assert_array_equal(descent.last.positions, told[-1])
    assert len(descent.energies) == 4


def test_an_error_of_the_calculator_ends_it_in_one_line():
    descent = Descent(cluster(8), OURS, TERMS)
    descent.tell(RuntimeError("no memory\non any device"))
    assert (descent.reason, descent.message, descent.n_calls, descent.last) == (
        "failed",
        "RuntimeError: no memory",
        0,
        None,
    )


def test_a_cell_without_stress_ends_it_in_one_line():
    descent = Descent(bulk("Cu", cubic=True), OURS, Terms(0.01, 100, 0.2, has_cell=True))
    descent.tell(Prediction(0.0, np.zeros((4, 3)), None))
    assert descent.reason == "failed"
    assert "the calculator gives no stress, which the cell needs" in descent.message
