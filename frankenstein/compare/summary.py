"""Records -> one row per problem and optimizer: tuned and untuned scores, steps to target, cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median
from typing import Any

from frankenstein.compare.records import Record
from frankenstein.compare.statistics import Interval, are_level, bootstrap_mean, mean_ranks, median_with_misses


def best_lr(trials: Iterable[Record]) -> float:
    """Return the learning rate with the best mean validation score; of equal ones, the one with the better mean curve.

    Args:
        trials: The tuning records of one optimizer on one problem, every learning rate on the same seeds.
    """
    by_lr: dict[float, list[Record]] = {}
    for record in trials:
        by_lr.setdefault(record["settings"]["lr"], []).append(record)

    def goodness(lr: float) -> tuple[float, float]:
        sign = 1.0 if by_lr[lr][0]["problem_config"]["is_higher_better"] else -1.0
        curves = [fmean([score for _, score in record["curve"]] or [record["score"]]) for record in by_lr[lr]]
        return sign * fmean(record["score"] for record in by_lr[lr]), sign * fmean(curves)

    return max(sorted(by_lr), key=goodness)


@dataclass(frozen=True)
class Setting:
    """One optimizer at one learning rate on the test split; its records are in the order of their seeds."""

    lr: float
    records: list[Record]

    @cached_property
    def score(self) -> Interval:
        """Mean score over seeds with its 95 % bootstrap interval."""
        return bootstrap_mean([record["score"] for record in self.records])

    @property
    def steps_to_target(self) -> float:
        """Median over seeds; inf where half of them missed it."""
        return median_with_misses([record.get("steps_to_target") for record in self.records])

    @property
    def n_reached(self) -> int:
        """Number of seeds that reached the target."""
        return sum(record.get("steps_to_target") is not None for record in self.records)

    @property
    def seconds_per_step(self) -> float:
        """Median over seeds, forward and backward pass included; NaN where none could be run."""
        return median([r["seconds_per_step"] for r in self.records if "seconds_per_step" in r] or [float("nan")])

    def count(self, outcome: str) -> int:
        """Return how many seeds ended so."""
        return sum(record["outcome"] == outcome for record in self.records)

    def is_level_with(self, other: Setting) -> bool:
        """Say whether the seeds that both have run cannot tell them apart."""
        ours, theirs = ({r["seed"]: r["score"] for r in setting.records} for setting in (self, other))
        seeds = sorted(ours.keys() & theirs.keys())
        return are_level([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])


@dataclass(frozen=True)
class Row:
    """One optimizer on one problem; `tuned` or `default` is None while its cells are missing."""

    optimizer: str
    title: str
    config: dict[str, Any]
    trials: list[Record]
    tuned: Setting | None
    default: Setting | None

    @property
    def is_at_edge(self) -> bool:
        """Whether the best learning rate is the smallest or largest that was tried."""
        rates = [record["settings"]["lr"] for record in self.trials]
        return self.tuned is not None and self.tuned.lr in (min(rates), max(rates))

    @property
    def n_failed(self) -> int:
        """Number of runs, tuning included, that failed with an error."""
        settings = [setting for setting in (self.tuned, self.default) if setting]
        runs = {r["cell"]: r for records in (self.trials, *(s.records for s in settings)) for r in records}
        return sum(record["outcome"] == "failed" for record in runs.values())


@dataclass(frozen=True)
class ProblemSummary:
    """All rows of one problem, the best tuned mean first."""

    name: str
    title: str
    config: dict[str, Any]
    rows: list[Row]

    @cached_property
    def best(self) -> list[str]:
        """The optimizer with the best tuned mean, and those that the seeds cannot tell from it."""
        tuned = [(row.optimizer, row.tuned) for row in self.rows if row.tuned]
        return [name for name, setting in tuned if setting is tuned[0][1] or setting.is_level_with(tuned[0][1])]

    def row(self, optimizer: str) -> Row | None:
        """Return the optimizer's row, if there is one."""
        return next((row for row in self.rows if row.optimizer == optimizer), None)


def summarise(records: Iterable[Record]) -> list[ProblemSummary]:
    """Group records into one summary per problem, in alphabetical order.

    Where a folder holds several configurations of a problem or an optimizer, only the newest counts.
    """
    records = list(records)
    problems = {record["problem"]: record["problem_config"] for record in records}
    optimizers = {(r["problem"], r["optimizer"]): r["optimizer_config"] for r in records}
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        pair = record["problem"], record["optimizer"]
        if record["problem_config"] == problems[pair[0]] and record["optimizer_config"] == optimizers[pair]:
            groups.setdefault(pair, []).append(record)
    return [_problem([group for pair, group in groups.items() if pair[0] == name]) for name in sorted(problems)]


def _problem(groups: list[list[Record]]) -> ProblemSummary:
    newest = groups[0][-1]
    sign = -1.0 if newest["problem_config"]["is_higher_better"] else 1.0
    rows = sorted(map(_row, groups), key=lambda row: row.title)
    rows.sort(key=lambda row: sign * row.tuned.score.value if row.tuned else float("inf"))
    return ProblemSummary(newest["problem"], newest["problem_title"], newest["problem_config"], rows)


def _row(records: list[Record]) -> Row:
    newest = records[-1]
    trials = sorted((r for r in records if r["split"] == "validation"), key=lambda r: (r["settings"]["lr"], r["seed"]))
    return Row(
        optimizer=newest["optimizer"],
        title=newest["optimizer_title"],
        config=newest["optimizer_config"],
        trials=trials,
        tuned=_setting(records, best_lr(trials)) if trials else None,
        default=_setting(records, newest["optimizer_config"]["default"]["lr"]),
    )


def _setting(records: list[Record], lr: float) -> Setting | None:
    chosen = sorted((r for r in records if r["split"] == "test" and r["settings"]["lr"] == lr), key=lambda r: r["seed"])
    return Setting(lr, chosen) if chosen else None


def ranking(summaries: list[ProblemSummary]) -> list[tuple[str, float, int]]:
    """Return (title, mean rank, number of problems where it is best or level) for each optimizer, the best first.

    Only optimizers with a tuned score on every problem are ranked.
    """
    names = dict.fromkeys(row.optimizer for summary in summaries for row in summary.rows)
    complete: dict[str, list[Setting]] = {}
    for name in names:
        settings = [row.tuned for summary in summaries if (row := summary.row(name)) and row.tuned]
        if len(settings) == len(summaries):
            complete[name] = settings
    if not complete:
        return []
    scores = [[setting.score.value for setting in settings] for settings in complete.values()]
    ranks = mean_ranks(scores, [summary.config["is_higher_better"] for summary in summaries])
    titles = {row.optimizer: row.title for summary in summaries for row in summary.rows}
    table = [
        (titles[name], float(rank), sum(name in summary.best for summary in summaries))
        for name, rank in zip(complete, ranks, strict=True)
    ]
    return sorted(table, key=lambda entry: entry[1])
