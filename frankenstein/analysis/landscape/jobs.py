"""One point of a grid, and a few of them as a job for an executor."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.grid import Subject
from frankenstein.analysis.landscape.moving import Mover, recompute_statistics, running_layers
from frankenstein.analysis.landscape.plane import Plane


@dataclass(frozen=True)
class PointsJob:
    """Some points of a grid; a `frankenstein.compare.executors.Job`.

    Attributes:
        key: Name of the job.
        plane: The plane's folder.
        identity: The plane's, of which there may be another in the folder by now.
        points: Column, row, x and y of each.
        make: Pickled: makes the subject on a device. As bytes it says whether it is the one of the job before.
        seed: Of random numbers at each point.
        n_cpus: Threads.
        n_gpus: GPUs that it asks for.
        timeout: Seconds that it may take.
        device: Where the model is made.
        modules: None: `make` is found by its own module's name.
    """

    key: str
    plane: Path
    identity: str
    points: tuple[tuple[int, int, float, float], ...]
    make: bytes
    seed: int
    n_cpus: int = 1
    n_gpus: float = 0.0
    timeout: float | None = None
    device: str = "cpu"
    modules: tuple[str, ...] = ()

    def on(self, device: str) -> PointsJob:
        """Return the job on a device."""
        return replace(self, device=device)

    def run(self) -> dict[str, Any]:
        """Return the points as the journal takes them."""
        torch.set_num_threads(self.n_cpus)
        subject, mover = _made(self.make, self.device, self.plane, self.identity)
        return {
            "points": [
                {"place": [column, row], **evaluated(subject, mover, (x, y), self.seed)}
                for column, row, x, y in self.points
            ]
        }


@lru_cache(maxsize=1)
def _made(make: bytes, device: str, folder: Path, identity: str) -> tuple[Subject, Mover]:
    """Return the subject and what moves it; of the job before, if it is the same."""
    subject = pickle.loads(make)(device)
    if not isinstance(subject, Subject):
        raise LandscapeError(f"`make` returned {type(subject).__name__}; it must return a Subject")
    plane = Plane.open(folder)
    if plane.identity != identity:
        raise LandscapeError(
            f"{folder} holds another plane than the one that is evaluated; leave it as it is meanwhile"
        )
    return subject, Mover(subject.model, plane)


def evaluated(subject: Subject, mover: Mover, place: tuple[float, float], seed: int) -> dict[str, Any]:
    """Evaluate the subject at a place of the plane.

    Returns:
        "metrics", by name, and "batchnorm": "none", "keep" or "recompute".

    Raises:
        LandscapeError: `evaluate` does not return numbers by name, or `recompute` runs no batch.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(list(devices)):
        torch.manual_seed(seed)
        mover.to(*place)
        has_statistics = bool(running_layers(subject.model))
        if has_statistics and subject.recompute is not None:
            recompute_statistics(subject.model, subject.recompute)
        metrics = subject.evaluate(subject.model)
    batchnorm = "none" if not has_statistics else "keep" if subject.recompute is None else "recompute"
    return {"metrics": _numbers(metrics), "batchnorm": batchnorm}


def _numbers(metrics: object) -> dict[str, float]:
    if isinstance(metrics, Mapping) and metrics:
        try:
            return {str(name): float(value) for name, value in metrics.items()}
        except (TypeError, ValueError, RuntimeError):  # the last is torch's, of a tensor with several elements
            pass
    raise LandscapeError(
        f"`evaluate` returned {type(metrics).__name__} {str(metrics)[:60]!r}; it must return numbers by name, such as "
        "{'loss': 0.5}"
    )
