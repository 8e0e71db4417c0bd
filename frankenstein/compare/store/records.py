"""Records: one JSON line per finished cell, append-only, with the provenance of each.

A run can be killed at any moment: what was written stays valid. A damaged last line (a kill in mid-write) is reported
and skipped, and cut off when the run goes on; damage anywhere else is an error, and nothing is touched.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

SCHEMA = 2
FILE = "records.jsonl"

Record = dict[str, Any]
Report = Callable[[str], None]

# What every record holds, by the type of each value; a tuple lists the allowed values.
SHAPE: dict[str, Any] = {
    "schema": int,
    "cell": str,
    "problem": str,
    "problem_title": str,
    "problem_config": {
        "metric": str,
        "is_higher_better": bool,
        "target": Real,
        "worst": Real,
        "n_steps": int,
        "lr_scale": Real,
    },
    "optimizer": str,
    "optimizer_title": str,
    "optimizer_config": {"class": str, "default": {"lr": Real}, "options": dict},
    "settings": {"lr": Real},
    "space": {"lr": list},
    "seed": int,
    "split": ("validation", "test"),
    "trial": int | None,
    "tuner": str | None,
    "outcome": ("finished", "diverged", "failed"),
    "reason": str,
    "score": Real,
    "curve": {"step": list, "score": list, "seconds": list},
    "wall_seconds": Real,
    "finished_at": str,
    "command": str,
    "provenance": {"versions": dict, "system": str, "device": str},
}


class RecordError(Exception):
    """A run folder cannot be used; the message is one line for the user."""


class Format(NamedTuple):
    """What the records of a folder look like.

    Attributes:
        schema: Number of the format, in each record's `schema`.
        shape: What every record holds; see `SHAPE`. `cell` is a text that names what was measured, once.
        check: Says in a few words what else is wrong with a record; an empty text if nothing is.
    """

    schema: int
    shape: dict[str, Any]
    check: Callable[[Record], str]


class _Content(NamedTuple):
    """What a record file holds: its records, and how many bytes of it are whole lines of records."""

    records: list[Record]
    n_good_bytes: int
    damage: str  # what is wrong with the last line, if anything


def _check_curve(record: Record) -> str:
    return "" if _is_curve(record["curve"]) else "has a curve that is not lists of numbers, of equal length"


COMPARISON = Format(SCHEMA, SHAPE, _check_curve)
"""The records of `frankenstein compare`."""


def read(folder: Path, report: Report, form: Format = COMPARISON) -> list[Record]:
    """Return the folder's records in the order they were written; a later record of a cell replaces an earlier one.

    Args:
        folder: Run folder. A finished `records.jsonl` may be kept gzipped.
        report: Called with one line if the last line is damaged and skipped.
        form: What the records look like.

    Raises:
        RecordError: The folder or a file in it cannot be read, or a line other than the last is damaged.
    """
    records: dict[str, Record] = {}
    for path in (folder / f"{FILE}.gz", folder / FILE):
        content = _parse(path, _bytes_of(path), form)
        if content.damage:
            report(f"{content.damage}; skipped")
        records |= {record["cell"]: record for record in content.records}
    return list(records.values())


@contextmanager
def appending(
    folder: Path, report: Report, form: Format = COMPARISON
) -> Iterator[tuple[list[Record], Callable[[Record], None]]]:
    """Open the folder for this process alone; yield its records and a function that appends one record, whole.

    Raises:
        RecordError: The folder cannot be used, or another process is writing there; also from the function, where a
            record cannot be written (a full disk).
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise RecordError(f"cannot use {folder}: {error.strerror}; choose a writable folder with --out") from None
    try:
        lock(handle, folder)
        records = read(folder, report, form)
        try:
            _mend_tail(path, form)
            with open(path, "ab", buffering=0):
                pass  # says now, not after the first cell, that the folder cannot be written
        except OSError as error:
            raise RecordError(f"cannot write {path}: {error.strerror}; choose a writable folder with --out") from None

        def append(record: Record) -> None:
            line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
            try:
                with open(path, "ab") as file:
                    file.write(line)
            except OSError as error:
                raise RecordError(f"cannot write {path}: {error.strerror}") from None

        yield records, append
    finally:
        os.close(handle)


def lock(handle: int, folder: Path) -> None:
    """Keep other runs out of a folder as long as its handle is open.

    Raises:
        RecordError: Another run is there, or the folder cannot be locked.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no flock; two runs in one folder are then the user's care
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RecordError(f"{folder} is in use by another run; wait for it, or choose another --out") from None
    except OSError as error:
        raise RecordError(f"cannot lock {folder}: {error.strerror}; choose a folder on a local disk") from None


def _bytes_of(path: Path) -> bytes:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content: bytes = file.read()
        return content
    except FileNotFoundError:
        return b""
    except (OSError, EOFError, zlib.error) as error:
        raise RecordError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _parse(path: Path, content: bytes, form: Format) -> _Content:
    """Return the records of a file.

    Raises:
        RecordError: A line other than the last is damaged, or the file holds nothing of ours.
    """
    lines = content.split(b"\n")
    last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
    records: list[Record] = []
    n_good_bytes = 0
    for i, line in enumerate(lines[: last + 1]):
        if line.strip():
            record, problem = _decode(line, form)
            if problem:
                where = f"{path}: line {i + 1}"
                if i < last:
                    raise RecordError(f"{where} {problem}; mend or remove that line, or choose another folder")
                if not records and not line.startswith(b'{"schema":'):
                    raise RecordError(f"{path} holds no records; move it away, or choose another folder")
                return _Content(records, n_good_bytes, f"{where}, the last one, {problem} (killed while writing?)")
            records.append(record)
        n_good_bytes += len(line) + 1
    return _Content(records, min(n_good_bytes, len(content)), "")


def _decode(line: bytes, form: Format) -> tuple[Record, str]:
    """Return the record and an empty text, or anything and what is wrong."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "is not JSON"
    if not isinstance(record, dict):
        return {}, "is not a record"
    if record.get("schema") != form.schema:
        return {}, f"has schema {record.get('schema')!r}, this version reads schema {form.schema}"
    return record, _mismatch(record, form.shape, "") or form.check(record)


def _is_curve(curve: dict[str, Any]) -> bool:
    """Say whether the columns are of one length and hold numbers; those beyond the first three may have gaps."""
    for name, column in curve.items():
        allowed = (int, float) if name in ("step", "score", "seconds") else (int, float, NoneType)
        if not isinstance(column, list) or len(column) != len(curve["step"]):
            return False
        if not all(type(value) in allowed for value in column):
            return False
    return all(map(math.isfinite, (*curve["score"], *curve["seconds"])))


def _mismatch(value: Any, shape: Any, name: str) -> str:
    """Say in a few words where `value` is not of the shape; an empty text if it is."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"has no object in {name!r}"
        for key, inner in shape.items():
            path = f"{name}.{key}".lstrip(".")
            if key not in value:
                return f"lacks {path!r}"
            if problem := _mismatch(value[key], inner, path):
                return problem
        return ""
    is_right = value in shape if isinstance(shape, tuple) else _is_a(value, shape)
    return "" if is_right else f"has {str(value)[:20]!r} in {name!r}"


def _is_a(value: Any, kind: Any) -> bool:
    if kind is Real:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _mend_tail(path: Path, form: Format) -> None:
    """Cut a damaged last line off, and end a whole one: an append would otherwise be glued to it."""
    content = _bytes_of(path)
    n_good_bytes = _parse(path, content, form).n_good_bytes
    if n_good_bytes < len(content):
        os.truncate(path, n_good_bytes)
    elif content and not content.endswith(b"\n"):
        with open(path, "ab") as file:
            file.write(b"\n")
