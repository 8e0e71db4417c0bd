"""Everything that can be compared: the package's own problems and optimizers, installed ones, and the user's.

A module adds problems in a sequence `PROBLEMS` and optimizers in a sequence `OPTIMIZERS`. Three kinds of modules count:
those in `frankenstein/compare/problems/` and `baselines.py`; those that installed packages name as entry points of the
group `frankenstein.compare`; and those that the user names with `--module`, a file or a dotted name.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from frankenstein.compare import baselines, problems
from frankenstein.compare.optimizers import DECAY, OptimizerSpec
from frankenstein.compare.problems.problem import Problem

ENTRY_POINTS = "frankenstein.compare"


class CatalogError(Exception):
    """A module or a class cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Catalog:
    """What there is, by name.

    Attributes:
        problems: Problems by name.
        optimizers: Optimizers by name; `optimizer` also takes `module:Class`.
        sources: The user's modules, each with the hash of its text.
    """

    problems: dict[str, Problem]
    optimizers: dict[str, OptimizerSpec]
    sources: dict[str, str]

    def optimizer(self, name: str) -> OptimizerSpec:
        """Return the optimizer of that name, or the one at `module:Class`.

        Raises:
            CatalogError: There is no such class, or it takes no learning rate.
            KeyError: The name is not in the table.
        """
        if name not in self.optimizers and ":" in name:
            self.optimizers[name] = _spec_of(name)
        return self.optimizers[name]


def catalog(modules: tuple[str, ...] = ()) -> Catalog:
    """Return the catalog with the user's modules in it: paths of files, or dotted names. It is made once.

    Raises:
        CatalogError: A module cannot be imported, adds nothing, or adds a name that is taken.
    """
    return _make(modules)


@cache
def _make(modules: tuple[str, ...]) -> Catalog:
    found = Catalog({}, {}, {})
    for module in _own_modules():
        _add(found, module, module.__name__)
    for point in entry_points(group=ENTRY_POINTS):
        _add(found, _load(point.value, f"the entry point {point.name} ({point.value})"), point.value)
    for name in modules:
        module = _load_user(name)
        _add(found, module, name)
        if not (hasattr(module, "PROBLEMS") or hasattr(module, "OPTIMIZERS")):
            raise CatalogError(f"--module {name} has neither PROBLEMS nor OPTIMIZERS; it needs one of these sequences")
        if module.__file__:
            found.sources[Path(module.__file__).name] = hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
    return found


def _own_modules() -> Iterator[ModuleType]:
    yield baselines
    for info in pkgutil.iter_modules(problems.__path__, f"{problems.__name__}."):
        yield importlib.import_module(info.name)


def _load_user(name: str) -> ModuleType:
    path = Path(name)
    if path.suffix != ".py":
        return _load(name, f"--module {name}")
    if not path.is_file():
        raise CatalogError(f"--module {name}: there is no such file")
    alias = f"frankenstein_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(alias, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[alias] = importlib.util.module_from_spec(spec)  # classes in it can be pickled
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[alias]
        raise CatalogError(f"--module {name} cannot be imported: {_one_line(error)}") from None
    return module


def _load(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise CatalogError(f"{what} cannot be imported: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _add(found: Catalog, module: ModuleType, name: str) -> None:
    kinds = (("PROBLEMS", Problem, found.problems), ("OPTIMIZERS", OptimizerSpec, found.optimizers))
    for attribute, kind, table in kinds:
        _add_items(name, attribute, getattr(module, attribute, ()), kind, table)


def _add_items(name: str, attribute: str, items: Iterable[Any], kind: type[Any], table: dict[str, Any]) -> None:
    for item in items:
        if not isinstance(item, kind):
            raise CatalogError(f"{name}: {attribute} holds {item!r:.60}, which is no {kind.__name__}")
        if item.name in table:
            raise CatalogError(f"{name}: the name {item.name!r} is taken; choose another")
        table[item.name] = item


def _spec_of(name: str) -> OptimizerSpec:
    """Return the specification of `module:Class`: its own defaults, learning rate and momentum tuned."""
    module_name, _, class_name = name.partition(":")
    module = _load(module_name, f"the optimizer {name}")
    try:
        arguments = signature(getattr(module, class_name)).parameters
    except (AttributeError, TypeError, ValueError):
        raise CatalogError(f"the optimizer {name}: {module_name} has no class {class_name!r}") from None
    if "lr" not in arguments:
        raise CatalogError(f"the optimizer {name} has no argument lr; describe it in a module of your own (--module)")
    lr = arguments["lr"].default
    default = {"lr": float(lr) if isinstance(lr, (int, float)) and lr > 0 else 1e-3}
    second = None
    if isinstance(betas := getattr(arguments.get("betas"), "default", None), tuple) and betas:
        default["betas[0]"], second = float(betas[0]), ("betas[0]", DECAY)
    elif "momentum" in arguments:
        default["momentum"], second = 0.9, ("momentum", DECAY)
    return OptimizerSpec(name, name, name, default, second)
