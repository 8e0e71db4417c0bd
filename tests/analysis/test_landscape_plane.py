"""Planes: principal components against numpy's SVD, filter normalisation against its definition, and damage."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from landscape_cases import Quadratic, record
from torch import nn

from frankenstein.analysis.landscape import (
    LandscapeError,
    Plane,
    Snapshots,
    directions,
    pca,
    random_plane,
    trajectory_plane,
)
from frankenstein.analysis.landscape import files as files_module
from frankenstein.analysis.landscape.files import Vector

EXACT = 1e-10  # float64, whose rounding the T x T matrix squares: differences of size 1 in 12 snapshots
SINGLE = 1e-6  # directions are kept in float32: of norms near 1, a few times its rounding
MEMORY_BYTES = 2 << 30  # what a trajectory of 100 million parameters and 50 snapshots may take


def vectors(plane):
    return [vector.read(0, vector.size) for vector in plane.vectors()]


def matrix(snapshots):
    return np.array([snapshots.at(step).weights() for step in snapshots.steps()], dtype=float)


@pytest.fixture
def in_pieces(monkeypatch):
    """Few columns at a time, so that a small model takes several pieces."""
    monkeypatch.setattr(pca, "WORK_BYTES", 8 * 12 * 5)
    for module in (files_module, pca, directions):
        monkeypatch.setattr(module, "PIECE", 4)


@pytest.mark.usefixtures("in_pieces")
def test_components_are_those_of_an_svd(tmp_path):
    snapshots = record(Snapshots(tmp_path / "run"), Quadratic(), 12)
    plane = trajectory_plane(snapshots, tmp_path / "plane")
    points = matrix(snapshots)
    _, sizes, rows = np.linalg.svd(points - points.mean(0), full_matrices=False)
    origin, *found = vectors(plane)
    assert np.array_equal(origin, points[-1])
    for direction, expected in zip(found, rows[:2], strict=True):
        np.testing.assert_allclose(direction * np.sign(direction @ expected), expected, atol=EXACT)
    np.testing.assert_allclose(plane.about.explained_variance, (sizes**2 / (sizes**2).sum())[:11], atol=EXACT)
    track = plane.about.tracks["training"]
    away = points - origin
    np.testing.assert_allclose(np.stack([track.x, track.y]), np.stack(found) @ away.T, atol=EXACT)
    left = away - np.stack([track.x, track.y], 1) @ np.stack(found)
    np.testing.assert_allclose(track.distance, np.linalg.norm(left, axis=1), atol=1e-7)  # a root of what EXACT leaves
    assert track.x[0] > np.mean(track.x) and track.y[0] > np.mean(track.y)
    assert (track.x[-1], track.y[-1]) == (0.0, 0.0)
    np.testing.assert_allclose(plane.norms, 1.0, atol=EXACT)


def test_pieces_change_nothing(tmp_path, monkeypatch):
    snapshots = record(Snapshots(tmp_path / "run"), Quadratic(), 5)
    whole = trajectory_plane(snapshots, tmp_path / "whole")
    monkeypatch.setattr(pca, "WORK_BYTES", 1)
    pieces = trajectory_plane(snapshots, tmp_path / "pieces")
    for one, other in zip(vectors(whole), vectors(pieces), strict=True):
        np.testing.assert_allclose(one, other, atol=EXACT)


def test_a_trajectory_in_a_plane_is_all_in_it(tmp_path):
    """An ellipse of axes 3 and 2 about a point far away, in float32."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((40, 2)))[0]
    model, snapshots = nn.Linear(40, 1, bias=False), Snapshots(tmp_path / "run")
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    for step, angle in enumerate(angles):
        place = 5.0 + basis @ [3 * np.cos(angle), 2 * np.sin(angle)]
        model.weight.data = torch.tensor(place[None], dtype=torch.float32)
        snapshots.save(model, step)
    about = trajectory_plane(snapshots, tmp_path / "plane").about
    np.testing.assert_allclose(about.explained_variance[:2], [9 / 13, 4 / 13], atol=SINGLE)
    assert sum(about.explained_variance[2:]) < SINGLE
    track = about.tracks["training"]
    expected = np.abs(3 * (np.cos(angles) - np.cos(angles[-1])))
    np.testing.assert_allclose(np.abs(track.x), expected, atol=10 * SINGLE)  # weights of size 8
    assert max(track.distance) < 10 * SINGLE


def test_one_plane_for_several_trainings(tmp_path):
    ours = record(Snapshots(tmp_path / "ours"), Quadratic(), 4, seed=1)
    adam = record(Snapshots(tmp_path / "adam"), Quadratic(), 5, seed=2)
    both = {"ours": ours, "adam": adam}
    plane = trajectory_plane(both, tmp_path / "plane")
    points = np.concatenate([matrix(ours), matrix(adam)])
    rows = np.linalg.svd(points - points.mean(0), full_matrices=False)[2]
    np.testing.assert_allclose(np.abs(np.stack(vectors(plane)[1:]) @ rows[:2].T), np.eye(2), atol=EXACT)
    assert plane.about.origin == ("ours", 3)
    assert plane.about.tracks["adam"].steps == [0, 1, 2, 3, 4]
    elsewhere = trajectory_plane(both, tmp_path / "elsewhere", origin=("adam", 2))
    assert np.array_equal(vectors(elsewhere)[0], matrix(adam)[2])
    shift = elsewhere.about.tracks["ours"].x[0] - plane.about.tracks["ours"].x[0]
    assert shift == pytest.approx(elsewhere.about.tracks["adam"].x[1] - plane.about.tracks["adam"].x[1], abs=EXACT)


def test_steps_choose_snapshots(tmp_path):
    snapshots = record(Snapshots(tmp_path / "run"), Quadratic(), 6)
    plane = trajectory_plane(snapshots, tmp_path / "plane", steps=[0, 2, 4])
    assert plane.about.tracks["training"].steps == [0, 2, 4]
    assert plane.about.origin == ("training", 4)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)
        self.embedding, self.dead = nn.Embedding(4, 5), nn.Parameter(torch.zeros(2, 3))
        self.number = nn.Parameter(torch.tensor(2.0))


@pytest.mark.usefixtures("in_pieces")
def test_filters_have_the_norms_of_the_weights(tmp_path):
    torch.manual_seed(0)
    snapshots = Snapshots(tmp_path / "run")
    snapshots.save(Mixed(), 0)
    plane = random_plane(snapshots, tmp_path / "plane", seed=5)
    origin, first, second = vectors(plane)
    for part, place in plane.layout.places():
        weights, *found = (vector[place].reshape(part.shape) for vector in (origin, first, second))
        if len(part.shape) < 2:
            assert not found[0].any() and not found[1].any(), part.name
            continue
        for direction in found:
            norms = [np.linalg.norm(one.reshape(len(one), -1), axis=1) for one in (direction, weights)]
            np.testing.assert_allclose(*norms, rtol=SINGLE, err_msg=part.name)
    assert not np.allclose(first, second)
    np.testing.assert_allclose(plane.norms, [np.linalg.norm(first), np.linalg.norm(second)], rtol=SINGLE)
    assert (plane.about.normalisation, plane.about.seed, plane.about.origin) == ("filter", 5, ("training", 0))


def test_the_seed_decides_the_directions(tmp_path, monkeypatch):
    snapshots = record(Snapshots(tmp_path / "run"), nn.Linear(7, 9), 3)
    one = random_plane(snapshots, tmp_path / "one", seed=1)
    again = random_plane(snapshots, tmp_path / "again", seed=1)
    monkeypatch.setattr(directions, "PIECE", 14)  # sums over pieces are rounded otherwise, on some processors
    pieces = random_plane(snapshots, tmp_path / "pieces", seed=1)
    for mine, theirs in zip(vectors(pieces), vectors(one), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7)
    other = random_plane(snapshots, tmp_path / "other", seed=2)
    assert one.identity == again.identity != other.identity
    assert random_plane(snapshots, tmp_path / "early", seed=1, step=0).about.origin == ("training", 0)


def test_directions_are_normal_numbers(tmp_path):
    """One long filter: before it is scaled, its numbers have mean 0, variance 1 and no skew."""
    snapshots = record(Snapshots(tmp_path / "run"), nn.Linear(20_000, 1, bias=False), 1)
    plane = random_plane(snapshots, tmp_path / "plane", seed=0)
    drawn = vectors(plane)[1] * np.sqrt(20_000) / plane.norms[0]
    error = 5 / np.sqrt(20_000)  # five standard errors of the mean
    assert abs(drawn.mean()) < error
    assert abs((drawn**3).mean()) < error * np.sqrt(15)
    assert abs((np.abs(drawn) < 1).mean() - 0.6827) < error


def test_a_plane_opens_as_it_was_written(tmp_path):
    snapshots = record(Snapshots(tmp_path / "run"), Quadratic(), 4)
    plane = trajectory_plane(snapshots, tmp_path / "plane")
    opened = Plane.open(tmp_path / "plane")
    opened.check()
    assert opened == plane and opened.identity == plane.identity
    assert trajectory_plane(snapshots, tmp_path / "plane", origin=("training", 0)).identity != plane.identity


def line(snapshots, n):
    model = Quadratic()
    for step in range(n):
        with torch.no_grad():
            model.weight += 0.1 * torch.arange(12).reshape(3, 4)
        snapshots.save(model, step)
    return snapshots


def same(snapshots, n):
    for step in range(n):
        snapshots.save(Quadratic(), step)
    return snapshots


def nan(snapshots, n):
    model = Quadratic()
    record(snapshots, model, n - 1)
    with torch.no_grad():
        model.weight[1, 2] = float("nan")
    snapshots.save(model, n - 1)
    return snapshots


def damaged(snapshots, n):
    record(snapshots, Quadratic(), n)
    (path,) = snapshots.folder.glob("step-000000001.weights*")
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    return snapshots


@pytest.mark.parametrize(
    "make, n, message",
    [
        (same, 1, "a plane needs at least 3 snapshots, and there are fewer in {run} (1); record more of them"),
        (line, 2, "a plane needs at least 3 snapshots, and there are fewer in {run} (2)"),
        (same, 4, "all 4 snapshots have the same weights"),
        (line, 5, "the 5 snapshots lie on a line, which does not make a plane"),
        (nan, 4, "has a NaN or infinity in parameter 'weight'; leave it out with steps=[...]"),
        (damaged, 4, "is damaged (its checksum is wrong); restore it, or make it again"),
    ],
)
def test_a_trajectory_without_a_plane_is_one_line(make, n, message, tmp_path):
    snapshots = make(Snapshots(tmp_path / "run"), n)
    with pytest.raises(LandscapeError) as caught:
        trajectory_plane(snapshots, tmp_path / "plane")
    assert message.format(run=tmp_path / "run") in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "plane" / "plane.json").exists()


def test_a_nan_can_be_left_out(tmp_path):
    snapshots = nan(Snapshots(tmp_path / "run"), 5)
    assert trajectory_plane(snapshots, tmp_path / "plane", steps=range(4)).about.origin == ("training", 3)
    with pytest.raises(LandscapeError, match=r"step-000000004.*NaN or infinity in parameter 'weight'"):
        random_plane(snapshots, tmp_path / "plane", seed=0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: trajectory_plane({}, t / "p"), "no trajectory was given"),
        (lambda t: trajectory_plane(Snapshots(t / "x"), t / "p"), "layout.json is missing: record snapshots there"),
        (
            lambda t: trajectory_plane({"a": Snapshots(t / "run"), "b": Snapshots(t / "layer")}, t / "p"),
            "beside {t}/run: parameter 'weight' is of shape (2, 2), expected of shape (3, 4); trajectories in one",
        ),
        (
            lambda t: trajectory_plane({"a": Snapshots(t / "run"), "b": Snapshots(t / "single")}, t / "p"),
            "the weights are float32, expected float64",
        ),
        (
            lambda t: trajectory_plane(Snapshots(t / "run"), t / "p", origin=("x", 0)),
            "the origin is of training 'x'; there are training",
        ),
        (lambda t: trajectory_plane(Snapshots(t / "run"), t / "p", origin=("training", 9)), "no snapshot of step 9"),
        (lambda t: trajectory_plane(Snapshots(t / "run"), t / "run" / "layout.json"), "cannot write"),
        (lambda t: random_plane(Snapshots(t / "flat"), t / "p", seed=0), "a direction of the plane is zero"),
        (lambda t: random_plane(Snapshots(t / "run"), t / "p", seed=-1), "seeds are 0 or more"),
        (lambda t: Plane.open(t), "plane.json is missing: make a plane there, or name another folder"),
    ],
)
def test_what_cannot_be_is_one_line(call, message, tmp_path):
    record(Snapshots(tmp_path / "run"), Quadratic(), 4)
    record(Snapshots(tmp_path / "layer"), nn.Linear(2, 2), 4)
    record(Snapshots(tmp_path / "single"), Quadratic(torch.float32), 4)
    record(Snapshots(tmp_path / "flat"), nn.BatchNorm1d(3), 4)
    with pytest.raises(LandscapeError) as caught:
        call(tmp_path)
    assert message.format(t=tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("origin.npy", lambda path: path.unlink(), "is missing"),
        ("direction-2.npy", lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged"),
        ("direction-1.npy", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "its checksum is wrong"),
        ("origin.pt", lambda path: path.write_bytes(b"x"), "its checksum is wrong"),
        ("plane.json", lambda path: path.write_text("{"), "is damaged; make the plane again"),
        ("plane.json", lambda path: path.write_text(json.dumps({"format": 1})), "is damaged; make the plane again"),
        (
            "plane.json",
            lambda path: path.write_text(json.dumps({"format": 2})),
            "has the format 2, this version reads 1",
        ),
    ],
)
def test_damage_is_one_line(name, damage, message, tmp_path):
    trajectory_plane(record(Snapshots(tmp_path / "run"), Quadratic(), 4), tmp_path / "plane")
    damage(tmp_path / "plane" / name)
    with pytest.raises(LandscapeError) as caught:
        Plane.open(tmp_path / "plane").check()
    assert message in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    snapshot = record(Snapshots(tmp_path), Quadratic(), 1).at(0)
    snapshot.vector.path.write_bytes(snapshot.vector.path.read_bytes()[:-8])
    with pytest.raises(LandscapeError, match="is cut short"):
        snapshot.vector.read(0, snapshot.vector.size)
    gone = Vector(tmp_path / "gone", 1, np.dtype("<f4"), 0)
    with pytest.raises(LandscapeError, match="cannot read"):
        gone.read(0, 1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory in /proc")
def test_a_large_trajectory_fits_into_memory(tmp_path):
    """100 million parameters, 50 snapshots; the files are holes but for their ends, which are read like any other."""
    import subprocess

    from landscape_memory import N_PARAMETERS, N_SNAPSHOTS, write

    write(tmp_path / "run")
    assert Snapshots(tmp_path / "run").layout().size == N_PARAMETERS == 100_000_000
    assert len(Snapshots(tmp_path / "run").steps()) == N_SNAPSHOTS == 50
    module = sys.modules["landscape_memory"].__file__
    done = subprocess.run([sys.executable, module, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < MEMORY_BYTES
