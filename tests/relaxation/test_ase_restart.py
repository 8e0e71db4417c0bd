"""A run that is interrupted and goes on is the run that was not interrupted, to the last bit."""

from __future__ import annotations

import copy
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.constraints import FixAtoms, FixBondLengths
from ase.filters import Filter, FrechetCellFilter, StrainFilter, UnitCellFilter
from ase.io import read
from ase.mep import NEB
from ase.optimize import LBFGS, RestartError
from ase_cases import cluster, crash, crystal, nan_forces

from frankenstein.ase import Frankenstein
from frankenstein.ase_optimizable import difference
from frankenstein.relaxation import restart as files

NEVER = 1e-12  # eV/A: runs end by their number of steps


def plain(atoms):
    return atoms


def pressed(atoms):
    return FrechetCellFilter(atoms, scalar_pressure=0.01, mask=[1, 1, 1, 0, 0, 1])


def some(atoms):
    return Filter(atoms, indices=[1, 2, 5])


WRAPS = [plain, FrechetCellFilter, pressed, UnitCellFilter, StrainFilter, some]


def run(atoms, steps, wrap=plain, **kwargs):
    optimizer = Frankenstein(wrap(atoms), logfile=None, **kwargs)
    optimizer.run(fmax=NEVER, steps=steps)
    return optimizer


def assert_same(atoms, whole):
    np.testing.assert_array_equal(atoms.positions, whole.positions)
    np.testing.assert_array_equal(atoms.cell.array, whole.cell.array)


@pytest.mark.parametrize("make, n", [(cluster, 15), (crystal, 8)])
def test_n_steps_and_n_steps_are_2_n(make, n, tmp_path):
    file, whole, first, second = tmp_path / "run.json", make(), make(), make()
    run(whole, 2 * n)
    run(first, n, restart=file)
    optimizer = run(second, n, restart=str(file))
    assert_same(second, whole)
    assert optimizer.nsteps == n  # of this object, as with all of ASE's optimizers
    assert json.loads(file.read_text())["n_steps"] == 2 * n
    assert optimizer.force_calls == first.calc.n_calls + second.calc.n_calls == 2 * (n + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("wrap", WRAPS)
def test_filters_go_on_from_the_first_structure_and_from_the_last(wrap, tmp_path):
    """The last structure's cell would be a new reference cell, if the file did not have the old one."""
    whole, first, last = crystal(), crystal(), crystal()
    run(whole, 12, wrap)
    for atoms in (first, last):
        file = tmp_path / f"{atoms is first}.json"
        run(atoms, 4, wrap, restart=file)
        atoms = crystal() if atoms is first else atoms.copy()
        for _ in range(2):  # twice in a row
            atoms.calc = crystal().calc
            run(atoms, 4, wrap, restart=file)
        assert_same(atoms, whole)


def test_another_process_goes_on(tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from ase.filters import FrechetCellFilter
from ase_cases import crystal
from frankenstein.ase import Frankenstein
atoms = crystal()
Frankenstein(FrechetCellFilter(atoms), restart="run.json", logfile=None, trajectory="run.traj").run(1e-12, 6)
"""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    whole = crystal()
    run(whole, 12, FrechetCellFilter)
    frames = read(tmp_path / "run.traj", ":")
    assert len(frames) == 13  # nothing overwritten, nothing twice
    assert_same(frames[-1], whole)


def test_a_band_goes_on(tmp_path):
    def band():
        images = [cluster(seed) for seed in (1, 1, 1, 2)]
        neb = NEB(images, method="improvedtangent")
        neb.interpolate()
        return neb

    whole = run(band(), 10).atoms
    for _ in range(2):
        half = run(band(), 5, restart=tmp_path / "run.json").atoms
    np.testing.assert_array_equal(half.get_positions(), whole.get_positions())


def test_state_dict_is_json_and_a_copy():
    optimizer = run(cluster(), 5)
    data = optimizer.state_dict()
    text = json.dumps(data)
    optimizer.run(fmax=NEVER, steps=5)
    assert json.dumps(data) == text
    again = run(cluster(), 0)
    again.load_state_dict(data)
    assert json.dumps(again.state_dict()) == text
    again.run(fmax=NEVER, steps=5)
    assert json.dumps(data) == text
    assert_same(again.atoms, optimizer.atoms)
    assert again.force_calls == optimizer.force_calls + 1


def test_a_run_without_a_step_has_a_state():
    data = json.loads(json.dumps(Frankenstein(cluster(seed=2), logfile=None).state_dict()))
    atoms = cluster()
    optimizer = Frankenstein(atoms, logfile=None)
    optimizer.load_state_dict(data)
    optimizer.run(fmax=NEVER, steps=3)
    whole = cluster(seed=2)
    run(whole, 3)
    assert_same(atoms, whole)


def test_the_state_of_atoms_that_somebody_moved_is_where_they_are():
    optimizer, atoms = run(cluster(), 5), cluster()
    optimizer.atoms.rattle(0.1, seed=2)
    run(atoms, 0).load_state_dict(optimizer.state_dict())
    assert_same(atoms, optimizer.atoms)


def test_the_state_after_a_crash_repeats_the_call():
    optimizer, whole, atoms = Frankenstein(cluster(fails_at=6, failure=crash), logfile=None), cluster(), cluster()
    with pytest.raises(RuntimeError, match="crashed"):
        optimizer.run(fmax=NEVER)
    again = run(atoms, 0)
    again.load_state_dict(optimizer.state_dict())
    again.run(fmax=NEVER, steps=5)
    run(whole, 10)
    assert_same(atoms, whole)


def test_a_converged_run_is_still_converged(tmp_path):
    file, atoms = tmp_path / "run.json", cluster()
    assert Frankenstein(cluster(), restart=file, logfile=None).run(fmax=0.01)
    optimizer = Frankenstein(atoms, restart=file, logfile=None)
    assert optimizer.run(fmax=0.01) is True and optimizer.nsteps == 0


def test_a_kill_in_the_middle_of_a_calculation_costs_that_calculation(tmp_path):
    def killed(results):
        raise KeyboardInterrupt

    file, whole, atoms = tmp_path / "run.json", cluster(), cluster()
    run(whole, 10)
    with pytest.raises(KeyboardInterrupt):
        run(cluster(fails_at=6, failure=killed), 10, restart=file)
    optimizer = run(atoms, 5, restart=file)  # the fifth step was made, its forces were not known yet
    assert_same(atoms, whole)
    assert optimizer.force_calls == whole.calc.n_calls + 1


def test_a_crash_is_repeated_by_the_next_process(tmp_path):
    file, whole, atoms = tmp_path / "run.json", cluster(), cluster()
    run(whole, 10)
    with pytest.raises(RuntimeError, match="crashed"):
        run(cluster(fails_at=6, failure=crash), 10, restart=file)
    run(atoms, 5, restart=file)
    assert_same(atoms, whole)


def test_after_nan_the_file_has_the_last_good_structure(tmp_path):
    file, failed, atoms = tmp_path / "run.json", cluster(fails_at=6, failure=nan_forces), cluster()
    run(failed, 10, restart=file)
    optimizer = run(atoms, 0, restart=file)
    assert_same(atoms, failed)
    assert optimizer.run(fmax=0.01)


def test_a_write_that_is_interrupted_leaves_the_file_of_before(tmp_path, monkeypatch):
    file = tmp_path / "run.json"
    run(cluster(), 3, restart=file)
    before = file.read_text()

    def half(data, stream):
        stream.write('{"format": "frank')
        raise OSError("no space left on device")

    monkeypatch.setattr(files.json, "dump", half)
    with pytest.raises(OSError, match="no space left"):
        run(cluster(), 3, restart=file)
    monkeypatch.undo()
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]
    atoms, whole = cluster(), cluster()
    run(atoms, 3, restart=file)
    run(whole, 6)
    assert_same(atoms, whole)


class SecondRank:
    rank, size = 1, 2

    def barrier(self):
        pass


def test_only_the_first_process_writes(tmp_path):
    run(cluster(), 3, restart=tmp_path / "run.json", comm=SecondRank())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_trajectory_is_kept(tmp_path):
    file, trajectory = tmp_path / "run.json", tmp_path / "run.traj"
    for _ in range(3):
        run(cluster(), 4, restart=file, trajectory=trajectory)
    frames, whole = read(trajectory, ":"), cluster()
    run(whole, 12)
    assert len(frames) == 13
    assert_same(frames[-1], whole)


def test_a_smaller_maxstep_holds_after_a_restart():
    data = run(cluster(), 3).state_dict()
    optimizer = Frankenstein(cluster(), logfile=None, maxstep=0.01)
    optimizer.load_state_dict(data)
    before = optimizer.atoms.get_positions()
    optimizer.run(fmax=NEVER, steps=1)
    assert np.linalg.norm(optimizer.atoms.positions - before, axis=1).max() <= 0.01 + 1e-12


@pytest.mark.parametrize("seed", [1, 2])
def test_constraints_do_not_keep_atoms_from_being_put_where_they_were(seed):
    def held(seed):
        atoms, bonds = cluster(seed), [[0, 1], [0, 2]]
        lengths = [cluster(1).get_distance(*bond) for bond in bonds]
        atoms.set_constraint([FixAtoms([5, 6]), FixBondLengths(bonds, bondlengths=lengths)])
        return atoms

    whole, atoms = held(1), held(seed)
    run(whole, 10)
    optimizer = run(atoms, 0)
    optimizer.load_state_dict(run(held(1), 5).state_dict())
    optimizer.run(fmax=NEVER, steps=5)
    assert_same(atoms, whole)


def test_a_trajectory_fills_the_memory(tmp_path):
    """It has positions, not displacements: so nearly to the last bit."""
    file, whole = tmp_path / "run.traj", cluster()
    run(cluster(), 6, trajectory=file)
    run(whole, 10)
    atoms = read(file)
    atoms.calc = cluster().calc
    optimizer = Frankenstein(atoms, logfile=None)
    optimizer.replay_trajectory(str(file))
    optimizer.run(fmax=NEVER, steps=4)
    np.testing.assert_allclose(atoms.positions, whole.positions, rtol=0, atol=1e-10)
    other = Frankenstein(cluster(seed=2), logfile=None)
    with pytest.raises(ValueError, match=r"^Invalid trajectory: its last structure is not where the atoms are$"):
        other.replay_trajectory(str(file))


def no_state_field(data):
    del data["state"]["secant"]


def other_state_version(data):
    data["state"]["version"] = 99


def other_version(data):
    data["version"] = 99


def no_counter(data):
    del data["force_calls"]


def other_elements(data):
    data["numbers"][0] = 79


def fewer_atoms(data):
    data["numbers"].pop()


def broken_place(data):
    data["place"]["x"]["base64"] = data["place"]["x"]["base64"][4:]


def not_finite(data):
    positions = files.array_from_json(data["place"]["positions"], "positions")
    positions[0] = np.nan
    data["place"]["positions"] = files.array_to_json(positions)


def no_place(data):
    data["place"] = {}


def other_reference(data):
    orig_cell = files.array_from_json(data["place"]["orig_cell"], "orig_cell")
    data["place"]["orig_cell"] = files.array_to_json(1.001 * orig_cell)


DAMAGES = [
    (no_state_field, "secant is missing"),
    (other_state_version, "version 99; this Frankenstein reads version 1"),
    (other_version, "version 99; this Frankenstein reads 1"),
    (no_counter, "force_calls is missing or damaged"),
    (other_elements, r"it is of other atoms \(AuCu7, not Cu8\)"),
    (fewer_atoms, r"it is of other atoms \(Cu7, not Cu8\)"),
    (broken_place, "Invalid x: wanted are"),
    (not_finite, "Invalid positions: it has numbers that are not finite"),
    (no_place, "it is of another filter, or of other coordinates"),
    (other_reference, "it is of another filter, or of one with other settings"),
]


@pytest.mark.parametrize("damage, message", DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_or_foreign_file_is_refused_and_nothing_changed(damage, message, tmp_path):
    data = run(crystal(), 3, FrechetCellFilter).state_dict()
    damage(data)
    atoms, whole = crystal(), crystal()
    optimizer = Frankenstein(FrechetCellFilter(atoms), logfile=None)
    optimizer.run(fmax=NEVER, steps=2)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(data)
    optimizer.run(fmax=NEVER, steps=2)
    run(whole, 4, FrechetCellFilter)
    assert_same(atoms, whole)
    file, trajectory = tmp_path / "run.json", tmp_path / "run.traj"
    file.write_text(json.dumps(data))
    trajectory.write_text("precious")
    with pytest.raises(RestartError, match=message) as raised:
        Frankenstein(FrechetCellFilter(crystal()), restart=file, trajectory=trajectory)
    assert str(raised.value).endswith(f"; give the file that fits, or delete {file} to start anew")
    assert "\n" not in str(raised.value) and raised.value.__suppress_context__
    assert trajectory.read_text() == "precious"


@pytest.mark.parametrize("text", ["", "hello", '{"format": "frankenst', "\udcff"])
def test_a_file_that_is_no_json_is_refused(text, tmp_path):
    file = tmp_path / "run.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RestartError, match=r"^Could not decode .*run\.json as JSON; delete it to start anew$"):
        Frankenstein(cluster(), restart=file)


@pytest.mark.parametrize("text", ["[1, 2]", "{}", "3", '{"format": "else"}'])
def test_json_of_somebody_else_is_refused(text, tmp_path):
    file = tmp_path / "run.json"
    file.write_text(text)
    with pytest.raises(RestartError, match=r"it was not written by frankenstein\.ase\.Frankenstein; give"):
        Frankenstein(cluster(), restart=file)


def test_the_file_of_another_optimizer_filter_or_memory_is_refused(tmp_path):
    file = tmp_path / "run.json"
    LBFGS(cluster(), restart=file, logfile=None).run(steps=2)
    with pytest.raises(RestartError, match="was not written by"):
        Frankenstein(cluster(), restart=file)
    file.unlink()
    run(crystal(), 2, restart=file)
    for wrap, memory, message in (
        (FrechetCellFilter, 60, "of another filter"),
        (plain, 20, "memory 60; this optimizer has 20"),
    ):
        with pytest.raises(RestartError, match=message):
            Frankenstein(wrap(crystal()), restart=file, memory=memory)


def test_loading_leaves_the_dictionary_as_it_is():
    data = run(crystal(), 3, FrechetCellFilter).state_dict()
    before = copy.deepcopy(data)
    run(crystal(), 0, FrechetCellFilter).load_state_dict(data)
    assert data == before


def test_the_log_says_that_a_run_goes_on_and_that_the_atoms_were_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log, there = io.StringIO(), cluster()
    Frankenstein(there, restart="loop.json", logfile=log).run(fmax=NEVER, steps=7)
    assert "goes on" not in log.getvalue()
    line = "Frankenstein: goes on from loop.json: step 7, 8 force calls"
    for atoms, end in ((cluster(seed=2), "; the atoms were moved there"), (there, "")):
        log = io.StringIO()
        Frankenstein(atoms, restart="loop.json", logfile=log)
        assert log.getvalue() == f"{line}{end}\n"


@pytest.mark.parametrize(
    "found, wanted, words",
    [
        ([29] * 32, [47] * 32, "Cu32, not Ag32"),
        ([29, 47], [47, 29], "AgCu in another order"),
        (None, [29], "no atoms, not Cu"),
        ([29], None, "Cu, not no atoms"),
        ([29, 500], [29], "damaged atomic numbers, not Cu"),
        ("Cu", [29], "damaged atomic numbers, not Cu"),
    ],
)
def test_other_atoms_are_named_by_their_formula(found, wanted, words):
    assert difference(found, wanted) == words


@pytest.mark.parametrize(
    "name, message",
    [
        (".", "Invalid restart: . is a folder; give a file in it, ./run.json say"),
        ("no/run.json", "Invalid restart: no/run.json would be in the folder no, which is not there; make it first"),
        ("", "Invalid restart: ''; allowed is the name of a file, run.json say"),
        (3, "Invalid restart: 3; allowed is the name of a file, run.json say"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused_before_anything_is_computed(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Frankenstein(cluster(), restart=name, logfile="run.log", trajectory="run.traj")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_which_the_last_step_of_writing_fails_leaves_no_half(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write(tmp_path / "run.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
