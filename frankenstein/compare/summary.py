"""Records -> one row per problem and optimizer: tuned and untuned scores, steps to target, cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from frankenstein.compare.records import Record
from frankenstein.compare.statistics import Interval, bootstrap_mean, mean_ranks, median_with_misses


def best_lr(tuning: list[Record]) -> float:
    """Return the learning rate with the best validation score; of equal scores, the one with the better mean curve."""

    def goodness(record: Record) -> tuple[float, float]:
        sign = 1.0 if record["problem_config"]["is_higher_better"] else -1.0
        curve = [score for _, score in record["curve"]] or [record["score"]]
        return sign * record["score"], sign * fmean(curve)

    lr: float = max(tuning, key=goodness)["lr"]
    return lr


@dataclass(frozen=True)
class Setting:
    """One optimizer at one learning rate on the test split.

    Attributes:
        lr: Learning rate.
        records: Records, by seed.
        score: Mean score over seeds with its 95 % bootstrap interval.
        steps_to_target: Median over seeds; inf where half of them missed it.
        n_reached: Seeds that reached the target.
        n_diverged: Seeds that diverged.
        n_failed: Seeds that failed with an error.
        seconds_per_step: Median over seeds, forward and backward pass included.
    """

    lr: float
    records: list[Record]
    score: Interval
    steps_to_target: float
    n_reached: int
    n_diverged: int
    n_failed: int
    seconds_per_step: float


@dataclass(frozen=True)
class Row:
    """One optimizer on one problem; `tuned` or `default` is None while its cells are missing."""

    optimizer: str
    title: str
    tuning: list[Record]
    tuned: Setting | None
    default: Setting | None

    @property
    def is_at_edge(self) -> bool:
        """Whether the best learning rate is the smallest or largest that was tried."""
        rates = [record["lr"] for record in self.tuning]
        return self.tuned is not None and self.tuned.lr in (min(rates), max(rates))


@dataclass(frozen=True)
class ProblemSummary:
    """All rows of one problem, the best tuned mean first."""

    name: str
    config: dict[str, Any]
    rows: list[Row]

    def best(self) -> list[str]:
        """Return the optimizers whose tuned interval overlaps that of the best tuned mean."""
        tuned = [(row.optimizer, row.tuned.score) for row in self.rows if row.tuned]
        return [name for name, score in tuned if score.overlaps(tuned[0][1])]


def summarise(records: Iterable[Record]) -> list[ProblemSummary]:
    """Group records into one summary per problem, in the order in which they first appear."""
    by_problem: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        by_problem.setdefault((record["problem"], record["problem_config"]["version"]), []).append(record)
    newest = dict(sorted(by_problem))
    return [_problem(name, group) for (name, version), group in by_problem.items() if version == newest[name]]


def _problem(name: str, records: list[Record]) -> ProblemSummary:
    config = records[-1]["problem_config"]
    names = dict.fromkeys(record["optimizer"] for record in records)
    rows = [_row([record for record in records if record["optimizer"] == optimizer]) for optimizer in names]
    sign = -1.0 if config["is_higher_better"] else 1.0
    rows.sort(key=lambda row: (row.tuned is None, sign * row.tuned.score.value if row.tuned else 0.0))
    return ProblemSummary(name, config, rows)


def _row(records: list[Record]) -> Row:
    config = records[-1]["optimizer_config"]
    tuning = sorted((r for r in records if r["split"] == "validation"), key=lambda r: r["lr"])
    chosen = best_lr(tuning) if tuning else None
    return Row(
        optimizer=records[0]["optimizer"],
        title=config["title"],
        tuning=tuning,
        tuned=_setting(records, chosen),
        default=_setting(records, config["default_lr"]),
    )


def _setting(records: list[Record], lr: float | None) -> Setting | None:
    chosen = sorted((r for r in records if r["split"] == "test" and r["lr"] == lr), key=lambda r: r["seed"])
    if lr is None or not chosen:
        return None
    trained = [record["seconds_per_step"] for record in chosen if record["outcome"] != "failed"]
    return Setting(
        lr=lr,
        records=chosen,
        score=bootstrap_mean([record["score"] for record in chosen]),
        steps_to_target=median_with_misses([record.get("steps_to_target") for record in chosen]),
        n_reached=sum(record.get("steps_to_target") is not None for record in chosen),
        n_diverged=sum(record["outcome"] == "diverged" for record in chosen),
        n_failed=sum(record["outcome"] == "failed" for record in chosen),
        seconds_per_step=median(trained) if trained else float("nan"),
    )


def ranking(summaries: list[ProblemSummary]) -> list[tuple[str, float, int, int]]:
    """Return (title, mean rank, problems where it is best or level with the best, problems) for each optimizer.

    Only optimizers with a tuned score on every problem are ranked; the best mean rank comes first.
    """
    rows = {(summary.name, row.optimizer): row for summary in summaries for row in summary.rows if row.tuned}
    everywhere = [
        o for o in dict.fromkeys(o for _, o in rows) if all((summary.name, o) in rows for summary in summaries)
    ]
    if not everywhere:
        return []
    scores = [[_tuned(rows[summary.name, o]).score.value for summary in summaries] for o in everywhere]
    ranks = mean_ranks(scores, [summary.config["is_higher_better"] for summary in summaries])
    table = [
        (
            rows[summaries[0].name, o].title,
            float(rank),
            sum(o in summary.best() for summary in summaries),
            len(summaries),
        )
        for o, rank in zip(everywhere, ranks, strict=True)
    ]
    return sorted(table, key=lambda entry: entry[1])


def _tuned(row: Row) -> Setting:
    assert row.tuned is not None
    return row.tuned
