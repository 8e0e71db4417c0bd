"""The relaxation rule as an ASE optimizer: for atoms, cell filters, bands and plain functions.

Here is only where gradients come from, where the step goes, what a run leaves behind and how it goes on; the step is
that of `frankenstein.relaxation`. See docs/ase.md.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from ase.optimize.optimize import DEFAULT_MAX_STEPS, Optimizer, RestartError

from frankenstein.ase_optimizable import Place, Watched, difference
from frankenstein.relaxation import restart as files
from frankenstein.relaxation.rule import RelaxationRule, State, init, update
from frankenstein.relaxation.systems import Systems, is_number

__all__ = ["Frankenstein"]

FORMAT, VERSION = "frankenstein.ase", 1
"""Of restart files."""

ARGUMENTS = ("restart", "logfile", "trajectory", "append_trajectory", "maxstep", "memory")
ASE_ARGUMENTS = ("master", "comm", "loginterval")
"""Of the constructor, beside the atoms: its own, and those that ASE looks at."""

MAX_MAXSTEP = 1.0
"""Angstrom; a longer step cap is taken for a mistake, as in ASE's LBFGS."""

SAME_X = 1e-6
"""How far restored coordinates may be from the stored ones: rounding of another machine, no other filter."""


class Frankenstein(Optimizer):
    """Relaxes atoms, and whatever else ASE can optimize, with one force call per step.

    Args:
        atoms: The atoms, a filter around them, a band (NEB), or any object with `__ase_optimizable__`. Its coordinates
            are taken as rows of 3; where their number is no multiple of 3, each stands alone.
        restart: Name of a JSON file. It is written before every force call; if it exists, the run goes on where that
            run was: atoms, cell and the filter's reference cell are set to what it holds, and the log says so. Delete
            it to start anew.
        logfile: File, its name, or "-" for standard output.
        trajectory: File, or its name.
        append_trajectory: Add to an existing trajectory. A run that goes on from `restart` always does.
        maxstep: Longest step of an atom (a row), in Angstrom; by default 0.2, at most 1.0.
        memory: How many steps the rule remembers; by default 60.
        **kwargs: `master`, `comm` and `loginterval` of ASE's optimizers.

    Attributes:
        reason: Why the last run ended, a key of `frankenstein.relaxation.REASONS`; None before the first.

    Raises:
        ValueError: `maxstep` or `memory` is outside its range, or `restart` is not the name of a file.
        TypeError: An argument is unknown.
        RestartError: The restart file is damaged, or of another structure or program.

    Example:
        >>> from ase.build import bulk
        >>> from ase.calculators.emt import EMT
        >>> atoms = bulk("Cu", cubic=True) * 2
        >>> atoms.rattle(0.1, seed=0)
        >>> atoms.calc = EMT()
        >>> optimizer = Frankenstein(atoms, logfile=None)
        >>> optimizer.run(fmax=0.01), optimizer.reason
        (True, 'converged')
    """

    def __init__(
        self,
        atoms: Any,
        restart: str | Path | None = None,
        logfile: IO | str | Path | None = "-",
        trajectory: Any = None,
        append_trajectory: bool = False,
        maxstep: float | None = None,
        memory: int | None = None,
        **kwargs: Any,
    ) -> None:
        if unknown := sorted(set(kwargs) - set(ASE_ARGUMENTS)):
            allowed = ", ".join(ARGUMENTS + ASE_ARGUMENTS)
            raise TypeError(f"Frankenstein has no argument {unknown[0]!r}; allowed are {allowed}")
        maxstep = self.defaults["maxstep"] if maxstep is None else maxstep
        if not (is_number(maxstep) and 0.0 < maxstep <= MAX_MAXSTEP):
            raise ValueError(f"Invalid maxstep: {maxstep!r}; allowed are numbers above 0 and up to {MAX_MAXSTEP} (A)")
        self.maxstep = float(maxstep)
        self.rule = RelaxationRule() if memory is None else RelaxationRule(memory=memory)
        self.reason: str | None = None
        self._state: State | None = None
        self._there: Place | None = None  # where the last displacement in the memory ends
        self._back: Place | None = None  # where the atoms were put after the calculator had failed there
        self._n_steps = 0  # of the whole run; `nsteps` is ASE's, of this object
        if restart is not None:
            files.check_name(restart)
        goes_on = restart is not None and os.path.isfile(restart)
        super().__init__(atoms, restart, logfile, trajectory, append_trajectory or goes_on, **kwargs)

    @property
    def force_calls(self) -> int:
        """How often forces had to be computed, in all runs, those before a restart too.

        What the calculator still knows is not counted. All images of a band together are one call.
        """
        return self.optimizable.calls

    def initialize(self) -> None:
        """Start with an empty memory. Called by ASE."""
        self.optimizable = Watched(self.optimizable)

    def read(self) -> None:
        """Go on where the restart file ends. Called by ASE."""
        self.initialize()
        data, given = self.load(), self.optimizable.place()
        try:
            self.load_state_dict(data)
        except ValueError as error:
            raise RestartError(f"{error}; give the file that fits, or delete {self.restart} to start anew") from None
        name = self.__class__.__name__
        line = f"{name}: goes on from {self.restart}: step {self._n_steps}, {self.force_calls} force calls"
        if not _is_same(given, self.optimizable.place()):
            what = "coordinates" if self.optimizable.atoms is None else "atoms"
            line += f"; the {what} were moved there"
        self.logfile.write(f"{line}\n")

    def irun(self, fmax: float = 0.05, steps: int = DEFAULT_MAX_STEPS) -> Iterator[bool]:  # type: ignore[override]
        """Run as a generator: yields whether it has converged, before the first step and after each.

        Args:
            fmax: Largest force on an atom, in eV/A.
            steps: Most steps.

        Raises:
            ValueError: `fmax` is no number, or negative. Nothing was computed then.
        """
        if not (is_number(fmax) and fmax >= 0.0):
            raise ValueError(f"Invalid fmax: {fmax!r}; allowed are numbers from 0 on (eV/A)")
        return self._iterate(super().irun(fmax, steps))

    def run(self, fmax: float = 0.05, steps: int = DEFAULT_MAX_STEPS) -> bool:  # type: ignore[override]
        """Run until converged; `reason` says why it ended.

        Args:
            fmax: Largest force on an atom, in eV/A.
            steps: Most steps.

        Returns:
            Whether it has converged.

        Raises:
            ValueError: `fmax` is no number, or negative. Nothing was computed then.
        """
        return bool(deque(self.irun(fmax, steps), maxlen=1).pop())

    def _iterate(self, iteration: Iterator[bool]) -> Iterator[bool]:
        self.reason = "stopped"  # as long as the caller may leave the loop
        self.optimizable.forget()
        try:
            for is_converged in iteration:
                if is_converged:
                    self.reason = "converged"
                elif self.nsteps >= self.max_steps:
                    self.reason = "maxcalls" if self._is_finite() else "nonfinite"
                yield is_converged
        except _Stop:
            return

    def step(self) -> None:
        """Take one step and compute the forces there.

        Raises:
            RuntimeError: There is no step to take, or it led to an energy or a force that is not finite. In `run` and
                `irun` this ends the run instead.
        """
        here = self.optimizable.place()
        if self._there is not None and _is_same(here, self._back):
            self.optimizable.put(self._there)
        else:
            self._move(here)
        self._save(n_calls_begun=1)
        try:
            is_good = self._is_finite()
        except Exception:
            self._back = here
            self.optimizable.put(here)
            raise
        self._back = None
        if is_good:
            there = self.optimizable.place()
            if not _is_same(there, self._there):  # a band that takes out its rotation does so with the forces
                self._moved_by(there["x"] - here["x"])
                self._there = there
        else:
            self._state = self._there = None
            self.optimizable.put(here)
            self._n_steps -= 1
            self._save()
            self._stop(
                "nonfinite", "the energy or a force is not finite; the atoms were put back where they were before"
            )

    def _move(self, here: Place) -> None:
        """Carry out the rule's displacement, and remember the one that constraints made of it."""
        gradient = np.array(self.optimizable.get_gradient(), dtype=np.float64)
        if not np.isfinite(gradient).all():
            self._stop("nonfinite", "a force is not finite; the atoms were not moved")
        if not _is_same(here, self._there):
            self._state = None
        wanted = here["x"] + self._update(gradient)
        self.optimizable.set_x(wanted)
        self._there = self.optimizable.place()
        if not np.array_equal(self._there["x"], wanted):
            self._moved_by(self._there["x"] - here["x"])
        if np.array_equal(wanted, here["x"]) or _is_same(self._there, here):
            self._stop("stalled", "the next step is too small to move the atoms")
        self._n_steps += 1

    def _update(self, gradient: np.ndarray) -> np.ndarray:
        """Let the rule take a step; return the displacement, flat as the gradient."""
        gradient = gradient.reshape(_rows(gradient.size))
        systems = Systems(np.zeros(len(gradient), dtype=np.int64))
        state = self._state or init(gradient, systems, self.rule, self.maxstep)
        state = state._replace(step_limit=np.minimum(state.step_limit, self.maxstep))
        displacement, self._state = update(state, gradient, systems, self.rule, self.maxstep)
        return displacement.ravel()

    def _moved_by(self, displacement: np.ndarray) -> None:
        assert self._state is not None
        self._state = self._state._replace(displacement=displacement.reshape(self._state.gradient.shape))

    def _replay_trajectory(self, trajectory: Any) -> None:
        """Fill the memory from the structures of another run, of which the last is where the atoms are now."""
        path = [atoms.get_positions().ravel() for atoms in trajectory]
        here = self.optimizable.place()
        if path[-1].shape != here["x"].shape or not np.allclose(path[-1], here["x"], rtol=0.0, atol=SAME_X):
            raise ValueError("Invalid trajectory: its last structure is not where the atoms are")
        self._state = None
        for i in range(len(path) - 1):  # the last one's forces are those of the next step
            self._update(-trajectory[i].get_forces().ravel())
            self._moved_by(path[i + 1] - path[i])
        self._there = here

    def _is_finite(self) -> bool:
        gradient = self.optimizable.get_gradient()
        return bool(np.isfinite(gradient).all() and np.isfinite(self.optimizable.get_value()))

    def _stop(self, reason: str, message: str) -> None:
        self.reason = reason
        self.logfile.write(f"{self.__class__.__name__}: stopped after step {self.nsteps}: {message}\n")
        raise _Stop(message)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on as if it had not been interrupted; `json.dumps` takes it.

        The restart file has the same content.

        Returns:
            `place` (coordinates `x`, and positions, cell and reference cell where there are atoms), `state` (the
            rule's memory, or None), `force_calls`, `n_steps`, and atomic `numbers` (None where there are no atoms).
        """
        place, state = self.optimizable.place(), None
        if self._there is not None and (_is_same(place, self._there) or _is_same(place, self._back)):
            place, state = self._there, self._state  # else somebody moved the atoms
        return {
            "format": FORMAT,
            "version": VERSION,
            "force_calls": self.force_calls,
            "n_steps": self._n_steps,
            "numbers": self.optimizable.numbers(),
            "place": {name: files.array_to_json(array) for name, array in place.items()},
            "state": None if state is None else files.to_json(state),
        }

    def load_state_dict(self, data: dict[str, Any]) -> None:
        """Put the atoms, the cell and the memory where `state_dict` found them.

        Args:
            data: From `state_dict`, of an optimizer of the same structure, filter and `memory`. Never modified.

        Raises:
            ValueError: It is of another structure, filter, memory or version, or damaged. Nothing was changed then.
        """
        place, state = self._checked(data)
        before = self.optimizable.place()
        self.optimizable.put(place)
        there = self.optimizable.place()
        if not np.allclose(there["x"], place["x"], rtol=0.0, atol=SAME_X):
            self.optimizable.put(before)
            raise ValueError("Invalid state: it is of another filter, or of one with other settings")
        self._state, self._there, self._back = state, there if state is not None else None, None
        self.optimizable.calls, self._n_steps = data["force_calls"], data["n_steps"]

    def _checked(self, data: Any) -> tuple[Place, State | None]:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"Invalid state: it was not written by {FORMAT}.Frankenstein")
        if data.get("version") != VERSION:
            raise ValueError(f"Invalid state: version {data.get('version')!r}; this Frankenstein reads {VERSION}")
        for name, kind in (("force_calls", int), ("n_steps", int), ("place", dict)):
            if not isinstance(data.get(name), kind):
                raise ValueError(f"Invalid state: {name} is missing or damaged")
        here, numbers = self.optimizable.place(), self.optimizable.numbers()
        place = {name: files.array_from_json(array, name) for name, array in data["place"].items()}
        if data.get("numbers") != numbers:
            there = difference(data.get("numbers"), numbers)
            raise ValueError(f"Invalid state: it is of other atoms ({there})")
        if {name: array.shape for name, array in place.items()} != {name: array.shape for name, array in here.items()}:
            raise ValueError("Invalid state: it is of another filter, or of other coordinates")
        state = None if data.get("state") is None else files.from_json(data["state"])
        if state is not None and state.gradient.shape != here["x"].reshape(_rows(here["x"].size)).shape:
            raise ValueError("Invalid state: its memory is of other coordinates")
        if state is not None and state.curvatures.shape[1] != self.rule.memory:
            raise ValueError(
                f"Invalid state: memory {state.curvatures.shape[1]}; this optimizer has {self.rule.memory}"
            )
        return place, state

    def _save(self, n_calls_begun: int = 0) -> None:
        if self.restart is not None:
            self.dump(self.state_dict() | {"force_calls": self.force_calls + n_calls_begun})

    def dump(self, data: dict[str, Any]) -> None:
        """Write the restart file, if one is wanted; an interrupted write leaves the one before."""
        if self.comm.rank == 0 and self.restart is not None:
            files.write(self.restart, data)

    def load(self) -> Any:
        """Return the content of the restart file.

        Raises:
            RestartError: It is no JSON.
        """
        assert self.restart is not None  # ASE calls this only where there is such a file
        try:
            return files.read(self.restart)
        except ValueError as error:
            raise RestartError(f"{error}; delete it to start anew") from None


class _Stop(RuntimeError):
    """The run is over; the optimizer's `reason` says why."""


def _rows(n: int) -> tuple[int, int]:
    return (-1, 3) if n % 3 == 0 else (-1, 1)


def _is_same(one: Place, other: Place | None) -> bool:
    return (
        other is not None
        and one.keys() == other.keys()
        and all(np.array_equal(array, other[name]) for name, array in one.items())
    )
