"""Export records as two tables, for DuckDB, pandas and others: `runs`, a row for each run, and `curves`, its points.

What is queried is a flat column of its own type. What is nested, and differs from run to run, is also kept whole, as
JSON text: DuckDB takes it apart with `->>`, pandas with `json.loads`, and it is the same in a CSV file. (As a Parquet
struct it would need a column for every name that any run has; a Parquet map reaches pandas as a list of pairs.)
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from frankenstein.compare.results.summary import summarise
from frankenstein.compare.store.merge import joined_records
from frankenstein.compare.store.records import Record, RecordError, Report

Kind = type[str] | type[int] | type[float] | type[bool] | type[datetime]

# Column, where it is in a record, and its type. A record may lack any of them.
COLUMNS: tuple[tuple[str, tuple[str, ...], Kind], ...] = (
    ("cell", ("cell",), str),
    ("problem", ("problem",), str),
    ("problem_title", ("problem_title",), str),
    ("optimizer", ("optimizer",), str),
    ("optimizer_title", ("optimizer_title",), str),
    ("split", ("split",), str),
    ("seed", ("seed",), int),
    ("trial", ("trial",), int),
    ("tuner", ("tuner",), str),
    ("outcome", ("outcome",), str),
    ("reason", ("reason",), str),
    ("score", ("score",), float),
    ("metric", ("problem_config", "metric"), str),
    ("is_higher_better", ("problem_config", "is_higher_better"), bool),
    ("target", ("problem_config", "target"), float),
    ("worst", ("problem_config", "worst"), float),
    ("steps_to_target", ("steps_to_target",), int),
    ("seconds_to_target", ("seconds_to_target",), float),
    ("n_steps", ("problem_config", "n_steps"), int),
    ("n_steps_done", ("n_steps_done",), int),
    ("seconds_per_step", ("seconds_per_step",), float),
    ("optimizer_seconds_per_step", ("optimizer_seconds_per_step",), float),
    ("state_bytes", ("state_bytes",), int),
    ("n_params", ("n_params",), int),
    ("wall_seconds", ("wall_seconds",), float),
    ("attempt", ("attempt",), int),
    ("finished_at_utc", ("finished_at",), datetime),
    ("optimizer_class", ("optimizer_config", "class"), str),
    ("lr_scale", ("problem_config", "lr_scale"), float),
    ("git", ("provenance", "git"), str),
    ("system", ("provenance", "system"), str),
    ("device", ("provenance", "device"), str),
    ("command", ("command",), str),
    ("schema", ("schema",), int),
)
OPEN = (("setting_", ("settings",)), ("version_", ("provenance", "versions")))  # a column for every name in there
WHOLE = ("settings", "problem_config", "optimizer_config", "space", "provenance")  # as JSON text


class ExportError(RecordError):
    """Records cannot be exported; the message is one line for the user."""


@dataclass(frozen=True)
class Column:
    """A column of a table; missing values are None."""

    name: str
    kind: Kind
    values: list[Any]


Table = list[Column]


def export(folders: Iterable[Path], out: Path, formats: Collection[str], report: Report | None = None) -> list[Path]:
    """Write `runs` and `curves` in each format, and return the files.

    Args:
        folders: Run folders; of several records of a cell the one is taken that `merge` would keep.
        out: Folder to write to; made if absent, and files of the same names replaced.
        formats: "parquet" and "csv". In a CSV file a missing value is an empty field, as is an empty text.
        report: Called with a line for the user where records were damaged; None prints it to standard error.

    Raises:
        ExportError: There is no such format, or pyarrow is missing.
        RecordError: A folder cannot be read, holds no records or damaged ones; or a file cannot be written.
    """
    writers = {name: _writer(name) for name in formats}
    records = joined_records(folders, report or _warn)
    tables = {"runs": runs(records), "curves": curves(records)}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"cannot use {out}: {error.strerror}; choose a writable folder with --out") from None
    return [
        _written(out / f"{table}.{name}", write, columns)
        for name, write in writers.items()
        for table, columns in tables.items()
    ]


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


def runs(records: Sequence[Record]) -> Table:
    """Return one row for each record.

    `is_tuned` marks the test runs with the settings that tuning chose, `is_default` those at the published default; a
    run may be both, one of an older configuration or an older choice is neither.
    """
    table = [_column(name, kind, [_at(record, *path) for record in records]) for name, path, kind in COLUMNS]
    rows = [row for summary in summarise(records) for row in summary.rows]
    for name in ("tuned", "default"):
        cells = {record["cell"] for row in rows if (setting := getattr(row, name)) for record in setting.records}
        table.append(_column(f"is_{name}", bool, [record["cell"] in cells for record in records]))
    for prefix, path in OPEN:
        groups = [_at(record, *path) or {} for record in records]
        for name in sorted({name for group in groups for name in group}):
            values = [group.get(name) for group in groups]
            table.append(_column(_free(prefix + _identifier(name), table), _kind(values), values))
    for name in WHOLE:
        values = [json.dumps(record[name], sort_keys=True) if name in record else None for record in records]
        table.append(_column(f"{name}_json", str, values))
    return table


def curves(records: Sequence[Record]) -> Table:
    """Return one row for each point of each curve: the record's cell, the step, and what was measured there."""
    names = dict.fromkeys(("score", "seconds", *sorted({name for record in records for name in record["curve"]})))
    names.pop("step", None)
    points = [(record["cell"], len(record["curve"]["step"]), record["curve"]) for record in records]
    table = [
        Column("cell", str, [cell for cell, n_points, _ in points for _ in range(n_points)]),
        _column("step", int, [step for _, _, curve in points for step in curve["step"]]),
    ]
    for name in names:
        values = [value for _, n_points, curve in points for value in curve.get(name, [None] * n_points)]
        table.append(_column(_free(_identifier(name), table), float, values))
    return table


def _at(record: Record, *path: str) -> Any:
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _identifier(name: str) -> str:
    """Return the name as SQL takes it without quotes: `betas[0]` becomes `betas_0`."""
    return re.sub(r"\W+", "_", name).strip("_")


def _free(name: str, table: Table) -> str:
    """Return the name, with underscores if the table has it already; SQL does not tell `A` from `a`."""
    taken = {column.name.lower() for column in table}
    while name.lower() in taken:
        name += "_"
    return name


def _kind(values: Iterable[Any]) -> Kind:
    """Return the type of a column whose values are not known beforehand; numbers are float, so that files agree."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return bool
    return float if kinds and kinds <= {int, float} else str


def _column(name: str, kind: Kind, values: list[Any]) -> Column:
    convert = _CONVERT[kind]
    try:
        return Column(name, kind, [None if value is None else convert(value) for value in values])
    except (TypeError, ValueError, OverflowError):
        raise ExportError(f"a record has something else than {kind.__name__} in {name!r}") from None


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text.encode("utf-8", "backslashreplace").decode()  # a command may hold a file name that is not UTF-8


def _int(value: Any) -> int:
    if isinstance(value, str) or value != int(value) or abs(value) >= 2**63:
        raise ValueError
    return int(value)


def _time(value: str) -> datetime | None:
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        return None
    # without a time zone: to fetch one that has, DuckDB needs yet another package
    return when.astimezone(UTC).replace(tzinfo=None) if when.tzinfo else when


_CONVERT: dict[Kind, Callable[[Any], Any]] = {str: _text, int: _int, float: float, bool: bool, datetime: _time}


def _writer(name: str) -> Callable[[Path, Table], None]:
    if name == "csv":
        return _write_csv
    if name != "parquet":
        raise ExportError(f"no format {name!r}; there are parquet and csv")
    if find_spec("pyarrow") is None:
        cure = "pip install '.[export]' (in the checkout), or choose csv"
        raise ExportError(f"Parquet files need the package pyarrow: {cure}")
    return _write_parquet


def _write_parquet(path: Path, table: Table) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
        datetime: pa.timestamp("us"),
    }
    arrays = [pa.array(column.values, types[column.kind]) for column in table]
    whole = pa.Table.from_arrays(arrays, names=[column.name for column in table])
    parquet.write_table(whole, path, compression="zstd")


def _write_csv(path: Path, table: Table) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(column.name for column in table)
        rows.writerows(zip(*(map(_field, column.values) for column in table), strict=True))


def _field(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if isinstance(value, datetime) else value


def _written(path: Path, write: Callable[[Path, Table], None], table: Table) -> Path:
    half = path.with_name(f".{path.name}")
    try:
        write(half, table)
        os.replace(half, path)  # a reader never sees half a file
    except OSError as error:
        half.unlink(missing_ok=True)
        raise RecordError(f"cannot write {path}: {error.strerror or error}") from None
    return path
