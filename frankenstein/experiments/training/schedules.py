"""Learning rate schedules: the factor of every group's learning rate before an optimizer step, counted from 0."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(step: int) -> float:
    """Return 1."""
    return 1.0


def step_decay(every: int, factor: float = 0.1) -> Schedule:
    """Return the schedule that multiplies by `factor` after every `every` steps.

    >>> schedule = step_decay(40, 0.5)
    >>> [schedule(step) for step in (0, 39, 40, 80)]
    [1.0, 1.0, 0.5, 0.25]
    """
    return lambda step: float(factor ** (step // every))


def cosine(n_steps: int, n_warmup: int = 0, last: float = 0.0) -> Schedule:
    """Return half a cosine from 1 to `last`, which step `n_steps` would have, after a linear rise.

    Args:
        n_steps: Steps of the training, those of the rise included.
        n_warmup: Steps of the rise: step i of them has the factor (i + 1) / n_warmup.
        last: Factor at the end.

    >>> schedule = cosine(12, n_warmup=2)
    >>> [round(schedule(step), 3) for step in (0, 1, 2, 7, 11, 12)]
    [0.5, 1.0, 1.0, 0.5, 0.024, 0.0]
    """

    def schedule(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        share = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
        return last + (1.0 - last) * (1.0 + math.cos(math.pi * share)) / 2.0

    return schedule
