"""Table 6 of the paper: the rule with parts of it switched off, on images.

The paper trains EfficientNet-B0 from random weights on CIFAR-10, once for each variant. The preset `local` trains a
small network on a part of CIFAR-10 and another on handwritten digits, with five seeds, so that differences can be told
from noise.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from frankenstein.compare.optimizers import Factory, OptimizerSpec
from frankenstein.compare.problems import digits
from frankenstein.compare.problems.problem import Budget, Measurements
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.report.words import estimate
from frankenstein.compare.results.summary import ProblemSummary
from frankenstein.compare.statistics.seeds import Interval, bootstrap_mean
from frankenstein.experiments.experiment import Findings, Options
from frankenstein.experiments.networks import Plan, at, charts, n_steps, problem_of, run
from frankenstein.experiments.training import Recipe, step_decay
from frankenstein.experiments.vision import Vision
from frankenstein.rule import Rule, rule_config

NAME = "table6"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("the whole rule", {}),
    "beta1": ("beta1 fixed at 0.9", {"beta1_follows_lr": False}),
    "rho": ("without rho", {"use_rho": False}),
    "xi": ("without xi", {"use_xi": False}),
    "v": ("without v", {"use_v": False}),
    "beta2": ("beta2 fixed at 0.999", {"beta2_adapts": False}),
    "max": ("without the maximum of v", {"use_max": False}),
    "max-limited": ("without the maximum of v, x ratio at most 1", {"use_max": False, "ratio_limit": 1.0}),
    "ema": ("without the average of v", {"use_ema": False}),
    "adam": ("Adam", {}),
}
"""Title of each variant, and what it changes in the rule.

In Algorithm 1 the ratio of the squared gradients in eq. 10 is free, so that an average of v alone overshoots where a
gradient jumps; the authors' code limits it to 1 and can do without the maximum. So that part is switched off twice.
"""

METHODS = list(VARIANTS)
PUBLISHED = (92.13, 92.11, 92.08, 92.07, 91.97, 91.86, 91.86, 91.5)
N_SEEDS = 5
DECAYS = 0.4  # the learning rate falls to a tenth after so much of the training, and again: 40 and 80 of 100 epochs

BATCH = 128
LOCAL_STEPS, PAPER_STEPS = 3 * (10_000 // BATCH), 100 * (50_000 // BATCH)


def _spec(variant: str) -> OptimizerSpec:
    title, changes = VARIANTS[variant]
    if variant == "adam":
        return at(NAME, "adam", {"lr": 1e-3})
    rule = replace(Rule(), **changes)
    spec = at(NAME, "frankenstein", {"lr": 1e-3, "base_lr": 1e-3}, rule=rule_config(rule))
    return replace(spec, name=f"{NAME}-{variant}", title=title[0].upper() + title[1:])


def _recipe(budget: Budget) -> Recipe:
    return Recipe(schedule=step_decay(max(1, round(DECAYS * budget.n_steps))), precision="auto")


class _Digits:
    """The convolutional network of the comparison, with its data described as the other problems' are."""

    def __call__(self, make_optimizer: Factory, seed: int, budget: Budget) -> Measurements:
        """Train once."""
        measured = _CNN.run(make_optimizer, seed, budget)
        measured.data = self.describe()
        return measured

    def describe(self) -> list[dict[str, Any]]:
        """Return name, size and hash of the data."""
        images, labels = digits.load_splits()["train"]
        content = images.numpy().tobytes() + labels.numpy().tobytes()
        return [{"name": "digits", "n": len(labels), "sha256": hashlib.sha256(content).hexdigest()}]


_CNN = next(problem for problem in digits.PROBLEMS if problem.name == "digits-cnn")
OPTIMIZERS = tuple(map(_spec, VARIANTS))
PROBLEMS = (
    problem_of(
        "table6-cifar10_12k",
        "Small convolutional network on 10,000 images of CIFAR-10",
        Vision("small-cnn", "cifar10_12k", 32, "padded", "half", BATCH, _recipe),
        LOCAL_STEPS,
        6,
        target=0.7,
    ),
    replace(
        _CNN,
        name="table6-digits",
        title="Small convolutional network on handwritten digits",
        run=_Digits(),
        n_steps=n_steps(_CNN.n_steps),
        n_evals=min(_CNN.n_evals, n_steps(_CNN.n_steps)),
    ),
    problem_of(
        "table6-cifar10",
        "EfficientNet-B0 from random weights on CIFAR-10",
        Vision("efficientnet-b0-random", "cifar10", 32, "padded", "imagenet", BATCH, _recipe),
        PAPER_STEPS,
        100,
        target=0.9,
    ),
)
LOCAL, PAPER = tuple(problem.name for problem in PROBLEMS[:2]), (PROBLEMS[2].name,)


def reproduce(options: Options) -> Findings:
    """Train every variant with every seed."""
    optimizers = tuple(f"{NAME}-{name}" for name in options.methods or METHODS)
    problems = LOCAL if options.preset == "local" else PAPER
    return findings(run(Plan(__name__, problems, optimizers, N_SEEDS), options))


def findings(summaries: list[ProblemSummary]) -> Findings:
    """Return the variants beside the whole rule, and which differences are larger than the noise."""
    lines = [line for summary in summaries for line in _sentences(summary)]
    accuracies = ", ".join(f"{value:g}" for value in PUBLISHED)
    lines.append(
        f"Published, EfficientNet-B0 on CIFAR-10, one run each: {accuracies} %; the largest difference is "
        f"{max(PUBLISHED) - min(PUBLISHED):.2f} points. Which variant has which number the paper's text does not say."
    )
    lines += _beyond_published(summaries)
    lines.append(
        "All have the learning rate 0.001: that Adam is behind there is no verdict on Adam, whose step is shorter at "
        "the same rate."
    )
    tables = [_table(summary) for summary in summaries]
    return Findings("Ablation of the update rule (Table 6)", lines, tables, charts(summaries))


def _beyond_published(summaries: list[ProblemSummary]) -> list[str]:
    """Say which variants lose more here than any does in the published table."""
    spread = max(PUBLISHED) - min(PUBLISHED)
    names = [name for name, (_, changes) in VARIANTS.items() if changes]
    worse = [
        VARIANTS[name][0]
        for name in names
        if any((gap := _gaps(s).get(f"{NAME}-{name}")) and gap.high < -spread for s in summaries)
    ]
    if not worse:
        return []
    return [
        f"The rule {' and '.join(worse)} loses more than that here: either the published variants of this kind were "
        "made in another way, or they matter less to that network."
    ]


def _gaps(summary: ProblemSummary) -> dict[str, Interval]:
    """Return each variant's difference to the whole rule in points, paired by seed."""
    whole = summary.row(f"{NAME}-whole")
    if whole is None or whole.tuned is None:
        return {}
    ours = {record["seed"]: record["score"] for record in whole.tuned.records}
    return {
        row.optimizer: bootstrap_mean([100 * (r["score"] - ours[r["seed"]]) for r in row.tuned.records])
        for row in summary.rows
        if row.tuned and row.optimizer != whole.optimizer and {r["seed"] for r in row.tuned.records} <= ours.keys()
    }


def _sentences(summary: ProblemSummary) -> list[str]:
    gaps = _gaps(summary)
    titles = {f"{NAME}-{name}": title for name, (title, _) in VARIANTS.items()}
    if not gaps:
        return []
    real = {name: gap for name, gap in gaps.items() if gap.low > 0 or gap.high < 0}
    said = [
        f"{titles[name]} ({gap.value:+.2f} points, {gap.low:+.2f} to {gap.high:+.2f})" for name, gap in real.items()
    ]
    rest = [titles[name] for name in gaps if name not in real]
    return [
        f"{summary.title}: differences larger than the noise: {'; '.join(said) if said else 'none'}. "
        f"Within it: {', '.join(rest) if rest else 'none'}."
    ]


def _table(summary: ProblemSummary) -> Table:
    gaps = _gaps(summary)
    rows = []
    for row in summary.rows:
        if row.tuned is None:
            continue
        score = Interval(*(100 * value for value in row.tuned.score))
        gap = gaps.get(row.optimizer)
        cells = [
            Cell(row.title),
            Cell(estimate(score), row.optimizer in summary.best, {"": score.value}),
            Cell("" if gap is None else estimate(gap), numbers={} if gap is None else {"": gap.value}),
            Cell("" if gap is None else "yes" if gap.low > 0 or gap.high < 0 else "no"),
        ]
        rows.append(cells)
    columns = ["variant", "accuracy, %", "less the whole rule", "beyond the noise"]
    n_seeds = max((len(row.tuned.records) for row in summary.rows if row.tuned), default=0)
    note = f"Mean over {n_seeds} seeds with its 95 % interval; differences are paired by seed."
    return Table(summary.name.replace("_", "-"), summary.title, columns, rows, [note])
