"""Tiny data sets in the layout of the real ones, and the command in a process of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import datasets
import numpy as np
from PIL import Image

N_TRAIN, N_TEST = 140, 20
COMMAND = [sys.executable, "-c", "import sys; from frankenstein.cli import main; sys.exit(main())", "reproduce"]


def write(folder, name, n_classes, size, columns=("img", "label"), form="PNG"):
    """A data set of random images in the layout of the real one."""
    generator = np.random.default_rng(0)
    for split, n in (("train", N_TRAIN), ("validation" if name == "imagenette_96px" else "test", N_TEST)):
        images = []
        for _ in range(n):
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(buffer, form)
            images.append({"bytes": buffer.getvalue(), "path": None})
        rows = {columns[0]: images, columns[1]: [i % n_classes for i in range(n)]}
        kinds = {columns[0]: datasets.Image(), columns[1]: datasets.Value("int64")}
        (folder / name).mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, datasets.Features(kinds)).to_parquet(folder / name / f"{split}.parquet")


def reproduce(*arguments, **variables):
    """Run the command in a process of its own: steps are read when a module is imported."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
