"""Time one optimizer step, without the backward pass, as a ratio to torch's own AdamW on the same tensors.

    python benchmarks/step_time.py [--write]
    python benchmarks/step_time.py --cases "ResNet-18" --repeats 5

All ways to take a step are timed in one run, in turns, so that what else the machine does falls on all of them alike;
a ratio is that of two steps of the same round. Before each step a buffer larger than the caches is written, because
that is what a step finds after a backward pass; the case "in cache" leaves that out, and "in a training" has forward
and backward pass themselves. Each case has a process of its own. `--write` keeps the result in
docs/records/step_time.json, or in step_time_cuda.json where there is a GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from frankenstein import library
from frankenstein.compare.store.provenance import provenance
from frankenstein.kernels import cpu
from frankenstein.torch import Frankenstein

RECORDS = Path(__file__).resolve().parents[1] / "docs" / "records"
Shapes = list[tuple[int, ...]]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FLUSH_BYTES = 2**28  # several times the caches
REFERENCES = {"fused": "AdamW fused", "foreach": "AdamW foreach"}


class Block(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        stride = 1 if n_in == n_out else 2
        self.path = nn.Sequential(
            *(nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()),
            *(nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)),
        )
        shortcut = (nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        self.shortcut = nn.Sequential(*shortcut) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in, height, width) to (n, n_out, ...)."""
        return torch.relu(self.path(x) + self.shortcut(x))


def resnet18() -> nn.Sequential:
    """Return ResNet-18 with 1,000 classes: 11,689,512 parameters in 62 tensors."""
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    blocks = [Block(n_in, n_out) for n_in, n_out in pairwise(widths)]
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def shapes_of(model: nn.Module) -> Shapes:
    return [tuple(param.shape) for param in model.parameters()]


def transformer(n_layers: int, width: int) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of the blocks of a transformer: 12 width^2 parameters and a few vectors for each layer."""
    for _ in range(n_layers):
        yield from [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
        yield from [(width,), (width,)]


@dataclass(frozen=True)
class Case:
    """Tensors to step, and how: the ways left out take too long or too much memory there."""

    shapes: Shapes
    n_rounds: int
    without: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    grad_scale: float = 1e-2
    before: str = "flush"  # or "train", or "nothing"
    n_threads: tuple[int, ...] = (2,)
    n_steps: int = 1


RESNET = shapes_of(resnet18())
EAGER = ("fused", "AdamW fused", "AdamW foreach", "AdamW plain", "SGD momentum")
CPU_CASES = {
    "1 M": Case([(256, 256)] * 16, 51),
    "1 M, in cache": Case([(256, 256)] * 16, 51, before="nothing"),
    "ResNet-18": Case(RESNET, 51, n_threads=(1, 2)),
    "ResNet-18, in a training": Case(RESNET, 31, only=EAGER, before="train"),
    "ResNet-18, gradients above 1": Case(RESNET, 21, only=EAGER, grad_scale=10.0),
    "200 M": Case(list(transformer(16, 1024)), 11, without=("plain", "compiled")),
    "500 of 1,000": Case([(1000,)] * 500, 31, without=("compiled",)),
    "small": Case([(64, 64), (64,), (64, 64), (64,), (10, 64), (10,)], 51, before="nothing", n_steps=20),
}
CUDA_CASES = {
    "ResNet-18": Case(RESNET, 51),
    "100 M": Case(list(transformer(8, 1024)), 51, without=("compiled",)),
    "1 B": Case(list(transformer(20, 2048)), 21, without=("compiled", "plain")),
    "500 of 1,000": Case([(1000,)] * 500, 51, without=("compiled",)),
}
CASES = CPU_CASES if DEVICE.type == "cpu" else CUDA_CASES


def compiled(params: list[Tensor]) -> Optimizer:
    optimizer = Frankenstein([{"params": params, "lr": torch.tensor(1e-3)}])
    optimizer.step = torch.compile(optimizer.step)  # type: ignore[method-assign]
    return optimizer


def adamw(params: list[Tensor], **options: Any) -> Optimizer:
    return AdamW(params, **options)


WAYS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "fused": partial(Frankenstein, fused=True),
    "fused, bfloat16 state": partial(Frankenstein, fused=True, state_dtype="bfloat16"),
    "fused, 8-bit state": partial(Frankenstein, fused=True, state_dtype="8bit"),
    "fused, AVX2": partial(Frankenstein, fused=True),
    "foreach": partial(Frankenstein, foreach=True),
    "plain": partial(Frankenstein, fused=False, foreach=False),
    "compiled": compiled,
    "AdamW fused": partial(adamw, fused=True),
    "AdamW foreach": partial(adamw, foreach=True),
    "AdamW plain": partial(adamw, foreach=False),
    "SGD momentum": partial(SGD, momentum=0.9),
}


def tensors_of(shapes: Shapes, grad_scale: float = 1e-2) -> list[Tensor]:
    """Return parameters that have gradients; all optimizers of a case step the same ones."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    draw = partial(torch.randn, generator=generator, device=DEVICE)
    params = [draw(shape).requires_grad_() for shape in shapes]
    for param in params:
        param.grad = grad_scale * draw(param.shape)
    return params


def prepared(make: Callable[[list[Tensor]], Optimizer], params: list[Tensor]) -> Optimizer:
    """Return an optimizer that has its state."""
    optimizer = make(params)
    for _ in range(3):
        optimizer.step()
    return optimizer


@contextmanager
def avx2() -> Iterator[None]:
    """Make the kernel take the instruction set that most desktop computers have."""
    best = cpu.best_set
    cpu.best_set = lambda: 1
    try:
        yield
    finally:
        cpu.best_set = best


def setting(way: str) -> AbstractContextManager[None]:
    return avx2() if way == "fused, AVX2" else nullcontext()


def ways_of(case: Case) -> list[str]:
    has_avx512 = DEVICE.type == "cpu" and cpu.why_not() is None and cpu.best_set() == 2
    return [way for way in case.only or WAYS if way not in case.without and (way != "fused, AVX2" or has_avx512)]


def measure(case: Case, n_rounds: int) -> list[dict[str, Any]]:
    """Return a row for each way and number of threads; the order turns from round to round."""
    model = resnet18().to(DEVICE) if case.before == "train" else None
    params = list(model.parameters()) if model else tensors_of(case.shapes, case.grad_scale)
    before = partial(backward, model) if model else flusher() if case.before == "flush" else lambda: None
    turns = []
    for way, n_threads in product(ways_of(case), case.n_threads):
        torch.set_num_threads(n_threads)
        before()
        with setting(way):
            turns.append((way, n_threads, prepared(WAYS[way], params)))
    seconds: dict[tuple[str, int], list[float]] = {(way, n_threads): [] for way, n_threads, _ in turns}
    for _ in range(n_rounds):
        turns.append(turns.pop(0))
        for way, n_threads, optimizer in turns:
            torch.set_num_threads(n_threads)
            before()
            with setting(way):
                seconds[way, n_threads].append(timed(optimizer, case.n_steps))
    return summarize(seconds)


def flusher() -> Callable[[], Any]:
    """Return what fills the caches with something else."""
    buffer = torch.empty(FLUSH_BYTES // 4, device=DEVICE)
    return lambda: buffer.fill_(0.0)


def backward(model: nn.Module) -> None:
    """Give the parameters gradients as a training does."""
    model.zero_grad()
    outputs = model(torch.randn(8, 3, 96, 96, device=DEVICE))
    nn.functional.cross_entropy(outputs, torch.arange(8, device=DEVICE)).backward()


def timed(optimizer: Optimizer, n_steps: int) -> float:
    """Return seconds per step; on a GPU those until the last kernel has ended."""
    wait = torch.cuda.synchronize if DEVICE.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(n_steps):
        optimizer.step()
    wait()
    return (time.perf_counter() - start) / n_steps


def summarize(seconds: dict[tuple[str, int], list[float]]) -> list[dict[str, Any]]:
    """Return milliseconds, ratios to AdamW on as many threads, and how much faster two threads are."""
    rows = []
    for (way, n_threads), times in seconds.items():
        row: dict[str, Any] = {"way": way, "n_threads": n_threads, "ms": spread([1e3 * one for one in times])}
        for name, reference in REFERENCES.items():
            row[f"ratio_to_{name}"] = spread(map(float.__truediv__, times, seconds[reference, n_threads]))
        if n_threads > 1 and (way, 1) in seconds:
            row["speedup"] = spread(map(float.__truediv__, seconds[way, 1], times))
        rows.append(row)
    return rows


def spread(values: Any) -> dict[str, float]:
    values = list(values)
    return {name: float(f"{of(values):.4g}") for name, of in (("min", min), ("median", median), ("max", max))}


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def first_step(way: str) -> float:
    """Return the seconds of the first step of a process, with its state and all that is loaded or compiled then."""
    torch.set_num_threads(2)
    optimizer = WAYS[way](tensors_of(RESNET))
    return timed(optimizer, 1)


def first_steps(n_rounds: int) -> dict[str, dict[str, float]]:
    """Return the spread of the first step's seconds, each in a process of its own."""
    seconds: dict[str, list[float]] = {"fused": [], "foreach": [], "plain": [], "AdamW fused": []}
    for _ in range(n_rounds):
        for way, times in seconds.items():
            times.append(alone(first_step, way))
    return {way: spread(times) for way, times in seconds.items()}


def machine() -> dict[str, Any]:
    """Return what of the machine decides about speed."""
    caches = Path("/sys/devices/system/cpu/cpu0/cache")
    levels = sorted(caches.glob("index*")) if caches.exists() else []
    return {
        "instruction_set": library.SETS[cpu.best_set()] if cpu.why_not() is None else None,
        "caches": [
            f"L{(level / 'level').read_text().strip()} {(level / 'type').read_text().strip()} "
            f"{(level / 'size').read_text().strip()}"
            for level in levels
        ],
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if DEVICE.type == "cuda" else None,
    }


def show(name: str, content: dict[str, Any]) -> None:
    print(f"\n{name}: {content['n_params']:,} parameters in {content['n_tensors']} tensors")
    print(f"{'':24}{'threads':>8}{'ms':>10}{'/ AdamW fused: min, median, max':>36}{'/ foreach':>12}{'speedup':>10}")
    for row in content["rows"]:
        fused, foreach = row["ratio_to_fused"], row["ratio_to_foreach"]
        ratios = "".join(f"{fused[key]:12.2f}" for key in ("min", "median", "max"))
        speedup = f"{row['speedup']['median']:10.2f}" if "speedup" in row else ""
        line = (
            f"{row['way']:24}{row['n_threads']:8}{row['ms']['median']:10.3f}{ratios}{foreach['median']:12.2f}{speedup}"
        )
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="which tensors (all)")
    parser.add_argument("--repeats", type=int, help="rounds (7 to 51, by case)")
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RECORDS}")
    args = parser.parse_args()
    if args.write and (args.repeats or len(args.cases) < len(CASES)):
        parser.error("--write keeps whole measurements only: leave out --cases and --repeats")
    content: dict[str, Any] = {"machine": machine(), "cases": {}}
    for name in args.cases:
        case = CASES[name]
        n_rounds = args.repeats or case.n_rounds
        rows = alone(measure, case, n_rounds)
        content["cases"][name] = {
            "n_params": sum(torch.Size(shape).numel() for shape in case.shapes),
            "n_tensors": len(case.shapes),
            "n_rounds": n_rounds,
            "rows": rows,
        }
        show(name, content["cases"][name])
    content["first_step"] = first_steps(args.repeats or 7)
    print("\nfirst step of a process on ResNet-18, seconds (median):")
    print("  ".join(f"{way} {times['median']:.3f}" for way, times in content["first_step"].items()))
    if args.write:
        name = "step_time.json" if DEVICE.type == "cpu" else "step_time_cuda.json"
        (RECORDS / name).write_text(json.dumps(content | {"provenance": provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
