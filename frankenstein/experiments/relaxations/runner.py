"""Run minimisers from the same starts: every run is one record, written when it ends, and not run again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from frankenstein.compare import executors
from frankenstein.compare.executors import Executor, WorkerError
from frankenstein.compare.interrupts import interrupts_held
from frankenstein.compare.store.provenance import provenance
from frankenstein.compare.store.records import Format, Record, Report, appending

__all__ = ["RELAXATIONS", "Job", "Progress", "jobs", "run"]

SCHEMA = 1
Progress = Callable[[int, int, str], None]
"""Called with how many runs are done, how many there are, and what ended last."""


def check_numbers(record: Record) -> str:
    """Energy and force may be missing only where the method never got a finite one."""
    for name in ("energy", "fmax"):
        value = record.get(name)
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            return f"has {str(value)[:20]!r} in {name!r}"
    return ""


OUTCOME = {
    "cell": str,
    "method": str,
    "method_title": str,
    "start": int,
    "n_atoms": int,
    "calls": int,
    "converged": bool,
    "reason": str,
    "seconds": Real,
    "preset": str,
    "finished_at": str,
    "provenance": {"versions": dict, "system": str, "device": str},
}
"""What every record of a minimisation has."""

RELAXATIONS = Format(
    SCHEMA,
    {
        **OUTCOME,
        "kind": str,
        "kind_config": {"recipe": str, "fmax": Real, "maxcalls": int, "source": str},
    },
    check_numbers,
)
"""The records of these experiments; `energy` and `fmax` are numbers or null."""


@dataclass(frozen=True)
class Job:
    """One run: a method from a start of a kind.

    Attributes:
        kind: A name that `kinds.find_kind` knows.
        method: A name that `methods.find_method` knows.
        start: Number of the start.
        data: Data folder, as text; None without one.
        preset: `local` or `paper`.
        timeout: Seconds it may take; None: as long as it likes.
    """

    kind: str
    method: str
    start: int
    data: str | None
    preset: str = "local"
    timeout: float | None = None
    n_cpus: int = 1
    n_gpus: float = 0.0
    modules: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name of the run in the records."""
        return f"{self.kind}/{self.method}/{self.start}"

    def run(self) -> Record:
        """Minimise and return the record."""
        from frankenstein.experiments.relaxations.kinds import find_kind
        from frankenstein.experiments.relaxations.methods import descend

        kind = find_kind(self.kind)
        optimizable = kind.make(self.start, None if self.data is None else Path(self.data))
        outcome = descend(self.method, optimizable, kind.fmax, kind.maxcalls)
        return self.record(optimizable.ndofs() // 3, **asdict(outcome))

    def record(self, n_atoms: int, **outcome: Any) -> Record:
        """Return the record of an outcome."""
        from frankenstein.experiments.relaxations.kinds import find_kind, source
        from frankenstein.experiments.relaxations.methods import find_method

        kind = find_kind(self.kind)
        return {
            "schema": SCHEMA,
            "cell": self.key,
            "kind": self.kind,
            "kind_config": {
                "recipe": kind.recipe,
                "fmax": kind.fmax,
                "maxcalls": kind.maxcalls,
                "source": source(kind, None if self.data is None else Path(self.data)),
            },
            "method": self.method,
            "method_title": find_method(self.method).title,
            "start": self.start,
            "n_atoms": n_atoms,
            **{name: plain(value) for name, value in outcome.items()},
            "converged": outcome["reason"] == "converged",
            "preset": self.preset,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "provenance": provenance(),
        }


def plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def jobs(kinds: Iterable[str], methods: Iterable[str], n_starts: dict[str, int], data: Path | None) -> list[Job]:
    """Return all runs, method by method within a start, so that a part of them already compares."""
    methods = list(methods)
    return [
        Job(kind, method, start, None if data is None else str(data))
        for kind in kinds
        for start in range(n_starts[kind])
        for method in methods
    ]


class Run(executors.Job, Protocol):
    """A run: what `Job` is here, and other experiments' jobs are."""

    def record(self, n_atoms: int, **outcome: Any) -> Record:
        """Return the record of an outcome."""


def run(
    todo: Iterable[Run],
    folder: Path,
    executor: Executor,
    progress: Progress,
    report: Report,
    kind_of_record: Format = RELAXATIONS,
) -> list[Record]:
    """Run what the folder lacks; return all its records of these jobs.

    Args:
        todo: The runs.
        folder: Where `records.jsonl` is and is written.
        executor: Where they run.
        progress: Told after every run.
        report: Called with a line for the user.
        kind_of_record: What their records are.

    Raises:
        RecordError: The folder cannot be used.
    """
    wanted = {job.key: job for job in todo}
    with appending(folder, report, kind_of_record) as (known, append):
        # a run without an answer (its worker was killed) says nothing about the method: it is tried again
        done = {record["cell"]: record for record in known if record["cell"] in wanted and record["n_atoms"]}
        pending = deque(job for key, job in wanted.items() if key not in done)
        futures: dict[Future[Record], Run] = {}

        def collect(finished: Iterable[Future[Record]]) -> None:
            for future in finished:
                job = futures[future]
                record = _record(job, future)
                with interrupts_held():  # what is written is counted
                    append(record)
                    del futures[future]
                    done[job.key] = record
                progress(len(done), len(wanted), job.key)

        progress(len(done), len(wanted), "")
        try:
            while pending or futures:
                while pending and len(futures) < 2 * executor.n_parallel:
                    job = pending.popleft()
                    futures[executor.submit(job)] = job
                collect(wait(futures, return_when=FIRST_COMPLETED).done)
        except KeyboardInterrupt:
            with interrupts_held():  # a second Ctrl-C cannot cost a finished run
                collect([future for future in futures if future.done()])
            raise
    return list(done.values())


def _record(job: Run, future: Future[Record]) -> Record:
    """Return the run's record; a worker that died is an outcome too."""
    error = future.exception()
    if error is None:
        return future.result()
    why = str(error) if isinstance(error, WorkerError) else f"{type(error).__name__}: {error}"
    return job.record(0, calls=0, energy=math.nan, fmax=math.nan, reason=f"failed: {why}", seconds=0.0)
