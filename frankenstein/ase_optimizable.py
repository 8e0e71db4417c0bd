"""What the ASE optimizer moves: counted force calls, and coordinates put back to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.filters import Filter, OptimizableFilter
from ase.optimize.optimize import OptimizableAtoms

__all__ = ["Place", "Watched", "difference"]

REFERENCES = ("orig_cell", "origcell", "strain")
"""What cell filters remember beside the atoms: the cell that strain is measured from, and the strain."""

Place = dict[str, np.ndarray]  # x, and of atoms behind it all that must be set to be there again, to the last bit


class Watched:
    """What is optimized, counting the force calls, and knowing how to put atoms back to the last bit.

    ASE asks for the gradient of one place several times. Calculators remember the last; of everything else (bands,
    functions) it is remembered here, until the next run.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.filters, self.atoms = _layers(inner)
        self.calls = 0
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)  # not self.inner: unpickling asks before it is there

    def forget(self) -> None:
        """Forget the last gradient, where it is remembered here."""
        self._last = None

    def get_gradient(self) -> np.ndarray:
        """Return the gradient, flat; count it if it has to be computed."""
        if self.atoms is not None:
            required = getattr(self.atoms.calc, "calculation_required", None)
            self.calls += 1 if required is None else bool(required(self.atoms, ["forces"]))
            return self.inner.get_gradient()
        x = self.get_x()
        if self._last is None or not np.array_equal(self._last[0], x):
            self.calls += 1
            gradient = np.array(self.inner.get_gradient())
            self._last = np.array(self.get_x()), gradient  # some bands move while they compute
        return self._last[1].copy()

    def place(self) -> Place:
        """Return where everything is."""
        place = {"x": np.array(self.get_x(), dtype=np.float64)}
        if self.atoms is not None:
            place |= {"positions": self.atoms.get_positions(), "cell": np.array(self.atoms.cell.array)}
            place |= {name: np.array(getattr(holder, name)) for name, holder in self._references().items()}
        return place

    def put(self, place: Place) -> None:
        """Put everything there."""
        if self.atoms is None:
            self.set_x(place["x"])
            return
        # not through the filter or the constraints, which would round
        self.atoms.set_cell(place["cell"], scale_atoms=False, apply_constraint=False)
        self.atoms.set_positions(place["positions"], apply_constraint=False)
        for name, holder in self._references().items():
            getattr(holder, name)[:] = place[name]

    def numbers(self) -> list[int] | None:
        """Return the atomic numbers, if there are atoms."""
        return None if self.atoms is None else self.atoms.numbers.tolist()

    def _references(self) -> dict[str, Filter]:
        return {name: holder for holder in self.filters for name in REFERENCES if hasattr(holder, name)}


def _layers(thing: Any) -> tuple[list[Filter], Atoms | None]:
    """Return the filters around the atoms, and the atoms; none where there is something that we do not know."""
    filters = []
    while not isinstance(thing, Atoms):
        if isinstance(thing, Filter):
            filters.append(thing)
        if isinstance(thing, Filter) or type(thing) is OptimizableAtoms:
            thing = thing.atoms
        elif isinstance(thing, OptimizableFilter):
            thing = thing.filterobj
        elif isinstance(thing, Watched):
            thing = thing.inner
        else:
            return [], None
    return filters, thing


def difference(found: Any, wanted: list[int] | None) -> str:
    """Return in words how other atomic numbers differ from those wanted: "Cu32, not Ag32".

    Args:
        found: From a file, so it may be anything.
        wanted: None: there are no atoms.
    """
    formulas = _formula(found), _formula(wanted)
    return f"{formulas[0]} in another order" if formulas[0] == formulas[1] else f"{formulas[0]}, not {formulas[1]}"


def _formula(numbers: Any) -> str:
    if not numbers:
        return "no atoms"
    if not isinstance(numbers, list) or any(type(n) is not int or not 0 <= n < len(chemical_symbols) for n in numbers):
        return "damaged atomic numbers"
    return str(Atoms(numbers=numbers).get_chemical_formula())
