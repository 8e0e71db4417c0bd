"""A named data set's rows, from a local folder or the hub, checked before anything is trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frankenstein.experiments.data import files, prepared
from frankenstein.experiments.data.sources import DataError, Source, named

if TYPE_CHECKING:
    import datasets

__all__ = ["Table", "load"]


@dataclass(frozen=True)
class Table:
    """One split of a data set.

    Attributes:
        source: What it is.
        split: "train" or "test".
        rows: Our columns only; images as they are in the files: `{"bytes": ..., "path": ...}`.
        origin: The local folder's name, or the hub's name and revision; never the path of a machine.
        sha256: Of the files' bytes; of the names and sizes of a folder of images; of the hub's revision.
        shards: Name and number of rows of each parquet file, in order; empty where the rows are of no file.
    """

    source: Source
    split: str
    rows: datasets.Dataset
    origin: str
    sha256: str
    shards: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def describe(self) -> dict[str, Any]:
        """Return what a record says of the data, as plain values."""
        return {
            "name": self.source.name,
            "split": self.split,
            "n": len(self),
            "sha256": self.sha256,
            "origin": self.origin,
            "caveat": self.source.caveat,
        }

    def column(self, name: str) -> Any:
        """Return a column as a pyarrow chunked array, mapped from the disk."""
        return self.rows.data.column(name)

    def where(self, row: int) -> str:
        """Return the file and the row in it of a row of the split, for messages; rows count from 0."""
        first = 0
        for name, n_rows in self.shards:
            if row < first + n_rows:
                return f"{name}, row {row - first}"
            first += n_rows
        image = self.rows[row].get("image") or {}
        return image.get("path") or f"{self.origin}, split {self.split}, row {row}"


def load(name: str, split: str, folder: Path | None) -> Table:
    """Return a split of a named data set.

    A folder of that name in the data folder is used; it holds parquet files with the split in their own or their
    folder's name, or `train/<class>/<image>` and `val/<class>/<image>`. Where there is none, the hub is asked.

    Args:
        name: One of `SOURCES`.
        split: "train" or "test".
        folder: The data folder, or None.

    Raises:
        DataError: The data are nowhere, or are not what they should be: a file that cannot be read, a column that is
            missing, a label that is out of range, a row without a value, fewer rows than were published.
    """
    source = named(name, split)
    if folder is not None and (folder / name).is_dir():
        rows, shards, sha256 = _local(folder / name, source, split)
        origin = f"{folder.resolve().name}/{name}"
    else:
        rows, origin, sha256 = prepared.from_hub(source, split, folder)
        shards = ()
    table = Table(source, split, _canonical(rows, source, origin), origin, sha256, shards)
    _check(table)
    return table


_Local = tuple["datasets.Dataset", tuple[tuple[str, int], ...], str]


def _local(folder: Path, source: Source, split: str) -> _Local:
    names = source.splits[split]
    parquet = files.parquet_files(folder, names)
    if parquet:
        counts, n_bytes = files.row_counts(parquet)
        if not sum(counts):
            raise DataError(f"{folder}: split {split} has no rows")
        shards = tuple(zip((f"{source.name}/{path.relative_to(folder)}" for path in parquet), counts, strict=True))
        return prepared.from_parquet(parquet, n_bytes), shards, files.digest(parquet)
    images = files.class_folder(folder, source, names) if "image" in source.columns else None
    if images is None:
        ways = f"{names[0]}.parquet" + (f" or {names[-1]}/<class>/<image>" if "image" in source.columns else "")
        raise DataError(f"{folder} has no split {split}: expected {ways}")
    return prepared.from_class_folder(images), (), files.listing_digest(images)


def _canonical(rows: datasets.Dataset, source: Source, origin: str) -> datasets.Dataset:
    """Return our columns under our names, images not decoded."""
    import datasets

    found = {}
    for ours, theirs in source.columns.items():
        name = next((name for name in theirs if name in rows.column_names), None)
        if name is None:
            raise DataError(
                f"{origin} has no column {' or '.join(theirs)}; it has: {', '.join(rows.column_names) or 'none'}"
            )
        found[name] = ours
    rows = rows.select_columns(list(found))
    for name, ours in found.items():
        feature = rows.features[name]
        if ours == "image":
            if not isinstance(feature, datasets.Image):
                raise DataError(f"{origin}: column {name} does not hold images; it holds {_kind(feature)}")
            rows = rows.cast_column(name, datasets.Image(decode=False))
        elif ours == "label" and _kind(feature) not in ("int64", "int32", "int16", "int8", "uint8"):
            raise DataError(f"{origin}: column {name} does not hold whole numbers; it holds {_kind(feature)}")
    return rows.rename_columns({name: ours for name, ours in found.items() if name != ours})


def _kind(feature: Any) -> str:
    return getattr(feature, "dtype", type(feature).__name__)


def _check(table: Table) -> None:
    """Check what can be checked without decoding anything."""
    n_rows, published = len(table), table.source.n_rows.get(table.split, 1)
    if n_rows < published:
        raise DataError(
            f"{table.origin}: split {table.split} has {n_rows:,} rows, and {table.source.name} at least {published:,}; "
            "the copy is not complete: make it again"
        )
    for name in table.source.columns:
        row = _first_missing(table.column(name))
        if row is not None:
            raise DataError(f"{table.where(row)}: no {name}; take the row out or copy the file again")
    if table.source.n_classes is not None:
        _check_labels(table, table.source.n_classes)


def _check_labels(table: Table, n_classes: int) -> None:
    import pyarrow.compute as pc

    labels = table.column("label")
    row = _first(pc.or_(pc.less(labels, 0), pc.greater_equal(labels, n_classes)))
    if row is not None:
        raise DataError(
            f"{table.where(row)}: label {labels[row].as_py()}; {table.source.name} has labels from 0 to {n_classes - 1}"
        )


def _first_missing(column: Any) -> int | None:
    """Return the first row without a value, or with an image that has neither bytes nor a path."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_missing = pc.is_null(column)
    if pa.types.is_struct(column.type):
        parts = [pc.is_null(pc.struct_field(column, part)) for part in ("bytes", "path")]
        is_missing = pc.or_(is_missing, pc.and_(*parts))
    return _first(is_missing)


def _first(mask: Any) -> int | None:
    import pyarrow.compute as pc

    row: int = pc.index(mask, value=True).as_py()
    return None if row < 0 else row
