"""One structure on its way down: told what its forces are, it says where it wants them next, or why it has ended.

Who computes the forces is not its business. That lets many descents share a batch, and lets one be told again what a
journal has kept.

Optimizers ask for forces wherever they like, a line search in the middle of a step. So each runs in a thread of its
own, which sleeps while its forces are computed: one thread at a time does anything, and nothing depends on which.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.stress import full_3x3_to_voigt_6_stress

from frankenstein.models import Prediction
from frankenstein.structures.calculators import one_line
from frankenstein.structures.methods import optimizer


@dataclass(frozen=True)
class Terms:
    """What is asked of every structure.

    Attributes:
        fmax: A structure has converged when all forces are smaller (with a cell, the rows of the cell's forces too).
        maxcalls: Most force calls of one structure.
        maxstep: Longest step of an atom, of our optimizer.
        has_cell: Whether the cell is relaxed as well.
    """

    fmax: float
    maxcalls: int
    maxstep: float
    has_cell: bool


class Place(NamedTuple):
    """A geometry, and what was computed there."""

    positions: np.ndarray
    cell: np.ndarray
    prediction: Prediction


class Descent:
    """A structure on its way down.

    Args:
        start: Never modified.
        method: Who moves it, one of `METHODS`.
        terms: What is asked.

    Attributes:
        atoms: Where forces are wanted.
        last: The last geometry at which everything was finite; None before that.
        energies: At every call that was.
        largest: The largest force there.
        n_calls: Calls, in all.
        reason: Why it has ended, of `frankenstein.relaxation.REASONS` or "failed"; None while it moves.
        message: More about that, in a line.
    """

    def __init__(self, start: Atoms, method: str, terms: Terms) -> None:
        self.terms = terms
        self.atoms = start.copy()
        self.last: Place | None = None
        self.energies: list[float] = []
        self.largest: list[float] = []
        self.n_calls = 0
        self.reason: str | None = None
        self.message = ""
        self.atoms.calc = _Told(self)
        target = FrechetCellFilter(self.atoms) if terms.has_cell else self.atoms
        self._optimizable = target.__ase_optimizable__()
        self._optimizer = optimizer(method, target, terms.maxstep)
        self._thread = threading.Thread(target=self._descend, name=f"relax-{method}", daemon=True)
        self._asked, self._told = threading.Semaphore(0), threading.Semaphore(0)

    def tell(self, prediction: Prediction | Exception) -> None:
        """Take what was computed where the atoms are; move on from there, or note why this is the end."""
        if isinstance(prediction, Exception):
            return self.end("failed", one_line(prediction))
        self.n_calls += 1
        if not _is_finite(prediction, self.terms.has_cell):
            return self.end("nonfinite", f"call {self.n_calls}: the energy or a force is not finite")
        self.last = Place(self.atoms.positions.copy(), self.atoms.cell.array.copy(), prediction)
        try:
            largest = float(self._optimizable.gradient_norm(self._optimizable.get_gradient()))
        except Exception as error:  # of a constraint, or no stress where the cell is relaxed
            return self.end("failed", one_line(error))
        self.energies.append(prediction.energy)
        self.largest.append(largest)
        self._go_on()
        if self.reason is None:
            if not (np.isfinite(self.atoms.positions).all() and np.isfinite(self.atoms.cell.array).all()):
                self.end("nonfinite", f"the step after call {self.n_calls} is not finite")
            elif self.n_calls >= self.terms.maxcalls:
                self.end("maxcalls")
        return None

    def end(self, reason: str, message: str = "") -> None:
        """Note why this is the end."""
        self.reason, self.message = reason, message
        self.close()

    def close(self) -> None:
        """End the thread, wherever it is."""
        if self._thread.ident is not None and self._thread.is_alive():
            self.reason = self.reason or "stopped"
            self._told.release()
            self._thread.join()

    def _go_on(self) -> None:
        """Let the optimizer run until it wants forces elsewhere, or has ended."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._told.release()
        self._asked.acquire()
        if self.reason is not None:
            self._thread.join()

    def ask(self) -> None:
        """Wait until forces have been told where the atoms are now. Called in the thread."""
        if threading.current_thread() is not self._thread:
            raise RuntimeError("forces are wanted where none were computed")
        self._asked.release()
        self._told.acquire()
        if self.reason is not None:
            raise _Ended

    def _descend(self) -> None:
        try:
            with np.errstate(all="ignore"):
                is_converged = self._optimizer.run(fmax=self.terms.fmax)
            self.reason = "converged" if is_converged else getattr(self._optimizer, "reason", "stalled")
        except _Ended:
            pass
        except Exception as error:
            self.reason, self.message = "failed", one_line(error)
        finally:
            self._asked.release()


class _Ended(BaseException):
    """The descent is over, and its thread with it."""


class _Told:
    """The calculator of a structure whose forces come from outside."""

    def __init__(self, descent: Descent) -> None:
        self.descent = descent

    def get_potential_energy(self, atoms: Atoms, force_consistent: bool = False) -> float:
        return self._known(atoms).energy

    def get_forces(self, atoms: Atoms) -> np.ndarray:
        return self._known(atoms).forces.copy()

    def get_stress(self, atoms: Atoms) -> np.ndarray:
        stress = self._known(atoms).stress
        if stress is None:
            raise RuntimeError("the calculator gives no stress, which the cell needs")
        return full_3x3_to_voigt_6_stress(stress)

    def calculation_required(self, atoms: Atoms, _: object) -> bool:
        last = self.descent.last
        return not (
            last is not None
            and np.array_equal(last.positions, atoms.positions)
            and np.array_equal(last.cell, atoms.cell.array)
        )

    def _known(self, atoms: Atoms) -> Prediction:
        if self.calculation_required(atoms, None):
            self.descent.ask()
        assert self.descent.last is not None
        return self.descent.last.prediction


def _is_finite(prediction: Prediction, has_cell: bool) -> bool:
    stress = prediction.stress if has_cell else None
    return bool(
        np.isfinite(prediction.energy)
        and np.isfinite(prediction.forces).all()
        and (stress is None or np.isfinite(stress).all())
    )
