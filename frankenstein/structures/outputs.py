"""What a run leaves for the user beside the report: structures and tables."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.stress import full_3x3_to_voigt_6_stress

from frankenstein.structures.folder import replace
from frankenstein.structures.methods import OURS
from frankenstein.structures.reading import Structure
from frankenstein.structures.running import Outcome

COLUMNS = (
    "name",
    "formula",
    "n_atoms",
    "converged",
    "reason",
    "calls",
    "energy_start",
    "energy",
    "fmax",
    "seconds",
    "file",
    "frame",
    "message",
)


class Total(NamedTuple):
    """An optimizer over all structures.

    Attributes:
        method: Its name.
        n: Structures that it was given.
        n_converged: Of these.
        mean_calls: Over the structures that it converged.
        ratio: Its calls over ours, over the structures that both converged.
        n_both: How many these are.
        mean_energy: Where it ended, over the structures that it converged.
    """

    method: str
    n: int
    n_converged: int
    mean_calls: float
    ratio: float
    n_both: int
    mean_energy: float


def totals(outcomes: Iterable[Outcome], methods: Sequence[str]) -> list[Total]:
    """Return each optimizer over all structures, ours first."""
    by_method: dict[str, dict[str, Outcome]] = {method: {} for method in methods}
    for outcome in outcomes:
        if outcome["optimizer"] in by_method:
            by_method[outcome["optimizer"]][outcome["name"]] = outcome
    ours = {name: one for name, one in by_method[OURS].items() if one["converged"]}
    made = []
    for method, all_of_it in by_method.items():
        good = {name: one for name, one in all_of_it.items() if one["converged"]}
        both = good.keys() & ours.keys()
        n_ours = sum(ours[name]["calls"] for name in both)
        made.append(
            Total(
                method,
                len(all_of_it),
                len(good),
                _mean([one["calls"] for one in good.values()]),
                sum(good[name]["calls"] for name in both) / n_ours if n_ours else math.nan,
                len(both),
                _mean([one["energy"] for one in good.values()]),
            )
        )
    return made


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def write_structures(path: Path, structures: Iterable[Structure], outcomes: Mapping[tuple[str, str], Outcome]) -> int:
    """Write where our optimizer ended, as extended XYZ; return how many structures that are.

    Raises:
        OSError: The file cannot be written.
    """
    ended = [
        relaxed(structure, outcome)
        for structure in structures
        if (outcome := outcomes.get((structure.name, OURS))) is not None and outcome.get("end")
    ]
    text = io.StringIO()
    if ended:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ASE warns of slabs, about what the user did not ask
            write(text, ended, format="extxyz")
    replace(path, text.getvalue())
    return len(ended)


def relaxed(structure: Structure, outcome: Outcome) -> Atoms:
    """Return the structure where it ended, with energy and forces; what the file said of it besides is kept."""
    end, atoms = outcome["end"], structure.atoms.copy()
    atoms.set_cell(end["cell"], apply_constraint=False)
    atoms.set_positions(end["positions"], apply_constraint=False)
    results: dict[str, Any] = {"energy": outcome["energy"], "forces": np.array(end["forces"])}
    if end["stress"] is not None:
        results["stress"] = full_3x3_to_voigt_6_stress(np.array(end["stress"]))
    for name in ("energy", "free_energy", "stress", "forces"):  # of the start: no longer true
        atoms.info.pop(name, None)
        atoms.arrays.pop(name, None)
    atoms.info |= {key: outcome[key] for key in ("name", "reason", "calls", "fmax")}
    atoms.info |= {"file": str(structure.file), "frame": structure.frame}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def table(outcomes: Iterable[Outcome], columns: Sequence[str] = COLUMNS) -> str:
    """Return outcomes as CSV; what there is not is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for outcome in outcomes:
        writer.writerow([_entry(outcome[column]) for column in columns])
    return text.getvalue()


def _entry(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else value
