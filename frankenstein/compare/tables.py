"""The words and numbers that the terminal, the HTML report and the README's Markdown show of a comparison."""

from __future__ import annotations

import math

from frankenstein.compare.statistics import Interval
from frankenstein.compare.summary import ProblemSummary, Row, Setting, ranking

NOTES = (
    "Mean over fresh seeds on the test split, with its 95 % bootstrap interval over seeds. Tuned: the learning rate "
    "with the best mean validation score of a grid that is the same for every optimizer; * marks one at its edge. "
    "Default: the optimizer's own, untuned. To target: median steps, - where half of the seeds missed it. "
    "Bold: level with the best (the 95 % interval of the paired difference holds 0)."
)


def heading(summary: ProblemSummary) -> str:
    """Return the problem, its metric and its target in a line."""
    arrow = "higher" if summary.config["is_higher_better"] else "lower"
    return f"{summary.name}: {summary.config['metric']} ({arrow} is better), target {summary.config['target']:g}"


def mean(setting: Setting | None) -> str:
    """Return the mean score to three digits."""
    return f"{setting.score.value:.3g}" if setting else "-"


def interval(setting: Setting | None) -> str:
    """Return the mean score and its interval, with as many digits as tell the ends apart."""
    return _interval(setting.score) if setting else "not run yet"


def _interval(score: Interval) -> str:
    width = score.high - score.low
    digits = min(max(0, 1 - math.floor(math.log10(width))), 4) if width > 0 else 3
    return f"{score.value:.{digits}f} [{score.low:.{digits}f}, {score.high:.{digits}f}]"


def rate(row: Row) -> str:
    """Return the tuned learning rate; * says that it is at the grid's edge."""
    return f"{row.tuned.lr:g}{'*' if row.is_at_edge else ''}" if row.tuned else ""


def steps(setting: Setting | None) -> str:
    """Return the median steps to the target, and how many seeds reached it where not all did."""
    if setting is None:
        return ""
    count = "-" if math.isinf(setting.steps_to_target) else f"{setting.steps_to_target:g}"
    n_seeds = len(setting.records)
    return count if setting.n_reached == n_seeds else f"{count} ({setting.n_reached}/{n_seeds})"


def milliseconds(setting: Setting | None) -> str:
    """Return the median milliseconds per step, forward and backward pass included."""
    return f"{1e3 * setting.seconds_per_step:.2f}" if setting else ""


def footnotes(summary: ProblemSummary) -> list[str]:
    """Return what a reader must know beside the table: seeds that differ in number, runs that diverged or failed."""
    settings = [(row, name, getattr(row, name)) for row in summary.rows for name in ("tuned", "default")]
    n_seeds = max((len(setting.records) for _, _, setting in settings if setting), default=0)
    notes = [f"{n_seeds} seeds"] if n_seeds else []
    if 0 < n_seeds < 3:
        notes = [f"{n_seeds} seed{'s' * (n_seeds > 1)}: the intervals say nothing, and every row counts as level"]
    for row, name, setting in settings:
        if setting:
            if len(setting.records) < n_seeds:
                notes.append(f"{row.title}, {name}: only {len(setting.records)} seeds")
            for outcome in ("diverged", "failed"):
                if setting.count(outcome):
                    notes.append(f"{row.title}, {name}: {setting.count(outcome)} {outcome}")
    for row in summary.rows:
        n_failed = sum(record["outcome"] == "failed" for record in row.trials)
        if n_failed:
            notes.append(f"{row.title}, tuning: {n_failed} failed")
    return notes


def markdown(summaries: list[ProblemSummary]) -> str:
    """Return the overview as a Markdown table: tuned (and default) score of every optimizer on every problem."""
    lines = [
        "| optimizer | mean rank | best or level | " + " | ".join(summary.name for summary in summaries) + " |",
        "|---|---|---|" + "---|" * len(summaries),
    ]
    for title, rank, n_best in ranking(summaries):
        cells = []
        for summary in summaries:
            row = next(row for row in summary.rows if row.title == title)
            value = f"**{mean(row.tuned)}**" if row.optimizer in summary.best else mean(row.tuned)
            cells.append(f"{value}{'*' if row.is_at_edge else ''} ({mean(row.default)})")
        lines.append(f"| {title} | {rank:.2f} | {n_best} of {len(summaries)} | " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("***", "**\\*")
