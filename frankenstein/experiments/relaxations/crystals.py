"""Crystals with machine-learned potentials: from the WBM set, disturbed, or the user's own as they are."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.utils.abc import Optimizable

__all__ = ["RATTLE", "RECIPE", "STRAIN", "WBM", "calculator", "disturbed", "own", "read_structures", "wbm"]

WBM = "crystals/wbm_972.extxyz.gz"
RATTLE, STRAIN = 0.05, 0.03  # Angstrom (sigma of a normal distribution); largest component

RECIPE = f"WBM crystals, each cell strained by up to {STRAIN:.0%}, atoms displaced by {RATTLE} A (sigma)"

Make = Callable[[int, Path | None], Optimizable]


def disturbed(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Return a copy with every component of the cell's strain up to 3 %, and atoms displaced by 0.05 A (sigma)."""
    atoms = atoms.copy()
    strain = rng.uniform(-STRAIN, STRAIN, (3, 3))
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
    atoms.positions += rng.normal(0.0, RATTLE, atoms.positions.shape)
    return atoms


def wbm(model: str, *, cell: bool, seed: int) -> Make:
    """Return what makes a start: a crystal of the WBM set drawn by the seed and the number, and disturbed.

    Args:
        model: A name that `calculator` knows.
        cell: Whether the cell relaxes too.
        seed: Of the kind.
    """

    def make(number: int, data: Path | None) -> Optimizable:
        assert data is not None
        rng = np.random.default_rng([seed, number])
        crystals = read_structures(data / WBM)
        return _target(disturbed(crystals[int(rng.integers(len(crystals)))], rng), model, cell)

    return make


def own(model: str) -> Make:
    """Return what makes a start of the user's structures: the one of that number, as it is, with its cell."""

    def make(number: int, data: Path | None) -> Optimizable:
        assert data is not None
        return _target(read_structures(data)[number].copy(), model, cell=True)

    return make


def _target(atoms: Atoms, model: str, cell: bool) -> Optimizable:
    atoms.calc = calculator(model)
    target = FrechetCellFilter(atoms) if cell else atoms
    return target.__ase_optimizable__()


@cache
def read_structures(path: Path) -> list[Atoms]:
    """Return all structures of a file, or of the files of a folder in the order of their names.

    Raises:
        ValueError: A file cannot be read.
    """
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    structures: list[Atoms] = []
    for file in files:
        try:
            found = read(file, ":")
        except Exception as error:
            raise ValueError(f"cannot read {file}: {' '.join(str(error).split()) or type(error).__name__}") from None
        structures += found if isinstance(found, list) else [found]
    return structures


@cache
def calculator(model: str) -> Any:
    """Return an ASE calculator, one for each process: `chgnet`, `sevennet`, or what `module:Factory` makes."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the libraries talk while they load
        warnings.simplefilter("ignore")
        if model == "chgnet":
            from chgnet.model import CHGNet, CHGNetCalculator

            return CHGNetCalculator(CHGNet.load(use_device="cpu", verbose=False), use_device="cpu")
        if model == "sevennet":
            from sevenn.calculator import SevenNetCalculator

            return SevenNetCalculator("7net-0", device="cpu")
        module, _, factory = model.partition(":")
        return getattr(import_module(module), factory)()
