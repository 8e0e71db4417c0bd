"""One training, from its first step or its latest checkpoint to its end."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from frankenstein.compare.optimizers import Factory
from frankenstein.compare.problems.problem import Budget, Measurements
from frankenstein.compare.training import seeded, state_bytes, step_ticks, weights_to_use
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.training.batches import Ahead, parts, shares
from frankenstein.experiments.training.checkpoint import Checkpoints, load_trained_state, trained_state
from frankenstein.experiments.training.loop import Look, Recipe, Task
from frankenstein.experiments.training.processes import accelerated, distributed
from frankenstein.experiments.training.progress import Progress, Reporter
from frankenstein.torch import Frankenstein


def train(
    start: Callable[[int, Budget], Task],
    recipe: Recipe,
    make_optimizer: Factory,
    seed: int,
    budget: Budget,
    look: Look | None = None,
) -> Measurements:
    """Train once; see `Loop`."""
    with accelerated(recipe, budget.device) as accelerator, seeded(seed):
        return _Run(start(seed, budget), recipe, make_optimizer, seed, budget, accelerator, look).run()


def derived(*numbers: int) -> int:
    """Return a seed that follows from these numbers alone; others give unrelated ones."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


class _Mark(NamedTuple):
    """A point of a training, from which rates are taken."""

    step: int = 0
    seconds: float = 0.0  # of training, without evaluations
    waited: float = 0.0  # seconds of them, for batches


_START = _Mark()


@dataclass
class _Past:
    """What was done so far: with the weights and the optimizer's state, all that a checkpoint needs.

    There are no random states in it, for the generators are seeded anew before each micro-batch.
    """

    here: _Mark = _START
    evaluated: _Mark = _START  # where the latest evaluation was
    losses: list[float] = field(default_factory=list)  # since then
    curve: dict[str, list[float | None]] = field(default_factory=dict)


class _Run:
    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        make_optimizer: Factory,
        seed: int,
        budget: Budget,
        accelerator: Accelerator,
        look: Look | None,
    ) -> None:
        _check(task, make_optimizer, accelerator)
        self.task, self.recipe, self.seed, self.budget, self.look = task, recipe, seed, budget, look
        self.accelerator, self.spec = accelerator, make_optimizer.spec
        self.eval_steps = budget.eval_steps
        self.model = distributed(accelerator, task.model, recipe.parallel).train()
        self.params = [param for param in self.model.parameters() if param.requires_grad]
        self.optimizer = make_optimizer(self.params)
        self.stepping = self.optimizer
        if accelerator.scaler:
            # For the scaled loss alone: Accelerate's wrapper looks for a package on the disk at every step. Placing the
            # state on the device, where the parameters are already, would take it out and put it back.
            self.stepping = accelerator.prepare_optimizer(self.optimizer, device_placement=False)
        self.lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.ticks = step_ticks(self.optimizer)
        self.past = _Past()
        self.rule: dict[str, float | None] = {}  # what it did in the latest step, where that was noted
        self.checkpoints = None
        if budget.folder:
            identity = _identity(task, recipe, make_optimizer, seed, budget)
            self.checkpoints = Checkpoints(budget.folder / "checkpoint", accelerator, identity)

    def run(self) -> Measurements:
        if not self.restore():
            self.evaluate()
        self.began = self.reported = self.past.here
        self.began_at = self.saved_at = time.monotonic()
        diverged = self.steps()
        self.optimizer.zero_grad()
        step, seconds, _ = self.past.here
        return Measurements(
            curve=self.past.curve,
            n_steps_done=step,
            diverged=diverged,
            seconds_per_step=seconds / max(step, 1),
            optimizer_seconds_per_step=sum(self.ticks) / max(step, 1),
            state_bytes=state_bytes(self.optimizer),
            n_params=sum(param.numel() for param in self.params),
        )

    def steps(self) -> str:
        """Take the steps that are left; return why there were no more of them, if it was so."""
        n_steps, diverged = self.budget.n_steps, ""
        rank, n_ranks = self.accelerator.process_index, self.accelerator.num_processes
        batches = shares(self.task, self.began.step, n_steps, rank, n_ranks)
        folder = self.budget.folder if rank == 0 else None
        with Ahead(batches, self.accelerator.device) as ahead, Reporter(folder, is_shown=rank == 0) as report:
            for step in range(self.began.step + 1, n_steps + 1):
                loss, is_due = self.step(ahead)
                if not math.isfinite(loss):
                    diverged = f"the loss was not finite at step {step}"
                elif step in self.eval_steps and not math.isfinite(self.evaluate()):
                    diverged = f"the score was not finite at step {step}"
                elif is_due:
                    self.save()
                report(partial(self.progress, loss), is_last=bool(diverged) or step == n_steps)
                if diverged:
                    break
        return diverged

    def step(self, ahead: Ahead) -> tuple[float, bool]:
        """Take a step; return its loss, and whether a checkpoint is due: both the same on all processes."""
        step, seconds, waited = self.past.here
        began = time.perf_counter()
        pieces = parts(ahead.take(), self.recipe.accumulate)
        factor = self.recipe.schedule(step)
        for group, lr in zip(self.optimizer.param_groups, self.lrs, strict=True):
            group["lr"] = lr * factor
        loss = self.update(pieces)
        is_due = self.checkpoints is not None and self.is_due()
        if self.accelerator.num_processes > 1:
            mine = torch.tensor([loss, is_due and self.accelerator.is_main_process], dtype=torch.float64)
            loss, share = self.accelerator.reduce(mine.to(self.accelerator.device), "mean").tolist()
            is_due = share > 0
        if math.isfinite(loss):
            self.past.losses.append(loss)
        self.past.here = _Mark(step + 1, seconds + time.perf_counter() - began, waited + ahead.waited)
        return loss, is_due

    def update(self, pieces: list[Any]) -> float:
        """Move the weights once, by the gradient of the mean loss on the pieces; return that loss."""

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            losses = [self.backward(piece, i) for i, piece in enumerate(pieces)]
            if self.recipe.clip_norm is not None:
                self.accelerator.clip_grad_norm_(self.params, self.recipe.clip_norm)
            self.seed_generators(derived(self.seed, self.past.here.step))  # what the optimizer draws: the same on all
            return torch.stack(losses).mean()

        if self.spec.uses_closure:
            with torch.enable_grad():
                loss: Any = self.optimizer.step(closure)  # type: ignore[arg-type]
        else:
            loss = closure()
            with self.watched():
                self.stepping.step()
        return float(loss)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note what the rule does in the step that is taken meanwhile, if an evaluation follows it."""
        is_wanted = self.recipe.telemetry and self.past.here.step + 1 in self.eval_steps
        if not is_wanted or not isinstance(self.optimizer, Frankenstein):
            yield
            return
        from frankenstein.analysis.telemetry import Telemetry

        with Telemetry(self.optimizer, every=1) as telemetry:
            yield
        seen = telemetry.curves()  # of no step, where the loss scale was too large for it
        self.rule = {name: values[-1] for name, values in seen.items() if name != "step" and values}

    def backward(self, piece: Any, i: int) -> Tensor:
        """Add the gradient on piece number `i`; return the loss."""
        seed = derived(self.seed, self.past.here.step, self.accelerator.process_index, i)
        self.seed_generators(seed)
        with self.accelerator.accumulate(self.model):
            loss = self.task.loss(self.model, piece, seed)
            self.accelerator.backward(loss, **self.spec.backward)
        return loss.detach()

    def seed_generators(self, seed: int) -> None:
        """Seed torch's global generators of the CPU and of this process's GPU."""
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` takes long for GPUs that are not in use
        if self.accelerator.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def evaluate(self) -> float:
        """Take the score, with the weights that the optimizer means to be used, and note the point."""
        self.model.eval()
        with weights_to_use(self.optimizer), torch.no_grad():
            numbers = {name: float(value) for name, value in self.task.score(self.model).items()}
            if self.look:
                self.look(self.model, self.past.here.step)
        self.model.train()
        if self.accelerator.num_processes > 1:
            numbers = broadcast_object_list([numbers])[0]
        past = self.past
        rate, wait_share = self.rates(past.evaluated) if past.here.step else (None, None)
        point = {
            "score": numbers["score"],
            "seconds": past.here.seconds,
            "train_loss": fmean(past.losses) if past.losses else None,
            "samples_per_second": rate,
            "wait_share": wait_share,
        }
        past.evaluated, past.losses = past.here, []
        point = {"step": past.here.step, **point, **numbers, **self.rule}
        self.rule = {}
        n_before = len(past.curve.get("step", []))
        for name in past.curve | point:
            past.curve.setdefault(name, [None] * n_before).append(point.get(name))
        self.watch(-1)
        return numbers["score"]

    def watch(self, i: int) -> None:
        """Show point `i` of the curve."""
        if self.accelerator.is_main_process:
            numbers = {name: values[i] for name, values in self.past.curve.items() if name != "step"}
            step = self.past.curve["step"][i]
            self.budget.watch(int(step or 0), {name: value for name, value in numbers.items() if value is not None})

    def rates(self, mark: _Mark) -> tuple[float, float]:
        """Return samples per second since the mark, and the share of the time that was spent waiting for batches."""
        step, seconds, waited = (now - before for now, before in zip(self.past.here, mark, strict=True))
        seconds = max(seconds, 1e-9)
        return self.task.batch_size * step / seconds, waited / seconds

    def progress(self, loss: float) -> Progress:
        """Return how far the training is."""
        step, n_steps = self.past.here.step, self.budget.n_steps
        rate, wait_share = self.rates(self.reported)
        self.reported = self.past.here
        score = self.past.curve["score"][-1]
        return Progress(
            step=step,
            n_steps=n_steps,
            epoch=step / self.task.n_batches,
            loss=loss if math.isfinite(loss) else None,
            score=score if score is not None and math.isfinite(score) else None,
            samples_per_second=rate,
            wait_share=wait_share,
            seconds_left=(time.monotonic() - self.began_at) / (step - self.began.step) * (n_steps - step),
        )

    def is_due(self) -> bool:
        """Say whether it is time for a checkpoint."""
        return time.monotonic() - self.saved_at >= self.recipe.checkpoint_seconds

    def save(self) -> None:
        """Keep all that the rest of the training needs."""
        assert self.checkpoints is not None
        scaler = self.accelerator.scaler
        state = {
            "model": trained_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "optimizer_seconds": sum(self.ticks),
            "here": tuple(self.past.here),
            "evaluated": tuple(self.past.evaluated),
            "losses": self.past.losses,
            "curve": self.past.curve,
        }
        self.checkpoints.save(self.past.here.step, state)
        self.saved_at = time.monotonic()

    def restore(self) -> bool:
        """Go back to where the latest checkpoint was taken; return whether there is one."""
        state = self.checkpoints.load() if self.checkpoints else None
        if state is None:
            return False
        load_trained_state(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.ticks.append(state["optimizer_seconds"])
        self.past = _Past(_Mark(*state["here"]), _Mark(*state["evaluated"]), state["losses"], state["curve"])
        for i in range(len(self.past.curve["step"])):  # whoever looks on now has not seen these
            self.watch(i)
        return True


def _check(task: Task, make_optimizer: Factory, accelerator: Accelerator) -> None:
    """Refuse what would be wrong without a word."""
    spec, n_ranks = make_optimizer.spec, accelerator.num_processes
    if task.batch_size % n_ranks:
        raise ExperimentError(f"a batch of {task.batch_size} samples cannot be shared evenly by {n_ranks} processes")
    if not (spec.uses_closure or spec.backward):
        return
    why = f"{spec.title} takes more of the loss than its gradient"
    if n_ranks > 1:
        raise ExperimentError(f"{why}, which each process has of its own samples alone; run it in one process")
    if accelerator.scaler:
        raise ExperimentError(f"{why}, which precision fp16 scales; choose bf16 or no")


def _identity(task: Task, recipe: Recipe, make_optimizer: Factory, seed: int, budget: Budget) -> dict[str, Any]:
    """Return what tells a training from others, as plain data."""
    spec, settings = make_optimizer.spec, make_optimizer.spec.options | make_optimizer.settings
    return {
        "optimizer": " ".join([spec.target, *(f"{name}={value}" for name, value in settings.items())]),
        "seed": seed,
        **{name: getattr(budget, name) for name in ("split", "n_steps", "n_evals")},
        **{name: getattr(task, name) for name in ("batch_size", "n_batches")},
        **{name: getattr(recipe, name) for name in ("precision", "accumulate", "clip_norm", "parallel")},
    }
