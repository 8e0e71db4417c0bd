"""Who can relax a structure here: our optimizer, and ASE's."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

OURS = "frankenstein"


class Method(NamedTuple):
    """An optimizer of ASE's kind.

    Attributes:
        title: For people.
        module: Where it is.
        attribute: Its class there.
    """

    title: str
    module: str
    attribute: str


METHODS = {
    OURS: Method("Frankenstein", "frankenstein.ase", "Frankenstein"),
    "fire": Method("FIRE", "ase.optimize", "FIRE"),
    "fire2": Method("FIRE2", "ase.optimize", "FIRE2"),
    "lbfgs": Method("LBFGS", "ase.optimize", "LBFGS"),
    "lbfgsls": Method("LBFGSLineSearch", "ase.optimize", "LBFGSLineSearch"),
    "bfgs": Method("BFGS", "ase.optimize", "BFGS"),
    "bfgsls": Method("BFGSLineSearch", "ase.optimize", "BFGSLineSearch"),
    "cg": Method("CG", "ase.optimize.sciopt", "SciPyFminCG"),
}
"""By the names that `--compare` takes."""

RIVALS = tuple(name for name in METHODS if name != OURS)


def optimizer_class(method: str) -> Any:
    """Return the class of the optimizer of this name, one of `METHODS`."""
    _, module, attribute = METHODS[method]
    return getattr(importlib.import_module(module), attribute)


def optimizer(method: str, target: Any, maxstep: float) -> Any:
    """Return the optimizer of this name; ASE's with the settings that ASE gives them.

    Args:
        method: One of `METHODS`.
        target: Atoms, or a filter around them.
        maxstep: Of ours only: ASE's mean other things by it.
    """
    options = {"maxstep": maxstep} if method == OURS else {}
    return optimizer_class(method)(target, logfile=None, **options)
