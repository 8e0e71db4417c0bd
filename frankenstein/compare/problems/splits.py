"""How data is split: the same way for every problem that has to do it itself."""

from __future__ import annotations

import numpy as np


def stratified_splits(x: np.ndarray, y: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return "train", "validation" and "test": 60, 20 and 20 %, fixed, each class in the same share.

    Args:
        x: Inputs, shape (n, ...).
        y: Labels, shape (n,).
    """
    from sklearn.model_selection import train_test_split

    train_x, rest_x, train_y, rest_y = train_test_split(x, y, test_size=0.4, random_state=0, stratify=y)
    val_x, test_x, val_y, test_y = train_test_split(rest_x, rest_y, test_size=0.5, random_state=0, stratify=rest_y)
    return {"train": (train_x, train_y), "validation": (val_x, val_y), "test": (test_x, test_y)}
