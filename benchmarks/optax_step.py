"""Time XLA's step of the optax transformation beside that of optax.adamw, on this machine.

    python benchmarks/optax_step.py            print
    python benchmarks/optax_step.py --write    keep the result in docs/records

A step is update and apply_updates in one jit with donated buffers; once alone, on gradients that it is given, and once
behind the forward and backward pass of a network, as in use. All take turns, so that what else the machine does meets
all of them; figures are medians over the rounds, and ratios those of the same round.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import optax

from frankenstein.compare.store.provenance import provenance
from frankenstein.optax import frankenstein

RECORD = Path(__file__).resolve().parents[1] / "docs" / "records" / "optax_step.json"
SHAPES = {
    "1 million": [(1000, 1000)],
    "11.7 million, 62 tensors": [(512, 512, 3, 3)] * 4 + [(256, 256, 3, 3)] * 3 + [(128, 128, 3, 3)] * 3 + [(64,)] * 52,
}
SIZES, BATCH = (512, 1024, 1024, 256, 10), 32
OPTIMIZERS = {
    "frankenstein": frankenstein(1e-3, weight_decay=1e-2),
    "frankenstein, schedule": frankenstein(optax.cosine_decay_schedule(1e-3, 10_000), weight_decay=1e-2),
    "frankenstein, fused=False": frankenstein(1e-3, weight_decay=1e-2, fused=False),
    "adamw": optax.adamw(1e-3),
}
N_ROUNDS, N_STEPS = 15, 20


Data = Any  # what a gradient is made of


def stepper(optimizer: optax.GradientTransformation, gradient: Callable[[Any, Data], Any]) -> Any:
    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, data: Data) -> Any:
        updates, state = optimizer.update(gradient(params, data), state, params)
        return optax.apply_updates(params, updates), state

    return step


def alone(shapes: list[tuple[int, ...]]) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    grads = [0.01 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    return measure(lambda: [jnp.ones(shape) for shape in shapes], lambda _, data: data, grads)


def in_training() -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), len(SIZES))
    images, labels = jax.random.normal(keys[-1], (BATCH, SIZES[0])), jnp.zeros(BATCH, int)

    def start() -> Any:
        layers = zip(keys, SIZES, SIZES[1:], strict=False)
        return [jax.random.normal(key, (before, after)) / before**0.5 for key, before, after in layers]

    def loss(params: Any, data: Data) -> jax.Array:
        images, labels = data
        for weight in params[:-1]:
            images = jax.nn.relu(images @ weight)
        return optax.softmax_cross_entropy_with_integer_labels(images @ params[-1], labels).mean()

    return measure(start, jax.grad(loss), (images, labels))


def measure(start: Callable[[], Any], gradient: Callable[[Any, Data], Any], data: Data) -> dict[str, Any]:
    running = {}
    for name, optimizer in OPTIMIZERS.items():
        params = start()
        running[name] = [stepper(optimizer, gradient), params, optimizer.init(params)]
    times: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for i in range(N_ROUNDS + 1):
        for name, (step, params, state) in running.items():
            began = time.perf_counter()
            for _ in range(N_STEPS):
                params, state = step(params, state, data)
            jax.block_until_ready(params)
            running[name][1:] = params, state
            if i:  # the first round compiles
                times[name].append((time.perf_counter() - began) / N_STEPS)
    ratios = {name: [a / b for a, b in zip(found, times["adamw"], strict=True)] for name, found in times.items()}
    return {
        "n_params": sum(param.size for param in start()),
        "step_ms": {name: float(f"{1e3 * median(found):.4g}") for name, found in times.items()},
        "ratios": {
            name: {"min": round(min(found), 3), "median": round(median(found), 3), "max": round(max(found), 3)}
            for name, found in ratios.items()
            if name != "adamw"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RECORD}")
    args = parser.parse_args()
    cases = {name: alone(shapes) for name, shapes in SHAPES.items()}
    cases[f"1.8 million, training a network on batches of {BATCH}"] = in_training()
    print(json.dumps(cases, indent=1))
    if args.write:
        versions = {"jax": jax.__version__, "optax": optax.__version__}
        device = f"{jax.devices()[0].platform}, {jax.devices()[0].device_kind}"
        content = {"cases": cases, "device": device, "versions": versions, "provenance": provenance()}
        RECORD.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
