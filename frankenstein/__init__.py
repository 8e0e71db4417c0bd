"""The Frankenstein optimizer (arXiv:2503.02147): one update rule, and front-ends that use it.

`import frankenstein` needs numpy only; every public name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frankenstein.rule import Rule
    from frankenstein.torch import Frankenstein

__all__ = ["Frankenstein", "Rule", "__version__"]

_HOME = {"Frankenstein": "frankenstein.torch", "Rule": "frankenstein.rule"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        try:
            return getattr(import_module(_HOME[name]), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            needs = f"frankenstein.{name} needs PyTorch; pip install '.[torch]' (in the checkout)"
            raise ImportError(needs, name="torch") from error
    if name == "__version__":
        from importlib.metadata import version

        return version("frankenstein-optimizer")
    raise AttributeError(f"module 'frankenstein' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
