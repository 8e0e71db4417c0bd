"""Named comparisons: what to run when nothing else is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from frankenstein.compare.baselines import OPTIMIZERS


@dataclass(frozen=True)
class Suite:
    """Problems, optimizers and budgets under one name.

    Attributes:
        title: One line for people, with the time it takes.
        problems: Names of problems.
        optimizers: Names of optimizers.
        n_trials: Trials of each optimizer on each problem.
        n_seeds: Fresh seeds on the test split.
    """

    title: str
    problems: tuple[str, ...]
    optimizers: tuple[str, ...]
    n_trials: int
    n_seeds: int


_SIX = ("digits-cnn", "digits-mlp", "digits-autoencoder", "beale", "rosenbrock", "stairs")
_USUAL = ("frankenstein", "frankenstein-tied", "sgd", "rmsprop", "adam", "adamw", "amsgrad")
SUITES = {
    "default": Suite("the usual optimizers and ours; about three minutes on two cores", _SIX, _USUAL, 20, 10),
    "small": Suite(
        "all baselines; about twenty minutes on two cores",
        (*_SIX, "digits-gru", "digits-transformer", "tumours-logistic"),
        tuple(spec.name for spec in OPTIMIZERS),
        20,
        5,
    ),
}
