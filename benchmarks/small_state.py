"""Train with the optimizer's state in float32, in bfloat16 and in 8 bits: is the final quality the same?

    python benchmarks/small_state.py                              the trainings that need no data
    python benchmarks/small_state.py --data-dir FOLDER --write    all of them

FOLDER (or $FRANKENSTEIN_DATA) has the folders `cifar10_12k` and `imdb`. `--write` keeps each run in
docs/records/small_state.json as soon as it is finished, and does not repeat what is there unless `--again` is given.

The learning rate is tuned for float32 state alone, on the validation split, with seeds of its own; all variants then
train with it. The same seed has the same initial weights and the same batches in each variant, so that differences are
paired. What they are held against is how far float32 runs with different seeds are apart.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from small_trainings import TRAININGS, Training
from torch import Tensor, nn
from torch.nn import functional

from frankenstein.compare.store.provenance import provenance
from frankenstein.kernels import plain
from frankenstein.torch import Frankenstein

RECORD = Path(__file__).resolve().parents[1] / "docs" / "records" / "small_state.json"
TUNING_SEEDS = (100, 101)
METRICS = ("accuracy", "loss")  # on the split, at the end; accuracy in percent
CONFIDENCE = 0.95
Run = dict[str, Any]

# name: dtype of the parameters, and options of the optimizer
VARIANTS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {"state_dtype": "float32"}),
    "bfloat16": (torch.float32, {"state_dtype": "bfloat16"}),
    "8bit": (torch.float32, {"state_dtype": "8bit"}),
    "8bit-nearest": (torch.float32, {"state_dtype": "8bit", "fused": False}),  # a control: not by chance
    "bfloat16-kahan": (torch.bfloat16, {}),
    "bfloat16-rounded": (torch.bfloat16, {"kahan_sum": False}),
}


# One run --------------------------------------------------------------------------------------------------------------


def run(name: str, variant: str, lr: float, seed: int, split: str, data: Path | None) -> Run:
    """Train once, and return what the record keeps of it."""
    training = TRAININGS[name]
    dtype, options = VARIANTS[variant]
    inputs, labels = training.load(data)[split]
    torch.manual_seed(seed)
    network = training.network().to(dtype)
    begin = [param.detach().clone() for param in network.parameters()]
    optimizer = Frankenstein(network.parameters(), lr=lr, base_lr=lr, momentum=training.momentum, **options)
    start = time.perf_counter()
    with rounding_to_nearest() if variant == "8bit-nearest" else nullcontext():
        n_steps = train(training, network, optimizer, seed, data)
    seconds = time.perf_counter() - start
    accuracy, loss = score(network, inputs.to(dtype) if inputs.is_floating_point() else inputs, labels)
    n_params = sum(param.numel() for param in begin)
    state = [entry for param in network.parameters() for entry in [optimizer.state[param]]]
    n_unmoved = sum(int((param == old).sum()) for param, old in zip(network.parameters(), begin, strict=True))
    if n_unmoved == n_params:
        raise SystemExit(f"{name}, {variant}: no parameter has moved; is the optimizer's code being changed?")
    return {
        "training": name,
        "variant": variant,
        "lr": lr,
        "seed": seed,
        "split": split,
        "accuracy": accuracy,
        "loss": loss,
        "n_params": n_params,
        "n_steps": n_steps,
        "share_unmoved": n_unmoved / n_params,
        "share_in_8_bits": sum(e["squared_grad"].numel() for e in state if "block_exponents" in e) / n_params,
        "state_bytes_per_param": sum(t.nbytes for e in state for t in e.values() if isinstance(t, Tensor)) / n_params,
        "wall_seconds": round(seconds, 2),
    }


@contextmanager
def rounding_to_nearest() -> Iterator[None]:
    """Take the chance out of the plain operations, to see whether the comparison would notice."""
    before = plain.needs_noise
    plain.needs_noise = lambda item: False
    yield
    plain.needs_noise = before


def train(training: Training, network: nn.Module, optimizer: Frankenstein, seed: int, data: Path | None) -> int:
    """Train in place; return the number of steps."""
    inputs, labels = training.load(data)["train"]
    dtype, group = next(network.parameters()).dtype, optimizer.param_groups[0]
    lr, generator = group["lr"], torch.Generator().manual_seed(seed)
    n_batches = len(inputs) // training.batch_size
    n_steps, step = n_batches * training.n_epochs, 0
    for _ in range(training.n_epochs):
        order = torch.randperm(len(inputs), generator=generator)[: n_batches * training.batch_size]
        for batch in order.split(training.batch_size):
            if training.decays:
                group["lr"] = lr * (1 - step / n_steps)
            x = training.augment(inputs[batch], generator)
            optimizer.zero_grad()
            logits = network(x.to(dtype) if x.is_floating_point() else x)
            functional.cross_entropy(logits.float(), labels[batch]).backward()
            optimizer.step()
            step += 1
    return step


@torch.no_grad()
def score(network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy in percent, and cross entropy."""
    network.eval()
    logits = torch.cat([network(part).float() for part in inputs.split(500)])
    accuracy = 100 * (logits.argmax(1) == labels).double().mean().item()
    return accuracy, functional.cross_entropy(logits, labels).item()


# Summary --------------------------------------------------------------------------------------------------------------


def summarize(runs: list[Run], name: str) -> dict[str, dict[str, Any]]:
    """Return, for each variant of a training, each metric's mean and spread, and how it differs from the first's.

    `is_within`: whether the mean difference is at most the standard deviation over seeds of the first variant.
    """
    variants = TRAININGS[name].variants
    by_seed = {variant: {one["seed"]: one for one in runs if one["variant"] == variant} for variant in variants}
    seeds = sorted(set.intersection(*(set(found) for found in by_seed.values())))
    if len(seeds) < 2:
        return {}
    rows: dict[str, dict[str, Any]] = {}
    for variant in variants:
        found = [by_seed[variant][seed] for seed in seeds]
        rows[variant] = {"n_seeds": len(seeds)}
        for key in ("share_unmoved", "share_in_8_bits", "state_bytes_per_param"):
            rows[variant][key] = mean(one[key] for one in found)
        for metric in METRICS:
            first = [by_seed[variants[0]][seed][metric] for seed in seeds]
            rows[variant][metric] = compared([one[metric] for one in found], first)
    return rows


def compared(values: list[float], first: list[float]) -> dict[str, Any]:
    """Return mean and standard deviation, and the mean paired difference with its t interval."""
    from scipy.stats import t

    differences = [value - other for value, other in zip(values, first, strict=True)]
    n, difference = len(values), mean(differences)
    half = t.ppf(0.5 + CONFIDENCE / 2, n - 1) * stdev(differences) / n**0.5
    return {
        "mean": mean(values),
        "sd": stdev(values),
        "difference": difference,
        "low": difference - half,
        "high": difference + half,
        "is_within": abs(difference) <= stdev(first),
    }


# The record -----------------------------------------------------------------------------------------------------------


def settings(name: str, data: Path | None) -> dict[str, Any]:
    """Return what the runs of a training have in common; runs of other settings are not mixed with them."""
    training = TRAININGS[name]
    kept = ("title", "n_epochs", "batch_size", "momentum", "decays")
    sizes = {f"n_{split}": len(labels) for split, (_, labels) in training.load(data).items()}
    return {key: getattr(training, key) for key in kept} | {"rates": list(training.rates)} | sizes


def chosen_rate(name: str, tuning: list[Run]) -> float | None:
    """Return the rate with the best mean accuracy (then loss) on the validation split; None before it is known."""
    rates = TRAININGS[name].rates
    if len(rates) == 1:
        return rates[0]
    by_rate = {lr: [one for one in tuning if one["training"] == name and one["lr"] == lr] for lr in rates}
    if any(len(found) < len(TUNING_SEEDS) for found in by_rate.values()):
        return None

    def quality(lr: float) -> tuple[float, float]:
        return mean(one["accuracy"] for one in by_rate[lr]), -mean(one["loss"] for one in by_rate[lr])

    return max(rates, key=quality)


def tasks(name: str, record: dict[str, Any]) -> Iterator[tuple]:
    """Yield the arguments of the runs that the record lacks: those of the tuning first, then the final ones."""
    done = {(r["training"], r["variant"], r["lr"], r["seed"]) for r in record["tuning"] + record["runs"]}
    training, lr = TRAININGS[name], chosen_rate(name, record["tuning"])
    if lr is None:
        wanted = [(name, "float32", rate, seed, "validation") for rate in training.rates for seed in TUNING_SEEDS]
    else:  # seed by seed, so that an interruption leaves whole pairs
        wanted = [
            (name, variant, lr, seed, "test") for seed in range(training.n_seeds) for variant in training.variants
        ]
    yield from (one for one in wanted if one[:4] not in done)


def execute(wanted: list[tuple], data: Path | None, n_workers: int) -> Iterator[Run]:
    """Yield the runs as they finish; each worker has one thread."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_workers, context, torch.set_num_threads, (1,)) as pool:
        for future in as_completed([pool.submit(run, *one, data) for one in wanted]):
            yield future.result()


def carry_out(name: str, record: dict[str, Any], options: argparse.Namespace) -> None:
    """Run what is missing of one training, and print its summary."""
    while wanted := list(tasks(name, record)):
        for one in execute(wanted, options.data_dir, options.workers):
            record["tuning" if one["split"] == "validation" else "runs"].append(one)
            print(
                f"{name:8} {one['variant']:16} lr {one['lr']:<7g} seed {one['seed']:<3} {one['split']:10} "
                f"accuracy {one['accuracy']:6.2f} loss {one['loss']:.4f} {one['wall_seconds']:6.1f} s",
                flush=True,
            )
            record["provenance"] = provenance()
            keep(name, record, options.write)
    keep(name, record, options.write)
    for variant, row in record["summary"][name].items():
        print(f"{name:8} {variant:16} {'; '.join(in_words(metric, row[metric]) for metric in METRICS)}", flush=True)


def in_words(metric: str, found: dict[str, Any]) -> str:
    """Return one line about a metric of a variant."""
    difference = f"difference {found['difference']:+.2g} [{found['low']:+.2g}, {found['high']:+.2g}]"
    return f"{metric} {found['mean']:.4g} +- {found['sd']:.2g}, {difference}{'' if found['is_within'] else ' OUTSIDE'}"


def keep(name: str, record: dict[str, Any], is_written: bool) -> None:
    """Bring the summary up to date, and write the record in one go."""
    record["summary"][name] = summarize([one for one in record["runs"] if one["training"] == name], name)
    if is_written:
        draft = RECORD.with_suffix(".part")
        draft.write_text(json.dumps(record, indent=1) + "\n")
        draft.replace(RECORD)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TRAININGS, default=list(TRAININGS), help="some of the trainings")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("FRANKENSTEIN_DATA"), help="folder of the data")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each with one thread (2)")
    parser.add_argument("--write", action="store_true", help=f"keep each run in {RECORD.name}, and go on from there")
    parser.add_argument("--again", action="store_true", help="repeat the runs that the record has")
    options = parser.parse_args()
    options.data_dir = options.data_dir and Path(options.data_dir)
    record = {"settings": {}, "tuning": [], "runs": [], "summary": {}, "provenance": {}}
    if options.write and RECORD.exists():
        record = json.loads(RECORD.read_text())
    for name in options.only:
        folder = TRAININGS[name].folder
        if folder and not (options.data_dir and (options.data_dir / folder).is_dir()):
            print(f"{name}: skipped; it needs the folder {folder} in --data-dir or $FRANKENSTEIN_DATA")
            continue
        current = settings(name, options.data_dir)
        if options.again:
            for kind in ("tuning", "runs"):
                record[kind] = [one for one in record[kind] if one["training"] != name]
        elif record["settings"].get(name, current) != current:
            print(f"{name}: the record's runs had other settings or data; --again repeats them", file=sys.stderr)
            return 1
        record["settings"][name] = current
        carry_out(name, record, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
