"""The path, the arguments, and what ASE's users expect of an optimizer."""

from __future__ import annotations

import inspect
import io
import math
import re

import numpy as np
import pytest
from ase.cluster import Icosahedron
from ase.constraints import FixAtoms, FixBondLengths, FixCom
from ase.io import read
from ase.optimize import LBFGS
from ase.optimize.basin import BasinHopping
from ase.optimize.optimize import BaseDynamics
from ase_cases import cluster, crystal

from frankenstein.ase import ARGUMENTS, ASE_ARGUMENTS, Frankenstein
from frankenstein.relaxation import relax
from frankenstein.relaxation.restart import from_json

FMAX = 0.01
ROUNDING = 1e-12  # of coordinates of some 10 A, each the sum of two numbers
BOND = 1e-10  # FixBondLengths stops iterating there


def path_of(optimizer, **run):
    return np.array([optimizer.atoms.get_positions() for _ in optimizer.irun(**run)])


@pytest.mark.parametrize("make", [cluster, crystal])
def test_the_path_is_that_of_relax_to_the_last_bit(make):
    copy, path = make(), []

    def energy_and_forces(positions, _):
        copy.positions[:] = positions
        return np.array([copy.get_potential_energy()]), copy.get_forces()

    result = relax(
        energy_and_forces, make().positions, fmax=FMAX, callback=lambda _, positions, *__: path.append(positions.copy())
    )
    assert result.reasons == ("converged",) and len(path) > 5
    optimizer = Frankenstein(make(), logfile=None)
    np.testing.assert_array_equal(path_of(optimizer, fmax=FMAX), path)
    assert optimizer.force_calls == result.calls[0]


@pytest.mark.parametrize("maxstep", [0.02, 0.2])
def test_no_atom_moves_further_than_maxstep(maxstep):
    path = path_of(Frankenstein(cluster(), logfile=None, maxstep=maxstep), fmax=FMAX, steps=40)
    longest = np.linalg.norm(np.diff(path, axis=0), axis=2).max()
    assert 0.9 * maxstep < longest <= maxstep + ROUNDING


def test_maxstep_does_not_depend_on_the_number_of_atoms():
    alone, twice = cluster(), cluster()
    second = cluster()
    second.positions += 100.0
    twice.extend(second)
    steps = [np.diff(path_of(Frankenstein(a, logfile=None), steps=1), axis=0)[0] for a in (alone, twice)]
    np.testing.assert_allclose(steps[1], np.concatenate([steps[0]] * 2), atol=ROUNDING)


@pytest.mark.parametrize("maxstep", [0, -0.1, 1.001, float("nan"), float("inf"), True, "0.2"])
def test_a_wrong_maxstep_is_one_clear_line(maxstep):
    with pytest.raises(ValueError, match=r"^Invalid maxstep: .*; allowed are numbers above 0 and up to 1\.0 \(A\)$"):
        Frankenstein(cluster(), maxstep=maxstep)


def test_a_wrong_memory_is_one_clear_line():
    with pytest.raises(ValueError, match=r"^Invalid memory: 0; allowed are whole numbers of at least 1$"):
        Frankenstein(cluster(), memory=0)


def test_memory_and_maxstep_reach_the_rule():
    optimizer = Frankenstein(cluster(), None, None, None, False, 0.1, 5)
    optimizer.run(steps=3)
    state = from_json(optimizer.state_dict()["state"])
    assert state.curvatures.shape == (1, 5)
    assert state.step_limit.max() <= 0.1


def test_a_maxstep_that_is_lowered_holds_at_once():
    optimizer = Frankenstein(cluster(), logfile=None)
    optimizer.run(steps=2)
    optimizer.maxstep = 0.01
    longest = np.linalg.norm(np.diff(path_of(optimizer, steps=3), axis=0), axis=2).max()
    assert longest <= 0.01 + ROUNDING


def test_the_log_is_that_of_ase():
    logs = {}
    for kind in (Frankenstein, LBFGS):
        log = logs[kind] = io.StringIO()
        kind(cluster(), logfile=log).run(fmax=FMAX, steps=3)
    mask = [re.sub(r"[\d.]+", "0", log.getvalue().replace(kind.__name__, "NAME")) for kind, log in logs.items()]
    assert re.sub(" +", " ", mask[0]) == re.sub(" +", " ", mask[1])
    assert len(logs[Frankenstein].getvalue().splitlines()) == 1 + 4


def test_the_log_goes_to_the_screen_unless_said_otherwise(capsys):
    Frankenstein(cluster()).run(steps=1)
    assert capsys.readouterr().out.startswith("              Step")
    Frankenstein(cluster(), logfile=None).run(steps=1)
    assert capsys.readouterr().out == ""


def test_trajectory_observers_and_description(tmp_path):
    file, seen = tmp_path / "path.traj", []
    optimizer = Frankenstein(cluster(), logfile=None, trajectory=file)
    optimizer.attach(lambda: seen.append(optimizer.nsteps), interval=2)
    optimizer.run(fmax=FMAX, steps=5)
    assert len(read(file, ":")) == 6 and seen == [0, 2, 4]
    described = optimizer.todict()
    assert described == {
        "type": "optimization", "optimizer": "Frankenstein", "restart": None, "maxstep": 0.2, "max_steps": 5,
        "fmax": FMAX,
    }  # fmt: skip
    Frankenstein(cluster(), logfile=None, trajectory=file, append_trajectory=True).run(steps=1)
    assert len(read(file, ":")) == 7  # ASE writes the first structure to an empty trajectory only
    Frankenstein(cluster(), logfile=None, trajectory=file).run(steps=1)
    assert len(read(file, ":")) == 2


def test_irun_yields_before_the_first_step_and_after_each():
    optimizer = Frankenstein(cluster(), logfile=None)
    before = optimizer.atoms.get_positions()
    run = optimizer.irun(fmax=FMAX, steps=3)
    assert next(run) == False  # noqa: E712 (ASE yields numpy's)
    np.testing.assert_array_equal(optimizer.atoms.positions, before)
    assert optimizer.reason == "stopped"  # as long as the loop may be left
    assert [bool(is_converged) for is_converged in run] == [False] * 3
    assert (optimizer.nsteps, optimizer.reason) == (3, "maxcalls")


def test_atoms_that_somebody_moved_get_an_empty_memory():
    """Else a change of the gradient is booked on a displacement that did not cause it."""
    optimizer = Frankenstein(cluster(), logfile=None)
    optimizer.run(fmax=FMAX, steps=5)
    optimizer.atoms.rattle(0.1, seed=2)
    fresh = optimizer.atoms.copy()
    fresh.calc = cluster().calc
    paths = [path_of(o, fmax=FMAX, steps=5) for o in (optimizer, Frankenstein(fresh, logfile=None))]
    np.testing.assert_array_equal(*paths)


def test_a_cell_that_somebody_changed_counts_as_a_move():
    optimizer = Frankenstein(crystal(), logfile=None)
    optimizer.run(fmax=1e-6, steps=3)
    optimizer.atoms.set_cell(optimizer.atoms.cell * 1.01, scale_atoms=False)
    fresh = optimizer.atoms.copy()
    fresh.calc = crystal().calc
    paths = [path_of(o, fmax=1e-6, steps=3) for o in (optimizer, Frankenstein(fresh, logfile=None))]
    np.testing.assert_array_equal(*paths)


def test_looking_at_the_atoms_between_two_runs_changes_nothing():
    once, twice = (Frankenstein(cluster(), logfile=None) for _ in range(2))
    once.run(fmax=FMAX, steps=8)
    twice.run(fmax=FMAX, steps=3)
    there = twice.atoms.get_positions()
    twice.atoms.positions += 1.0
    twice.atoms.get_forces()
    twice.atoms.positions = there
    twice.run(fmax=FMAX, steps=5)
    np.testing.assert_array_equal(once.atoms.positions, twice.atoms.positions)


def test_basin_hopping_takes_it():
    atoms = cluster()
    np.random.seed(0)  # noqa: NPY002 (BasinHopping draws from it)
    hopping = BasinHopping(
        atoms, optimizer=Frankenstein, fmax=0.05, dr=0.3, logfile=None, optimizer_logfile=None, trajectory=None,
        local_minima_trajectory=None,
    )  # fmt: skip
    hopping.run(4)
    energy, _ = hopping.get_minimum()
    ideal = Icosahedron("Cu", 2)
    ideal.calc = cluster().calc
    Frankenstein(ideal, logfile=None).run(fmax=FMAX)
    assert energy == pytest.approx(ideal.get_potential_energy(), abs=0.01)  # of the two minima, each within fmax


def test_fixed_atoms_stay_where_they_are():
    atoms = cluster()
    atoms.set_constraint(FixAtoms([0, 3, 4]))
    before = atoms.get_positions()
    assert Frankenstein(atoms, logfile=None).run(fmax=FMAX)
    np.testing.assert_array_equal(atoms.positions[[0, 3, 4]], before[[0, 3, 4]])
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < FMAX


@pytest.mark.parametrize("constraint", [FixBondLengths([[0, 1], [2, 3], [3, 4]]), FixCom()], ids=["bonds", "com"])
def test_the_memory_has_the_displacement_that_constraints_made_of_it(constraint):
    atoms = cluster()
    before = atoms.get_positions()
    atoms.set_constraint(constraint)
    optimizer = Frankenstein(atoms, logfile=None)
    run = optimizer.irun(fmax=FMAX)
    next(run)
    for _ in range(3):
        was = atoms.get_positions()
        next(run)
        remembered = from_json(optimizer.state_dict()["state"]).displacement
        np.testing.assert_allclose(remembered, atoms.get_positions() - was, rtol=0, atol=1e-14)
    *_, is_converged = run
    assert is_converged
    if isinstance(constraint, FixCom):
        np.testing.assert_allclose(atoms.positions.mean(0), before.mean(0), atol=ROUNDING)
    else:
        bonds = [[np.linalg.norm(p[i] - p[j]) for i, j in constraint.pairs] for p in (before, atoms.positions)]
        np.testing.assert_allclose(*bonds, atol=BOND)


@pytest.mark.parametrize("fmax", [-0.01, math.nan, "0.05", None])
@pytest.mark.parametrize("method", ["run", "irun"])
def test_an_fmax_that_is_no_limit_is_refused_before_any_force_call(method, fmax):
    optimizer = Frankenstein(cluster(), logfile=None)
    with pytest.raises(ValueError, match=rf"^Invalid fmax: {fmax!r}; allowed are numbers from 0 on \(eV/A\)$"):
        getattr(optimizer, method)(fmax=fmax)
    assert optimizer.force_calls == 0 and optimizer.atoms.calc.n_calls == 0
    assert optimizer.run(fmax=0.0, steps=1) is False and optimizer.nsteps == 1


def test_an_unknown_argument_is_refused_with_those_that_are_known():
    with pytest.raises(TypeError) as raised:
        Frankenstein(cluster(), lr=1e-3)
    assert str(raised.value) == (
        "Frankenstein has no argument 'lr'; allowed are restart, logfile, trajectory, append_trajectory, maxstep, "
        "memory, master, comm, loginterval"
    )
    known = set(inspect.signature(Frankenstein).parameters) | set(inspect.signature(BaseDynamics).parameters)
    assert known - {"atoms", "kwargs"} == set(ARGUMENTS + ASE_ARGUMENTS)
