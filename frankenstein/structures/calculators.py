"""Where energies and forces come from: Lennard-Jones, EMT, batched models, and every calculator of ASE."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import voigt_6_to_full_3x3_stress

from frankenstein.models import Prediction
from frankenstein.structures.potentials import lennard_jones

MODELS = ("chgnet", "sevennet")
NAMES = ("lj", "emt", *MODELS)
BATCH_ATOMS = 2_000  # of one batch, if the user does not say

Evaluate = Callable[[Sequence[Atoms], bool], list[Prediction | Exception]]


class CalculatorError(Exception):
    """There is no such calculator; the message is one line for the user."""


class LennardJones(Calculator):
    """The Lennard-Jones potential between all pairs of atoms, without a cutoff: for clusters in empty space.

    Args:
        epsilon: Depth of the well.
        sigma: Distance at which the energy of a pair is 0.

    Example:
        >>> atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 2 ** (1 / 6)]], calculator=LennardJones())
        >>> round(atoms.get_potential_energy(), 12)
        -1.0
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 (ASE's interface)

    def __init__(self, epsilon: float = 1.0, sigma: float = 1.0) -> None:
        super().__init__()
        self.epsilon, self.sigma = epsilon, sigma

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute energy and forces.

        Raises:
            ValueError: The structure is periodic.
        """
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        if self.atoms.pbc.any():
            raise ValueError("LennardJones has no cutoff and is for clusters; this structure is periodic")
        energy, forces = self.energy_and_forces(self.atoms.positions)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}

    def energy_and_forces(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the energy and the forces (n_atoms, 3) at positions (n_atoms, 3), in reduced units."""
        with np.errstate(all="ignore"):  # atoms on each other: infinite, which the caller sees
            return lennard_jones(positions, self.epsilon, self.sigma)


@dataclass(frozen=True)
class Potential:
    """A calculator as the run uses it.

    Attributes:
        name: What the user calls it.
        version: Of its code and weights; two that differ may differ in their forces.
        evaluate: Called with structures and whether stress is needed; gives a prediction or an exception for each.
        elements: Symbols that it knows. None: it does not say.
        is_batched: Whether many structures cost less together.
        is_for_clusters: Whether it knows nothing of periodic structures.
        has_stress: Whether it can tell the stress.
        fresh: Forgets what it has seen of other structures; called when a structure begins.
    """

    name: str
    version: str
    evaluate: Evaluate
    elements: frozenset[str] | None = None
    is_batched: bool = False
    is_for_clusters: bool = False
    has_stress: bool = True
    fresh: Callable[[], None] = lambda: None


def load(name: str, device: str = "cpu", batch_atoms: int = BATCH_ATOMS) -> Potential:
    """Return the calculator of this name.

    Args:
        name: One of `NAMES`, or `module:Factory`, or `path/to/file.py:Factory`; the factory is called without
            arguments and returns a calculator of ASE.
        device: Where a model computes.
        batch_atoms: Most atoms of one forward pass of a model.

    Raises:
        CalculatorError: There is no such calculator, or it cannot be made.
    """
    if name == "lj":
        return Potential("lj", "1", _each(_lennard_jones()), is_for_clusters=True, has_stress=False)
    if name == "emt":
        from ase.calculators.emt import EMT, parameters

        # A new one for every call: it keeps a neighbour list, so that its last digits depend on what it saw before.
        return Potential("emt", f"ase {ase.__version__}", _each(_asked(EMT)), frozenset(parameters))
    if name in MODELS:
        return _model(name, device, batch_atoms)
    if ":" in name:
        return _factory(name)
    if name.endswith(".py"):
        raise CalculatorError(f"which class? {name}:NAME")
    hint = (
        "mace is mace.calculators:mace_mp"
        if name.lower() == "mace"
        else f"allowed are {', '.join(NAMES)}, module:Factory"
    )
    raise CalculatorError(f"unknown calculator {name!r}; {hint}")


def plain(name: str) -> str:
    """Return the name of a calculator without what does not matter: spaces around it, capitals of our own names.

    Examples:
        >>> plain(" EMT "), plain("module:Factory")
        ('emt', 'module:Factory')
    """
    name = name.strip()
    return name.lower() if name.lower() in NAMES else name


def _each(compute: Callable[[Atoms, bool], Prediction]) -> Evaluate:
    """Make a function of many structures from one of a single structure."""

    def evaluate(structures: Sequence[Atoms], has_stress: bool) -> list[Prediction | Exception]:
        answers: list[Prediction | Exception] = []
        for atoms in structures:
            try:
                answers.append(compute(atoms, has_stress))
            except Exception as error:
                answers.append(error)
        return answers

    return evaluate


def _lennard_jones() -> Callable[[Atoms, bool], Prediction]:
    calculator = LennardJones()
    return lambda atoms, _: Prediction(*calculator.energy_and_forces(atoms.positions), None)


def _asked(make: Callable[[], Any]) -> Callable[[Atoms, bool], Prediction]:
    """Return a function that asks the calculator that `make` returns."""

    def compute(atoms: Atoms, has_stress: bool) -> Prediction:
        calculator = make()
        forces = np.array(calculator.get_property("forces", atoms), dtype=float)
        if forces.shape != (len(atoms), 3):
            raise ValueError(f"its forces have the shape {forces.shape} for {len(atoms)} atoms")
        stress = None
        if has_stress:
            stress = np.asarray(calculator.get_property("stress", atoms), dtype=float)
            stress = voigt_6_to_full_3x3_stress(stress) if stress.shape == (6,) else stress
        return Prediction(float(calculator.get_property("energy", atoms)), forces, stress)

    return compute


def _model(name: str, device: str, batch_atoms: int) -> Potential:
    from frankenstein import models

    try:
        model = getattr(models, name)(device=device, batch_atoms=batch_atoms)
    except ImportError as error:
        text = str(error) if "[" in str(error) else f"{name} needs packages that are missing: pip install '.[{name}]'"
        raise CalculatorError(text) from None
    except Exception as error:
        raise CalculatorError(f"{name} cannot be loaded on {device}: {one_line(error)}") from None
    return Potential(
        name, f"{model.name} {model.version}", lambda structures, _: model(structures), model.elements, is_batched=True
    )


def _factory(name: str) -> Potential:
    where, _, attribute = name.rpartition(":")
    is_file = where.endswith(".py") or os.sep in where
    try:
        module = _from_file(Path(where)) if is_file else _from_name(where)
        factory = getattr(module, attribute, None)
        if not callable(factory):
            raise CalculatorError(f"{where} has no {attribute!r} that can be called")
        calculator = factory()
    except CalculatorError:
        raise
    except Exception as error:
        raise CalculatorError(f"calculator {name}: {one_line(error)}") from None
    if not hasattr(calculator, "get_property"):
        raise CalculatorError(f"calculator {name}: {attribute}() returns no calculator of ASE")
    source = getattr(module, "__file__", None)
    code = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16] if source else _version(where)
    return Potential(
        name,
        code,
        _each(_asked(lambda: calculator)),
        has_stress="stress" in getattr(calculator, "implemented_properties", ["stress"]),
        fresh=getattr(calculator, "reset", lambda: None),
    )


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise CalculatorError(f"there is no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # so that its classes can be pickled
    spec.loader.exec_module(module)
    return module


def _from_name(name: str) -> Any:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` has it
    return importlib.import_module(name)


def _version(module: str) -> str:
    try:
        return version(module.partition(".")[0])
    except PackageNotFoundError:
        return "unknown"


def one_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
