"""Evaluate a model over a grid, in this process or as jobs of an executor; either way it goes on where it stopped."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.grid import Grid, Subject
from frankenstein.analysis.landscape.jobs import PointsJob, evaluated
from frankenstein.analysis.landscape.journal import Journal
from frankenstein.analysis.landscape.moving import Mover, kept
from frankenstein.analysis.landscape.plane import Plane
from frankenstein.analysis.landscape.result import Landscape
from frankenstein.compare.executors import Executor, one_line

Progress = Callable[[int, int], object]


def evaluate_grid(
    plane: Plane,
    grid: Grid,
    subject: Subject,
    folder: Path | str,
    *,
    data: str,
    seed: int = 0,
    progress: Progress | None = None,
) -> Landscape:
    """Evaluate a model at all points of a grid, in this process.

    Each point is written down when it is known: called again, this goes on where it was stopped. When it returns or
    raises, the model is as it was, bitwise.

    Args:
        plane: Where the grid lies.
        grid: The points.
        subject: The model, and how to evaluate it. It is in evaluation mode, and torch's random numbers start from
            `seed` at every point, so that a point's value does not depend on the others.
        folder: For the points and the result, `landscape.json`.
        data: Says which data `subject.evaluate` uses; kept in the result.
        seed: Of random numbers in the evaluation, if there are any.
        progress: Called with the number of points that are done and of all.

    Returns:
        The landscape, which is also in the folder.

    Raises:
        LandscapeError: The plane's files are damaged, the model is another, the folder holds another landscape's
            points, or `evaluate` does not return numbers by name.
    """
    plane.check()
    journal = Journal(Path(folder), _about(plane, grid, data, seed))
    with kept(subject.model):
        mover = Mover(subject.model, plane)
        for column, row in _left(grid, journal):
            point = evaluated(subject, mover, (grid.x[column], grid.y[row]), seed)
            journal.add({"place": [column, row], **point})
            if progress is not None:
                progress(len(journal.points), len(grid.points()))
    return _result(plane, grid, journal, Path(folder))


def evaluate_jobs(
    plane: Plane,
    grid: Grid,
    make: Callable[[str], Subject],
    folder: Path | str,
    *,
    data: str,
    executor: Executor | futures.Executor,
    devices: Sequence[str],
    seed: int = 0,
    points_per_job: int = 8,
    n_cpus: int = 1,
    n_gpus: float = 0.0,
    timeout: float | None = None,
    progress: Progress | None = None,
) -> Landscape:
    """Evaluate a model at all points of a grid, by jobs of an executor.

    As `evaluate_grid`, but each process makes a model of its own; it keeps it from job to job.

    Args:
        plane: Where the grid lies; its folder must be one that the jobs see.
        grid: The points.
        make: Makes the model on a device, and how to evaluate it; a function of a module, or otherwise picklable.
        folder: For the points and the result.
        data: Says which data is used; kept in the result.
        executor: One of `frankenstein.compare.executors`, or a pool of processes.
        devices: One for each job that runs at a time: `["cpu"] * 4`, or `["cuda:0", "cuda:1"]`. Executors that hand
            out GPUs show a job only its own, which is `"cuda"`.
        seed: Of random numbers in the evaluation.
        points_per_job: A job that is killed loses so many points at most.
        n_cpus: Threads of a job.
        n_gpus: GPUs that a job asks the executor for.
        timeout: Seconds that a job may take, where the executor looks at it.
        progress: Called with the number of points that are done and of all.

    Returns:
        The landscape, which is also in the folder.

    Raises:
        LandscapeError: As `evaluate_grid`; or a job failed, after the points of all jobs that did not are written down.
    """
    if isinstance(executor, futures.ThreadPoolExecutor):
        raise LandscapeError("threads share weights and random numbers; give an executor of processes")
    if not devices:
        raise LandscapeError("no device was given; name one for each job that runs at a time, such as ['cpu']")
    plane.check()
    journal = Journal(Path(folder), _about(plane, grid, data, seed))
    made = _pickled(make)
    left = _left(grid, journal)
    jobs = []
    for start in range(0, len(left), points_per_job):
        points = tuple(
            (column, row, grid.x[column], grid.y[row]) for column, row in left[start : start + points_per_job]
        )
        key = f"{plane.identity}-{points[0][0]}-{points[0][1]}"
        jobs.append(PointsJob(key, plane.folder.resolve(), plane.identity, points, made, seed, n_cpus, n_gpus, timeout))
    _run(jobs, executor, list(devices), journal, len(grid.points()), progress)
    return _result(plane, grid, journal, Path(folder))


def _run(
    jobs: list[PointsJob],
    executor: Executor | futures.Executor,
    free: list[str],
    journal: Journal,
    n_points: int,
    progress: Progress | None,
) -> None:
    """Run jobs, one at a time on each of the free devices; after a failure start none, and wait for those that run."""
    running: dict[futures.Future[dict[str, Any]], str] = {}
    failures: list[BaseException] = []
    waiting = jobs[::-1]
    while running or (waiting and not failures):
        while waiting and free and not failures:
            device = free.pop(0)
            running[_submit(executor, waiting.pop().on(device))] = device
        for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
            free.append(running.pop(future))
            error = future.exception()
            if error is not None:
                failures.append(error)
                continue
            for point in future.result()["points"]:
                journal.add(point)
            if progress is not None:
                progress(len(journal.points), n_points)
    if failures:
        raise LandscapeError(
            f"a job failed ({one_line(failures[0])}); {len(journal.points)} of {n_points} points are in "
            f"{journal.path}: call again to go on"
        ) from failures[0]


def _submit(executor: Executor | futures.Executor, job: PointsJob) -> futures.Future[dict[str, Any]]:
    return executor.submit(job.run) if isinstance(executor, futures.Executor) else executor.submit(job)


def _pickled(make: Callable[[str], Subject]) -> bytes:
    try:
        return pickle.dumps(make)
    except Exception as error:
        raise LandscapeError(
            f"`make` cannot be sent to a process ({one_line(error)}); use a function of a module"
        ) from None


def _about(plane: Plane, grid: Grid, data: str, seed: int) -> dict[str, Any]:
    return {"format": 1, "plane": plane.identity, "x": list(grid.x), "y": list(grid.y), "data": data, "seed": seed}


def _left(grid: Grid, journal: Journal) -> list[tuple[int, int]]:
    return [place for place in grid.points() if place not in journal.points]


def _result(plane: Plane, grid: Grid, journal: Journal, folder: Path) -> Landscape:
    landscape = Landscape.of(plane, grid, journal)
    landscape.save(folder)
    return landscape
