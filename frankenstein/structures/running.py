"""Descents side by side: one call of the calculator for all that still move, until every job has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.io.trajectory import Trajectory

from frankenstein.structures.calculators import Potential
from frankenstein.structures.descents import Descent, Terms
from frankenstein.structures.journal import Call, Journal
from frankenstein.structures.methods import OURS

Outcome = dict[str, Any]
"""How a job ended, as `folder.py` writes it down."""


class Job(NamedTuple):
    """A structure to relax.

    Attributes:
        name: Of the structure.
        method: Who relaxes it.
        atoms: Where it starts.
    """

    name: str
    method: str
    atoms: Atoms


@dataclass(frozen=True)
class Task:
    """What a run has to do, whoever does it.

    Attributes:
        folder: Output folder.
        terms: What is asked of every structure.
        batch_atoms: Most atoms that move at once, where the calculator computes batches.
        end: On the clock of `time.time`, when the time that was allowed is used up.
    """

    folder: Path
    terms: Terms
    batch_atoms: int
    end: float

    def journal(self, job: Job) -> Journal:
        """Return the journal of a job."""
        return Journal(self.folder / "journals" / job.method / f"{job.name}.calls", len(job.atoms))


Next = Callable[[], "Job | None"]
Ended = Callable[[Outcome], None]
Round = Callable[[int, float], None]


@dataclass
class _Active:
    """A job under way."""

    job: Job
    journal: Journal
    descent: Descent
    probe: Atoms  # what the calculator sees: no constraints
    seconds: float = 0.0
    step_seconds: float = 0.0  # of the last step, not written down yet


def run(task: Task, potential: Potential, next_job: Next, ended: Ended, after_round: Round) -> None:
    """Work until there are no jobs.

    Args:
        task: What to do.
        potential: Where forces come from.
        next_job: Gives the next job, or None when there are none.
        ended: Called with the outcome of every job.
        after_round: Called with the number of calls just made and the largest force among those that still move.

    Raises:
        OSError: A file cannot be written.
    """
    active: list[_Active] = []
    waiting: Job | None = None  # for room
    has_more = True
    try:
        while has_more or active:
            while has_more and (potential.is_batched or not active):  # else nothing is gained by a second one
                waiting = waiting or next_job()
                has_more = waiting is not None
                if waiting is None or (active and _n_atoms(active) + len(waiting.atoms) > task.batch_atoms):
                    break
                potential.fresh()
                active.append(_open(waiting, task))
                waiting = None
            is_late = time.time() >= task.end
            for one in active:
                if is_late and one.descent.reason is None:
                    one.descent.end("timeout")
            active = _without_ended(active, task, ended)
            if active:
                n_calls = len(active)
                _round(active, potential, task.terms.has_cell)
                active = _without_ended(active, task, ended)
                after_round(n_calls, max((one.descent.largest[-1] for one in active), default=0.0))
    finally:
        for one in active:
            one.descent.close()


def _n_atoms(active: list[_Active]) -> int:
    return sum(len(one.probe) for one in active)


def _open(job: Job, task: Task) -> _Active:
    """Return the job where its journal left it."""
    journal = task.journal(job)
    journal.mend()
    descent, seconds, is_same = Descent(job.atoms, job.method, task.terms), 0.0, True
    for call in journal.calls():
        is_same = descent.reason is None and _is_at(descent.atoms, call)
        if not is_same:
            break
        descent.tell(call.prediction)
        seconds += call.seconds
    if not is_same:  # written by another version of something: what it holds is not this path
        descent.close()
        journal.remove()
        descent, seconds = Descent(job.atoms, job.method, task.terms), 0.0
    probe = job.atoms.copy()
    probe.set_constraint()
    journal.path.parent.mkdir(parents=True, exist_ok=True)
    return _Active(job, journal, descent, probe, seconds)


def _is_at(atoms: Atoms, call: Call) -> bool:
    return np.array_equal(atoms.positions, call.positions) and np.array_equal(atoms.cell.array, call.cell)


def _round(active: list[_Active], potential: Potential, has_cell: bool) -> None:
    """Compute all once; write the results down, then act on them."""
    for one in active:
        one.probe.positions[:] = one.descent.atoms.positions
        one.probe.cell[:] = one.descent.atoms.cell
    begin = time.perf_counter()
    try:
        predictions = potential.evaluate([one.probe for one in active], has_cell)
    except Exception as error:
        predictions = [error] * len(active)
    per_atom = (time.perf_counter() - begin) / _n_atoms(active)
    for one, prediction in zip(active, predictions, strict=True):
        seconds = one.step_seconds + per_atom * len(one.probe)
        begin = time.perf_counter()
        if not isinstance(prediction, Exception):
            one.journal.append(Call(one.probe.positions, one.probe.cell.array, seconds, prediction))
        one.seconds += seconds
        one.descent.tell(prediction)
        one.step_seconds = time.perf_counter() - begin


def _without_ended(active: list[_Active], task: Task, ended: Ended) -> list[_Active]:
    """Report those that have ended; return the others."""
    for one in active:
        if one.descent.reason is not None:
            if one.job.method == OURS:
                _write_trajectory(one, task.folder / "trajectories" / f"{one.job.name}.traj")
            ended(_outcome(one))
    return [one for one in active if one.descent.reason is None]


def _write_trajectory(one: _Active, path: Path) -> None:
    """Write every geometry with its energy and forces, as ASE reads them; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half, image = path.with_name(f".{path.name}"), one.job.atoms.copy()
    n_written = 0
    with Trajectory(half, "w") as trajectory:
        for call in one.journal.calls():
            image.set_cell(call.cell, apply_constraint=False)
            image.set_positions(call.positions, apply_constraint=False)
            energy, forces, stress = call.prediction
            extra = {} if stress is None else {"stress": stress[(0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]}
            trajectory.write(image, energy=energy, forces=forces, **extra)
            n_written += 1
    if n_written:
        half.replace(path)
    else:
        half.unlink()


def nothing_computed(job: Job, message: str) -> Outcome:
    """Return the outcome of a job of which there is nothing but the reason why."""
    return nothing_read(job.name, message) | {
        "optimizer": job.method,
        "formula": job.atoms.get_chemical_formula(),
        "n_atoms": len(job.atoms),
    }


def nothing_read(name: str, message: str) -> Outcome:
    """Return the outcome of what could not be read."""
    return {
        "name": name,
        "optimizer": OURS,
        "formula": "",
        "n_atoms": None,
        "converged": False,
        "reason": "failed",
        "message": message,
        "calls": 0,
        "energy_start": None,
        "energy": None,
        "fmax": None,
        "seconds": 0.0,
        "curve": {"energy": [], "fmax": []},
        "end": None,
    }


def _outcome(one: _Active) -> Outcome:
    descent = one.descent
    place, energies, largest = descent.last, descent.energies, descent.largest
    return nothing_computed(one.job, descent.message) | {
        "converged": descent.reason == "converged",
        "reason": descent.reason,
        "calls": descent.n_calls,
        "energy_start": energies[0] if energies else None,
        "energy": energies[-1] if energies else None,
        "fmax": largest[-1] if largest else None,
        "seconds": one.seconds + one.step_seconds,
        "curve": {"energy": energies, "fmax": largest},
        "end": place
        and {
            "positions": place.positions.tolist(),
            "cell": place.cell.tolist(),
            "forces": place.prediction.forces.tolist(),
            "stress": None if place.prediction.stress is None else place.prediction.stress.tolist(),
        },
    }
