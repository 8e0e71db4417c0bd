"""The fine-tunings of Fig. 2 once more, watched on the way: what Fig. 8 and Fig. 9 look at.

The preset `local` takes those of Fig. 2 on a part of CIFAR-10, twice as long, each optimizer at the learning rate that
it chose there; `paper` takes EfficientNet-B0 on CIFAR-100, as published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from frankenstein.compare.optimizers import OptimizerSpec
from frankenstein.compare.problems.problem import Problem
from frankenstein.experiments import fig2
from frankenstein.experiments.networks import problem_of
from frankenstein.experiments.vision import SCORED_AT_ONCE, Vision, augmentation

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOCAL_RATES", "TITLES", "VISION", "batches", "optimizers", "problems", "title"]

LOCAL_RATES = {
    "frankenstein": 3.16e-4,
    "sgd": 9.49e-3,
    "rmsprop": 1e-3,
    "adam": 1e-3,
    "amsgrad": 1e-3,
    "lookahead": 3.16e-3,
    "adabound": 1e-3,
    "ranger": 3.16e-3,
    "radam": 3.16e-3,
    "adabelief": 1e-3,
    "adan": 3.16e-3,
}
"""What the optimizers chose on CIFAR-10 in the local runs of Fig. 2."""

STEPS = {"local": 90, "paper": fig2.PAPER_STEPS}
N_LOOKS = {"local": 10, "paper": 50}
"""How often a training is looked at after its start; in `paper`, once an epoch."""


def _vision(name: str) -> Vision:
    found = next(problem.run for problem in fig2.PROBLEMS if problem.name == name)
    assert isinstance(found, Vision)
    return replace(found, recipe=replace(fig2.RECIPE, telemetry=True))


VISION = {
    "local": replace(_vision("fig2-cifar10_12k"), n_test=500),
    "paper": _vision("fig2-cifar100-b0"),
}
TITLES = {
    "local": "EfficientNet-lite0 on 10,000 images of CIFAR-10",
    "paper": "EfficientNet-B0 on CIFAR-100",
}
TARGETS = {"local": 0.8, "paper": 0.8}


def optimizers(experiment: str) -> tuple[OptimizerSpec, ...]:
    """Return those of Fig. 2 under names of the experiment's own, for both presets."""
    found = []
    for preset in VISION:
        for name in fig2.METHODS:
            spec = next(spec for spec in fig2.OPTIMIZERS if spec.name == f"{fig2.NAME}-{preset}-{name}")
            chosen = {"lr": LOCAL_RATES[name]} if preset == "local" else {}
            found.append(replace(spec, name=f"{experiment}-{preset}-{name}", default=spec.default | chosen))
    return tuple(found)


def problems(experiment: str, run: Callable[[str], Any]) -> tuple[Problem, ...]:
    """Return the training of each preset as a problem.

    Args:
        experiment: Its name.
        run: Makes the `run` of a problem from the name of the preset; it has a method `describe`.
    """
    return tuple(
        problem_of(f"{experiment}-{preset}", TITLES[preset], run(preset), STEPS[preset], N_LOOKS[preset], target)
        for preset, target in TARGETS.items()
    )


def title(optimizer: str) -> str:
    """Return what people call an optimizer of `optimizers`."""
    return next(s.title for s in fig2.OPTIMIZERS if s.name.split("-")[-1] == optimizer.split("-")[-1])


@cache
def batches(preset: str, part: str, n_images: int, device: str) -> list[tuple[Tensor, Tensor]]:
    """Return the first images of a part as the network sees them where it is scored, and their labels.

    Args:
        preset: `local` or `paper`.
        part: "train" or "test".
        n_images: So many at most.
        device: Where they are put.
    """
    import torch

    vision = VISION[preset]
    images, plain = vision.images(part), augmentation(vision, "centre")
    rows = torch.arange(min(n_images, len(images)))
    found = []
    for pixels, labels in images.read(rows.split(SCORED_AT_ONCE)):
        seen = plain(pixels.to(device)).contiguous(memory_format=torch.channels_last)
        found.append((seen, labels.to(device)))
    return found
