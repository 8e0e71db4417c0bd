"""What to compare: problems, optimizers, and the budgets that are the same for all of them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from frankenstein.compare.catalog import catalog
from frankenstein.compare.cells import Cell
from frankenstein.compare.optimizers import Settings
from frankenstein.compare.store.records import Record

# Test seeds are 0, 1, 2, ...; tuning takes others, so that no start and no batch is seen twice.
FIRST_TUNING_SEED = 1_000_000
MAX_SEEDS = 10_000

Pair = tuple[str, str]  # problem, optimizer


@dataclass(frozen=True)
class Comparison:
    """Every optimizer on every problem, tuned with the same number of trials, and untuned, on fresh seeds.

    Attributes:
        problems: Names of the problems.
        optimizers: Names of the optimizers, or `module:Class`.
        n_trials: Settings that each optimizer may try on each problem; the first is its published default. 0: it is
            not tuned.
        n_tuning_seeds: Seeds of each trial.
        n_seeds: Fresh seeds on the test split.
        tuner: "halton", "rates" or "optuna".
        modules: The user's modules.
        has_untuned: Whether the untuned default is run on the fresh seeds too, where tuning chose other settings.
    """

    problems: tuple[str, ...]
    optimizers: tuple[str, ...]
    n_trials: int = 20
    n_tuning_seeds: int = 1
    n_seeds: int = 10
    tuner: str = "halton"
    modules: tuple[str, ...] = ()
    has_untuned: bool = True

    def pairs(self) -> list[Pair]:
        """Return every (problem, optimizer)."""
        return [(problem, optimizer) for problem in self.problems for optimizer in self.optimizers]

    def trial(self, pair: Pair, settings: Settings, trial: int) -> list[Cell]:
        """Return the cells of one trial, on the validation split."""
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.n_tuning_seeds)
        return [Cell(*pair, settings, seed, "validation", trial, self.tuner, self.modules) for seed in seeds]

    def final(self, pair: Pair, tuned: Settings) -> list[Cell]:
        """Return the test cells: the settings that tuning chose, and the untuned default."""
        default = catalog(self.modules).optimizer(pair[1]).default
        chosen = [tuned] if tuned == default or not self.has_untuned else [tuned, default]
        return [Cell(*pair, settings, seed, "test", modules=self.modules) for settings in chosen for seed in self.seeds]

    @property
    def n_cells(self) -> int:
        """Cells of each pair, at most: fewer if tuning chooses the default."""
        return self.n_trials * self.n_tuning_seeds + self.n_final

    @property
    def n_final(self) -> int:
        """Test cells of each pair, at most."""
        return (1 + self.has_untuned) * self.n_seeds

    @property
    def seeds(self) -> range:
        """The fresh seeds."""
        return range(self.n_seeds)

    def command(self) -> str:
        """Return the command that asks for it."""
        words = ["frankenstein", "compare", *(f"--module {shlex.quote(module)}" for module in self.modules)]
        words += ["--problems", *self.problems, "--optimizers", *self.optimizers]
        words += [f"--trials {self.n_trials}", f"--tuning-seeds {self.n_tuning_seeds}", f"--seeds {self.n_seeds}"]
        return " ".join([*words, f"--tuner {self.tuner}"])


def losses(trials: Iterable[Record]) -> dict[int, float]:
    """Return the validation loss (lower is better; mean over seeds) of each trial, by its number."""
    scores: dict[int, list[float]] = {}
    for record in trials:
        sign = -1.0 if record["problem_config"]["is_higher_better"] else 1.0
        scores.setdefault(record["trial"], []).append(sign * record["score"])
    return {trial: fmean(values) for trial, values in sorted(scores.items())}


def best_trial(trials: Iterable[Record]) -> int:
    """Return the trial with the best mean validation score; of equal ones, the one with the better mean curve.

    Args:
        trials: The tuning records of one optimizer on one problem, every trial on the same seeds.
    """
    trials = list(trials)
    curves: dict[int, list[float]] = {}
    for record in trials:
        sign = -1.0 if record["problem_config"]["is_higher_better"] else 1.0
        curves.setdefault(record["trial"], []).append(sign * fmean(record["curve"]["score"] or [record["score"]]))
    by_loss = losses(trials)
    return min(by_loss, key=lambda trial: (by_loss[trial], fmean(curves[trial]), trial))
