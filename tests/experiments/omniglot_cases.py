"""A small set of drawings in the layout of Omniglot."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

SIZE = 28
SPLITS = {"background": (30, 0), "evaluation": (21, 30)}
"""Characters of each split, and the number of the first."""

PER_ALPHABET = 5


def write_omniglot(folder: Path, n_drawers: int = 20, splits: dict[str, tuple[int, int]] = SPLITS) -> Path:
    """Write random drawings, each character a pattern in much noise; return the data folder."""
    generator = np.random.default_rng(0)
    kinds = {"image": datasets.Image(), "alphabet": datasets.Value("string")}
    kinds |= {name: datasets.Value("int64") for name in ("character", "drawer")}
    (folder / "omniglot_28px").mkdir(parents=True, exist_ok=True)
    for split, (n_characters, first) in splits.items():
        rows: dict[str, list] = {name: [] for name in kinds}
        for character in range(first, first + n_characters):
            pattern = generator.integers(0, 2, (7, 7)).repeat(4, 0).repeat(4, 1)
            for drawer in range(1, n_drawers + 1):
                pixels = (40 * pattern + generator.integers(0, 215, (SIZE, SIZE))).astype(np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                rows["image"].append({"bytes": buffer.getvalue(), "path": None})
                rows["alphabet"].append(f"{split} {(character - first) // PER_ALPHABET}")
                rows["character"].append(character)
                rows["drawer"].append(drawer)
        table = datasets.Dataset.from_dict(rows, datasets.Features(kinds))
        table.to_parquet(folder / "omniglot_28px" / f"{split}.parquet")
    return folder
