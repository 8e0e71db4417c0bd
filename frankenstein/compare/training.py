"""The training loop: a task and an optimizer in, measurements out."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from frankenstein.compare.optimizers import Factory
from frankenstein.compare.problems.problem import Budget, Measurements


class Task(Protocol):
    """One problem at one seed, ready to be trained. Everything random in it follows from the seed alone."""

    def parameters(self) -> list[Tensor]:
        """Return the tensors to optimize."""

    def batch(self) -> Any:
        """Return the next batch: whatever `loss` takes."""

    def loss(self, batch: Any) -> Tensor:
        """Return the training loss on a batch, with its graph; the same batch may be asked for several times."""

    def score(self) -> float:
        """Return the metric on the split that the task was made for."""


@dataclass(frozen=True)
class Training:
    """The `run` of a problem: minibatch training of the task that `start(seed, budget)` makes."""

    start: Callable[[int, Budget], Task]

    def __call__(self, make_optimizer: Factory, seed: int, budget: Budget) -> Measurements:
        """Train once."""
        with seeded(seed):
            return _Loop(self.start(seed, budget), make_optimizer, budget).run()


class _Loop:
    def __init__(self, task: Task, make_optimizer: Factory, budget: Budget) -> None:
        self.task, self.budget, self.spec = task, budget, make_optimizer.spec
        self.optimizer = make_optimizer(task.parameters())
        self.optimizer_ticks = step_ticks(self.optimizer)
        self.losses: list[float] = []  # since the last evaluation
        self.seconds = 0.0
        self.curve: dict[str, list[float | None]] = {"step": [], "score": [], "seconds": [], "train_loss": []}

    def run(self) -> Measurements:
        eval_steps = self.budget.eval_steps
        self.evaluate(0)
        step, diverged = 0, ""
        while step < self.budget.n_steps and not diverged:
            step += 1
            began = time.perf_counter()
            loss = self.step()
            self.seconds += time.perf_counter() - began
            self.losses.append(loss)
            if not math.isfinite(loss):
                diverged = f"the loss was not finite at step {step}"
            elif step in eval_steps and not math.isfinite(self.evaluate(step)):
                diverged = f"the score was not finite at step {step}"
        self.optimizer.zero_grad()
        return Measurements(
            curve=self.curve,
            n_steps_done=step,
            diverged=diverged,
            seconds_per_step=self.seconds / max(step, 1),
            optimizer_seconds_per_step=sum(self.optimizer_ticks) / max(step, 1),
            state_bytes=state_bytes(self.optimizer),
            n_params=sum(p.numel() for p in self.task.parameters()),
        )

    def step(self) -> float:
        batch = self.task.batch()

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = self.task.loss(batch)
            loss.backward(**self.spec.backward)
            return loss

        if self.spec.uses_closure:
            with torch.enable_grad():
                loss: Any = self.optimizer.step(closure)  # type: ignore[arg-type]
        else:
            loss = closure()
            self.optimizer.step()
        return float(loss.detach() if isinstance(loss, Tensor) else loss)

    def evaluate(self, step: int) -> float:
        """Take the score, with the weights that the optimizer means to be used, and note the point."""
        with weights_to_use(self.optimizer), torch.no_grad():
            score = self.task.score()
        loss = fmean(self.losses) if self.losses else None
        self.losses = []
        point = {"score": score, "seconds": self.seconds, "train_loss": loss}
        self.curve["step"].append(step)
        for name, value in point.items():
            self.curve[name].append(value)
        self.budget.watch(step, {name: value for name, value in point.items() if value is not None})
        return score


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Train in the block: torch's generators start from `seed`, and are afterwards as they were before."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with warnings.catch_warnings(), torch.random.fork_rng(gpus):
        # It leaks only where gradients are kept; the loops drop them before each backward pass and at the end.
        warnings.filterwarnings("ignore", r"Using backward\(\) with create_graph=True")
        torch.manual_seed(seed)  # some optimizers draw from the global generator
        yield


@contextmanager
def weights_to_use(optimizer: Optimizer) -> Iterator[None]:
    """Have the weights in the block that the optimizer means to be used; some train with others."""
    modes = [getattr(optimizer, name, None) for name in ("eval", "train")]
    to_eval, to_train = (mode if callable(mode) else lambda: None for mode in modes)
    to_eval()
    yield
    to_train()


def state_bytes(optimizer: Optimizer) -> int:
    """Return the memory of the tensors in the optimizer's state, that of an optimizer within it included."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(optimizer.state_dict()))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for inner in value.values() for tensor in _tensors(inner)]
    if isinstance(value, (list, tuple)):
        return [tensor for inner in value for tensor in _tensors(inner)]
    return []


def step_ticks(optimizer: Optimizer) -> list[float]:
    """Return a list to which each `optimizer.step` will add minus its begin and its end: the sum is its seconds."""
    ticks: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: ticks.append(-time.perf_counter()))
    optimizer.register_step_post_hook(lambda *_: ticks.append(time.perf_counter()))
    return ticks
