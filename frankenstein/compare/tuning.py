"""Which settings a trial takes: the same number of trials for every optimizer, the first one its published default."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from frankenstein.compare.optimizers import OptimizerSpec, Range, Settings

HALTON_SEED = 20250304  # scrambles the sequence; the same points of the unit square for every optimizer
N_RANDOM = 6  # trials before Optuna's model takes over

Space = Mapping[str, Range]

Past = Sequence[tuple[Settings, float]]  # settings and validation loss (lower is better) of the trials so far, in order


class Tuner(Protocol):
    """A way to choose the settings of trials.

    Attributes:
        name: What records call it.
        is_sequential: Whether a trial depends on the scores of the ones before it.
    """

    name: str
    is_sequential: bool

    def settings(self, problem: str, optimizer: OptimizerSpec, space: Space, trial: int, past: Past) -> Settings:
        """Return the settings of a trial; trial 0 is the default. `past` is whole only where `is_sequential`."""

    def finish(self, problem: str, optimizer: OptimizerSpec, space: Space, past: Past) -> None:
        """Take note that the search is over."""


class Halton:
    """Quasi-random search: Halton's sequence, scrambled, fills the space evenly however many trials there are.

    A longer search begins with the shorter one, so trials can be added later, and the effect of fewer can be seen.
    """

    name = "halton"
    is_sequential = False

    def settings(self, problem: str, optimizer: OptimizerSpec, space: Space, trial: int, past: Past) -> Settings:
        """Return the settings of a trial."""
        if trial == 0:
            return dict(optimizer.default)
        point = halton(len(space), 2 ** max(6, trial.bit_length()))[trial - 1]
        return {name: interval.at(float(unit)) for (name, interval), unit in zip(space.items(), point, strict=True)}

    def finish(self, problem: str, optimizer: OptimizerSpec, space: Space, past: Past) -> None:
        """Do nothing: what was tried is in the records."""


class Rates:
    """The default learning rate, then half a decade below and above the middle of its interval, a decade, and so on.

    At the ends of the interval it begins again between these. Everything else stays at its default: for the few trials
    that long trainings allow. A longer search begins with the shorter one.
    """

    name = "rates"
    is_sequential = False

    def settings(self, problem: str, optimizer: OptimizerSpec, space: Space, trial: int, past: Past) -> Settings:
        """Return the settings of a trial."""
        interval = space["lr"]
        middle, n_halves = interval.at(0.5), round(math.log10(interval.high / interval.low), 6)  # to either side
        rates = [optimizer.default["lr"]]
        for offset in _offsets(n_halves):
            rate = float(f"{middle * 10 ** (offset / 2):.3g}")
            if rate not in rates:
                rates.append(rate)
            if len(rates) > trial:
                break
        return optimizer.default | {"lr": rates[trial]}

    def finish(self, problem: str, optimizer: OptimizerSpec, space: Space, past: Past) -> None:
        """Do nothing: what was tried is in the records."""


def _offsets(limit: float) -> Iterator[float]:
    """Yield 0, -1, 1, -2, 2, ... up to the limit, then the middles between them, then between these, without end."""
    yield 0.0
    for level in count():
        step = 0.5**level
        for n in range(1, int(limit / step) + 1, 1 if level == 0 else 2):
            yield from (-n * step, n * step)


@cache
def halton(n_dimensions: int, n_points: int) -> np.ndarray:
    """Return the first points of the sequence, shape (n_points, n_dimensions), in the unit cube."""
    from scipy.stats import qmc

    points: np.ndarray = qmc.Halton(n_dimensions, scramble=True, rng=HALTON_SEED).random(n_points)
    return points


class Optuna:
    """Optuna's TPE sampler; finished trials also go to `optuna.sqlite3` in the run folder, for Optuna's dashboard.

    A suggestion follows from the trials before it and from a seed made of problem, optimizer and trial: an interrupted
    search goes on as if nothing had happened. Values outside the space (a default may be) count as its nearest edge.
    """

    name = "optuna"
    is_sequential = True

    def __init__(self, folder: Path) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.storage = optuna.storages.RDBStorage(f"sqlite:///{folder.resolve() / 'optuna.sqlite3'}")

    def settings(self, problem: str, optimizer: OptimizerSpec, space: Space, trial: int, past: Past) -> Settings:
        """Return the settings of a trial."""
        self._log(problem, optimizer, space, past)
        if trial == 0:
            return dict(optimizer.default)
        import optuna

        seed = int.from_bytes(hashlib.sha256(f"{problem} / {optimizer.name} / {trial}".encode()).digest()[:4], "big")
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=N_RANDOM))
        study.add_trials([_finished(space, *one) for one in past])
        units = study.ask(_unit_cube(space)).params
        return {name: interval.at(units[name]) for name, interval in space.items()}

    def finish(self, problem: str, optimizer: OptimizerSpec, space: Space, past: Past) -> None:
        """Log the last trials."""
        self._log(problem, optimizer, space, past)

    def _log(self, problem: str, optimizer: OptimizerSpec, space: Space, past: Past) -> None:
        import optuna

        config = repr((optimizer.config(), {name: interval.config() for name, interval in space.items()}))
        name = f"{problem} / {optimizer.name} / {hashlib.sha256(config.encode()).hexdigest()[:6]}"
        study = optuna.create_study(storage=self.storage, study_name=name, load_if_exists=True)
        study.add_trials([_finished(space, *one) for one in past[len(study.get_trials(deepcopy=False)) :]])


def _unit_cube(space: Space) -> dict[str, Any]:
    import optuna

    return {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in space}


def _finished(space: Space, settings: Settings, loss: float) -> Any:
    import optuna

    units = {name: interval.unit(settings[name]) for name, interval in space.items()}
    return optuna.trial.create_trial(
        params=units, distributions=_unit_cube(space), value=loss, user_attrs={"settings": settings}
    )


def make_tuner(name: str, folder: Path) -> Tuner:
    """Return the tuner of that name; "optuna" keeps a database in `folder`."""
    if name == Optuna.name:
        return Optuna(folder)
    return Rates() if name == Rates.name else Halton()
