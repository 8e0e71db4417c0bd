"""One optimizer on one function of Fig. 1: its trajectory, its adaptive factors, and the record of both."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from numbers import Real
from types import NoneType
from typing import TYPE_CHECKING, Any

from frankenstein.compare.baselines import OPTIMIZERS
from frankenstein.compare.optimizers import Factory, OptimizerSpec
from frankenstein.compare.report.charts.chart import rounded
from frankenstein.compare.store.provenance import provenance
from frankenstein.compare.store.records import Format, Record
from frankenstein.experiments.fig1_scenes import SCENES, Scene, settings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

SCHEMA = 1
NEAR = 1e-3  # a value this close to the minimum, 0, counts as found
SEED = 0  # of Sophia's random numbers; nothing else here is random
N_DIGITS = 4  # of what is drawn
MOMENTA = ("exp_avg", "momentum_buffer", "momentum")  # how optimizers call their momentum in their state
SPECS: dict[str, OptimizerSpec] = {spec.name: spec for spec in OPTIMIZERS if not spec.tied}
"""The optimizers, without the one whose `base_lr` follows the rate: here that of all of them does."""


def _check(record: Record) -> str:
    """Columns are of one length, and hold numbers; a factor may be null, where it does not exist."""
    path, factors = record["path"], record["factors"]
    if not path or any(not _is_column(column, len(path[0])) or None in column for column in path):
        return "has a path that is not lists of numbers, of equal length"
    if any(not _is_column(column, len(path[0]) - 1) for column in factors.values()):
        return "has factors that are not lists of numbers, one for each step"
    return ""


def _is_column(column: Any, length: int) -> bool:
    if not isinstance(column, list) or len(column) != length:
        return False
    return all(value is None or (type(value) in (int, float) and math.isfinite(value)) for value in column)


DESCENTS = Format(
    SCHEMA,
    {
        "cell": str,
        "scene": str,
        "scene_config": {"formula": str, "start": list, "n_steps": int},
        "optimizer": str,
        "optimizer_title": str,
        "optimizer_config": {"class": str},
        "settings": {"lr": Real},
        "rates": list,
        "outcome": ("finished", "diverged"),
        "reason": str,
        "value": float | NoneType,
        "end": list,
        "steps": int | NoneType,
        "n_starts": int,
        "n_found": int,
        "path": list,
        "factors": dict,
        "seconds": Real,
        "preset": str,
        "finished_at": str,
        "provenance": {"versions": dict, "system": str, "device": str},
    },
    _check,
)
"""The records of Fig. 1: `path` has a list for each coordinate, from the start on; `factors` one for each factor."""


@dataclass
class Way:
    """What an optimizer did on a function.

    Attributes:
        points: Where it was, the start included, with the weights that it means to be used.
        values: The function there.
        factors: For each step: "adaptive", and of Frankenstein "P", "xi" and "rho beta1" too.
        diverged: Why it stopped early, if it did.
    """

    points: list[list[float]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    factors: dict[str, list[float | None]] = field(default_factory=dict)
    diverged: str = ""

    @property
    def steps(self) -> int | None:
        """The step from which on the value stays near the minimum; None if there is none."""
        far = [i for i, value in enumerate(self.values) if not value <= NEAR]
        step = far[-1] + 1 if far else 0
        return step if step < len(self.values) and not self.diverged else None


class _Task:
    """Minimise the scene's function, and keep the way."""

    def __init__(self, scene: Scene, start: tuple[float, ...], way: Way) -> None:
        import torch

        self.function, self.way = scene.function, way
        self.x = torch.tensor(start, dtype=torch.float64, requires_grad=True)

    def parameters(self) -> list[Tensor]:
        return [self.x]

    def batch(self) -> None:
        return None

    def loss(self, batch: None) -> Tensor:
        return self.function(self.x)

    def score(self) -> float:
        value = self.function(self.x).item()
        if math.isfinite(value):
            self.way.points.append(self.x.tolist())
            self.way.values.append(value)
        return value


@dataclass(frozen=True)
class _Watched:
    """Makes an optimizer whose adaptive factors are noted at every step."""

    factory: Factory
    way: Way

    @property
    def spec(self) -> OptimizerSpec:
        return self.factory.spec

    def __call__(self, params: Iterable[Tensor]) -> Optimizer:
        (x,) = params
        optimizer = self.factory([x])
        before: list[Tensor] = []

        def pre(*_: Any) -> None:
            before[:] = [x.detach().clone()]
            if self.spec.name.startswith("frankenstein"):
                self.note(own_factors(optimizer, x))

        def post(*_: Any) -> None:
            if not self.spec.name.startswith("frankenstein"):
                self.note({"adaptive": measured_factor(optimizer, x, before[0], self.factory.settings["lr"])})

        optimizer.register_step_pre_hook(pre)
        optimizer.register_step_post_hook(post)
        return optimizer

    def note(self, factors: dict[str, float]) -> None:
        for name, value in factors.items():
            kept = rounded(value, N_DIGITS) if math.isfinite(value) else None
            self.way.factors.setdefault(name, []).append(kept)


def own_factors(optimizer: Optimizer, x: Tensor) -> dict[str, float]:
    """Return the factors of the step that Frankenstein is about to take, from the rule itself.

    Args:
        optimizer: `frankenstein.torch.Frankenstein`.
        x: Its parameter, one element, with a gradient.

    Returns:
        "adaptive", what the step multiplies the gradient by (xi over the root of the second moment), and its parts
        "P", "xi" and "rho beta1" (eq. 4, 13, and 5 with 3).
    """
    import torch

    from frankenstein.rule import STATE_KEYS, State, as_rule, factors, init

    group, state = optimizer.param_groups[0], optimizer.state[x]
    grad = torch.zeros_like(x) if x.grad is None else x.grad.detach()
    memory = State(*(state[key] for key in STATE_KEYS)) if STATE_KEYS[0] in state else init(torch, grad)
    numbers = {name: float(group[name]) for name in ("lr", "eps", "momentum", "base_lr")}
    found = factors(torch, grad, memory, **numbers, rule=as_rule(group["rule"]))
    adaptive = found.xi / found.v_hat.sqrt()
    named = {"adaptive": adaptive, "P": found.P, "xi": found.xi, "rho beta1": found.rho * found.beta1}
    return {name: float(value) for name, value in named.items()}


def measured_factor(optimizer: Optimizer, x: Tensor, before: Tensor, lr: float) -> float:
    """Return what a step multiplied the momentum by, beside the learning rate; the gradient, where there is none.

    Args:
        optimizer: Any; its momentum is looked for in its state, or in that of the optimizer within it.
        x: Its parameter, one element, after the step.
        before: The same before it.
        lr: Learning rate.
    """
    state = getattr(optimizer, "optimizer", optimizer).state[x]
    moved = next((state[name] for name in MOMENTA if name in state), x.grad)
    if moved is None or not moved.any():
        return math.nan
    return abs(float(x.detach() - before)) / (lr * abs(float(moved.detach())))


def descend(scene: Scene, spec: OptimizerSpec, lr: float, start: tuple[float, ...]) -> Way:
    """Minimise once; factors are noted where all optimizers have one rate."""
    from frankenstein.compare.problems.problem import Budget
    from frankenstein.compare.training import Training

    way = Way()
    factory = Factory(spec, settings(spec, lr))
    make: Any = factory if scene.lr is None else _Watched(factory, way)
    training = Training(lambda seed, budget: _Task(scene, start, way))
    way.diverged = training(make, SEED, Budget(scene.n_steps, scene.n_steps, "test")).diverged
    for column in way.factors.values():
        del column[len(way.points) - 1 :]  # of the step that left the finite
    return way


@dataclass(frozen=True)
class Job:
    """One trajectory: an optimizer on a function, at the best of the rates that the function lets it try.

    Attributes:
        scene: Name of the function.
        optimizer: Name.
        n_starts: Starts from which the minimum is looked for, at that rate.
        preset: `local` or `paper`; they are the same.
    """

    scene: str
    optimizer: str
    n_starts: int
    preset: str = "local"
    n_cpus: int = 1
    n_gpus: float = 0.0
    timeout: float | None = None
    modules: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name of the trajectory in the records."""
        return f"{self.scene}/{self.optimizer}"

    def config(self) -> dict[str, Any]:
        """Return everything that decides the record, as it is in the record."""
        scene, spec = SCENES[self.scene], SPECS[self.optimizer]
        configs = {"scene_config": scene.config(), "optimizer_config": spec.config(), "rates": scene.rates(spec)}
        plain: dict[str, Any] = json.loads(json.dumps(configs))
        return plain | {"n_starts": len(scene.starts(self.n_starts))}

    def run(self) -> Record:
        """Minimise with every rate, and return the record of the best."""
        began = time.perf_counter()
        scene, spec = SCENES[self.scene], SPECS[self.optimizer]
        tried = {lr: descend(scene, spec, lr, scene.start) for lr in scene.rates(spec)}
        lr = min(tried, key=lambda rate: _merit(tried[rate]))
        way = tried[lr]
        others = [descend(scene, spec, lr, start) for start in scene.starts(self.n_starts)[1:]]
        return {
            "schema": SCHEMA,
            "cell": self.key,
            "scene": self.scene,
            **self.config(),
            "optimizer": self.optimizer,
            "optimizer_title": spec.title,
            "settings": settings(spec, lr),
            "outcome": "diverged" if way.diverged else "finished",
            "reason": way.diverged,
            "value": None if way.diverged else way.values[-1],
            "end": way.points[-1],
            "steps": way.steps,
            "n_found": sum(other.steps is not None for other in (way, *others)),
            "path": [[rounded(value, N_DIGITS) for value in column] for column in zip(*way.points, strict=True)],
            "factors": way.factors,
            "seconds": rounded(time.perf_counter() - began),
            "preset": self.preset,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "provenance": provenance(),
        }


def _merit(way: Way) -> tuple[float, float]:
    """Return what is lower for a better way: the steps that it takes, then the value where it ends."""
    return (math.inf if way.steps is None else way.steps, math.inf if way.diverged else way.values[-1])
