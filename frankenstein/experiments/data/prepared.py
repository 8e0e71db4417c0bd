"""Rows by way of the `datasets` library, which maps them from an Arrow copy on the disk."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

from frankenstein.experiments.data import cache
from frankenstein.experiments.data.sources import DataError, Source

if TYPE_CHECKING:
    import datasets

__all__ = ["answers", "from_class_folder", "from_hub", "from_parquet"]

REACH_SECONDS = 10.0  # the hub answers within one second where there is a network


def from_parquet(paths: list[Path], n_bytes: int) -> datasets.Dataset:
    """Return the rows of parquet files, in order.

    Args:
        paths: The files.
        n_bytes: What they take once uncompressed: the room that the Arrow copy needs.

    Raises:
        DataError: A file is damaged, or there is no room for the copy.
    """
    return _local("parquet", paths[0].parent, n_bytes, data_files=[str(path) for path in paths])


def from_class_folder(folder: Path) -> datasets.Dataset:
    """Return the paths and classes of the images in `<folder>/<class>/`; classes are numbered in alphabetical order.

    Raises:
        DataError: There are no images.
    """
    return _local("imagefolder", folder, 0, data_files=[str(folder / "**")], drop_labels=False)


def _local(kind: str, where: Path, n_bytes: int, **options: Any) -> datasets.Dataset:
    import datasets

    copies = cache.folder() / "rows"
    with cache.writing(copies / "any"), _quiet():
        try:
            builder = datasets.load_dataset_builder(kind, cache_dir=str(copies), **options)
            if not Path(builder.cache_dir).exists():
                cache.check_room(copies, n_bytes)
            builder.download_and_prepare()
            return _mapped(builder)
        except (datasets.exceptions.DatasetsError, ValueError, FileNotFoundError) as error:
            cause = error.__cause__ or error
            if isinstance(cause, OSError) and cause.errno == ENOSPC:
                raise cause from None
            raise DataError(f"cannot read the files in {where}: {_first_line(cause)}; copy them again") from None


def _mapped(builder: Any) -> datasets.Dataset:
    """Return the rows of the Arrow copy; one that is damaged is made again."""
    import datasets

    # all that `data_files` names is "train" to the library
    try:
        return builder.as_dataset(split="train")
    except (OSError, ValueError):
        builder.download_and_prepare(download_mode=datasets.DownloadMode.FORCE_REDOWNLOAD)
        return builder.as_dataset(split="train")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def from_hub(source: Source, split: str, folder: Path | None) -> tuple[datasets.Dataset, str, str]:
    """Return a split's rows from the hub or its cache on this machine, where they come from, and a checksum of that.

    Raises:
        DataError: It cannot be had; the message names every way to get it.
    """
    import datasets

    expected = (folder or Path("DIR")) / source.name
    ways = f"{source.name} is not here: put its parquet files into {expected} (--data-dir or FRANKENSTEIN_DATA)"
    if source.hub is None:
        raise DataError(f"{ways}; it is on no hub")
    with _quiet(), _offline_where_unreachable(source.hub):
        try:
            rows = datasets.load_dataset(source.hub, split=source.splits[split][0])
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            why = "it cannot be reached" if isinstance(error, ConnectionError) else _first_line(error)
            raise DataError(
                f"{ways}, or fetch {source.hub} from the hub, which needs {source.hub_needs}: {why}"
            ) from None
    origin = f"hub:{source.hub}@{_revision(rows)}"
    return rows, origin, hashlib.sha256(f"{origin} {split}".encode()).hexdigest()


def _revision(rows: datasets.Dataset) -> str:
    """Return the commit on the hub, which is the name of the folder of the Arrow copy; else the rows' fingerprint."""
    for file in rows.cache_files:
        if re.fullmatch("[0-9a-f]{40}", commit := Path(file["filename"]).parent.name):
            return commit
    return str(rows._fingerprint)


@contextmanager
def _offline_where_unreachable(hub: str) -> Iterator[None]:
    """Ask the hub once, with a short limit; where it does not answer, only the cache on this machine is asked.

    The library itself would try for half a minute before it looks there.
    """
    import datasets

    was_offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = was_offline or not answers(f"{datasets.config.HF_ENDPOINT}/api/datasets/{hub}")
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline


def answers(url: str) -> bool:
    """Say whether there is a server at that address; it is given `REACH_SECONDS`."""
    try:
        with urlopen(url, timeout=REACH_SECONDS):
            return True
    except HTTPError:
        return True  # what is wrong is said when the data are asked for
    except OSError:
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from writing about caches; its bars are shown on a terminal only."""
    import datasets

    level, has_bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if has_bars and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if has_bars:
            datasets.enable_progress_bars()
