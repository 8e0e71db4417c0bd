"""What the paper's authors measured in Fig. 10, and a bound that says of what model it is not."""

from __future__ import annotations

import math

from frankenstein.experiments.published import curves

__all__ = ["authors_curves", "authors_last", "least_loss_of_adam"]

NAMES = {"lookahead_adam": "lookahead"}  # theirs to ours, where they differ


def authors_curves(setting: str, metric: str) -> dict[str, list[float]]:
    """Return the authors' losses after 1, 2, ... epochs by optimizer; none of a setting that is not theirs.

    Args:
        setting: One of ours.
        metric: `test_loss` after each epoch, or `train_loss` in the course of it.
    """
    found = curves("overfit_wilson", setting, metric)
    return {NAMES.get(name, name): [value for _, value in points] for name, points in found.items()}


def authors_last(setting: str) -> dict[str, float]:
    """Return the authors' last test loss of each optimizer, after 200 epochs; none of a setting that is not theirs."""
    return {method: losses[-1] for method, losses in authors_curves(setting, "test_loss").items()}


def least_loss_of_adam(n_steps: int, lr: float, n_ones: int) -> float:
    """Return the smallest logistic loss that Adam can reach in so many steps from zeros, on inputs of so many ones.

    A step moves a weight by at most lr (1 - beta1) / sqrt(1 - beta2) (Kingma and Ba, section 2.1).

    Example:
        >>> round(least_loss_of_adam(16, 1e-3, 8), 2)
        0.51
    """
    farthest = lr * (1.0 - 0.9) / math.sqrt(1.0 - 0.999)
    return math.log1p(math.exp(-n_steps * farthest * n_ones))
