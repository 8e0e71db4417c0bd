"""Made-up records of schema 2: no training, the same on every machine, with every kind of outcome among them."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

Record = dict[str, Any]

TUNING_SEEDS = (1_000_000, 1_000_001, 1_000_002)
N_STEPS = 200
DEFAULT_LR = 0.0001234  # far from the best, and with more digits than other trials have
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
PROVENANCE = {
    "versions": {"python": "3.11.7", "frankenstein": "0.1.0", "numpy": "2.4.6", "torch": "2.13.0", "jax": None},
    "git": "0123456789abcdef0123456789abcdef01234567+",
    "system": "Linux x86_64",
    "device": "cpu: Some Processor, 2 cores",
    "modules": {"frankenstein/rule.py": "a1b2c3d4", "frankenstein/torch.py": "e5f60718"},
}


def made_records(
    n_problems: int = 2, n_optimizers: int = 3, n_trials: int = 4, n_seeds: int = 5, n_points: int = 11
) -> list[Record]:
    """Return the records of a comparison as if it had been run: the same arguments, the same records.

    For every problem and optimizer there are `n_trials` settings on the validation split, each on the three
    `TUNING_SEEDS`; then, on the test split, the settings with the best mean validation score and the default, each on
    seeds 0, 1, ... `n_seeds - 1`: `n_problems * n_optimizers * (3 * n_trials + 2 * n_seeds)` records, in the order of
    `finished_at`. No two have the same cell.

    Problems 0, 2, ... are accuracies, the others log10 losses (lower is better) with `train_loss` in their curves.
    Each further optimizer is a little worse at its best learning rate; optimizers 1, 3, ... tune "betas[0]" too. Trial
    0 is the default, and never the best; the others are spread over four decades of learning rates, low to high. With
    three or more, the last one diverges. The last optimizer's default fails on the last test seed of every problem.

    Args:
        n_problems: Number of problems.
        n_optimizers: Number of optimizers.
        n_trials: Settings that tuning tried, at least 2.
        n_seeds: Seeds on the test split.
        n_points: Points of each curve, the start included, from 2 to 201; a diverged run has half of them.
    """
    records: list[Record] = []
    for pair in [(problem, optimizer) for problem in range(n_problems) for optimizer in range(n_optimizers)]:
        trials = [_settings(pair[1], trial, n_trials) for trial in range(n_trials)]
        goodness = []
        for trial, settings in enumerate(trials):
            outcome = "diverged" if trial >= 2 and trial == n_trials - 1 else "finished"
            extra = {"split": "validation", "trial": trial, "tuner": "halton"}
            made = [_record(pair, settings, seed, outcome, n_points, extra) for seed in TUNING_SEEDS]
            goodness.append(sum(record["score"] for record in made) * (1 if pair[0] % 2 == 0 else -1))
            records += made
        best = trials[goodness.index(max(goodness))]
        for settings in (best, trials[0]):
            for seed in range(n_seeds):
                is_last = settings is trials[0] and pair[1] == n_optimizers - 1 and seed == n_seeds - 1
                extra = {"split": "test", "trial": None, "tuner": None}
                records.append(_record(pair, settings, seed, "failed" if is_last else "finished", n_points, extra))
    for i, record in enumerate(records):
        record["finished_at"] = (FIRST + timedelta(seconds=i)).isoformat(timespec="seconds")
    return records


def _problem_config(problem: int) -> dict[str, Any]:
    is_higher_better = problem % 2 == 0
    return {
        "metric": "accuracy" if is_higher_better else "log10 of the loss",
        "is_higher_better": is_higher_better,
        "target": 0.8 if is_higher_better else -2.0,
        "worst": 0.1 if is_higher_better else 3.0,
        "n_steps": N_STEPS,
        "n_evals": 20,
        "lr_scale": 1.0 if is_higher_better else 10.0,
        "version": 1,
    }


def _optimizer_config(optimizer: int) -> dict[str, Any]:
    is_momentum_tuned = optimizer % 2 == 1
    return {
        "class": f"some.module:Optimizer{optimizer}",
        "default": {"lr": DEFAULT_LR} | ({"betas[0]": 0.9} if is_momentum_tuned else {}),
        "second": ["betas[0]", 0.7, 0.997, "decay"] if is_momentum_tuned else None,
        "options": {"weight_decay": 0.01} if is_momentum_tuned else {},
        "tied": [] if optimizer else ["base_lr"],
    }


def _settings(optimizer: int, trial: int, n_trials: int) -> dict[str, float]:
    if trial == 0:
        return dict(_optimizer_config(optimizer)["default"])
    settings = {"lr": float(f"{10 ** (-4 + 4 * (trial - 0.5) / (n_trials - 1)):.3g}")}
    return settings | ({"betas[0]": round(0.8 + 0.19 * trial / n_trials, 6)} if optimizer % 2 == 1 else {})


def _decades_off(optimizer: int, lr: float) -> float:
    """Return how far the learning rate is from the optimizer's best one."""
    return abs(math.log10(lr) + 2.5 - 0.2 * (optimizer % 3))


def _record(
    pair: tuple[int, int], settings: dict[str, float], seed: int, outcome: str, n_points: int, extra: Record
) -> Record:
    problem, optimizer = pair
    config = {
        "problem": f"problem-{problem}",
        "problem_config": _problem_config(problem),
        "optimizer": f"optimizer-{optimizer}",
        "optimizer_config": _optimizer_config(optimizer),
        "settings": dict(settings),
        "seed": seed,
        **extra,
    }
    cell = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    random = Random(cell)
    return {
        "schema": 2,
        "cell": cell,
        **config,
        "problem_title": f"Problem {problem} (made up)",
        "optimizer_title": f"Optimizer {optimizer}",
        "space": {"lr": [1e-4, 1.0, "log"]} | ({"betas[0]": [0.7, 0.997, "decay"]} if optimizer % 2 == 1 else {}),
        **_outcome(pair, settings["lr"], outcome, n_points, random),
        "wall_seconds": round(random.uniform(0.5, 1.5), 4),
        "attempt": 1,
        "finished_at": "",
        "command": "frankenstein compare --problems some --optimizers others",
        "provenance": json.loads(json.dumps(PROVENANCE)),
    }


def _outcome(pair: tuple[int, int], lr: float, outcome: str, n_points: int, random: Random) -> Record:
    problem = _problem_config(pair[0])
    if outcome == "failed":
        return {
            "outcome": outcome,
            "reason": "RuntimeError: made to fail",
            "score": problem["worst"],
            "curve": {"step": [], "score": [], "seconds": []},
            "steps_to_target": None,
            "seconds_to_target": None,
        }
    curve = _curve(pair, lr, n_points if outcome == "finished" else max(1, n_points // 2), n_points, random)
    sign = 1 if problem["is_higher_better"] else -1
    reached = [i for i, score in enumerate(curve["score"]) if sign * score >= sign * problem["target"]]
    n_steps_done = N_STEPS if outcome == "finished" else curve["step"][-1] + 1
    return {
        "outcome": outcome,
        "reason": "" if outcome == "finished" else f"the loss was not finite at step {n_steps_done}",
        "score": curve["score"][-1] if outcome == "finished" else problem["worst"],
        "curve": curve,
        "steps_to_target": curve["step"][reached[0]] if reached else None,
        "seconds_to_target": curve["seconds"][reached[0]] if reached else None,
        "seconds_per_step": float(f"{random.uniform(0.002, 0.003):.4g}"),
        "optimizer_seconds_per_step": float(f"{random.uniform(0.0004, 0.0006) * (1 + pair[1]):.4g}"),
        "state_bytes": 8 * 6090 * (1 + pair[1] % 3),
        "n_params": 6090,
        "n_steps_done": n_steps_done,
    }


def _curve(pair: tuple[int, int], lr: float, n_kept: int, n_points: int, random: Random) -> dict[str, list[Any]]:
    """Return the first `n_kept` of `n_points` points of a run that improves ever more slowly, with noise."""
    problem = _problem_config(pair[0])
    quality = 0.9 / (1 + 0.25 * _decades_off(pair[1], lr) ** 2) - 0.03 * pair[1] + random.gauss(0, 0.01)
    steps = [round(N_STEPS * i / (n_points - 1)) for i in range(n_kept)]
    progress = [quality * (1 - math.exp(-step / 30)) + random.gauss(0, 0.003) * (step > 0) for step in steps]
    curve: dict[str, list[Any]] = {"step": steps}
    if problem["is_higher_better"]:
        curve["score"] = [float(f"{0.1 + 0.9 * value:.6g}") for value in progress]
    else:
        curve["score"] = [float(f"{1 - 5 * value:.6g}") for value in progress]
    curve["seconds"] = [round(0.0025 * step, 4) for step in steps]
    if not problem["is_higher_better"]:
        curve["train_loss"] = [None, *(float(f"{10**score:.6g}") for score in curve["score"][1:])]  # no batch before 0
    return curve
