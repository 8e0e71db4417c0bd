"""Every table of a comparison, as data: what the report, the terminal, the docs and the exported files show.

`words.py` has the texts of its entries, `formats.py` turns a whole table into CSV, LaTeX or Markdown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.report.words import (
    estimate,
    footnotes,
    heading,
    interval,
    mean,
    number,
    percent,
    plain,
    settings,
    steps,
)
from frankenstein.compare.results.overall import Overall, Standing
from frankenstein.compare.results.summary import ProblemSummary, Row, Setting
from frankenstein.compare.statistics.seeds import Interval, restricted_mean
from frankenstein.compare.store.records import Record


def every(summaries: list[ProblemSummary], found: Overall | None) -> list[Table]:
    """Return all tables that there is something for.

    Args:
        summaries: One for each problem.
        found: What `overall` makes of them.
    """
    across = [standings(found), wins(found), p_values(found)] if found else []
    end = [costs(summaries, found), spaces(summaries), failures(summaries)]
    return [table for table in [*across, scores(summaries, found), *map(problem, summaries), *end] if table.rows]


# Across problems ------------------------------------------------------------------------------------------------------


def standings(found: Overall) -> Table:
    """Return what each optimizer is worth over all problems, the best mean rank first."""

    def row(s: Standing) -> list[Cell]:
        return [
            Cell(s.title),
            _number(s.mean_rank, ".2f"),
            Cell(f"{s.n_best} of {found.n_problems}", numbers={"": s.n_best}),
            Cell(percent(s.probability_best), numbers={"": s.probability_best}),
            _estimate(s.score),
            _estimate(s.median),
            _estimate(s.default_score),
            _number(s.default_rank, ".2f"),
            Cell(f"{s.n_reached} of {s.n_runs}", numbers={"": s.n_reached, "runs": s.n_runs}),
            _number(s.profile_score, ".2f"),
            _number(s.time_profile_score, ".2f"),
            _number(s.step_cost, ".1f"),
            _number(s.bytes_per_param, ".3g"),
            _number(s.half_budget_rank, ".2f"),
            _number(s.full_budget_rank, ".2f"),
            _number(s.lr_width, ".1f"),
        ]

    columns = ["optimizer", "mean rank", "best or level", "first", "score", "median score", "untuned score"]
    columns += ["untuned rank", "reached target", "profile, steps", "profile, seconds", "step cost", "bytes/parameter"]
    columns += [f"rank, {found.half_budget} trials", f"rank, {found.n_trials} trials", "lr decades"]
    notes = [
        "Mean rank: of the mean tuned score, over the problems; 1 is best",
        "first: how often it has the best mean rank when problems and seeds are drawn again at random",
        "score: interquartile mean over all runs, 0 the problem's worst score and 1 its target, with its 95 % interval",
        "profile: area under the performance profile of the median steps or seconds to the target, from 1 to 4 times "
        "the best; 1 is the fastest everywhere",
        "step cost: the optimizer's own time per step beside the cheapest's, median over problems",
        "rank, n trials: by the validation score that n trials are expected to find",
        "lr decades: of the learning rates searched, how many decades come within 0.05 of the best validation score",
    ]
    if found.left_out:
        notes.append(f"without a tuned score on every problem: {', '.join(found.left_out)}")
    return Table("overall", "All problems", columns, [row(standing) for standing in found.standings], notes)


def scores(summaries: list[ProblemSummary], found: Overall | None) -> Table:
    """Return the tuned (and default) score of every optimizer on every problem; those without a rank come last."""
    ranks = {standing.optimizer: standing for standing in found.standings} if found else {}
    rows = []
    for optimizer in [*ranks, *(name for name in _titles(summaries) if name not in ranks)]:
        standing = ranks.get(optimizer)
        cells = [Cell(_titles(summaries)[optimizer]), _number(standing.mean_rank if standing else math.nan, ".2f")]
        n_best = sum(optimizer in summary.best for summary in summaries)
        cells.append(Cell(f"{n_best} of {len(summaries)}", numbers={"": n_best}))
        for summary in summaries:
            row = summary.row(optimizer)
            cells.append(_pair(row, optimizer in summary.best) if row else Cell("-"))
        rows.append(cells)
    notes = [
        "Tuned (default); mean over fresh seeds; bold: level with the best; * settings at the edge of their search",
        *(heading(summary) for summary in summaries),
    ]
    columns = ["optimizer", "mean rank", "best or level", *(summary.name for summary in summaries)]
    return Table("scores", "Scores on every problem", columns, rows, notes)


def _pair(row: Row, is_best: bool) -> Cell:
    numbers = {name: s.score.value for name, s in (("tuned", row.tuned), ("default", row.default)) if s}
    return Cell(f"{mean(row.tuned)}{'*' * bool(row.edges)} ({mean(row.default)})", is_best, numbers)


def wins(found: Overall) -> Table:
    """Return on how many problems each optimizer leads, is level with and trails each other one."""

    def cell(i: int, j: int) -> Cell:
        if i == j:
            return Cell("")
        win, tie, loss = (int(counts[i, j]) for counts in (found.wins, found.ties, found.losses))
        return Cell(f"{win}/{tie}/{loss}", numbers={"wins": win, "ties": tie, "losses": loss})

    note = "Problems on which the row's optimizer leads / is level with / trails the column's (paired over seeds)"
    return _square(found, "wins", "Win / tie / loss", cell, [note])


def p_values(found: Overall) -> Table:
    """Return the p-value of every pair of optimizers, over problems."""

    def cell(i: int, j: int) -> Cell:
        return Cell("") if i == j else _number(float(found.critical.p_values[i, j]), ".2g")

    notes = [
        "Wilcoxon's signed-rank test over problems, corrected by Holm for the number of pairs",
        f"with {found.n_problems} problems and {len(found.standings)} optimizers no pair could be below "
        f"{found.critical.smallest_p:.2g}",
    ]
    if not math.isnan(found.critical.friedman_p):
        notes.append(f"Friedman's test that all are alike: p = {found.critical.friedman_p:.2g}")
    return _square(found, "p-values", "Which pairs differ across problems", cell, notes)


def _square(found: Overall, name: str, title: str, cell: Callable[[int, int], Cell], notes: list[str]) -> Table:
    titles = [standing.title for standing in found.standings]
    rows = [[Cell(title), *(cell(i, j) for j in range(len(titles)))] for i, title in enumerate(titles)]
    return Table(name, title, ["optimizer", *titles], rows, notes)


def costs(summaries: list[ProblemSummary], found: Overall | None) -> Table:
    """Return what the optimizers cost: their own time on each problem, memory, and all the computing they had."""
    ranked = {standing.optimizer: standing for standing in found.standings} if found else {}
    rows = []
    for optimizer, title in _titles(summaries).items():
        of_problems = [summary.row(optimizer) for summary in summaries]
        minutes = sum(r["wall_seconds"] for row in of_problems if row for r in row.records) / 60
        standing = ranked.get(optimizer)
        rows.append(
            [
                Cell(title),
                _number(standing.step_cost if standing else math.nan, ".1f"),
                _number(standing.bytes_per_param if standing else math.nan, ".3g"),
                _number(minutes, ".1f"),
                *(_milliseconds(row.tuned if row else None, "optimizer_seconds_per_step") for row in of_problems),
            ]
        )
    notes = [
        "Step cost: the optimizer's own time per step beside the cheapest's, median over problems",
        "minutes: wall time of all its runs, tuning included; ms: its own median milliseconds per step",
    ]
    columns = ["optimizer", "step cost", "bytes/parameter", "minutes", *(f"{s.name} ms" for s in summaries)]
    return Table("costs", "What they cost", columns, rows, notes)


# One problem ----------------------------------------------------------------------------------------------------------


def problem(summary: ProblemSummary) -> Table:
    """Return everything that was measured of each optimizer on a problem."""
    rows = []
    for row in summary.rows:
        is_best = row.optimizer in summary.best
        rows.append(
            [
                Cell(row.title, is_best),
                _score(row.tuned, is_best),
                Cell(settings(row)),
                _score(row.default),
                Cell(steps(row.tuned), numbers=_censored(row.tuned)),
                _number(row.tuned.seconds_to_target if row.tuned else math.nan, ".3g"),
                _milliseconds(row.tuned, "seconds_per_step"),
                _milliseconds(row.tuned, "optimizer_seconds_per_step"),
                _size(row.tuned.cost("state_bytes") if row.tuned else math.nan),
            ]
        )
    columns = ["optimizer", "tuned", "settings", "default", "steps to target", "seconds to target", "ms/step"]
    columns += ["optimizer ms/step", "state"]
    name = re.sub(r"[^\w.-]+", "-", f"problem-{summary.name}")
    return Table(name, heading(summary), columns, rows, footnotes(summary))


# What was run ---------------------------------------------------------------------------------------------------------


def spaces(summaries: list[ProblemSummary]) -> Table:
    """Return class, defaults and search space of every optimizer; the space may differ between problems."""
    rows = []
    for optimizer, title in _titles(summaries).items():
        searched: dict[str, list[str]] = {}
        for summary in summaries:
            row = summary.row(optimizer)
            if row and row.records:
                searched.setdefault(_space(row.records[-1]), []).append(summary.name)
                config = row.config
        for space, names in searched.items():
            fixed = [f"{name}={value}" for name, value in config["options"].items()]
            fixed += [f"{name}=lr" for name in config.get("tied", [])]
            where = "all" if len(names) == len(summaries) else ", ".join(names)
            texts = [title, config["class"], plain(config["default"]), ", ".join(fixed), space, where]
            rows.append([Cell(text) for text in texts])
    columns = ["optimizer", "class", "published default", "fixed", "searched", "problems"]
    return Table("search-spaces", "Settings", columns, rows)


def _space(record: Record) -> str:
    space = record["space"].items()
    return ", ".join(f"{name} {low:.3g} to {high:.3g} ({scale})" for name, (low, high, scale) in space)


def failures(summaries: list[ProblemSummary]) -> Table:
    """Return the runs that failed with an error."""
    failed = [record for summary in summaries for record in summary.records if record["outcome"] == "failed"]
    rows = [
        [
            Cell(record["problem"]),
            Cell(record["optimizer_title"]),
            Cell(plain(record["settings"])),
            Cell(record["split"]),
            Cell(str(record["seed"])),
            Cell(record["reason"]),
            Cell(str(record.get("attempt", 1))),
        ]
        for record in failed
    ]
    columns = ["problem", "optimizer", "settings", "split", "seed", "reason", "attempts"]
    return Table("failures", "Runs that failed", columns, rows)


# Cells ----------------------------------------------------------------------------------------------------------------


def _titles(summaries: list[ProblemSummary]) -> dict[str, str]:
    return {row.optimizer: row.title for summary in summaries for row in summary.rows}


def _number(value: float, form: str) -> Cell:
    return Cell(number(value, form), numbers={"": value})


def _estimate(score: Interval | None, is_best: bool = False) -> Cell:
    if score is None:
        return Cell("-")
    return Cell(estimate(score), is_best, {"": score.value, "low": score.low, "high": score.high})


def _score(setting: Setting | None, is_best: bool = False) -> Cell:
    return _estimate(setting.score, is_best) if setting else Cell(interval(None))


def _milliseconds(setting: Setting | None, name: str) -> Cell:
    """Return the median milliseconds per step of "seconds_per_step" or "optimizer_seconds_per_step"."""
    return _number(1e3 * setting.cost(name) if setting else math.nan, ".2f")


def _censored(setting: Setting | None) -> dict[str, float]:
    """Return the steps to the target for statistics: median, runs that reached it, mean of min(steps, steps given)."""
    if setting is None:
        return {}
    times = [record.get("steps_to_target") for record in setting.records]
    restricted = restricted_mean(times, setting.records[0]["problem_config"]["n_steps"])
    return {
        "": setting.steps_to_target,
        "reached": setting.n_reached,
        "runs": len(times),
        "restricted mean": restricted.value,
        "restricted mean low": restricted.low,
        "restricted mean high": restricted.high,
    }


def _size(n_bytes: float) -> Cell:
    if math.isnan(n_bytes):
        return Cell("-", numbers={"": n_bytes})
    power = min(int(math.log(max(n_bytes, 1), 1000)), 3)
    return Cell(f"{n_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}", numbers={"": n_bytes})
