"""Merge run folders: what several machines have run, in one folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from frankenstein.compare.store.records import Record, RecordError, Report, appending, read

REFERENCES = "references.json"

References = dict[str, list[dict[str, Any]]]  # by problem: curves that others published


class Merged(NamedTuple):
    """What a merge did, in cells: new here, here already and left as they were, given a better record."""

    n_added: int
    n_same: int
    n_replaced: int


def merge(target: Path, sources: Sequence[Path], report: Report) -> Merged:
    """Add the records and references of other run folders to one.

    Of two records of a cell that differ, one that did not fail beats one that did; then the later one wins. Records are
    only appended: after a kill, merging again does the rest. The sources are only read, and may be in use.

    Args:
        target: Run folder; made if absent.
        sources: Run folders.
        report: Called with one line for each damaged last line, and for each source whose records differ.

    Raises:
        RecordError: A folder cannot be used, holds no records or damaged ones, or is both target and source; the target
            is in use.
    """
    for source in sources:
        if target.exists() and source.exists() and target.samefile(source):
            raise RecordError(f"{source} is both source and target of the merge; leave it out of the sources")
    found = [(source, load(source, report)) for source in sources]
    references = [(source, read_references(source)) for source in sources]
    with appending(target, report) as (records, append):
        before = {record["cell"]: record for record in records}
        after = dict(before)
        for source, theirs in found:
            _add(after, theirs, source, report)
        ours = read_references(target)
        together = _joined([(target, ours), *references], report)
        changed = [record for cell, record in after.items() if record is not before.get(cell)]
        for record in sorted(changed, key=_when):  # the reader of a folder takes its last lines for its newest
            append(record)
        if together != ours:
            _write(target / REFERENCES, together)
    n_replaced = sum(record["cell"] in before for record in changed)
    cells = {record["cell"] for _, theirs in found for record in theirs}
    return Merged(len(changed) - n_replaced, len(cells) - len(changed), n_replaced)


def load(folder: Path, report: Report) -> list[Record]:
    """Return the records of a run folder that is there and not empty.

    Raises:
        RecordError: There is no such folder, or it holds no records, or damaged ones.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder} is {'not a folder' if folder.exists() else 'no folder'}; name a run folder")
    records = read(folder, report)
    if not records:
        raise RecordError(f"no records in {folder}; name a run folder")
    return records


def joined_records(folders: Iterable[Path], report: Report) -> list[Record]:
    """Return the records of all folders, one for each cell, chosen as `merge` does.

    Raises:
        RecordError: There is no such folder, or it holds no records, or damaged ones.
    """
    together: dict[str, Record] = {}
    for folder in folders:
        _add(together, load(folder, report), folder, report)
    return list(together.values())


def _add(together: dict[str, Record], records: Iterable[Record], source: Path, report: Report) -> None:
    """Add the records to those of `together`, and report how many cells had another record there."""
    n_taken = n_left = n_apart = 0
    for record in records:
        held = together.get(record["cell"], record)
        if held != record:
            is_better = _goodness(record) > _goodness(held)
            n_taken, n_left = n_taken + is_better, n_left + (not is_better)
            n_apart += _measured(held) != _measured(record)
            held = record if is_better else held
        together[record["cell"]] = held
    if n_apart:
        rule = "one that did not fail before one that did, then the later one"
        report(f"{source}: {n_taken + n_left} runs were there already, {n_apart} with another result; kept: {rule}")


def _measured(record: Record) -> tuple[Any, ...]:
    """Return what two runs of a cell should have in common; their times differ always."""
    return record["outcome"], record["score"], record["curve"]["score"]


def _goodness(record: Record) -> tuple[bool, datetime, str]:
    """Return what to sort by; the text decides where nothing else does, so that the order of sources never matters."""
    return record["outcome"] != "failed", _when(record), json.dumps(record, sort_keys=True)


def _when(record: Record) -> datetime:
    try:
        when = datetime.fromisoformat(record["finished_at"])
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def read_references(folder: Path) -> References:
    """Return the folder's reference curves by problem; none where it has no such file.

    Raises:
        RecordError: The file cannot be read, or holds something else.
    """
    path = folder / REFERENCES
    try:
        references = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise RecordError(f"{path} is not JSON; mend it, or move it away") from None
    if not _are_references(references):
        shape = "{problem: [{title, source, step: [...], score: [...]}]}"
        raise RecordError(f"{path} is not of the form {shape}; mend it, or move it away")
    return references


def _are_references(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    curves = [curve for group in content.values() for curve in (group if isinstance(group, list) else [None])]
    return all(isinstance(curve, dict) and isinstance(curve.get("title"), str) for curve in curves)


def _joined(groups: Iterable[tuple[Path, References]], report: Report) -> References:
    """Return all references; of two with the same problem and title, the first."""
    together: dict[str, dict[str, dict[str, Any]]] = {}
    for folder, references in groups:
        for problem, curves in references.items():
            held = together.setdefault(problem, {})
            for curve in curves:
                if held.setdefault(curve["title"], curve) != curve:
                    report(
                        f"{folder / REFERENCES}: {curve['title']!r} of {problem} differs from the one held; left out"
                    )
    return {problem: list(curves.values()) for problem, curves in together.items()}


def _write(path: Path, references: References) -> None:
    half = path.with_name(f".{path.name}")
    try:
        half.write_text(json.dumps(references, indent=1) + "\n", encoding="utf-8")
        os.replace(half, path)  # a reader never sees half a file
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}") from None
