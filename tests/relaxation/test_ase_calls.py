"""Force calls, reasons to stop, and calculators that fail."""

from __future__ import annotations

import io

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter, StrainFilter, UnitCellFilter
from ase_cases import cluster, crash, crystal, inf_forces, nan_energy, nan_forces

from frankenstein.ase import Frankenstein
from frankenstein.relaxation import REASONS

FMAX = 0.01
ROUNDING = 1e-12

OVERLAP = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # ASE's calculators divide by the distance


def same(one, other):
    return np.array_equal(one, other)


@pytest.mark.parametrize("wrap", [lambda atoms: atoms, FrechetCellFilter, UnitCellFilter, StrainFilter])
def test_every_call_of_the_calculator_is_counted_and_no_other(wrap):
    atoms = crystal()
    optimizer = Frankenstein(wrap(atoms), logfile=io.StringIO())
    assert optimizer.force_calls == atoms.calc.n_calls == 0
    assert optimizer.run(fmax=FMAX)
    assert optimizer.force_calls == atoms.calc.n_calls == optimizer.nsteps + 1
    optimizer.run(fmax=FMAX / 10)  # the calculator still knows the forces here
    assert optimizer.force_calls == atoms.calc.n_calls == optimizer.nsteps + 1


def test_what_the_calculator_knows_already_is_not_counted():
    atoms = cluster()
    atoms.get_forces()
    optimizer = Frankenstein(atoms, logfile=None)
    optimizer.run(fmax=FMAX, steps=4)
    assert optimizer.force_calls == 4 and atoms.calc.n_calls == 5


def test_what_an_observer_makes_the_calculator_forget_is_counted():
    atoms = cluster()
    optimizer = Frankenstein(atoms, logfile=None)
    other = cluster(seed=2)
    optimizer.attach(lambda: atoms.calc.get_potential_energy(other))
    optimizer.run(fmax=FMAX, steps=4)
    n_elsewhere = 5
    assert optimizer.force_calls == atoms.calc.n_calls - n_elsewhere == 2 * (optimizer.nsteps + 1)


def test_a_calculator_that_is_exchanged_is_asked():
    atoms = cluster()
    optimizer = Frankenstein(atoms, logfile=None)
    optimizer.run(fmax=FMAX)
    atoms.calc = LennardJones(sigma=2.3, epsilon=0.3, rc=10.0)
    optimizer.run(fmax=FMAX)
    assert optimizer.reason == "converged"
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < FMAX


def test_the_reasons():
    optimizer = Frankenstein(cluster(), logfile=None)
    assert optimizer.reason is None
    assert optimizer.run(fmax=FMAX, steps=2) is False
    assert (optimizer.reason, optimizer.nsteps) == ("maxcalls", 2)
    assert optimizer.run(fmax=FMAX, steps=0) is False
    assert (optimizer.reason, optimizer.nsteps) == ("maxcalls", 2)
    assert optimizer.run(fmax=FMAX) is True
    assert optimizer.reason == "converged"
    n_steps = optimizer.nsteps
    assert optimizer.run(fmax=FMAX) is True  # nothing to do
    assert optimizer.run(fmax=FMAX, steps=0) is True
    assert (optimizer.reason, optimizer.nsteps) == ("converged", n_steps)
    assert optimizer.converged() and optimizer.converged(forces=optimizer.atoms.get_forces())


def test_a_converged_start_takes_one_call():
    atoms = cluster()
    Frankenstein(atoms, logfile=None).run(fmax=FMAX)
    atoms.calc = cluster().calc
    before, optimizer = atoms.get_positions(), Frankenstein(atoms, logfile=None)
    assert optimizer.run(fmax=FMAX) is True
    assert (optimizer.nsteps, optimizer.force_calls) == (0, 1) and same(before, atoms.positions)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # ASE's filter multiplies infinities
@pytest.mark.parametrize("failure", [nan_forces, inf_forces, nan_energy])
@pytest.mark.parametrize("wrap", [lambda atoms: atoms, FrechetCellFilter])
def test_numbers_that_are_not_finite_end_the_run_at_the_last_good_geometry(wrap, failure):
    good = crystal()
    Frankenstein(wrap(good), logfile=None).run(fmax=1e-9, steps=4)
    atoms, log, frames = crystal(fails_at=6, failure=failure), io.StringIO(), []
    optimizer = Frankenstein(wrap(atoms), logfile=log)
    optimizer.attach(lambda: frames.append(optimizer.nsteps))
    assert optimizer.run(fmax=1e-9) is False
    assert (optimizer.reason, optimizer.nsteps, optimizer.force_calls, atoms.calc.n_calls) == ("nonfinite", 4, 6, 6)
    assert same(atoms.positions, good.positions) and same(atoms.cell, good.cell)
    assert frames == [0, 1, 2, 3, 4]
    assert log.getvalue().splitlines()[-1] == (
        "Frankenstein: stopped after step 4: the energy or a force is not finite; "
        "the atoms were put back where they were before"
    )
    assert optimizer.run(fmax=0.01) is True  # with an empty memory, and a calculator that has recovered
    assert optimizer.force_calls == atoms.calc.n_calls


@pytest.mark.parametrize("steps", [0, 1, 1000])
@pytest.mark.parametrize("failure", [nan_forces, inf_forces])
def test_a_start_that_is_not_finite_is_left_as_it_is(failure, steps):
    atoms = cluster(fails_at=1, failure=failure)
    before, optimizer = atoms.get_positions(), Frankenstein(atoms, logfile=None)
    assert optimizer.run(fmax=FMAX, steps=steps) is False
    assert (optimizer.reason, optimizer.nsteps, atoms.calc.n_calls) == ("nonfinite", 0, 1)
    assert same(atoms.positions, before)


def test_irun_ends_without_another_yield_where_numbers_are_not_finite():
    optimizer = Frankenstein(cluster(fails_at=4, failure=nan_forces), logfile=None)
    assert [bool(is_converged) for is_converged in optimizer.irun(fmax=FMAX)] == [False] * 3
    assert optimizer.reason == "nonfinite"


def test_step_by_hand_tells_why_there_is_none():
    optimizer = Frankenstein(cluster(fails_at=2, failure=nan_forces), logfile=None)
    with pytest.raises(RuntimeError, match=r"^the energy or a force is not finite; the atoms were put back"):
        optimizer.step()


def test_a_crash_passes_through_and_the_next_run_repeats_that_call():
    """The atoms are at the last good geometry; nothing is lost, so the path goes on to the last bit."""
    whole, atoms = cluster(), cluster(fails_at=6, failure=crash)
    Frankenstein(whole, logfile=None).run(fmax=FMAX, steps=4)
    optimizer = Frankenstein(atoms, logfile=None)
    with pytest.raises(RuntimeError, match=r"^the calculator crashed$"):
        optimizer.run(fmax=FMAX)
    assert same(atoms.positions, whole.positions) and optimizer.nsteps == 4
    n_whole = Frankenstein(whole := cluster(), logfile=None)
    assert n_whole.run(fmax=FMAX) and optimizer.run(fmax=FMAX)
    assert same(atoms.positions, whole.positions)
    assert optimizer.nsteps == n_whole.nsteps
    assert optimizer.force_calls == atoms.calc.n_calls == whole.calc.n_calls + 2  # the last good one, and the repeated


def test_atoms_moved_after_a_crash_get_an_empty_memory():
    atoms = cluster(fails_at=6, failure=crash)
    optimizer = Frankenstein(atoms, logfile=None)
    with pytest.raises(RuntimeError):
        optimizer.run(fmax=FMAX)
    atoms.rattle(0.05, seed=3)
    fresh = atoms.copy()
    fresh.calc = cluster().calc
    optimizer.run(fmax=FMAX, steps=3)
    Frankenstein(fresh, logfile=None).run(fmax=FMAX, steps=3)
    assert same(atoms.positions, fresh.positions)


def test_one_atom_and_fixed_atoms_have_converged():
    lonely, fixed = Atoms("Cu", calculator=EMT()), cluster()
    fixed.set_constraint(FixAtoms(range(13)))
    for atoms in (lonely, fixed):
        before, optimizer = atoms.get_positions(), Frankenstein(atoms, logfile=None)
        assert optimizer.run(fmax=FMAX) is True
        assert (optimizer.nsteps, optimizer.reason) == (0, "converged") and same(before, atoms.positions)


def test_zero_forces_and_a_tolerance_of_zero_end():
    """`fmax=0` is never reached, as ASE wants forces below it; a run must end nevertheless."""
    log = io.StringIO()
    optimizer = Frankenstein(Atoms("Cu", calculator=EMT()), logfile=log)
    assert optimizer.run(fmax=0.0) is False
    assert (optimizer.reason, optimizer.nsteps, optimizer.force_calls) == ("stalled", 0, 1)
    assert log.getvalue().endswith("stopped after step 0: the next step is too small to move the atoms\n")


@OVERLAP
@pytest.mark.parametrize("calculator", [EMT(), LennardJones(sigma=2.3, epsilon=0.3, rc=10.0)], ids=["emt", "lj"])
def test_two_atoms_at_one_place_end_with_a_reason(calculator):
    atoms = cluster()
    atoms.positions[1] = atoms.positions[0]
    atoms.calc = calculator
    before, optimizer = atoms.get_positions(), Frankenstein(atoms, logfile=None)
    is_converged = optimizer.run(fmax=FMAX, steps=300)
    assert optimizer.reason in ("nonfinite", "converged") and is_converged == (optimizer.reason == "converged")
    assert np.isfinite(atoms.positions).all()
    if optimizer.reason == "nonfinite":
        assert same(atoms.positions, before)


@pytest.mark.parametrize("distance", [1e-3, 0.03, 0.3])
def test_two_atoms_almost_at_one_place_part_at_the_speed_limit(distance):
    atoms = cluster()
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.0, distance]
    atoms.calc = LennardJones(sigma=2.3, epsilon=0.3, rc=10.0)
    optimizer, path = Frankenstein(atoms, logfile=None), []
    for _ in optimizer.irun(fmax=FMAX, steps=500):
        path.append(atoms.get_positions())
    assert np.linalg.norm(np.diff(path, axis=0), axis=2).max() <= 0.2 + ROUNDING
    assert optimizer.reason == "converged"


def test_every_reason_is_explained():
    assert {"converged", "maxcalls", "nonfinite", "stalled", "stopped"} <= REASONS.keys()
