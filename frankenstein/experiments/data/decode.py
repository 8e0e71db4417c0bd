"""One image of a table as pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from frankenstein.experiments.data.sources import DataError
from frankenstein.experiments.data.tables import Table

__all__ = ["decode", "dimensions", "records"]

# What PIL raises on damaged files; a file that is cut raises OSError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

Record = Mapping[str, Any]
"""An image as it is in the files: `{"bytes": ..., "path": ...}`; the path counts where there are no bytes."""


def records(table: Table, first: int, n: int) -> list[Record]:
    """Return the images of `n` rows from `first` on, as they are in the files."""
    found: list[Record] = table.column("image").slice(first, n).to_pylist()
    return found


def decode(table: Table, row: int, record: Record, size: int | None) -> NDArray[np.uint8]:
    """Return the pixels of an image, grey ones as RGB.

    Args:
        table: For messages.
        row: Likewise.
        record: The image.
        size: The short side is resized to it (bilinear, with antialiasing) and the middle kept; None: as it is.

    Returns:
        Shape (3, height, width).

    Raises:
        DataError: The image is damaged; the message names the file and the row.
    """
    try:
        with Image.open(_file(record)) as image:
            rgb = image.convert("RGB")
    except _DAMAGED as error:
        raise _damaged(table, row, error) from None
    if size is not None and rgb.size != (size, size):
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb).transpose(2, 0, 1)


def dimensions(table: Table, row: int) -> tuple[int, int]:
    """Return the height and width of an image in pixels, without decoding it.

    Raises:
        DataError: The image is damaged.
    """
    try:
        with Image.open(_file(records(table, row, 1)[0])) as image:
            return image.height, image.width
    except _DAMAGED as error:
        raise _damaged(table, row, error) from None


def _file(record: Record) -> Any:
    return record["path"] if record["bytes"] is None else BytesIO(record["bytes"])


def _damaged(table: Table, row: int, error: Exception) -> DataError:
    why = "no image file" if isinstance(error, Image.UnidentifiedImageError) else str(error)
    return DataError(f"{table.where(row)}: damaged image ({why}); take the row out or copy the file again")
