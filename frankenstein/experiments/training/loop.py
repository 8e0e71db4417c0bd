"""What is trained and how, and the `run` of a problem made of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from frankenstein.compare.problems.problem import Budget, Measurements
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.training.schedules import Schedule, constant

if TYPE_CHECKING:
    from torch import Tensor, nn

    from frankenstein.compare.optimizers import Factory

PRECISIONS = ("no", "bf16", "fp16", "auto")
PARALLEL = ("ddp", "fsdp")
Look = Callable[["nn.Module", int], object]


class Task(Protocol):
    """One training at one seed. Everything random in it follows from seed, epoch and step alone.

    Torch's global generator is seeded from the run's seed before the task is made, and before each micro-batch: a model
    may be initialised and may use dropout without further ado. `batches` is called in a thread of its own, so what it
    draws must come from generators of its own.
    """

    @property
    def model(self) -> nn.Module:
        """The network, on the CPU; those of its parameters that require a gradient are trained."""

    @property
    def batch_size(self) -> int:
        """Samples of an optimizer step, over all processes."""

    @property
    def n_batches(self) -> int:
        """Batches of an epoch, each of them an optimizer step."""

    def batches(self, epoch: int, first: int, rank: int, n_ranks: int) -> Iterable[Any]:
        """Return this process's equal share of each of the epoch's batches, from batch number `first` on.

        Batches are tensors, or tuples, lists and dictionaries of them; the loop moves them to the device, and cuts them
        along the first dimension where gradients are accumulated.
        """

    def loss(self, model: nn.Module, batch: Any, seed: int) -> Tensor:
        """Return the mean loss over the samples.

        Args:
            model: `self.model`, perhaps within a wrapper that shares the work: call it, and call nothing else of it.
            batch: The batch or a part of it, on the device.
            seed: Decides what is random here (augmentation); another one for each step, process and part.
        """

    def score(self, model: nn.Module) -> dict[str, float]:
        """Return {"score": ...} and any further numbers, always the same, on the split that the task was made for.

        The model is in evaluation mode and gradients are off. Every process calls it, over the same samples in the same
        number of batches; the first one's numbers count.
        """


@dataclass(frozen=True)
class Recipe:
    """How a task is trained. The number of steps is the budget's.

    Attributes:
        schedule: Factor of every group's learning rate before optimizer step i, counted from 0.
        precision: "no": float32; "bf16" or "fp16": automatic mixed precision, fp16 (with a scaled loss) on GPUs only;
            "auto": on a GPU bf16, or fp16 where the GPU has no bf16; on a CPU "no".
        accumulate: Parts that each process's share of a batch is cut into, which need the memory of one.
        clip_norm: Largest norm of the gradient as a whole; None: not clipped.
        parallel: What several processes do: "ddp": each has the whole model; "fsdp": they share parameters, gradients
            and the optimizer's state.
        checkpoint_seconds: So much training may be lost by a kill, where the budget has a folder; 0: keep every step.
        telemetry: Whether the curve gets what the rule did at the step before each evaluation, in columns
            `telemetry/GROUP/NAME` (`frankenstein.analysis.telemetry`), where the optimizer is Frankenstein.

    Raises:
        ExperimentError: A value that is not allowed.
    """

    schedule: Schedule = constant
    precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    accumulate: int = 1
    clip_norm: float | None = None
    parallel: Literal["ddp", "fsdp"] = "ddp"
    checkpoint_seconds: float = 60.0
    telemetry: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("precision", PRECISIONS), ("parallel", PARALLEL)):
            if getattr(self, name) not in allowed:
                raise ExperimentError(f"{name} is {getattr(self, name)!r}; it may be {', '.join(allowed)}")
        if self.accumulate < 1:
            raise ExperimentError(f"accumulate is {self.accumulate}; it must be 1 or more")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ExperimentError(f"clip_norm is {self.clip_norm}; it must be above 0, or None")
        if not self.checkpoint_seconds >= 0:
            raise ExperimentError(f"checkpoint_seconds is {self.checkpoint_seconds}; it must be 0 or more")


@dataclass(frozen=True)
class Loop:
    """The `run` of a problem: trains the task that `start(seed, budget)` makes.

    The curve has the columns "step", "score", "seconds", "train_loss" (mean since the last evaluation),
    "samples_per_second" and "wait_share" (of the time, what was spent waiting for the next batch), and whatever else
    the task's `score` returns.

    In `budget.folder` the run keeps `checkpoint/` and `progress.json`. Started again with the same folder it goes on
    from there; on a CPU with as many threads, its outcome is then bitwise that of a run which was never stopped.

    Attributes:
        start: Makes the task of a seed and a budget.
        recipe: How it is trained.
        look: Is shown the model, in evaluation mode and with the weights that count, and the step at every evaluation.
            A run that goes on shows it again what came after its last checkpoint.
    """

    start: Callable[[int, Budget], Task]
    recipe: Recipe | Callable[[Budget], Recipe] = Recipe()
    look: Look | None = None

    def __call__(self, make_optimizer: Factory, seed: int, budget: Budget) -> Measurements:
        """Train once.

        Raises:
            ExperimentError: It cannot be trained like this; the message says what to change.
        """
        from frankenstein.experiments.training.run import train

        recipe = self.recipe if isinstance(self.recipe, Recipe) else self.recipe(budget)
        return train(self.start, recipe, make_optimizer, seed, budget, self.look)
