"""What a comparison says in words and short numbers: headings, scores with intervals, steps, footnotes.

What is not there is "-".
"""

from __future__ import annotations

import math
from collections.abc import Container

from frankenstein.compare.optimizers import Settings
from frankenstein.compare.results.summary import ProblemSummary, Row, Setting
from frankenstein.compare.statistics.seeds import MIN_SEEDS, Interval

NOTES = (
    "Mean over fresh seeds on the test split, with its 95 % bootstrap interval over seeds. Tuned: the settings with "
    "the best mean validation score of its trials; * marks one at the edge of its search. "
    "Default: as published, untuned. To target: median over seeds; > where half of them missed it in the steps they "
    "had; (3/5) where 3 of 5 reached it. Bold: level with the best (the 95 % interval of the paired difference holds "
    "0)."
)


def heading(summary: ProblemSummary) -> str:
    """Return the problem, its metric and its target in a line."""
    arrow = "higher" if summary.config["is_higher_better"] else "lower"
    return f"{summary.name}: {summary.config['metric']} ({arrow} is better), target {summary.config['target']:g}"


def mean(setting: Setting | None) -> str:
    """Return the mean score to three digits."""
    if setting is None:
        return "-"
    return "failed" if setting.has_failed else f"{setting.score.value:.3g}"


def interval(setting: Setting | None) -> str:
    """Return the mean score and its interval, with as many digits as tell the ends apart."""
    if setting is None:
        return "not run yet"
    return "failed" if setting.has_failed else estimate(setting.score)


def estimate(value: Interval) -> str:
    """Return a value and its interval, with as many digits as tell the ends apart."""
    width = value.high - value.low
    size = max(abs(value.low), abs(value.high))
    if size and (size < 1e-3 or size >= 1e5):
        return f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"
    digits = min(max(0, 1 - math.floor(math.log10(width))), 4) if width > 0 else 3
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def number(value: float, form: str) -> str:
    """Return a number in a format of its own; "-" if there is none, or it is infinite."""
    return format(value, form) if math.isfinite(value) else "-"


def percent(share: float) -> str:
    """Return a share in percent; what is not quite all is not called 100 %.

    Examples:
        >>> percent(0.123), percent(0.9999), percent(1.0)
        ('12 %', 'over 99 %', '100 %')
    """
    return "over 99 %" if 0.995 <= share < 1.0 else f"{100 * share:.0f} %"


def plain(chosen: Settings, starred: Container[str] = ()) -> str:
    """Return settings in a line, those named with a star."""
    return ", ".join(f"{name}={value:g}{'*' * (name in starred)}" for name, value in chosen.items())


def settings(row: Row) -> str:
    """Return what tuning chose; * says that it is at the edge of its search."""
    return plain(row.tuned.settings, row.edges) if row.tuned else "-"


def steps(setting: Setting | None) -> str:
    """Return the median steps to the target, and how many seeds reached it where not all did.

    Where half of them missed it, the median is only known to be more than the steps that they had.
    """
    if setting is None:
        return "-"
    n_steps = setting.records[0]["problem_config"]["n_steps"]
    count = f"> {n_steps}" if math.isinf(setting.steps_to_target) else f"{setting.steps_to_target:g}"
    n_seeds = len(setting.records)
    return count if setting.n_reached == n_seeds else f"{count} ({setting.n_reached}/{n_seeds})"


def milliseconds(setting: Setting | None) -> str:
    """Return the median milliseconds per step, forward and backward pass included."""
    return number(1e3 * setting.cost("seconds_per_step"), ".2f") if setting else "-"


def footnotes(summary: ProblemSummary) -> list[str]:
    """Return what a reader must know beside the table: seeds that differ in number, runs that diverged or failed."""
    chosen = [(row, name, getattr(row, name)) for row in summary.rows for name in ("tuned", "default")]
    n_seeds = max((len(setting.records) for _, _, setting in chosen if setting), default=0)
    notes = [f"{n_seeds} seeds"] if n_seeds else []
    if 0 < n_seeds < MIN_SEEDS:
        notes = [f"{n_seeds} seed{'s' * (n_seeds > 1)}: the intervals say nothing, and every row counts as level"]
    for row, name, setting in chosen:
        if setting:
            if len(setting.records) < n_seeds:
                notes.append(f"{row.title}, {name}: only {len(setting.records)} seeds")
            for outcome in ("diverged", "failed"):
                if setting.count(outcome):
                    notes.append(f"{row.title}, {name}: {setting.count(outcome)} {outcome}")
    budgets = {row.title: row.budget for row in summary.rows if row.trials}
    if len(set(budgets.values())) > 1:
        told = ", ".join(f"{title} {n} ({tuner})" for title, (n, tuner) in budgets.items())
        notes.append(f"trials were not equal: {told}")
    for row in summary.rows:
        n_failed = sum(record["outcome"] == "failed" for record in row.trials)
        if n_failed:
            notes.append(f"{row.title}, tuning: {n_failed} failed")
    return notes
