"""Records -> one row per problem and optimizer: tuned and untuned scores, steps to target, cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from frankenstein.compare.comparison import best_trial
from frankenstein.compare.optimizers import Range, Settings
from frankenstein.compare.statistics.seeds import Interval, are_level, bootstrap_mean, median_with_misses
from frankenstein.compare.store.records import Record

EDGE = 0.05  # share of the search interval, in decades, that counts as its edge


@dataclass(frozen=True)
class Setting:
    """One optimizer with one choice of settings on the test split; its records are in the order of their seeds."""

    settings: Settings
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
    def seconds_to_target(self) -> float:
        """Median over seeds, of training without evaluations; inf where half of them missed it."""
        return median_with_misses([record.get("seconds_to_target") for record in self.records])

    def cost(self, name: str) -> float:
        """Return the median over seeds of "seconds_per_step", "optimizer_seconds_per_step" or "state_bytes"; or NaN."""
        return median([r[name] for r in self.records if r.get(name) is not None] or [float("nan")])

    def count(self, outcome: str) -> int:
        """Return how many seeds ended so."""
        return sum(record["outcome"] == outcome for record in self.records)

    @property
    def has_failed(self) -> bool:
        """Whether every run failed: there is no score then."""
        return self.count("failed") == len(self.records)

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
    def edges(self) -> list[str]:
        """The tuned settings in an outer twentieth of what was searched: a wider search may gain."""
        if self.tuned is None:
            return []
        space = {name: Range(*interval) for name, interval in self.trials[0]["space"].items()}
        places = {name: space[name].unit(value) for name, value in self.tuned.settings.items() if name in space}
        return [name for name, place in places.items() if not EDGE < place < 1.0 - EDGE]

    @property
    def is_at_edge(self) -> bool:
        """Whether the best learning rate is at the edge of its search."""
        return "lr" in self.edges

    @cached_property
    def records(self) -> list[Record]:
        """The records behind the row, each once: trials, tuned, default."""
        settings = [setting for setting in (self.tuned, self.default) if setting]
        found = {r["cell"]: r for records in (self.trials, *(s.records for s in settings)) for r in records}
        return list(found.values())

    @property
    def budget(self) -> tuple[int, str]:
        """How many trials it had, and who chose them."""
        return len({record["trial"] for record in self.trials}), self.trials[0]["tuner"] if self.trials else ""

    @property
    def n_failed(self) -> int:
        """Number of runs, tuning included, that failed with an error."""
        return sum(record["outcome"] == "failed" for record in self.records)


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
        tuned = [(row.optimizer, row.tuned) for row in self.rows if row.tuned and not row.tuned.has_failed]
        return [name for name, setting in tuned if setting is tuned[0][1] or setting.is_level_with(tuned[0][1])]

    @property
    def records(self) -> list[Record]:
        """The records behind the rows."""
        return [record for row in self.rows for record in row.records]

    def row(self, optimizer: str) -> Row | None:
        """Return the optimizer's row, if there is one."""
        return next((row for row in self.rows if row.optimizer == optimizer), None)


def summarise(records: Iterable[Record]) -> list[ProblemSummary]:
    """Group records into one summary per problem, in alphabetical order.

    Where a folder holds several configurations of a problem or an optimizer, only the newest counts.
    """
    records = sorted(records, key=lambda record: record["finished_at"])  # stable: of one second, in their order
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
    tuner = next((r["tuner"] for r in reversed(records) if r["tuner"]), None)
    trials = [r for r in records if r["split"] == "validation" and r["tuner"] == tuner]
    trials.sort(key=lambda r: (r["trial"], r["seed"]))
    tuned = None
    if trials:
        best = best_trial(trials)
        tuned = _setting(records, next(r["settings"] for r in trials if r["trial"] == best))
    return Row(
        optimizer=newest["optimizer"],
        title=newest["optimizer_title"],
        config=newest["optimizer_config"],
        trials=trials,
        tuned=tuned,
        default=_setting(records, newest["optimizer_config"]["default"]),
    )


def _setting(records: list[Record], settings: Settings) -> Setting | None:
    chosen = [r for r in records if r["split"] == "test" and r["settings"] == settings]
    return Setting(settings, sorted(chosen, key=lambda r: r["seed"])) if chosen else None
