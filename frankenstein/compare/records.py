"""Records: one JSON line per finished cell, append-only, with the provenance of each.

A run can be killed at any moment: what was written stays valid, a half-written last line is reported and dropped.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import platform
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA = 1
FILE = "records.jsonl"
REQUIRED = ("schema", "cell", "problem", "optimizer", "lr", "seed", "split", "outcome", "provenance")

Record = dict[str, Any]


class RecordError(Exception):
    """A run folder cannot be used; the message is one line for the user."""


def read(folder: Path, report: Callable[[str], None]) -> list[Record]:
    """Return the folder's records in the order they were written; a later record of a cell replaces an earlier one.

    Args:
        folder: Run folder; without a record file the list is empty. A finished file may be kept gzipped.
        report: Called with one line if the last line is damaged and skipped.

    Raises:
        RecordError: The file cannot be read, or a line other than the last is damaged.
    """
    records: dict[str, Record] = {}
    for path, opener in ((folder / f"{FILE}.gz", gzip.open), (folder / FILE, open)):
        if path.exists():
            try:
                with opener(path, "rb") as file:
                    lines = file.read().split(b"\n")
            except (OSError, EOFError, zlib.error) as error:
                raise RecordError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
            for record in _parse(path, lines, report):
                records[record["cell"]] = record
    return list(records.values())


def _parse(path: Path, lines: list[bytes], report: Callable[[str], None]) -> Iterator[Record]:
    last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
    for i, line in enumerate(lines[: last + 1]):
        try:
            record = json.loads(line)
            missing = [key for key in REQUIRED if key not in record]
        except (ValueError, TypeError):
            record, missing = None, []
        if not isinstance(record, dict) or missing:
            what = f"lacks {', '.join(missing)}" if missing else "is not a JSON object"
            if i == last:
                report(f"{path}: line {i + 1}, the last one, {what} (a run was killed while writing it?); skipped")
                continue
            raise RecordError(f"{path}: line {i + 1} {what}; mend or remove that line, or choose another folder")
        if record["schema"] != SCHEMA:
            raise RecordError(f"{path}: line {i + 1} has schema {record['schema']}, this version reads schema {SCHEMA}")
        yield record


@contextmanager
def appending(folder: Path) -> Iterator[Callable[[Record], None]]:
    """Open the folder's record file for this process alone; yield a function that appends one record, whole.

    Raises:
        RecordError: The folder cannot be written, or another process is writing there.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab+")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}; choose a writable folder with --out") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecordError(f"{folder} is in use by another run; wait for it, or choose another --out") from None
        _drop_half_line(file)

        def append(record: Record) -> None:
            file.write(json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n")
            file.flush()

        yield append


def _drop_half_line(file: Any) -> None:
    """Cut what stands behind the last complete line; an append would otherwise be glued to it."""
    file.seek(0)
    data = file.read()
    whole, half = data.rpartition(b"\n")[::2]
    keep = len(data) - len(half)
    if half:
        file.truncate(keep)
    tail = whole.rpartition(b"\n")[2]
    if tail.strip():  # a last line that ends properly but is damaged goes too: `read` has reported it
        try:
            json.loads(tail)
        except ValueError:
            file.truncate(keep - len(tail) - 1)


@cache
def provenance() -> dict[str, Any]:
    """Return what a reader needs to judge and repeat a measurement made by this process."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "versions": {
            "python": platform.python_version(),
            "frankenstein": installed("frankenstein-optimizer"),
            **{name: installed(name) for name in ("numpy", "torch", "scikit-learn")},
        },
        "git": _git_hash(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"cpu: {_cpu_model()}, {os.cpu_count()} cores",
    }


def _git_hash() -> str | None:
    """Return the commit of the checkout this package runs from, with "+" if tracked files differ from it."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", __file__) is None:  # an installed copy inside somebody else's repository
        return None
    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"
