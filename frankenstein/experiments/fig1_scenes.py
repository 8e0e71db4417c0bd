"""The functions of Fig. 1: one with periodic, dramatic gradients in one dimension, four well-known ones in two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frankenstein.compare.optimizers import OptimizerSpec, Settings

if TYPE_CHECKING:
    from torch import Tensor

N_RATES = 9  # half a decade apart: the four decades that `frankenstein compare` searches


def stairs(x: Tensor) -> Tensor:
    """Stairs of height 4 pi, of (1,): the gradient 2 (1 - cos x), for x > 0, is 0 on every step and 4 between two."""
    from frankenstein.compare.problems import functions

    return 2.0 * functions.stairs(x)


def beale(x: Tensor) -> Tensor:
    """Beale's function of (2,); minimum at (3, 0.5)."""
    from frankenstein.compare.problems import functions

    return functions.beale(x)


def rosenbrock(x: Tensor) -> Tensor:
    """Rosenbrock's valley, of (2,); minimum at (1, 1)."""
    from frankenstein.compare.problems import functions

    return functions.rosenbrock(x)


def booth(x: Tensor) -> Tensor:
    """Booth's function of (2,); minimum at (1, 3)."""
    a, b = x
    return (a + 2 * b - 7) ** 2 + (2 * a + b - 5) ** 2


def saddle(x: Tensor) -> Tensor:
    """Two wells, of (2,): minima at (0, -1) and (0, 1), between them a saddle at the origin, 1/4 high."""
    a, b = x
    return a**2 / 2 + (b**2 - 1) ** 2 / 4


@dataclass(frozen=True)
class Scene:
    """A function, where optimizers start on it, and with which learning rates.

    Attributes:
        name: In records and file names.
        title: For people.
        formula: For people.
        function: Of a float64 tensor of the start's shape; its minimum is 0.
        start: Where the trajectory that is drawn starts.
        n_steps: Optimizer steps.
        lr: The learning rate of all optimizers; None: of each, the best of `N_RATES`.
        lr_scale: How much larger good rates are here than an optimizer's default; the rates tried are centred there.
        n_starts: Starts from which the minimum is looked for, the drawn one among them.
        spread: They lie evenly within so much of `start`, in the first coordinate.
        window: Of the picture: lowest and highest first coordinate, lowest and highest second; () in one dimension.
        minima: Where they are, for the picture; () in one dimension.
    """

    name: str
    title: str
    formula: str
    function: Callable[[Tensor], Tensor]
    start: tuple[float, ...]
    n_steps: int
    lr: float | None = None
    lr_scale: float = 1.0
    n_starts: int = 1
    spread: float = 0.0
    window: tuple[float, ...] = ()
    minima: tuple[tuple[float, float], ...] = ()

    def starts(self, n_starts: int) -> list[tuple[float, ...]]:
        """Return the first starts: the drawn one, then further and further from it."""
        half = max((self.n_starts - 1) // 2, 1)
        shifts = sorted(range(-half, half + 1), key=abs)[: min(n_starts, self.n_starts)]
        return [(self.start[0] + self.spread * shift / half, *self.start[1:]) for shift in shifts]

    def rates(self, spec: OptimizerSpec) -> list[float]:
        """Return the learning rates that an optimizer is tried with."""
        if self.lr is not None:
            return [self.lr]
        interval = spec.space(self.lr_scale)["lr"]
        return [interval.at(i / (N_RATES - 1)) for i in range(N_RATES)]

    def value(self, *point: float) -> float:
        """Return the function at a point."""
        import torch

        return self.function(torch.tensor(point, dtype=torch.float64)).item()

    def config(self) -> dict[str, Any]:
        """Return everything that decides a trajectory, as plain data."""
        names = ("formula", "n_steps", "lr", "lr_scale", "spread")
        return {name: getattr(self, name) for name in names} | {"start": list(self.start)}


def settings(spec: OptimizerSpec, lr: float) -> Settings:
    """Return an optimizer's settings at a learning rate: published defaults; what is measured in rates moves along."""
    if spec.second and spec.is_rate:
        name = spec.second[0]
        return {"lr": lr, name: spec.default[name] * lr / spec.default["lr"]}
    return {"lr": lr}


STAIRS = Scene(
    "stairs", "Fig. 1, one rate for all", "f(x) = 2 (|x| - sin|x|)", stairs, (20.0,), 300, 0.02, n_starts=11, spread=1.0
)
TUNED_STAIRS = Scene(
    "stairs-tuned",
    "Fig. 1, each at its best rate",
    STAIRS.formula,
    stairs,
    STAIRS.start,
    150,
    lr_scale=1000.0,
    n_starts=STAIRS.n_starts,
    spread=STAIRS.spread,
)
PLANE_SCENES = (
    Scene(
        "beale",
        "Beale",
        "f(x, y) = (1.5 - x + x y)^2 + (2.25 - x + x y^2)^2 + (2.625 - x + x y^3)^2",
        beale,
        (1.0, 1.5),
        200,
        lr_scale=30.0,
        window=(-0.5, 4.5, -1.0, 2.0),
        minima=((3.0, 0.5),),
    ),
    Scene(
        "rosenbrock",
        "Rosenbrock",
        "f(x, y) = (1 - x)^2 + 100 (y - x^2)^2",
        rosenbrock,
        (-1.2, 1.0),
        200,
        lr_scale=30.0,
        window=(-2.0, 2.0, -1.0, 3.0),
        minima=((1.0, 1.0),),
    ),
    Scene(
        "booth",
        "Booth",
        "f(x, y) = (x + 2 y - 7)^2 + (2 x + y - 5)^2",
        booth,
        (-6.0, -2.0),
        200,
        lr_scale=100.0,
        window=(-8.0, 6.0, -4.0, 8.0),
        minima=((1.0, 3.0),),
    ),
    Scene(
        "saddle",
        "Saddle",
        "f(x, y) = x^2 / 2 + (y^2 - 1)^2 / 4",
        saddle,
        (1.5, 0.001),
        200,
        lr_scale=30.0,
        window=(-1.0, 2.0, -1.6, 1.6),
        minima=((0.0, -1.0), (0.0, 1.0)),
    ),
)
SCENES: dict[str, Scene] = {scene.name: scene for scene in (STAIRS, TUNED_STAIRS, *PLANE_SCENES)}
