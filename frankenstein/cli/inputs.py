"""What all commands share: how input is checked, and how the user is told."""

from __future__ import annotations

import argparse
import difflib
import math
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path


class UsageError(Exception):
    """Wrong input; the message is one line for the user."""


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def count(text: str) -> int:
    """Read a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def amount(text: str) -> float:
    """Read a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def folder(text: str) -> Path:
    """Read the name of a folder."""
    if not text:
        raise argparse.ArgumentTypeError("the folder's name is empty")
    return Path(text)


def need(names: Iterable[str], extra: str) -> None:
    """Say what is missing and how to get it, if a package is missing.

    Raises:
        UsageError: A package is missing.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UsageError(f"this command needs {', '.join(missing)}: pip install '.[{extra}]' (in the checkout)")


def choose(what: str, asked: list[str] | None, known: Iterable[str], default: Iterable[str]) -> tuple[str, ...]:
    """Return the names asked for, each once, or the default; names with a colon are taken as they are.

    Raises:
        UsageError: A name is not known.
    """
    if asked is None:
        return tuple(default)
    known = list(known)
    names = list(dict.fromkeys(name for part in asked for name in part.split(",") if name))
    for name in names:
        if name not in known and not (":" in name and what == "optimizer"):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise UsageError(f"unknown {what} {name!r}; {hint}")
    if not names:
        raise UsageError(f"no {what} named; known: {', '.join(known)}")
    return tuple(names)


def say(line: str) -> None:
    """Tell the user something that is not output."""
    print(f"frankenstein: {line}", file=sys.stderr)
