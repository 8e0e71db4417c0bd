"""Telemetry: what the rule's factors are while a network trains, every so many steps.

The numbers come from `frankenstein.rule.factors`, which the update itself calls, on the gradients and the state that
the next step will read: however it is taken (fused, foreach, plain, compiled), they are those of that step.

Of each parameter group a sample is looked at (`telemetry_sample.py`), which comes to the host in one transfer: a report
waits for the device once. The steps between only count. Nothing that trains is written to.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.hooks import RemovableHandle

from frankenstein.analysis.telemetry_sample import Part, Sample, take
from frankenstein.rule import Rule, State, as_rule, factors, gradient_limit, update
from frankenstein.torch import Frankenstein

__all__ = ["QUANTILES", "Report", "Telemetry"]

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
"""Where the distributions are reported; symmetric."""

REPORTED = ("P", "alignment", "rho", "xi", "beta2", "w", "effective_step")

# The logarithm of a clipped number is the limit up to its rounding in float32.
CLIP_TOLERANCE = 4 * float(torch.finfo(torch.float32).eps)

MAX_REPORTS = 10_000  # kept in memory


class Writer(Protocol):
    """`torch.utils.tensorboard.SummaryWriter`, or what takes scalars as it does."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> Any:
        """Show a number of a step."""


@dataclass(frozen=True)
class Report:
    """The factors of one step in one parameter group.

    Attributes:
        step: The step, counted from 1.
        group: The group's `"name"`, if it has one of its own, or its index.
        n_elements: Elements with a gradient (on this process, where parameters are sharded).
        n_sampled: How many of them were looked at.
        lr: Learning rate.
        beta1: First momentum coefficient (eq. 3): one number for a group.
        quantiles: Values at `QUANTILES` of `P`, `alignment` (`0.5 - P`, which keeps its digits where P is near 0.5),
            `rho`, `xi`, `beta2`, `w` (`1 - beta2`, likewise) and `effective_step` (what the gradient is multiplied by:
            `lr * xi / sqrt(v_hat)`).
        at_clip: Shares of elements at the limits that the rule has: `rho_low`, `rho_high`, `ratio` (of squared
            gradients, eq. 10) and `beta1` (0 or 1).
        update_to_weight: Norm of the step, weight decay included, over the norm of the weights; NaN where these are 0.
        nonfinite: Share of elements left out of all of the above: gradient not finite or beyond
            `frankenstein.rule.gradient_limit`, or state or weight not finite.
    """

    step: int
    group: str
    n_elements: int
    n_sampled: int
    lr: float
    beta1: float
    quantiles: dict[str, tuple[float, ...]]
    at_clip: dict[str, float]
    update_to_weight: float
    nonfinite: float

    def numbers(self) -> dict[str, float]:
        """Return what is reported under flat names: `rho_q50`, `at_clip_rho_high`, `update_to_weight`, ..."""
        spread = {
            f"{name}_q{round(100 * q):02d}": value
            for name, values in self.quantiles.items()
            for q, value in zip(QUANTILES, values, strict=True)
        }
        clips = {f"at_clip_{name}": share for name, share in self.at_clip.items()}
        single = {name: getattr(self, name) for name in ("lr", "beta1", "update_to_weight", "nonfinite")}
        return {**spread, **clips, **single}

    def tagged(self) -> dict[str, float]:
        """Return `numbers()` under names that no other group has: `telemetry/0/rho_q50`."""
        return {f"telemetry/{self.group}/{name}": value for name, value in self.numbers().items()}


class Telemetry:
    """Reports of a `frankenstein.Frankenstein` optimizer, every so many steps, until detached.

    Attributes:
        step: Calls of `step()` so far; set it where a run goes on from a checkpoint.
        history: The reports, oldest first; the last 10,000 are kept.

    Args:
        optimizer: The optimizer itself; of a trainer's wrapper, the one inside.
        every: Steps between reports.
        writer: Is shown each report at once, as scalars `telemetry/GROUP/NAME`.

    Raises:
        TypeError: The optimizer is another.
        ValueError: `every` is not a whole number of at least 1.

    Examples:
        >>> import torch
        >>> from frankenstein import Frankenstein
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = Frankenstein([weight])
        >>> with Telemetry(optimizer, every=2) as telemetry:
        ...     for _ in range(4):
        ...         weight.grad = 2 * weight.detach()
        ...         optimizer.step()
        >>> [report.step for report in telemetry.history]
        [2, 4]
        >>> telemetry.history[-1].at_clip  # gradients above 0.14 are
        {'rho_low': 0.0, 'rho_high': 1.0, 'beta1': 0.0}
    """

    def __init__(self, optimizer: Frankenstein, *, every: int = 100, writer: Writer | None = None) -> None:
        if not isinstance(optimizer, Frankenstein):
            raise TypeError(f"telemetry is of a frankenstein.Frankenstein optimizer, not of {type(optimizer).__name__}")
        if type(every) is not int or every < 1:
            raise ValueError(f"Invalid every: {every!r}; allowed is a whole number >= 1")
        self.optimizer: Frankenstein = optimizer
        self.every: int = every
        self.writer: Writer | None = writer
        self.step: int = 0
        self.history: deque[Report] = deque(maxlen=MAX_REPORTS)
        self._hook: RemovableHandle = optimizer.register_step_pre_hook(self._before_step)

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Leave the optimizer as it was; the history stays. A second time it does nothing."""
        self._hook.remove()

    def measure(self) -> list[Report]:
        """Report at once on the step that the present gradients will make, and return the reports.

        For steps that Python does not see: those that a CUDA graph replays.
        """
        return self._measure(self.step + 1)

    def numbers(self) -> dict[str, float]:
        """Return the newest reports of all groups as one dictionary: what a log or a point of a curve takes."""
        newest = [report for report in self.history if report.step == self.history[-1].step]
        return {tag: value for report in newest for tag, value in report.tagged().items()}

    def curves(self, steps: Sequence[int] | None = None) -> dict[str, list[float | None]]:
        """Return the history as lists of one length, `"step"` among them; None where a number is missing or not finite.

        These are plain data, for `json.dump` and for the records of `frankenstein compare`:
        `curve |= telemetry.curves(curve["step"])`.

        Args:
            steps: Those of a curve that it is put beside: each gets the newest report up to it. None: the reports' own.
        """
        points: dict[int, dict[str, float]] = defaultdict(dict)
        for report in self.history:
            points[report.step].update(report.tagged())
        reported = sorted(points)
        wanted = reported if steps is None else steps
        newest = [points[reported[n - 1]] if (n := bisect_right(reported, step)) else {} for step in wanted]
        names = dict.fromkeys(name for point in points.values() for name in point)
        columns: dict[str, list[float | None]] = {"step": [*wanted]}
        return columns | {name: [_finite(point.get(name)) for point in newest] for name in names}

    def to_tensorboard(self, writer: Writer) -> None:
        """Show the history to a writer that was not there from the beginning."""
        for report in self.history:
            _show(report, writer)

    @torch._disable_dynamo  # else the compiler would trace the count, and compile again at every step
    def _before_step(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.step += 1
        if self.step % self.every or _is_captured():
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._measure(self.step)
            return None
        return (args[0], self._observed(closure, self.step)), {}

    def _observed(self, closure: Callable[[], Any], step: int) -> Callable[[], Any]:
        """Return a closure after which the gradients, which it computes, are looked at."""

        def observed() -> Any:
            loss = closure()
            self._measure(step)
            return loss

        return observed

    @torch._disable_dynamo
    def _measure(self, step: int) -> list[Report]:
        groups = self.optimizer.param_groups
        names = _names(groups)
        samples = take(self.optimizer)
        reports = [_report(step, names[one.group_idx], one, groups[one.group_idx]) for one in samples]
        self.history += reports
        if self.writer is not None:
            for report in reports:
                _show(report, self.writer)
        return reports


def _show(report: Report, writer: Writer) -> None:
    for tag, value in report.tagged().items():
        writer.add_scalar(tag, value, report.step)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _is_captured() -> bool:
    """Whether a CUDA graph is being recorded: that must not wait for the device, and what it replays is not seen."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _names(groups: Sequence[dict[str, Any]]) -> list[str]:
    names = [str(group.get("name", i)) for i, group in enumerate(groups)]
    return names if len(set(names)) == len(names) else [str(i) for i in range(len(groups))]


def _report(step: int, name: str, sample: Sample, group: dict[str, Any]) -> Report:
    parts, beta1s = zip(*(_seen(part, sample.lr, group) for part in sample.parts), strict=True)
    seen = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    is_sound = seen.pop("is_usable")
    for values in seen.values():
        is_sound &= np.isfinite(values)
    n_sampled = len(is_sound)
    if not is_sound.all():
        seen = {key: values[is_sound] for key, values in seen.items()}
    update, weight = (float(np.linalg.norm(seen.pop(key))) for key in ("update", "weight"))
    return Report(
        step=step,
        group=name,
        n_elements=sample.n_elements,
        n_sampled=n_sampled,
        lr=sample.lr,
        beta1=beta1s[0],
        quantiles=_quantiles(seen),
        at_clip=_at_clip(as_rule(group["rule"]), seen, beta1s[0]),
        update_to_weight=update / weight if weight else math.nan,
        nonfinite=1.0 - float(is_sound.mean()),
    )


@np.errstate(all="ignore")  # what is not finite is counted
def _seen(part: Part, lr: float, group: dict[str, Any]) -> tuple[dict[str, np.ndarray], float]:
    """Return the quantities of which the report is made, for each element, and beta1."""
    rule = as_rule(group["rule"])
    grad, state = -part.grad if group["maximize"] else part.grad, State(part.m, part.v, part.x)
    constants: dict[str, Any] = {key: float(group[key]) for key in ("eps", "momentum", "base_lr")}
    found = factors(np, grad, state, lr=lr, rule=rule, **constants)
    delta, _ = update(np, grad, state, lr=lr, rule=rule, **constants)
    return {
        "alignment": found.alignment,
        "rho": found.rho,
        "xi": found.xi,
        "w": found.w,
        "effective_step": lr * found.xi / np.sqrt(found.v_hat) if rule.use_v else lr * found.xi,
        "update": delta - lr * float(group["weight_decay"]) * part.weight,
        "weight": part.weight,
        "is_usable": np.abs(grad) <= gradient_limit(np, grad.dtype, constants["eps"]),
    }, found.beta1


def _quantiles(seen: dict[str, np.ndarray]) -> dict[str, tuple[float, ...]]:
    """Return the quantiles, those of `np.quantile` as it is, but from one sort: ten times as fast."""
    rows = np.sort(np.stack([*seen.values()]), axis=1)
    last = rows.shape[1] - 1
    if last < 0:
        values = np.full((len(rows), len(QUANTILES)), math.nan)
    else:
        place = last * np.array(QUANTILES)
        below = place.astype(int)
        low, high = (rows[:, at].astype(np.float64) for at in (below, np.minimum(below + 1, last)))
        values = low + (place - below) * (high - low)
    found = dict(zip(seen, values, strict=True))
    # In float64, which keeps the digits. What is turned round has its quantiles in reverse, and theirs are symmetric.
    found |= {"P": 0.5 - found["alignment"][::-1], "beta2": 1.0 - found["w"][::-1]}
    return {name: tuple(found[name].tolist()) for name in REPORTED}


def _at_clip(rule: Rule, seen: dict[str, np.ndarray], beta1: float) -> dict[str, float]:
    """Return the share of elements at each limit that the rule has."""
    found: dict[str, Any] = {}
    if rule.use_rho:
        low, high = rule.rho_log_range
        found["rho_low"] = seen["rho"] <= low + CLIP_TOLERANCE
        found["rho_high"] = seen["rho"] >= high - CLIP_TOLERANCE
    if rule.beta2_adapts and rule.ratio_limit is not None:  # w is |alignment| times the ratio; without it, no ratio
        size = abs(seen["alignment"])
        found["ratio"] = (size > 0.0) & (seen["w"] >= rule.ratio_limit * size * (1.0 - CLIP_TOLERANCE))
    if rule.beta1_follows_lr:
        found["beta1"] = [min(abs(1.0 - beta1 - limit) for limit in rule.beta1_gap_range) <= CLIP_TOLERANCE]
    return {name: float(np.mean(share)) if len(share) else math.nan for name, share in found.items()}
