"""Grids: a quadratic against its formula, the model as it was, BatchNorm, and going on after a stop."""

from __future__ import annotations

import json
import math
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from landscape_cases import (
    SIZES,
    Normalised,
    Quadratic,
    batch,
    cross_entropy,
    loss,
    make_broken,
    make_normalised,
    make_nothing,
    make_quadratic,
    record,
)
from torch import nn

from frankenstein.analysis.landscape import (
    Grid,
    Landscape,
    LandscapeError,
    MeanOver,
    Plane,
    Snapshots,
    Subject,
    evaluate_grid,
    evaluate_jobs,
    random_plane,
    trajectory_plane,
)
from frankenstein.compare.executors.local import local_executor

ROUNDING = 1e-12  # float64 sums of a dozen terms, relative
SINGLE = 1e-5  # float32 means and variances of 16 numbers

GRID = Grid((-1.0, 0.0, 2.0), (-0.5, 0.0))


@pytest.fixture
def plane(tmp_path):
    return trajectory_plane(record(Snapshots(tmp_path / "run"), Quadratic(), 6), tmp_path / "plane")


@pytest.fixture
def normalised(tmp_path):
    """A plane of a network with BatchNorm, whose statistics are not those it starts with."""
    torch.manual_seed(0)
    model = Normalised()
    model(batch()[0])
    return trajectory_plane(record(Snapshots(tmp_path / "normalised"), model, 6), tmp_path / "plane-2")


def state(model):
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "places": [value.data_ptr() for value in model.state_dict().values()],
        "modes": [module.training for module in model.modules()],
        "requires_grad": [one.requires_grad for one in model.parameters()],
        "grads": [None if one.grad is None else one.grad.clone() for one in model.parameters()],
        "momentum": [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm1d)],
        "buffers": [id(one) for one in model.buffers()],
    }


def assert_same_state(model, before):
    after = state(model)
    for name, value in before["values"].items():
        assert torch.equal(value, after["values"][name]), name
    for one, other in zip(before["grads"], after["grads"], strict=True):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))
    for name in ("places", "modes", "requires_grad", "momentum", "buffers"):
        assert before[name] == after[name], name


def test_a_quadratic_is_its_formula(plane, tmp_path):
    landscape = evaluate_grid(plane, GRID, Subject(Quadratic(), loss), tmp_path / "out", data="none")
    origin, first, second = (vector.read(0, vector.size) for vector in plane.vectors())
    sizes = np.concatenate([SIZES.numpy().reshape(-1), [2.0]])
    assert landscape.metrics["loss"].shape == (2, 3)
    for row, y in enumerate(GRID.y):
        for column, x in enumerate(GRID.x):
            expected = sizes @ (origin + x * first + y * second) ** 2 / 2
            assert landscape.metrics["loss"][row, column] == pytest.approx(expected, rel=ROUNDING)
    assert landscape.batchnorm == "none"


def test_the_origin_is_the_snapshot(normalised, tmp_path):
    """Bitwise: weights and statistics."""
    model = Normalised()
    Snapshots(tmp_path / "normalised").load(model, 5)
    expected = {name: float(value) for name, value in cross_entropy(model.eval()).items()}
    landscape = evaluate_grid(normalised, GRID, Subject(Normalised(), cross_entropy), tmp_path / "out", data="16")
    assert {name: values[1, 1] for name, values in landscape.metrics.items()} == expected
    assert list(landscape.metrics) == ["loss", "accuracy"]


def careless(model):
    """Train the model, and leave it in another state."""
    x, y = batch()
    model.train()
    model.float()
    nn.functional.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    model.first.weight.requires_grad_(False)
    model.norm.running_mean = torch.full((4,), 9.0)
    model.double()
    return {"loss": 1.0}


def failing(model):
    careless(model)
    raise KeyboardInterrupt


@pytest.mark.parametrize("evaluate", [cross_entropy, careless, failing])
@pytest.mark.parametrize("recompute", [None, lambda model: model(batch(1)[0].to(model.first.weight))])
def test_the_model_is_as_it_was(evaluate, recompute, normalised, tmp_path):
    torch.manual_seed(1)
    model = Normalised()
    model(batch()[0]).sum().backward()
    model.dropout.eval()
    model.last.bias.requires_grad_(False)
    model.last.bias.grad = None
    before, random_state = state(model), torch.random.get_rng_state()
    try:
        evaluate_grid(normalised, GRID, Subject(model, evaluate, recompute), tmp_path / "out", data="16")
    except KeyboardInterrupt:
        assert evaluate is failing
    assert_same_state(model, before)
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_random_numbers_are_the_same_at_every_point(plane, tmp_path):
    def evaluate(model):
        return {"loss": torch.rand(())}

    drawn = {}
    for seed in (0, 1):
        grid = evaluate_grid(plane, GRID, Subject(Quadratic(), evaluate), tmp_path / str(seed), data="none", seed=seed)
        drawn[seed] = np.unique(grid.metrics["loss"])
        assert grid.seed == seed
    assert len(drawn[0]) == len(drawn[1]) == 1 and drawn[0] != drawn[1]


def test_statistics_are_those_of_the_origin(normalised, tmp_path):
    """At every point, whatever the evaluation did at the one before."""
    seen, expected = [], normalised.buffers()

    def evaluate(model):
        seen.append({name: value.clone() for name, value in model.norm.named_buffers()})
        model.train()
        model(batch(3)[0])
        return cross_entropy(model.eval())

    landscape = evaluate_grid(normalised, GRID, Subject(Normalised(), evaluate), tmp_path / "out", data="16")
    assert landscape.batchnorm == "keep" and len(seen) == 6
    for one in seen:
        assert {name: value.tolist() for name, value in one.items()} == {
            name.removeprefix("norm."): value.tolist() for name, value in expected.items()
        }


def test_statistics_are_those_of_the_point(normalised, tmp_path):
    """The mean of two batches' means and variances; dropout is off, and nothing of the training before is left."""
    batches = [batch(1)[0], batch(2)[0]]
    n_points = 0

    def recompute(model):
        assert not model.dropout.training and model.norm.training and not torch.is_grad_enabled()
        for x in batches:
            model(x)

    def evaluate(model):
        nonlocal n_points
        n_points += 1
        assert not any(module.training for module in model.modules())
        with torch.no_grad():
            inputs = [model.first(x) for x in batches]
        mean = torch.stack([one.mean(0) for one in inputs]).mean(0)
        variance = torch.stack([one.var(0) for one in inputs]).mean(0)
        torch.testing.assert_close(model.norm.running_mean, mean, rtol=SINGLE, atol=SINGLE)
        torch.testing.assert_close(model.norm.running_var, variance, rtol=SINGLE, atol=SINGLE)
        return cross_entropy(model)

    landscape = evaluate_grid(normalised, GRID, Subject(Normalised(), evaluate, recompute), tmp_path / "o", data="16")
    assert landscape.batchnorm == "recompute" and n_points == 6
    assert Landscape.load(tmp_path / "o").batchnorm == "recompute"


def interrupted(evaluate, after):
    calls = []

    def wrapped(model):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return evaluate(model)

    return wrapped, calls


def test_it_goes_on_where_it_was_stopped(plane, tmp_path):
    whole = evaluate_grid(plane, GRID, Subject(Quadratic(), loss), tmp_path / "whole", data="none")
    stopped, _ = interrupted(loss, 4)
    with pytest.raises(KeyboardInterrupt):
        evaluate_grid(plane, GRID, Subject(Quadratic(), stopped), tmp_path / "parts", data="none")
    assert not (tmp_path / "parts" / "landscape.json").exists()
    with (tmp_path / "parts" / "points.jsonl").open("a") as file:
        file.write('{"place": [0, 1], "metr')  # a kill in the middle of a line
    rest, calls = interrupted(loss, 2)
    seen = []
    parts = evaluate_grid(
        plane,
        GRID,
        Subject(Quadratic(), rest),
        tmp_path / "parts",
        data="none",
        progress=lambda n, total: seen.append((n, total)),
    )
    assert len(calls) == 2 and seen == [(5, 6), (6, 6)]
    assert np.array_equal(whole.metrics["loss"], parts.metrics["loss"])
    none, calls = interrupted(loss, 0)
    again = evaluate_grid(plane, GRID, Subject(Quadratic(), none), tmp_path / "parts", data="none")
    assert np.array_equal(whole.metrics["loss"], again.metrics["loss"]) and not calls


def test_points_of_something_else_are_refused(plane, tmp_path):
    subject, out = Subject(Quadratic(), loss), tmp_path / "out"
    evaluate_grid(plane, GRID, subject, out, data="none")
    other = random_plane(Snapshots(tmp_path / "run"), tmp_path / "other", seed=0)
    for changed, what in (
        ({"data": "some"}, 'its data is "none", this one\'s is "some"'),
        ({"seed": 3}, "its seed is 0, this one's is 3"),
        ({"plane": other}, f'its plane is "{plane.identity}", this one\'s is "{other.identity}"'),
        ({"grid": Grid((0.0, 1.0), (0.0, 1.0))}, "its x is [-1.0, 0.0, 2.0], this one's is [0.0, 1.0]"),
    ):
        arguments = {"plane": plane, "grid": GRID, "subject": subject, "folder": out, "data": "none"} | changed
        with pytest.raises(LandscapeError) as caught:
            evaluate_grid(**arguments)
        assert f"points.jsonl is of another landscape: {what}; name another folder" in str(caught.value)


def test_points_that_were_evaluated_in_another_way_are_refused(normalised, tmp_path):
    stopped, _ = interrupted(cross_entropy, 2)
    with pytest.raises(KeyboardInterrupt):
        evaluate_grid(normalised, GRID, Subject(Normalised(), stopped), tmp_path / "out", data="16")
    for subject, what in (
        (Subject(Normalised(), lambda model: {"loss": 1.0}), "has the metrics ['loss'], the points before it have"),
        (make_normalised("cpu"), "has the batchnorm recompute, the points before it have keep"),
    ):
        with pytest.raises(LandscapeError) as caught:
            evaluate_grid(normalised, GRID, subject, tmp_path / "out", data="16")
        assert what in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("x\n", "is damaged in line 1; remove it and evaluate again"),
        ("{header}\n[]\n", "is damaged in line 2; remove it"),
        ('{header}\n{{"place": [0]}}\n', "is damaged; remove it and evaluate again"),
    ],
)
def test_damaged_points_are_one_line(content, message, plane, tmp_path):
    evaluate_grid(plane, GRID, Subject(Quadratic(), loss), tmp_path / "out", data="none")
    path = tmp_path / "out" / "points.jsonl"
    path.write_text(content.format(header=path.read_text().splitlines()[0]))
    with pytest.raises(LandscapeError) as caught:
        evaluate_grid(plane, GRID, Subject(Quadratic(), loss), tmp_path / "out", data="none")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_plane_is_noticed_before_anything_is_evaluated(plane, tmp_path):
    path = plane.folder / "direction-1.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    never, calls = interrupted(loss, 0)
    with pytest.raises(LandscapeError, match=r"direction-1\.npy is damaged"):
        evaluate_grid(plane, GRID, Subject(Quadratic(), never), tmp_path / "out", data="none")
    assert not calls


@pytest.mark.parametrize(
    "returned, message",
    [
        (1.0, "`evaluate` returned float '1.0'; it must return numbers by name, such as {'loss': 0.5}"),
        ({}, "`evaluate` returned dict '{}'"),
        ({"loss": torch.ones(2)}, "`evaluate` returned dict"),
        ({"loss": "low"}, "`evaluate` returned dict"),
    ],
)
def test_what_evaluate_must_return(returned, message, plane, tmp_path):
    with pytest.raises(LandscapeError) as caught:
        evaluate_grid(plane, GRID, Subject(Quadratic(), lambda model: returned), tmp_path / "out", data="none")
    assert message in str(caught.value)


def test_another_model_is_refused(plane, normalised, tmp_path):
    with pytest.raises(LandscapeError, match="the model: parameter 'weight' is absent, expected of shape"):
        evaluate_grid(plane, GRID, Subject(nn.Sequential(nn.Linear(4, 3)), loss), tmp_path / "out", data="none")
    with pytest.raises(LandscapeError, match="`recompute` ran no batch through the model"):
        evaluate_grid(normalised, GRID, Subject(Normalised(), loss, lambda _: None), tmp_path / "other", data="none")


def test_values_that_are_not_finite_are_kept(plane, tmp_path):
    values = iter([1.0, math.nan, math.inf, -math.inf, 0.1 + 0.2, 1e-300])
    subject = Subject(Quadratic(), lambda model: {"loss": next(values)})
    expected = [[1.0, math.nan, math.inf], [-math.inf, 0.1 + 0.2, 1e-300]]
    landscape = evaluate_grid(plane, GRID, subject, tmp_path / "out", data="none")
    for one in (
        landscape,
        Landscape.load(tmp_path / "out"),
        evaluate_grid(plane, GRID, subject, tmp_path / "out", data="none"),
    ):
        np.testing.assert_array_equal(one.metrics["loss"], expected)
    json.loads((tmp_path / "out" / "landscape.json").read_text(), parse_constant=pytest.fail)  # plain JSON


def test_the_file_says_how_it_was_made(plane, tmp_path):
    landscape = evaluate_grid(plane, GRID, Subject(Quadratic(), loss), tmp_path / "out", data="no data", seed=4)
    read = Landscape.load(tmp_path / "out")
    assert read.about == plane.about == landscape.about
    assert (read.grid, read.plane, read.norms) == (GRID, plane.identity, plane.norms)
    assert (read.data, read.seed, read.batchnorm) == ("no data", 4, "none")
    assert read.provenance["versions"]["torch"] == torch.__version__
    assert read.about.explained_variance[:2] == plane.about.explained_variance[:2]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "is missing: evaluate a grid to its end"),
        ("{", "is damaged; evaluate the grid again"),
        ('{"format": 1}', "is damaged"),
        ('{"format": 7}', "has the format 7, this version reads 1"),
    ],
)
def test_a_damaged_landscape_is_one_line(content, message, tmp_path):
    if content is not None:
        (tmp_path / "landscape.json").write_text(content)
    with pytest.raises(LandscapeError) as caught:
        Landscape.load(tmp_path)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_grid_goes_around_the_trajectory(plane, tmp_path):
    grid = Grid.around(plane, 5, margin=0.1)
    track = plane.about.tracks["training"]
    room = 0.1 * max(max(track.x) - min(track.x), max(track.y) - min(track.y))
    assert len(grid.x) == len(grid.y) == 5
    ends = (grid.x[0], grid.x[-1], grid.y[0], grid.y[-1])
    expected = (min(track.x) - room, max(track.x) + room, min(track.y) - room, max(track.y) + room)
    np.testing.assert_allclose(ends, expected, rtol=ROUNDING)
    assert Grid.square(2.0, 3) == Grid((-2.0, 0.0, 2.0), (-2.0, 0.0, 2.0))
    with pytest.raises(LandscapeError, match="has no trajectory to go around"):
        Grid.around(random_plane(Snapshots(tmp_path / "run"), tmp_path / "other", seed=0))


@pytest.mark.parametrize("axis", [(0.0,), (1.0, 0.0), (0.0, math.nan), ()])
def test_axes_of_a_grid_ascend(axis):
    with pytest.raises(LandscapeError, match="the grid's y must be two or more finite numbers in ascending order"):
        Grid((0.0, 1.0), axis)


def test_means_do_not_depend_on_the_batches(tmp_path):
    x, y = batch(0, 17)
    torch.manual_seed(0)
    model = Normalised().eval()

    def score(model, pair):
        return {"loss": nn.functional.cross_entropy(model(pair[0]), pair[1], reduction="none")}

    means = [MeanOver(list(zip(x.split(n), y.split(n), strict=True)), score)(model)["loss"] for n in (17, 5)]
    assert means[0] == pytest.approx(means[1], rel=SINGLE)
    assert means[0] == pytest.approx(nn.functional.cross_entropy(model(x), y).item(), rel=SINGLE)
    with pytest.raises(LandscapeError, match="there is no batch of data to evaluate"):
        MeanOver(iter([]), score)(model)


@pytest.fixture(scope="module")
def workers():
    with local_executor(2, 1, 0) as executor:
        yield executor


def test_jobs_are_as_one_process(normalised, workers, tmp_path):
    """Bitwise, on the comparison's executor and on a pool of processes."""
    alone = evaluate_grid(normalised, GRID, make_normalised("cpu"), tmp_path / "alone", data="16")
    seen = []
    jobs = evaluate_jobs(
        normalised,
        GRID,
        make_normalised,
        tmp_path / "jobs",
        data="16",
        executor=workers,
        devices=["cpu"] * 2,
        points_per_job=1,
        progress=lambda n, total: seen.append((n, total)),
    )
    assert seen == [(n, 6) for n in range(1, 7)]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        options = {"data": "16", "executor": pool, "devices": ["cpu"]}
        pooled = evaluate_jobs(normalised, GRID, make_normalised, tmp_path / "pool", **options)
    for name in ("loss", "accuracy"):
        assert np.array_equal(alone.metrics[name], jobs.metrics[name])
        assert np.array_equal(alone.metrics[name], pooled.metrics[name])
    assert jobs.batchnorm == "recompute"


def test_a_worker_keeps_no_plane_that_was_replaced(plane, workers, tmp_path):
    options = {"data": "none", "executor": workers, "devices": ["cpu"]}
    one = evaluate_jobs(plane, GRID, make_quadratic, tmp_path / "one", **options)
    other = trajectory_plane(Snapshots(tmp_path / "run"), plane.folder, origin=("training", 0))
    two = evaluate_jobs(other, GRID, make_quadratic, tmp_path / "two", **options)
    expected = evaluate_grid(other, GRID, make_quadratic("cpu"), tmp_path / "expected", data="none")
    assert np.array_equal(two.metrics["loss"], expected.metrics["loss"])
    assert not np.array_equal(one.metrics["loss"], two.metrics["loss"])
    with pytest.raises(LandscapeError, match="holds another plane by now; open it again"):
        evaluate_jobs(plane, GRID, make_quadratic, tmp_path / "three", **options)


class Replacing:
    """An executor of this process that replaces the plane before the job runs."""

    n_parallel = 1

    def __init__(self, snapshots):
        self.snapshots = snapshots

    def submit(self, job):
        trajectory_plane(self.snapshots, job.plane, origin=("training", 0))
        future = Future()
        try:
            future.set_result(job.run())
        except LandscapeError as error:
            future.set_exception(error)
        return future


def test_a_plane_that_is_replaced_meanwhile_is_noticed(plane, tmp_path):
    options = {"data": "none", "executor": Replacing(Snapshots(tmp_path / "run")), "devices": ["cpu"]}
    with pytest.raises(LandscapeError, match="holds another plane than the one that is evaluated"):
        evaluate_jobs(plane, GRID, make_quadratic, tmp_path / "out", **options)


class FailingAfter:
    """An executor of this process whose later jobs fail."""

    n_parallel = 1

    def __init__(self, n):
        self.n = n

    def submit(self, job):
        future = Future()
        self.n -= 1
        if self.n >= 0:
            future.set_result(job.run())
        else:
            future.set_exception(RuntimeError("out of memory\nmore"))
        return future


def test_a_job_that_fails_costs_its_own_points(plane, tmp_path):
    options = {"data": "none", "devices": ["cpu"], "points_per_job": 2}
    with pytest.raises(LandscapeError) as caught:
        evaluate_jobs(plane, GRID, make_quadratic, tmp_path / "out", executor=FailingAfter(2), **options)
    path = tmp_path / "out" / "points.jsonl"
    expected = f"a job failed (RuntimeError: out of memory); 4 of 6 points are in {path}: call again to go on"
    assert str(caught.value) == expected
    jobs = evaluate_jobs(plane, GRID, make_quadratic, tmp_path / "out", executor=FailingAfter(1), **options)
    alone = evaluate_grid(plane, GRID, make_quadratic("cpu"), tmp_path / "alone", data="none")
    assert np.array_equal(alone.metrics["loss"], jobs.metrics["loss"])


@pytest.mark.parametrize(
    "make, message",
    [
        (make_broken, "a job failed (WorkerError: RuntimeError: no data here); 0 of 6 points are in"),
        (make_nothing, "`make` returned Quadratic; it must return a Subject"),
        (lambda device: None, "`make` cannot be sent to a process"),
    ],
)
def test_what_make_must_be(make, message, plane, workers, tmp_path):
    with pytest.raises(LandscapeError) as caught:
        evaluate_jobs(plane, GRID, make, tmp_path / "out", data="none", executor=workers, devices=["cpu"] * 2)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_executors_that_do_not_fit(plane, workers, tmp_path):
    with ThreadPoolExecutor(1) as threads, pytest.raises(LandscapeError, match="give an executor of processes"):
        evaluate_jobs(plane, GRID, make_quadratic, tmp_path, data="none", executor=threads, devices=["cpu"])
    with pytest.raises(LandscapeError, match="no device was given"):
        evaluate_jobs(plane, GRID, make_quadratic, tmp_path, data="none", executor=workers, devices=[])


def test_weights_of_another_precision(tmp_path):
    """A float32 trajectory of a bfloat16 model moves it there, rounded to what it can hold."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4, dtype=torch.bfloat16)
    plane = trajectory_plane(record(Snapshots(tmp_path / "run"), model, 5), tmp_path / "plane")
    seen = []

    def evaluate(model):
        seen.append(model.weight.detach().clone())
        return {"loss": 0.0}

    evaluate_grid(Plane.open(tmp_path / "plane"), GRID, Subject(model, evaluate), tmp_path / "out", data="none")
    vectors = [vector.read(0, 16) for vector in plane.vectors()]
    for (x, y), weight in zip([(x, y) for y in GRID.y for x in GRID.x], seen, strict=True):
        expected = torch.tensor(vectors[0] + x * vectors[1] + y * vectors[2]).reshape(4, 4).bfloat16()
        assert torch.equal(weight, expected)
