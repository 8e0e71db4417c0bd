"""Time one optimizer step, without the backward pass, beside torch's own optimizers.

    python benchmarks/step_time.py --threads 2 --out docs/records/step_time.json

All optimizers are timed in one run, in turns, so that what else the machine does falls on all of them alike; a ratio is
the median over the rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from torch.optim import SGD, AdamW, Optimizer

from frankenstein.compare.store.provenance import provenance
from frankenstein.torch import Frankenstein

Shapes = list[tuple[int, ...]]


def resnet18() -> Iterator[tuple[int, ...]]:
    """Yield the 62 shapes of ResNet-18 with 1,000 classes: 11,689,512 parameters."""

    def convolution(n_in: int, n_out: int, size: int) -> Shapes:
        return [(n_out, n_in, size, size), (n_out,), (n_out,)]  # the last two are the batch normalization's

    yield from convolution(3, 64, 7)
    n_in = 64
    for n_out in (64, 128, 256, 512):
        yield from convolution(n_in, n_out, 3) + convolution(n_out, n_out, 3)
        if n_in != n_out:
            yield from convolution(n_in, n_out, 1)
        yield from convolution(n_out, n_out, 3) + convolution(n_out, n_out, 3)
        n_in = n_out
    yield from [(1000, 512), (1000,)]


# name: shapes, and steps per measurement (a step of the small net is too short for one)
NETWORKS: dict[str, tuple[Shapes, int]] = {
    "ResNet-18": (list(resnet18()), 1),
    "small": ([(64, 64), (64,), (64, 64), (64,), (10, 64), (10,)], 50),
}
OPTIMIZERS: dict[str, Callable[[list[torch.Tensor]], Optimizer]] = {
    "Frankenstein": Frankenstein,
    "AdamW foreach=False": lambda params: AdamW(params, foreach=False),
    "AdamW foreach=True": lambda params: AdamW(params, foreach=True),
    "AdamW fused=True": lambda params: AdamW(params, fused=True),
    "SGD momentum": lambda params: SGD(params, momentum=0.9),
}
REFERENCES = ("AdamW foreach=False", "AdamW fused=True")


def prepared(make: Callable[[list[torch.Tensor]], Optimizer], shapes: Shapes) -> Optimizer:
    """Return an optimizer that has its state, on parameters that have gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    for param in params:
        param.grad = 1e-2 * torch.randn(param.shape, generator=generator)
    optimizer = make(params)
    for _ in range(3):
        optimizer.step()
    return optimizer


def measure(shapes: Shapes, n_steps: int, n_repeats: int) -> dict[str, list[float]]:
    """Return seconds per step of each optimizer, one number per round; the order turns from round to round."""
    optimizers = [(name, prepared(make, shapes)) for name, make in OPTIMIZERS.items()]
    seconds: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for _ in range(n_repeats):
        optimizers.append(optimizers.pop(0))
        for name, optimizer in optimizers:
            start = time.perf_counter()
            for _ in range(n_steps):
                optimizer.step()
            seconds[name].append((time.perf_counter() - start) / n_steps)
    return seconds


def summarize(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return min, median and max, and the ratio to each reference, of each optimizer."""
    rows = {}
    for name, times in seconds.items():
        rows[name] = {"min_ms": 1e3 * min(times), "median_ms": 1e3 * median(times), "max_ms": 1e3 * max(times)}
        for reference in REFERENCES:
            rows[name][f"ratio to {reference}"] = median(map(float.__truediv__, times, seconds[reference]))
    return {name: {key: float(f"{value:.4g}") for key, value in row.items()} for name, row in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch (torch's own)")
    parser.add_argument("--repeats", type=int, default=51, help="rounds per network (51)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    networks = {}
    for name, (shapes, n_steps) in NETWORKS.items():
        n_params = sum(torch.Size(shape).numel() for shape in shapes)
        rows = summarize(measure(shapes, n_steps, args.repeats))
        networks[name] = {"n_params": n_params, "n_tensors": len(shapes), "optimizers": rows}
        print(f"\n{name}: {n_params:,} parameters in {len(shapes)} tensors, {args.threads} threads, ms per step")
        print(f"{'':22}" + "".join(f"{column:>12}" for column in ("min", "median", "max", "/ foreach=F", "/ fused")))
        for optimizer, row in rows.items():
            print(f"{optimizer:22}" + "".join(f"{value:12.3f}" for value in row.values()))
    if args.out:
        content = {"n_threads": args.threads, "n_repeats": args.repeats, "networks": networks}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(content | {"provenance": provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
