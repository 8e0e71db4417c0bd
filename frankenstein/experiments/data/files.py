"""The files of a data set in a local folder: which belong to a split, how many rows they have, their checksum."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from frankenstein.experiments.data import cache
from frankenstein.experiments.data.sources import DataError, Source

__all__ = ["class_folder", "digest", "listing_digest", "parquet_files", "row_counts"]


def parquet_files(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the parquet files of a split, sorted.

    A file belongs to the split that its own name has among its words (`train-00000-of-00001.parquet`), else to the one
    that its folder's name has (`train/0000.parquet`).
    """

    def is_of_split(path: Path) -> bool:
        own, above = _words(path.stem), _words(*path.relative_to(folder).parts[:-1])
        known = {"train", "test", "validation", "val", "unsupervised", *names}
        return not (own if own & known else above).isdisjoint(names)

    return sorted(path for path in folder.rglob("*.parquet") if is_of_split(path))


def _words(*texts: str) -> set[str]:
    return {word for text in texts for word in re.split(r"[^a-z]+", text.lower())}


def row_counts(files: list[Path]) -> tuple[list[int], int]:
    """Return the rows of each parquet file, and the bytes that all of them take once uncompressed.

    Raises:
        DataError: A file cannot be read as parquet.
    """
    import pyarrow
    import pyarrow.parquet

    counts, n_bytes = [], 0
    for path in files:
        try:
            footer = pyarrow.parquet.read_metadata(path)
        except (pyarrow.ArrowException, OSError) as error:
            why = "the file is empty" if path.stat().st_size == 0 else str(error).splitlines()[0].rstrip(".")
            raise DataError(f"cannot read {path} as parquet: {why}; copy it again") from None
        counts.append(footer.num_rows)
        n_bytes += sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    return counts, n_bytes


def digest(files: list[Path]) -> str:
    """Return the SHA-256 of a file's bytes; of several files, that of their checksums in order, one in a line.

    A file that has not changed since is not read again: ImageNet's would take minutes.
    """
    sums = [_file_digest(path) for path in files]
    return sums[0] if len(sums) == 1 else _sha256("\n".join(sums).encode())


def _file_digest(path: Path) -> str:
    state = path.stat()
    key = _sha256(json.dumps([str(path.resolve()), state.st_size, state.st_mtime_ns]).encode())
    note = cache.folder() / "sha256" / key
    if note.exists() and re.fullmatch("[0-9a-f]{64}", found := note.read_text(encoding="ascii", errors="replace")):
        return found
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    half = note.with_suffix(f".{os.getpid()}")
    with cache.writing(note):
        half.write_text(found, encoding="ascii")
        half.replace(note)
    return found


def class_folder(folder: Path, source: Source, names: tuple[str, ...]) -> Path | None:
    """Return the folder of a split that has one folder of images for each class (an ImageFolder); None: there is none.

    Raises:
        DataError: It has not as many folders as the data set has classes.
    """
    found = next((folder / name for name in names if (folder / name).is_dir()), None)
    if found is None or source.n_classes is None:
        return None
    n_classes = sum(entry.is_dir() for entry in os.scandir(found))
    if n_classes != source.n_classes:
        raise DataError(
            f"{found} has {n_classes} class folders, and {source.name} {source.n_classes} classes: put every image "
            "into a folder of its class"
        )
    return found


def listing_digest(folder: Path) -> str:
    """Return the SHA-256 of the names and sizes of a folder's files: to read a million images would take too long."""
    return _sha256("\n".join(_entries(folder)).encode())


def _entries(folder: Path) -> Iterable[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield f"{path.relative_to(folder).as_posix()} {path.stat().st_size}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
