"""Time what telemetry adds to training: every 100 steps, merely attached, and after it was detached.

    python benchmarks/telemetry.py [--write]
    python benchmarks/telemetry.py --cases perceptron --repeats 3

A round is 100 steps of each kind, in turns, so that what else the machine does falls on all of them alike; a ratio is
that of two kinds of the same round, and "alone again" is the same as "alone": what the ratios of the others have to be
held against. Where 100 steps take too long, a report's seconds are set against those of a step instead, which is the
finer measure anyway. Each case has a process of its own. `--write` keeps the result in docs/records/telemetry.json, or
in telemetry_cuda.json where there is a GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from step_time import DEVICE, RECORDS, RESNET, alone, backward, machine, prepared, resnet18, spread, tensors_of
from torch import nn

from frankenstein.analysis.telemetry import Telemetry
from frankenstein.analysis.telemetry_sample import MAX_SAMPLE
from frankenstein.compare.store.provenance import provenance
from frankenstein.torch import Frankenstein

EVERY = 100
NEVER = 10**9
N_THREADS = 2


@dataclass(frozen=True)
class Case:
    """A training, or the optimizer's steps alone."""

    start: Callable[[dict[str, Any]], tuple[Frankenstein, Callable[[], Any]]]
    n_rounds: int
    n_steps: int = EVERY
    state_dtype: str = "float32"


def perceptron(options: dict[str, Any]) -> tuple[Frankenstein, Callable[[], Any]]:
    """Return an optimizer and what trains it by a step: 64 pixels, two hidden layers, batches of 64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(DEVICE)
    inputs, labels = torch.randn(64, 64, device=DEVICE), torch.arange(64, device=DEVICE) % 10
    optimizer = Frankenstein(model.parameters(), **options)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return optimizer, step


def resnet(options: dict[str, Any]) -> tuple[Frankenstein, Callable[[], Any]]:
    """Return an optimizer and what trains it by a step: eight images of 96 x 96."""
    model = resnet18().to(DEVICE)
    optimizer = Frankenstein(model.parameters(), **options)

    def step() -> None:
        backward(model)
        optimizer.step()

    return optimizer, step


def steps_alone(options: dict[str, Any]) -> tuple[Frankenstein, Callable[[], Any]]:
    """Return an optimizer and its step, without a backward pass: what telemetry has the least to hide behind."""
    optimizer = prepared(partial(Frankenstein, **options), tensors_of(RESNET))
    assert isinstance(optimizer, Frankenstein)
    return optimizer, optimizer.step


CASES = {
    "perceptron": Case(perceptron, 31),
    "ResNet-18": Case(resnet, 5, n_steps=5 if DEVICE.type == "cpu" else EVERY),
    "ResNet-18, steps alone": Case(steps_alone, 11),
    "ResNet-18, steps alone, 8-bit state": Case(steps_alone, 11, state_dtype="8bit"),
}


class Nowhere:
    """What takes scalars and shows them to nobody."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> None:
        """Take a number."""


def seconds(call: Callable[[], Any], n: int = 1) -> float:
    """Return seconds per call; on a GPU those until the last kernel has ended."""
    wait = torch.cuda.synchronize if DEVICE.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(n):
        call()
    wait()
    return (time.perf_counter() - start) / n


def kinds(optimizer: Frankenstein, n_steps: int) -> dict[str, Callable[[], Telemetry | None]]:
    """Return what is attached, if anything, for each kind of round."""

    def detached() -> None:
        Telemetry(optimizer).detach()

    every: dict[str, Callable[[], Telemetry | None]] = {
        "alone": lambda: None,
        "alone again": lambda: None,
        "detached": detached,
        "counting": lambda: Telemetry(optimizer, every=NEVER),
    }
    if n_steps == EVERY:
        every["every 100"] = lambda: Telemetry(optimizer, every=EVERY, writer=Nowhere())
    return every


def measure(name: str, n_rounds: int) -> dict[str, Any]:
    """Return what a case takes; to be called in a fresh process."""
    torch.set_num_threads(N_THREADS)
    case = CASES[name]
    optimizer, step = case.start({"state_dtype": case.state_dtype})
    for _ in range(5):
        step()
    attach = kinds(optimizer, case.n_steps)
    turns = list(attach)
    times: dict[str, list[float]] = {kind: [] for kind in (*turns, "report", "TensorBoard")}
    for _ in range(n_rounds):
        turns.append(turns.pop(0))
        for kind in turns:
            telemetry = attach[kind]()
            times[kind].append(seconds(step, case.n_steps))
            if telemetry is not None:
                telemetry.detach()
        for kind, second in reports(optimizer).items():
            times[kind].append(second)
    params = optimizer.param_groups[0]["params"]
    sizes = {"n_params": sum(param.numel() for param in params), "n_tensors": len(params)}
    return {**sizes, "n_rounds": n_rounds, "n_steps": case.n_steps, "state_dtype": case.state_dtype, **summary(times)}


def reports(optimizer: Frankenstein) -> dict[str, float]:
    """Return the seconds of a report, and what writing one to TensorBoard adds."""
    from torch.utils.tensorboard import SummaryWriter

    telemetry = Telemetry(optimizer, every=NEVER)
    telemetry.detach()
    telemetry.measure()
    found = {"report": seconds(telemetry.measure, 10)}
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        n_reports = len(telemetry.history)
        found["TensorBoard"] = seconds(lambda: telemetry.to_tensorboard(writer)) / n_reports
    return found


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Return milliseconds, ratios to the steps alone, and the part of a report in 100 steps."""
    base = times["alone"]
    singles = ("report", "TensorBoard")
    return {
        "step_ms": spread(1e3 * one for one in base),
        "report_ms": spread(1e3 * one for one in times["report"]),
        "tensorboard_ms": spread(1e3 * one for one in times["TensorBoard"]),
        "report_share": spread(one / (EVERY * step) for one, step in zip(times["report"], base, strict=True)),
        "ratios": {
            kind: spread(map(float.__truediv__, of_kind, base))
            for kind, of_kind in times.items()
            if kind != "alone" and kind not in singles
        },
    }


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}: {found['n_params']:,} parameters in {found['n_tensors']} tensors, {found['state_dtype']} state")
    step, report, writing = (found[name]["median"] for name in ("step_ms", "report_ms", "tensorboard_ms"))
    share = 100 * found["report_share"]["median"]
    print(f"  step {step:.3f} ms; report {report:.3f} ms: {share:.3f} % of {EVERY} steps; TensorBoard {writing:.3f} ms")
    for kind, ratio in found["ratios"].items():
        print(f"  {kind:12} / alone: {ratio['median']:.4f} ({ratio['min']:.4f} to {ratio['max']:.4f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="what to train (all)")
    parser.add_argument("--repeats", type=int, help="rounds (5 to 31, by case)")
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RECORDS}")
    args = parser.parse_args()
    if args.write and (args.repeats or len(args.cases) < len(CASES)):
        parser.error("--write keeps whole measurements only: leave out --cases and --repeats")
    content: dict[str, Any] = {"every": EVERY, "max_sample": MAX_SAMPLE, "n_threads": N_THREADS, "machine": machine()}
    content["cases"] = {}
    for name in args.cases:
        content["cases"][name] = alone(measure, name, args.repeats or CASES[name].n_rounds)
        show(name, content["cases"][name])
    if args.write:
        path = RECORDS / ("telemetry.json" if DEVICE.type == "cpu" else "telemetry_cuda.json")
        path.write_text(json.dumps(content | {"provenance": provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
