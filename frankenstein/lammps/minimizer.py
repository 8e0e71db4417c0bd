"""The relaxation rule inside LAMMPS, on any number of MPI ranks.

LAMMPS keeps the atoms, its neighbour lists and its output; one of its runs is the whole minimisation. What the rule
remembers lies in properties of the atoms, so it goes where they go when ranks exchange or sort them. After each force
call LAMMPS hands over the forces (`fix external`), the rule takes its step, and LAMMPS moves the atoms at the beginning
of the next (`fix move`): thermo, dumps and computes of the user see positions and forces that belong together.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from frankenstein.lammps import checkpoint as files
from frankenstein.lammps.host import (
    PREFIX,
    TABLES,
    Lammps,
    arrays,
    check,
    command,
    communicator,
    defined,
    extract,
    move_from_here,
)
from frankenstein.relaxation.rule import RelaxationRule, State, update
from frankenstein.relaxation.systems import SharedSystem, is_number

__all__ = ["MAXSTEP", "REASONS", "Minimized", "minimize"]

MAXSTEP = {
    "metal": 0.2,
    "real": 0.2,
    "electron": 0.2 / 0.529177210903,
    "si": 0.2e-10,
    "cgs": 0.2e-8,
    "micro": 0.2e-4,
    "nano": 0.02,
    "lj": 0.08,
}
"""The default of `maxstep`, 0.2 Angstrom in each style of units; for lj 0.08, which is that of argon."""

Reason = Literal["converged", "ftol", "etol", "maxcalls", "nonfinite", "stalled", "timeout", "stopped"]

REASONS: dict[str, str] = {
    "converged": "the largest force on an atom is within fmax",
    "ftol": "the norm of all forces is within ftol",
    "etol": "the energy changed by less than etol of itself in the last step",
    "maxcalls": "the calls that were allowed are used up",
    "nonfinite": "the energy or a force is not finite; the last good positions are restored",
    "stalled": "the next step is too small to change the positions in floating point",
    "timeout": "the time that was allowed is used up",
    "stopped": "the callback asked to stop, or a fix halt or timer of the user's",
}
"""Why a run ends, and what that means."""

MEMORY = 20
"""Displacements that are remembered here; the rule's own 60 cost more than they save where forces are cheap."""

SAME_ENERGY = 1e-5  # relative: beyond any rounding, in single precision too

ARRAYS = ("gradient", "displacement", *TABLES)


@dataclass(frozen=True)
class Minimized:
    """Where `minimize` ended; the same on all ranks.

    Attributes:
        energy: Potential energy of all atoms at the final positions, in the user's unit.
        fmax: Largest norm of the force on an atom there.
        converged: Whether `fmax` is within the tolerance.
        reason: One of `REASONS`.
        calls: How often forces were computed, those of the run that a checkpoint goes back to included.
    """

    energy: float
    fmax: float
    converged: bool
    reason: Reason
    calls: int


def minimize(
    lmp: Lammps,
    *,
    fmax: float,
    ftol: float | None = None,
    etol: float | None = None,
    maxcalls: int = 10_000,
    maxstep: float | None = None,
    timeout: float | None = None,
    rule: RelaxationRule | None = None,
    callback: Callable[[int, float, float], None] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
) -> Minimized:
    """Minimise the energy of a LAMMPS that is set up: box, atoms and forces. All ranks call it.

    Forces are those that LAMMPS's fixes leave: atoms whose force they set to zero stay where they are. The potential
    energy includes that of fixes with `fix_modify energy yes`. Timesteps are counted on, one for each force call but
    the first, and output (thermo, dump, restart) is written as in any run; at the end comes one line of thermo more.
    `neigh_modify every 1 delay 0 check yes` holds meanwhile, as with LAMMPS's own minimisers.

    Args:
        lmp: `lammps.lammps`; on several ranks made with mpi4py, as `load` does.
        fmax: Ends when no atom feels a larger force (Euclidean norm), in the user's unit.
        ftol: Ends when the norm of the forces of all atoms is not larger, as LAMMPS has it; None: never.
        etol: Ends when a step changes the energy by less than this share of it, as LAMMPS has it; None: never.
        maxcalls: Most force calls.
        maxstep: Longest step of an atom, in the user's unit of length; None: `MAXSTEP` of the style of units.
        timeout: Most seconds.
        rule: Constants other than the published ones; by default those, with a memory of `MEMORY` steps.
        callback: Called on all ranks after every force call, with the number of calls, energy and largest force;
            `StopIteration` ends the run. LAMMPS may be asked for everything else meanwhile, but given no command.
        checkpoint: Name of a file. It is written every `checkpoint_every` calls, and when the run stops before its
            time (`maxcalls`, `timeout`, `stopped`); if it exists, the run goes on where that run was, to rounding, on
            any number of ranks.
        checkpoint_every: Calls between two of them.

    Returns:
        Where it ended and why.

    Raises:
        ValueError: An argument is outside its range; LAMMPS has no atoms, or a fix that integrates in time;
            the checkpoint is damaged or of another system.
        RuntimeError: LAMMPS reports an error, or has lost atoms; or there are several ranks and no mpi4py.
        KeyboardInterrupt: Ctrl-C, after the present force call.
    """
    rule = rule or RelaxationRule(memory=MEMORY)
    numbers = {"fmax": fmax, "ftol": ftol, "etol": etol, "maxcalls": maxcalls, "maxstep": maxstep, "timeout": timeout}
    asked: dict[str, Any] = {**numbers, "checkpoint_every": checkpoint_every}
    for name, value in asked.items():
        is_whole, is_optional = name in ("maxcalls", "checkpoint_every"), name in ("ftol", "etol", "maxstep", "timeout")
        if value is None and is_optional:
            continue
        if not (is_number(value) and 0 < value < math.inf and (not is_whole or value == int(value))):
            allowed = "whole numbers of at least 1" if is_whole else "finite numbers above 0"
            raise ValueError(f"Invalid {name}: {value!r}; allowed are {allowed}{' and None' if is_optional else ''}")
    check(lmp)
    if maxstep is None:
        maxstep = MAXSTEP[lmp.extract_global("units")]
    run = _Run(lmp, rule, float(maxstep), callback, fmax=fmax, ftol=ftol, etol=etol, timeout=timeout)
    return run.finish(int(maxcalls), Path(checkpoint) if checkpoint is not None else None, int(checkpoint_every))


class _Run:
    """A minimisation on its way: what LAMMPS calls back."""

    def __init__(
        self,
        lmp: Lammps,
        rule: RelaxationRule,
        maxstep: float,
        callback: Callable[[int, float, float], None] | None,
        *,
        fmax: float,
        ftol: float | None,
        etol: float | None,
        timeout: float | None,
    ) -> None:
        self.lmp, self.rule, self.maxstep, self.callback = lmp, rule, maxstep, callback
        self.fmax, self.ftol, self.etol, self.timeout = fmax, ftol, etol, timeout
        self.comm = communicator(lmp)
        self.began = time.monotonic()
        self.calls = 0
        self.energy, self.largest = math.nan, math.inf
        self.reason: Reason | None = None
        self.is_going_back = False  # to the last good positions
        self.error: BaseException | None = None
        self.expected: tuple[Path, float] | None = None  # the energy of a checkpoint's positions
        self.shared = _start(rule.memory, maxstep)  # the part of the state that is the same on all ranks
        self.n_atoms = int(lmp.get_natoms())
        self.scratch = np.empty((0, 3))  # for the gradient: new memory costs more than what is written to it

    # Around LAMMPS's run ----------------------------------------------------------------------------------------------

    def finish(self, maxcalls: int, checkpoint: Path | None, checkpoint_every: int) -> Minimized:
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every
        with (
            defined(self.lmp, self.rule.memory, self._guarded),
            _interrupts_noted() as interrupted,
            _one_thread(self.comm),
        ):
            self.interrupted = interrupted
            if checkpoint is not None and self._is_there(checkpoint):
                self._go_on(checkpoint)
            self.maxcalls = max(maxcalls, self.calls + 1)
            self._run(self.maxcalls - self.calls)
            self._raise_everywhere(bool(interrupted))
            self.reason = self.reason or "stopped"  # by the user's own fix halt or timer
            if self.lmp.last_thermo().get("Step") != self.lmp.extract_global("ntimestep"):
                self.reason, reason = "stopped", self.reason  # forces once more, for the last line of thermo
                self._run(0)
                self.reason = reason
        return Minimized(self.energy, self.largest, self.largest <= self.fmax, self.reason, self.calls)

    def _run(self, n_steps: int) -> None:
        """Have LAMMPS run; what it says after an error of ours is not the cause."""
        try:
            command(self.lmp, f"run {n_steps} post no")
        except RuntimeError:
            if self.error is None:
                raise

    def _raise_everywhere(self, is_interrupted: bool) -> None:
        """Raise what went wrong on this rank, or say on which other one it did: all of them stop."""
        told = str(self.error) or type(self.error).__name__ if self.error is not None else ""
        ranks = [(told, is_interrupted)] if self.comm is None else self.comm.allgather((told, is_interrupted))
        if self.error is not None:
            raise self.error
        for rank, (message, _) in enumerate(ranks):
            if message:
                raise RuntimeError(f"on rank {rank}: {message}")
        if any(interrupted for _, interrupted in ranks):
            raise KeyboardInterrupt

    # What LAMMPS calls ------------------------------------------------------------------------------------------------

    def _guarded(self, caller: Any, step: int, n_local: int, tags: Any, positions: Any, forces: Any) -> None:
        """Keep an error until the run is over: from here it would be lost."""
        try:
            if self.reason is None or self.is_going_back:
                self._after_forces(int(n_local))
        except (OSError, RuntimeError) as error:  # these are raised on all ranks
            self.error = error
            self._stop("stopped")
        except BaseException as error:
            self.error = error
            self._stop("stopped")
            if self.comm is not None:  # the others wait for this one, and would wait for ever
                traceback.print_exc()
                self.comm.Abort(1)

    def _after_forces(self, n_local: int) -> None:
        lmp = self.lmp
        if self.is_going_back:
            self.is_going_back = False
            self._stop("nonfinite")
            return
        self.calls += 1
        energy = float(lmp.extract_compute(f"{PREFIX}pe", 0, 0))
        if len(self.scratch) < n_local:
            self.scratch = np.empty((n_local, 3))
        gradient = np.negative(extract(lmp, "f", n_local), out=self.scratch[:n_local])
        system = SharedSystem(n_local, reduce=self._reduce if self.comm is not None else None)
        square, n_atoms = self._sums(float(np.vdot(gradient, gradient)), n_local)
        if n_atoms != self.n_atoms:
            raise RuntimeError(
                f"LAMMPS has lost {self.n_atoms - int(n_atoms)} of {self.n_atoms:,} atoms: they left a box that is not "
                "periodic, or overlapped; use boundary s or p, or a smaller maxstep"
            )
        moved, state = self._arrays(n_local)
        if not (math.isfinite(square) and math.isfinite(energy)):
            if self.calls == 1:
                self.energy, self.largest = energy, math.inf
                self._stop("nonfinite")
            else:  # one step back, without a force call of ours
                moved -= state.displacement
                self.is_going_back = True
            return
        if self.expected is not None:
            self._check_energy(energy)
        before, self.energy, self.largest = self.energy, energy, float(system.longest(gradient)[0])
        told = self._told()
        reason = self._over(square, before) or told
        if self.checkpoint is not None and (self.calls % self.checkpoint_every == 0 or reason in files.KEPT):
            self._save(n_local, state, before)
        if reason is not None:
            self._stop(reason)
            return
        displacement, state = update(state, gradient, system, self.rule, self.maxstep)
        if self._is_lost(displacement, system):
            self._stop("stalled")
            return
        for name, value in {"gradient": gradient, "displacement": displacement}.items():
            extract(lmp, f"d2_{PREFIX}{name}", n_local)[:] = value
        moved += displacement
        self.shared = {name: field for name, field in state._asdict().items() if name not in ARRAYS}

    def _over(self, square: float, before: float) -> Reason | None:
        """Return why the run ends here, or None."""
        if self.largest <= self.fmax:
            return "converged"
        if self.ftol is not None and math.sqrt(square) <= self.ftol:
            return "ftol"
        if self.etol is not None and abs(self.energy - before) < self.etol * 0.5 * (abs(self.energy) + abs(before)):
            return "etol"
        if self.calls >= self.maxcalls:
            return "maxcalls"
        return None

    def _told(self) -> Reason | None:
        """Call the callback; return whether it, the clock or Ctrl-C ends the run, on whichever rank."""
        reasons: tuple[Reason | None, ...] = (None, "timeout", "stopped")
        flag = 0
        if self.callback is not None:
            try:
                self.callback(self.calls, self.energy, self.largest)
            except StopIteration:
                flag = 2
            except BaseException as error:
                self.error, flag = error, 2
        if self.interrupted:
            flag = 2
        elif self.timeout is not None and time.monotonic() - self.began >= self.timeout:
            flag = max(flag, 1)
        if self.comm is not None:
            flag = max(self.comm.allgather(flag))
        return reasons[flag]

    def _is_lost(self, displacement: np.ndarray, system: SharedSystem) -> bool:
        """Return whether the step is lost in the rounding of positions."""
        low, high = self.lmp.extract_global("boxlo"), self.lmp.extract_global("boxhi")
        size = max(abs(edge) for edge in (*low, *high))
        return float(system.longest(displacement)[0]) <= np.finfo(float).eps * size

    def _stop(self, reason: Reason) -> None:
        self.reason = reason
        self.lmp.set_internal_variable(f"{PREFIX}stop", 1.0)

    # Ranks and arrays -------------------------------------------------------------------------------------------------

    def _reduce(self, values: np.ndarray, how: Literal["sum", "max"]) -> np.ndarray:
        from mpi4py import MPI

        total = np.empty_like(values)
        self.comm.Allreduce(np.ascontiguousarray(values), total, MPI.SUM if how == "sum" else MPI.MAX)
        return total

    def _sums(self, *numbers: float) -> list[float]:
        values = np.array(numbers)
        return (self._reduce(values, "sum") if self.comm is not None else values).tolist()

    def _arrays(self, n_local: int) -> tuple[np.ndarray, State]:
        """Return how far atoms have moved, and the state, as views of LAMMPS's own memory."""
        found = arrays(self.lmp, n_local, self.rule.memory)
        moved = found.pop("moved")
        return moved, State(**found, **self.shared)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def _box(self) -> list[float | None]:
        """Return edge lengths and tilts; None where a wall follows the atoms."""
        lmp = self.lmp
        low, high, is_periodic = (lmp.extract_global(name) for name in ("boxlo", "boxhi", "periodicity"))
        edges = [float(f"{b - a:.12g}") if p else None for a, b, p in zip(low, high, is_periodic, strict=True)]
        return [*edges, *(float(lmp.extract_global(name)) for name in ("xy", "yz", "xz"))]

    def _describe(self) -> dict[str, Any]:
        return {
            "n_atoms": self.n_atoms,
            "units": self.lmp.extract_global("units"),
            "box": self._box(),
            "maxstep": self.maxstep,
            "rule": asdict(self.rule),
        }

    def _save(self, n_local: int, state: State, before: float) -> None:
        """Write where the run is: the positions of this force call, and the state before its step."""
        lmp = self.lmp
        per_atom = {name: extract(lmp, name, n_local) for name in ("id", "type", "image", "x")}
        per_atom |= {name: getattr(state, name) for name in ARRAYS}
        numbers = {"calls": self.calls, "energy": self.energy, "energy_before": before}
        shared = {**self.shared, **{name: np.array(number) for name, number in numbers.items()}}
        assert self.checkpoint is not None
        files.write(self.checkpoint, self._describe(), shared, per_atom, self.comm)

    def _is_there(self, path: Path) -> bool:
        """Return whether the first rank sees the file: all must do the same."""
        if self.comm is None:
            return path.exists()
        there: bool = self.comm.bcast(path.exists() if self.comm.rank == 0 else None)
        return there

    def _check_energy(self, energy: float) -> None:
        """Check that the positions of a checkpoint have the energy that they had.

        Raises:
            RuntimeError: They have not; on all ranks.
        """
        assert self.expected is not None
        (path, wanted), self.expected = self.expected, None
        if not math.isclose(energy, wanted, rel_tol=SAME_ENERGY):
            raise RuntimeError(
                f"cannot go on from {path}: the energy of its atoms was {wanted:.10g} and is {energy:.10g} here; is "
                "the potential or a fix another one? Delete it to start anew"
            )

    def _go_on(self, path: Path) -> None:
        n_local = int(self.lmp.extract_global("nlocal"))
        tags = extract(self.lmp, "id", n_local).ravel()
        moved, state = self._arrays(n_local)
        views = {name: extract(self.lmp, name, n_local) for name in ("image", "x")}
        views |= {name: getattr(state, name) for name in ARRAYS}
        same = {"type": extract(self.lmp, "type", n_local)}
        shared = files.read(path, self._describe(), tags, same, views, self.comm)
        self.calls = int(shared.pop("calls")) - 1  # the call that it was written at is done again
        self.expected = (path, float(shared.pop("energy")))
        self.energy = float(shared.pop("energy_before"))
        self.shared = shared
        moved[:] = 0.0
        move_from_here(self.lmp)


def _start(memory: int, maxstep: float) -> dict[str, np.ndarray]:
    """Return the part of a fresh state that belongs to the system as a whole."""
    return {
        "n_steps": np.zeros(1, np.int64),
        "n_pairs": np.zeros(1, np.int64),
        "step_limit": np.full(1, maxstep),
        "curvatures": np.ones((1, memory)),
        "direction_change_inv": np.eye(memory)[None],
        "direction_change_diag": np.ones((1, memory)),
        "change_change": np.zeros((1, memory, memory)),
        "secant": np.zeros(1),
    }


@contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """Have Ctrl-C noted in the list instead of raised in the middle of a step."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _one_thread(comm: Any) -> Any:
    """Have BLAS compute with one thread on each of several ranks, which share the cores."""
    if comm is None:
        return nullcontext()
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, "blas")
