"""The output folder of a run: what was asked, what has ended, and that only one run writes there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from frankenstein.compare.store.records import RecordError, lock
from frankenstein.structures.running import Outcome
from frankenstein.structures.workers import LOCK, wait_for_workers

SETTINGS, CURVES = "settings.json", "curves.jsonl"
TRY_AGAIN = ("failed", "timeout")
"""Reasons that need not be there the next time: the same command goes on with these structures."""

KEEP_JOURNAL = (*TRY_AGAIN, "maxcalls")
"""Reasons after which a structure may go on: the same command, or one that allows more calls."""

HALVES = (".*.part", ".chart.png.png", "trajectories/.*.traj")
"""Files that were being written when a run was killed."""

FIELDS = ("name", "optimizer", "formula", "n_atoms", "converged", "reason", "calls", "curve")
"""What every line of `curves.jsonl` holds, and more."""


class FolderError(Exception):
    """A folder cannot be used; the message is one line for the user."""


class Folder:
    """An output folder; `opened` makes one.

    Attributes:
        path: Where it is.
        maxcalls: Most calls of one structure, now.
        outcomes: What has ended in earlier runs and now, by name and optimizer.
    """

    def __init__(self, path: Path, maxcalls: int) -> None:
        self.path, self.maxcalls = path, maxcalls
        self.outcomes: dict[tuple[str, str], Outcome] = {}

    def is_done(self, name: str, method: str) -> bool:
        """Say whether this structure need not be looked at again."""
        outcome = self.outcomes.get((name, method))
        if outcome is None or outcome["reason"] in TRY_AGAIN:
            return False
        return outcome["reason"] != "maxcalls" or outcome["calls"] >= self.maxcalls

    def append(self, outcome: Outcome) -> None:
        """Write down how a structure has ended.

        Raises:
            OSError: It cannot be written.
        """
        line = json.dumps(outcome, separators=(",", ":")).encode() + b"\n"
        with open(self.path / CURVES, "ab") as file:
            n_before = file.tell()
            try:
                file.write(line)
                file.flush()
            except OSError:
                file.truncate(n_before)
                raise
        self.outcomes[outcome["name"], outcome["optimizer"]] = outcome

    def _read(self) -> None:
        """Read what has ended; a line that a kill has cut short is cut off."""
        path = self.path / CURVES
        if not path.exists():
            return
        content, n_good = path.read_bytes(), 0
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            try:
                outcome = json.loads(line)
                is_whole = line.endswith(b"\n") and all(field in outcome for field in FIELDS)
            except ValueError:
                is_whole = False
            if not is_whole:
                if n_good + len(line) < len(content):
                    raise FolderError(
                        f"{path}, line {number}: damaged; repair or delete the line, or choose another --out"
                    )
                os.truncate(path, n_good)
                return
            n_good += len(line)
            self.outcomes[outcome["name"], outcome["optimizer"]] = outcome


@contextmanager
def opened(path: Path, settings: Mapping[str, Any], context: Mapping[str, Any]) -> Iterator[Folder]:
    """Open a folder for this run alone.

    Args:
        path: Made if absent.
        settings: What decides the results; those of an earlier run there must be the same, but for files that are
            added and a larger maxcalls.
        context: What a reader may want to know besides; kept from the first run, but for the command.

    Raises:
        FolderError: It is another run's, in use, damaged, or cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        why = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise FolderError(f"cannot use {path}: {why}; choose another folder with --out") from None
    try:
        try:
            lock(handle, path)
        except RecordError as error:
            raise FolderError(str(error)) from None
        folder = Folder(path, settings["maxcalls"])
        try:
            _check_settings(path, settings, context)
            wait_for_workers(path)
            folder._read()
        except OSError as error:
            raise FolderError(f"cannot use {error.filename or path}: {error.strerror}; choose another --out") from None
        try:
            yield folder
        finally:
            _tidy(path)
    finally:
        os.close(handle)


def known_names(path: Path) -> dict[str, str]:
    """Return the names that an earlier run in this folder gave to its files: those they keep."""
    try:
        settings = json.loads((path / SETTINGS).read_text(encoding="utf-8"))["settings"]
        return {str(file): str(name) for file, name in settings["names"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # `opened` says what is wrong, if it is
        return {}


def _tidy(path: Path) -> None:
    """Remove what nobody needs any more. The folder is locked, and no worker lives."""
    with suppress(OSError):
        for file in [path / LOCK, *(file for pattern in HALVES for file in path.glob(pattern))]:
            file.unlink(missing_ok=True)


def replace(path: Path, content: str | bytes) -> None:
    """Write a file whole: a reader sees the one before or this one.

    Raises:
        OSError: It cannot be written; the one before is still there.
    """
    half = path.with_name(f".{path.name}.part")
    try:
        half.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(half, path)
    except OSError:
        half.unlink(missing_ok=True)
        raise


def _check_settings(path: Path, settings: Mapping[str, Any], context: Mapping[str, Any]) -> None:
    file = path / SETTINGS
    if not file.exists():
        if any(other.name != LOCK and not other.name.endswith(".part") for other in path.iterdir()):
            raise FolderError(f"{path} is not empty and holds no relaxation; choose another folder with --out")
        replace(file, json.dumps({"settings": settings, **context}, indent=1) + "\n")
        return
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
        before = dict(whole["settings"])
        old_files, old_calls = dict(before["files"]), int(before["maxcalls"])
    except (ValueError, KeyError, TypeError):
        raise FolderError(f"{file} is damaged; delete {path} to start anew, or choose another --out") from None
    wanted = json.loads(json.dumps(settings))
    difference = _lost_file(old_files, dict(wanted["files"]))
    for key in dict.fromkeys([*wanted, *before]):
        may_differ = key in ("files", "names") or (key == "maxcalls" and wanted[key] >= old_calls)
        if not may_differ and before.get(key) != wanted.get(key):
            more = " (more may be allowed, not fewer)" if key == "maxcalls" else ""
            difference = f"{key} {before.get(key)}, not {wanted.get(key)}{more}"
            break
    if difference:
        raise FolderError(
            f"{path} holds a relaxation with {difference}; choose another folder with --out, or delete {path} to start "
            "anew"
        )
    if before != wanted:
        replace(file, json.dumps({**whole, "settings": wanted, "command": context["command"]}, indent=1) + "\n")


def _lost_file(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Say which file of the earlier run is not there as it was; one that could not be read may have been put right."""
    for name, content in old.items():
        if name not in new:
            return f"the file {name}, which is not named now"
        if content and content != new[name]:
            return f"another content of {name}, which has changed since"
    return ""
