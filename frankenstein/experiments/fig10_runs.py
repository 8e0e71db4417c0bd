"""Runs of the over-adaptation test: an optimizer on some seeds at a time, one record for each seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from numbers import Real
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from frankenstein.compare.executors import Executor
from frankenstein.compare.interrupts import interrupts_held
from frankenstein.compare.store.provenance import provenance
from frankenstein.compare.store.records import Format, Record, appending
from frankenstein.experiments.experiment import ExperimentError, Options
from frankenstein.experiments.fig10_model import (
    N_EPOCHS,
    N_INPUTS,
    N_SAMPLES,
    N_TRAIN,
    P_POSITIVE,
    SETTINGS,
    Curves,
    Setting,
    settings_of,
    spec,
    train,
)

__all__ = ["RUNS", "Found", "Job", "config", "found_in", "run"]

SCHEMA = 1
VERSION = 1  # raised when what a run computes changes: records of older ones are not taken for it
SEEDS_AT_ONCE = 10  # with fewer the overhead of a step is most of it; with more a kill costs more
DIGITS = 6  # of the losses in records


def _check(record: Record) -> str:
    """The curves are of one length, and all of their numbers finite."""
    columns = [record["curve"][name] for name in ("epoch", "train_loss", "test_loss")]
    if len(set(map(len, columns))) != 1 or not columns[0]:
        return "has a curve that is not lists of equal length"
    numbers = [value for column in columns for value in column]
    is_whole = all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
    return "" if is_whole else "has a curve with something else than numbers"


RUNS = Format(
    SCHEMA,
    {
        "cell": str,
        "setting": tuple(SETTINGS),
        "optimizer": str,
        "optimizer_title": str,
        "config": dict,
        "seed": int,
        "curve": {"epoch": list, "train_loss": list, "test_loss": list},
        "test_error": Real,
        "seconds": Real,
        "preset": str,
        "finished_at": str,
        "provenance": {"versions": dict, "system": str, "device": str},
    },
    _check,
)
"""The records of this experiment: one for each setting, optimizer and seed."""


def config(setting: Setting, method: str) -> dict[str, Any]:
    """Return what decides the outcome of a run beside its seed, as plain data."""
    data = {"n_samples": N_SAMPLES, "n_train": N_TRAIN, "p_positive": P_POSITIVE, "n_inputs": N_INPUTS}
    settings = {"settings": settings_of(method), "n_epochs": N_EPOCHS, "version": VERSION}
    return {**asdict(setting), **data, **settings, "optimizer": spec(method).config()}


@dataclass(frozen=True)
class Job:
    """An optimizer in a setting, on some seeds; an executor sends it to a worker."""

    setting: str
    method: str
    seeds: tuple[int, ...]
    preset: str
    n_cpus: int = 1
    n_gpus: float = 0.0
    timeout: float | None = None
    modules: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name for people."""
        return f"{self.setting}/{self.method}"

    def run(self) -> dict[str, list[Record]]:
        """Train, and return the records of all seeds as `runs`."""
        began = perf_counter()
        curves = train(SETTINGS[self.setting], self.method, self.seeds)
        seconds = (perf_counter() - began) / len(self.seeds)
        return {"runs": [self.record(i, curves, seconds) for i in range(len(self.seeds))]}

    def record(self, i: int, curves: Curves, seconds: float) -> Record:
        """Return the record of seed number i of the job."""
        columns = {
            name: [float(f"{value:.{DIGITS}g}") for value in getattr(curves, name)[i].tolist()]
            for name in ("train_loss", "test_loss")
        }
        return {
            "schema": SCHEMA,
            "cell": f"{self.key}/{self.seeds[i]}",
            "setting": self.setting,
            "optimizer": self.method,
            "optimizer_title": spec(self.method).title,
            "config": config(SETTINGS[self.setting], self.method),
            "seed": self.seeds[i],
            "curve": {"epoch": list(range(len(columns["test_loss"]))), **columns},
            "test_error": round(float(curves.test_error[i, -1]), DIGITS),
            "seconds": round(seconds, 3),
            "preset": self.preset,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "provenance": provenance(),
        }


def run(options: Options, methods: list[str], n_seeds: int, executor: Executor) -> list[Record]:
    """Train what the folder lacks, in all settings; return the folder's records of these methods and seeds.

    Raises:
        ExperimentError: A worker died.
        RecordError: The folder cannot be used.
    """
    configs = {(name, method): config(SETTINGS[name], method) for name in SETTINGS for method in methods}
    wanted = [(*pair, seed) for pair in configs for seed in range(n_seeds)]
    with appending(options.out, options.say, RUNS) as (known, append):
        by_run = {(r["setting"], r["optimizer"], r["seed"]): r for r in known}
        done = {key: by_run[key] for key in wanted if key in by_run and by_run[key]["config"] == configs[key[:2]]}
        futures: dict[Future[dict[str, Any]], Job] = {
            executor.submit(job): job for job in _jobs([key for key in wanted if key not in done], options.preset)
        }

        def collect(finished: Iterable[Future[dict[str, Any]]]) -> None:
            for future in finished:
                if error := future.exception():
                    raise ExperimentError(f"{futures[future].key} failed: {error}; the same command goes on")
                with interrupts_held():  # what is written is counted
                    job = futures.pop(future)
                    for record in future.result()["runs"]:
                        append(record)
                        done[record["setting"], record["optimizer"], record["seed"]] = record
                options.progress(len(done), len(wanted), job.key)

        options.progress(len(done), len(wanted), "")
        try:
            while futures:
                collect(wait(futures, return_when=FIRST_COMPLETED).done)
        except KeyboardInterrupt:
            with interrupts_held():  # a second Ctrl-C cannot cost a finished run
                collect([future for future in futures if future.done() and not future.exception()])
            raise
    return [done[key] for key in wanted]


def _jobs(missing: list[tuple[str, str, int]], preset: str) -> list[Job]:
    """Return the jobs that run what is missing, in its order."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for setting, method, seed in missing:
        seeds.setdefault((setting, method), []).append(seed)
    return [
        Job(*pair, tuple(some[i : i + SEEDS_AT_ONCE]), preset)
        for pair, some in seeds.items()
        for i in range(0, len(some), SEEDS_AT_ONCE)
    ]


class Found(NamedTuple):
    """The runs of one optimizer in one setting.

    Attributes:
        method: Name of the optimizer.
        title: For people.
        train: (n_seeds, n_epochs + 1) training loss.
        test: (n_seeds, n_epochs + 1) test loss.
        error: (n_seeds,) share of the test samples that are classified wrongly at the end.
    """

    method: str
    title: str
    train: np.ndarray
    test: np.ndarray
    error: np.ndarray

    @property
    def last(self) -> np.ndarray:
        """Test loss at the end, (n_seeds,)."""
        return self.test[:, -1]

    @property
    def gap(self) -> float:
        """Mean test loss over mean training loss at the end."""
        return float(self.test[:, -1].mean() / self.train[:, -1].mean())


def found_in(records: list[Record], setting: str, methods: Iterable[str]) -> list[Found]:
    """Return the runs of a setting, optimizer by optimizer in the order given, the seeds of each in ascending order."""
    result = []
    for method in methods:
        runs = [record for record in records if (record["setting"], record["optimizer"]) == (setting, method)]
        if runs:
            runs.sort(key=lambda record: record["seed"])
            train, test = (np.array([run["curve"][name] for run in runs]) for name in ("train_loss", "test_loss"))
            error = np.array([run["test_error"] for run in runs])
            result.append(Found(method, runs[0]["optimizer_title"], train, test, error))
    return result
