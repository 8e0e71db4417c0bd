"""The relaxation experiments: functions, counting, starts, records."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from frankenstein.compare.store.records import RecordError, read
from frankenstein.experiments.relaxations.kinds import KINDS, find_kind, lj38_starts, source
from frankenstein.experiments.relaxations.methods import METHODS, VARIANTS, PairCluster, descend
from frankenstein.experiments.relaxations.potentials import lennard_jones, morse, random_cluster
from frankenstein.experiments.relaxations.runner import RELAXATIONS, Job, jobs, run

DIFFERENCE, AGREES = 1e-6, 1e-6  # central differences of functions of order 1: errors near 1e-9
FMAX, MAXCALLS = 0.01, 2000
GLOBAL_MINIMUM = -173.928427
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data folder is not here")


@pytest.mark.parametrize("potential", [lennard_jones, morse(6.0), morse(14.0)])
def test_forces_are_the_derivative_of_the_energy(potential):
    rng = np.random.default_rng(1)
    positions = 1.1 * random_cluster(9, rng, closest=0.9, reach=1.2)
    direction = rng.normal(size=positions.shape)
    ahead, behind = (potential(positions + sign * DIFFERENCE * direction)[0] for sign in (1, -1))
    expected = -(ahead - behind) / (2 * DIFFERENCE)
    assert (potential(positions)[1] * direction).sum() == pytest.approx(expected, rel=AGREES)


def test_random_clusters_keep_the_rule_of_optbench():
    cluster = random_cluster(38, np.random.default_rng(2))
    apart = np.linalg.norm(cluster[:, None] - cluster[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    assert apart.min() >= 0.5 and apart.min(1).max() <= 0.8


@needs_data
def test_the_global_minimum_of_lj38_is_one():
    from ase.io import read as read_atoms

    energy, forces = lennard_jones(read_atoms(DATA / "lj38" / "lj38_global_minimum.xyz").positions)
    assert energy == pytest.approx(GLOBAL_MINIMUM, abs=1e-5) and np.abs(forces).max() < 0.01


@needs_data
def test_the_starts_of_table_2_come_from_the_data_folder():
    starts = lj38_starts(DATA)
    assert starts.shape == (1000, 38, 3)
    assert "sha256" in source(KINDS["lj38"], DATA)
    assert source(KINDS["lj38"], None) == "made here"
    assert not np.array_equal(starts[0], lj38_starts(None)[0])


@pytest.mark.parametrize("method", [*METHODS, *list(VARIANTS)[1:]])
def test_every_method_is_counted_at_the_function(method):
    """What the record says is how often the potential was evaluated at a new geometry, no more and no less."""
    seen = []

    def potential(positions):
        seen.append(positions.tobytes())
        return morse(6.0)(positions)

    start = PairCluster(random_cluster(8, np.random.default_rng(3), closest=0.8, reach=1.0), potential)
    outcome = descend(method, start, FMAX, 10 * MAXCALLS)
    assert outcome.calls == len(seen)
    assert outcome.reason == "converged" and outcome.fmax <= FMAX
    energy, forces = morse(6.0)(start.positions)
    assert outcome.energy == energy and outcome.fmax == pytest.approx(np.sqrt((forces**2).sum(1)).max(), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_most_calls_are_kept(method):
    start = PairCluster(random_cluster(13, np.random.default_rng(4)), lennard_jones)
    outcome = descend(method, start, 1e-9, 5)
    assert outcome.calls == 5 and outcome.reason == "maxcalls"


@pytest.mark.parametrize("method", METHODS)
def test_what_goes_wrong_is_an_outcome(method):
    def broken(positions):
        raise RuntimeError("no licence\nfound")

    outcome = descend(method, PairCluster(np.eye(3), broken), FMAX, 10)
    assert outcome.reason == "failed: RuntimeError: no licence found" and math.isnan(outcome.energy)
    nan = descend(method, PairCluster(np.eye(3), lambda x: (math.nan, np.zeros_like(x))), FMAX, 10)
    assert nan.reason == "nonfinite" and nan.calls == 1


CHEAP = ["lj75", "morse30", "morse4", "cu-vacancy", "pt-slab", "molecule"]


@pytest.mark.parametrize("name", CHEAP)
def test_starts_follow_from_their_number_alone(name):
    if name == "molecule":
        pytest.importorskip("rdkit")
    kind = KINDS[name]
    first, again, other = (kind.make(number, None) for number in (0, 0, 1))
    np.testing.assert_array_equal(first.get_x(), again.get_x())
    assert first.ndofs() != other.ndofs() or not np.array_equal(first.get_x(), other.get_x())
    assert first.gradient_norm(first.get_gradient()) > kind.fmax  # there is something to do


def test_the_force_field_of_molecules_is_that_of_rdkit():
    pytest.importorskip("rdkit")
    start = KINDS["molecule"].make(3, None)
    x, direction = start.get_x(), np.random.default_rng(0).normal(size=start.ndofs())
    slope = start.get_gradient() @ direction
    energies = []
    for sign in (1, -1):
        start.set_x(x + sign * 1e-5 * direction)
        energies.append(start.get_value())
    assert slope == pytest.approx((energies[0] - energies[1]) / 2e-5, rel=1e-5)


def test_an_unknown_kind_is_no_kind():
    with pytest.raises(KeyError):
        find_kind("lj39")
    assert find_kind("own/chgnet").maxcalls == 500


class Inline:
    """An executor that runs in this process."""

    n_parallel = 2

    def __init__(self):
        self.ran = []

    def submit(self, job):
        from concurrent.futures import Future

        self.ran.append(job.key)
        future = Future()
        if job.start == 99:
            future.set_exception(OSError("the worker is gone"))
        else:
            future.set_result(job.run())
        return future


def test_runs_are_records_and_are_not_run_twice(tmp_path):
    todo = jobs(["morse4"], ["frankenstein", "fire"], {"morse4": 3}, None)
    executor, steps = Inline(), []
    records = run(todo, tmp_path, executor, lambda *step: steps.append(step), lambda line: None)
    assert len(records) == 6 == len(executor.ran) and steps[-1][:2] == (6, 6)
    assert read(tmp_path, pytest.fail, RELAXATIONS) == records
    more = Inline()
    again = run(
        jobs(["morse4"], ["frankenstein", "fire", "lbfgs"], {"morse4": 3}, None),
        tmp_path, more, lambda *step: None, pytest.fail,
    )  # fmt: skip
    assert more.ran == [f"morse4/lbfgs/{start}" for start in range(3)]
    assert len(again) == 9 and again[:6] == records


def test_a_worker_that_dies_is_an_outcome(tmp_path):
    (record,) = run([Job("morse4", "fire", 99, None)], tmp_path, Inline(), lambda *step: None, pytest.fail)
    assert record["reason"] == "failed: OSError: the worker is gone"
    assert record["energy"] is None and not record["converged"]
    again = Inline()
    run([Job("morse4", "fire", 99, None)], tmp_path, again, lambda *step: None, pytest.fail)
    assert again.ran == ["morse4/fire/99"]  # it says nothing about the method


def test_a_torn_last_line_is_told_and_run_again(tmp_path):
    todo = jobs(["morse4"], ["fire"], {"morse4": 2}, None)
    run(todo, tmp_path, Inline(), lambda *step: None, pytest.fail)
    path = tmp_path / "records.jsonl"
    last = json.loads(path.read_text().splitlines()[-1])["cell"]
    path.write_bytes(path.read_bytes()[:-20])
    told, executor = [], Inline()
    run(todo, tmp_path, executor, lambda *step: None, told.append)
    assert executor.ran == [last] and "killed while writing?" in told[0]


def test_records_of_another_kind_are_refused(tmp_path):
    (tmp_path / "records.jsonl").write_text(
        json.dumps({"schema": 2, "cell": "x"}) + "\n" + json.dumps({"schema": 2}) + "\n"
    )
    with pytest.raises(RecordError, match="has schema 2, this version reads schema 1"):
        run([Job("morse4", "fire", 0, None)], tmp_path, Inline(), lambda *step: None, pytest.fail)
