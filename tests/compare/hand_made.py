"""Records made of scores that a test chooses, so that it can be checked by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from compare.made_records import made_records

Record = dict[str, Any]
Scores = Mapping[str, Sequence[Sequence[float | None]]]  # by optimizer: for each problem a list; None is not run

WORST, TARGET, N_STEPS = 0.0, 1.0, 100  # of every problem: a score is its own normalised score
DEFAULT = {"lr": 5e-4}  # no trial has it
_TEMPLATE = made_records(1, 1, 2, 1)[0]
_cells = count()


def lr_of(trial: int) -> float:
    """The learning rate of a trial: 1e-3, 2e-3, 4e-3, ..."""
    return 1e-3 * 2**trial


def run(problem: int, optimizer: str, score: float, seed: int = 0, **changes: Any) -> Record:
    """Return the record of one test run; it reaches the target if its score does, at the last step."""
    is_there = score >= TARGET
    config = {"worst": WORST, "target": TARGET, "is_higher_better": True, "n_steps": N_STEPS}
    record = _TEMPLATE | {
        "cell": f"cell-{next(_cells)}",
        "problem": f"problem-{problem}",
        "problem_title": f"Problem {problem}",
        "problem_config": _TEMPLATE["problem_config"] | config,
        "optimizer": optimizer,
        "optimizer_title": optimizer.title(),
        "optimizer_config": _TEMPLATE["optimizer_config"] | {"default": DEFAULT, "class": f"some:{optimizer.title()}"},
        "settings": {"lr": lr_of(0)},
        "space": {"lr": [1e-4, 1.0, "log"]},
        "seed": seed,
        "split": "test",
        "trial": None,
        "tuner": None,
        "outcome": "finished",
        "reason": "",
        "score": score,
        "curve": {"step": [0, N_STEPS], "score": [0.0, score], "seconds": [0.0, 1.0]},
        "steps_to_target": N_STEPS if is_there else None,
        "seconds_to_target": 1.0 if is_there else None,
        "seconds_per_step": 0.01,
        "optimizer_seconds_per_step": 0.001,
        "state_bytes": 8000,
        "n_params": 1000,
    }
    return record | changes


def trial(problem: int, optimizer: str, number: int, score: float, **changes: Any) -> Record:
    """Return the record of a tuning run."""
    extra = {"split": "validation", "trial": number, "tuner": "halton", "settings": {"lr": lr_of(number)}}
    return run(problem, optimizer, score, 1_000_000, **(extra | changes))


def compared(tuned: Scores, default: Scores | None = None, trials: Scores | None = None) -> list[Record]:
    """Return the records of a comparison.

    Args:
        tuned: Test scores by optimizer, problem and seed.
        default: The same, untuned; none at all if None.
        trials: Validation scores by optimizer, problem and trial; one trial that scores 0.5 if None.
    """
    records = []
    for optimizer, problems in tuned.items():
        for problem, scores in enumerate(problems):
            found = trials[optimizer][problem] if trials else [0.5]
            records += [trial(problem, optimizer, number, score) for number, score in enumerate(found)]
            best = {"lr": lr_of(found.index(max(found)))}
            records += [
                run(problem, optimizer, s, seed, settings=best) for seed, s in enumerate(scores) if s is not None
            ]
    for optimizer, problems in (default or {}).items():
        for problem, scores in enumerate(problems):
            runs = [(seed, score) for seed, score in enumerate(scores) if score is not None]
            records += [run(problem, optimizer, score, seed, settings=DEFAULT) for seed, score in runs]
    return records
