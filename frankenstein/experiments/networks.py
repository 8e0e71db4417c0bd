"""Experiments with networks: problems and optimizers at published settings, run on the comparison engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from frankenstein.compare import engine
from frankenstein.compare.baselines import OPTIMIZERS
from frankenstein.compare.catalog import catalog
from frankenstein.compare.comparison import Comparison
from frankenstein.compare.executors.here import here, n_processes
from frankenstein.compare.executors.local import local_executor
from frankenstein.compare.live import Live, prepare
from frankenstein.compare.optimizers import OptimizerSpec
from frankenstein.compare.problems.problem import Problem, Run
from frankenstein.compare.report.charts import looks
from frankenstein.compare.report.charts.chart import Chart
from frankenstein.compare.report.charts.curves import curves
from frankenstein.compare.report.charts.curves import scores as score_chart
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.report.words import estimate
from frankenstein.compare.results.summary import ProblemSummary, Row, summarise
from frankenstein.compare.statistics.seeds import MIN_SEEDS, Interval, bootstrap_mean
from frankenstein.compare.store.records import Record, read
from frankenstein.experiments.experiment import ExperimentError, Options
from frankenstein.experiments.training import read_progress

__all__ = ["Plan", "at", "charts", "n_steps", "problem_of", "run", "summaries", "table", "verdict", "waited"]

RUNS = "unfinished"
"""The folder within the run folder where runs keep their checkpoints."""


def n_steps(published: int) -> int:
    """Return how many steps a run takes: `published`, or fewer where a configuration is only tried (`--steps`)."""
    return min(published, int(os.environ.get("FRANKENSTEIN_STEPS", published)))


def at(experiment: str, name: str, default: dict[str, float], **options: Any) -> OptimizerSpec:
    """Return a baseline of the comparison at an experiment's settings, under a name of its own.

    Args:
        experiment: Name of the experiment.
        name: Of the optimizer, on the command line.
        default: Settings; what is not named stays as published.
        options: Further arguments of its constructor.
    """
    spec = next(spec for spec in OPTIMIZERS if spec.name == name)
    return replace(
        spec,
        name=f"{experiment}-{name}",
        default=spec.default | default,
        options=spec.options | options,
    )


@dataclass(frozen=True)
class Plan:
    """What an experiment runs.

    Attributes:
        module: Where its PROBLEMS and OPTIMIZERS are.
        problems: Names of problems.
        optimizers: Names of optimizers.
        n_seeds: Of each run.
        n_trials: Learning rates that each optimizer may try on each problem, on the validation split, and takes the
            best of: its default, half a decade less, half a decade more, a decade less, and so on. 0: only its default.
    """

    module: str
    problems: tuple[str, ...]
    optimizers: tuple[str, ...]
    n_seeds: int
    n_trials: int = 0


def run(plan: Plan, options: Options, *others: Plan) -> list[ProblemSummary]:
    """Run what is not in the run folder yet; return its summaries, with the settings of a plan without trials as tuned.

    Args:
        plan: What to run.
        options: What the user asked for.
        others: Further plans, for problems with another number of seeds.

    Raises:
        ExperimentError: The data cannot be had, or are not those of the records.
    """
    plans = (plan, *others)
    runs: dict[str, Any] = {name: catalog((one.module,)).problems[name].run for one in plans for name in one.problems}
    data = {name: one.describe() for name, one in runs.items()}
    _check_data(options.out, data)
    live = Live(str(options.out.absolute() / "tensorboard") if options.is_live else None, None)
    prepare(live, options.say)
    start, n_gpus = _executor(options)
    folder = options.out.absolute() / RUNS
    with ExitStack() as stack:
        executor = cache(lambda: stack.enter_context(start()))  # one for all plans, if there is anything to run
        execution = engine.Execution(lambda: nullcontext(executor()), n_gpus=n_gpus, live=live, folder=folder)
        comparisons = [_comparison(one, options) for one in plans]
        with _shown(folder, options, comparisons) as progress:
            for i, one in enumerate(comparisons):
                engine.run(one, options.out, execution, partial(progress, i), options.say)
    records = read(options.out, options.say)
    _check_failures(records)
    wanted = {(problem, optimizer) for one in plans for problem in one.problems for optimizer in one.optimizers}
    return summaries([r for r in records if (r["problem"], r["optimizer"]) in wanted], list(data))


def _comparison(plan: Plan, options: Options) -> Comparison:
    seeds = min(options.n_starts or plan.n_seeds, plan.n_seeds)
    return Comparison(
        plan.problems,
        plan.optimizers,
        n_trials=plan.n_trials,
        n_seeds=seeds,
        tuner="rates",
        modules=(plan.module,),
        has_untuned=False,
    )


def summaries(records: list[Record], problems: Sequence[str]) -> list[ProblemSummary]:
    """Return the summary of each problem that has records, in this order."""
    found = {summary.name: _settled(summary) for summary in summarise(records)}
    return [found[name] for name in problems if name in found]


def _executor(options: Options) -> tuple[Callable[[], Any], float]:
    """Return what starts the executor, and how many GPUs a run has."""
    import torch

    n_gpus = float(torch.cuda.is_available())
    if n_processes() > 1:
        return here, n_gpus
    return partial(local_executor, options.workers, 1, n_gpus), n_gpus


def _check_data(out: Path, data: dict[str, list[dict[str, Any]]]) -> None:
    if not (out / "records.jsonl").exists():
        return
    for record in read(out, lambda _: None):
        before = record.get("data") and [part["sha256"] for part in record["data"]]
        now = [part["sha256"] for part in data.get(record["problem"], [])]
        if before and now and before != now:
            raise ExperimentError(
                f"{out} holds runs of {record['problem']} on other data, or from other weights, than those here now; "
                "choose another folder with --out"
            )


def _check_failures(records: list[Record]) -> None:
    failed = [record for record in records if record["outcome"] == "failed"]
    if records and len(failed) == len(records):
        raise ExperimentError(f"every run failed; the first: {failed[0]['reason']}")


def _settled(summary: ProblemSummary) -> ProblemSummary:
    """Return the summary with the settings of the experiment as the tuned ones where there was no tuning."""
    sign = -1.0 if summary.config["is_higher_better"] else 1.0
    rows = [row if row.trials else replace(row, tuned=row.default) for row in summary.rows]
    rows.sort(key=lambda row: sign * row.tuned.score.value if row.tuned else float("inf"))
    return replace(summary, rows=rows)


# Progress -------------------------------------------------------------------------------------------------------------


@contextmanager
def _shown(
    folder: Path, options: Options, comparisons: Sequence[Comparison]
) -> Iterator[Callable[[int, Record | None, engine.State], None]]:
    """Show how many runs of all comparisons are done, and how far those are that are under way.

    Yields:
        The progress of a comparison, to which its number is given first.
    """
    counts, stop = [(0, len(one.pairs()) * one.n_cells) for one in comparisons], threading.Event()

    def show() -> None:
        done, total = map(sum, zip(*counts, strict=True))
        options.progress(done, total, " | ".join(_under_way(folder)))

    def watch() -> None:
        while not stop.wait(1.0):
            show()

    def progress(i: int, _: Record | None, state: engine.State) -> None:
        counts[i] = (state.n_done, state.n_cells)
        show()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        stop.set()
        thread.join()


def _under_way(folder: Path) -> list[str]:
    found = [read_progress(one) for one in sorted(folder.iterdir())] if folder.is_dir() else []
    return [
        f"step {one.step}/{one.n_steps} loss {one.loss or float('nan'):.3g} score {one.score or float('nan'):.3g} "
        f"{one.samples_per_second:.0f}/s {one.seconds_left:.0f} s left"
        for one in found
        if one and one.step < one.n_steps
    ]


# What is shown --------------------------------------------------------------------------------------------------------


def table(
    name: str,
    summary: ProblemSummary,
    ours: str,
    published: dict[str, str],
    notes: Sequence[str] = (),
    scale: float = 100.0,
) -> Table:
    """Return the scores of all optimizers, their differences to ours seed by seed, and what was published.

    Args:
        name: For files.
        summary: Of one problem.
        ours: The optimizer that the others are compared with.
        published: What others published, by optimizer: another data set or another size, in words of its own.
        notes: What a reader must know beside it.
        scale: What scores are multiplied by: 100 makes a share percent.
    """
    mine = summary.row(ours)
    is_tuned = any(row.trials for row in summary.rows)
    rows = []
    for row in summary.rows:
        if row.tuned is None:
            continue
        score = Interval(*(scale * value for value in row.tuned.score))
        gap = _difference(row, mine, scale)
        n_bad = len(row.tuned.records) - row.tuned.count("finished")
        cells = [
            Cell(row.title),
            Cell(
                _mean(score, row) + (f" ({n_bad} diverged or failed)" if n_bad else ""),
                row.optimizer in summary.best and len(row.tuned.records) >= MIN_SEEDS,
                {"": score.value, "low": score.low, "high": score.high},
            ),
            Cell("" if gap is None else _mean(gap, row), numbers={} if gap is None else {"": gap.value}),
            *([_chosen(row)] if is_tuned else []),
            Cell(f"{_rate(row):.0f}"),
        ]
        rows.append([*cells, *([Cell(published.get(row.optimizer, ""))] if published else [])])
    metric = f"{summary.config['metric']}{', %' if scale == 100.0 else ''}"
    columns = ["optimizer", metric, f"less {mine.title if mine else 'ours'}"]
    columns += [*(["learning rate"] if is_tuned else []), "samples/s"]
    n_seeds = max(len(row.tuned.records) for row in summary.rows if row.tuned)
    about = "One seed, which tells no differences from noise; "
    if n_seeds > 1:
        about = f"Mean over {n_seeds} seeds with its 95 % interval over seeds; differences are paired by seed; "
        about += "bold: level with the best; "
    about += "samples/s: as it went, whatever else the machine did."
    if is_tuned:
        n_trials = max(row.budget[0] for row in summary.rows)
        about += (
            f" Each has the best of {n_trials} learning rates, half a decade apart, by its score on a fifth of the "
            "training data that is held out of the training; *: the outermost of them."
        )
    return Table(name, summary.title, [*columns, *(["published"] if published else [])], rows, [about, *notes])


def _mean(interval: Interval, row: Row) -> str:
    """Return a mean over seeds with its interval; of one seed there is none."""
    assert row.tuned is not None
    return estimate(interval) if len(row.tuned.records) > 1 else f"{interval.value:.4g}"


def _chosen(row: Row) -> Cell:
    """Return the learning rate that tuning chose, marked where it is the largest or the smallest that was tried."""
    assert row.tuned is not None
    rate, tried = row.tuned.settings["lr"], [record["settings"]["lr"] for record in row.trials]
    return Cell(f"{rate:g}{'*' * (rate in (min(tried), max(tried)))}", numbers={"": rate})


def _difference(row: Row, mine: Row | None, scale: float) -> Interval | None:
    if mine is None or mine.tuned is None or row.tuned is None or row.optimizer == mine.optimizer:
        return None
    ours = {record["seed"]: record["score"] for record in mine.tuned.records}
    gaps = [scale * (r["score"] - ours[r["seed"]]) for r in row.tuned.records if r["seed"] in ours]
    return bootstrap_mean(gaps) if gaps else None


def _rate(row: Row) -> float:
    """Return samples per second, as the runs of the optimizer had them on average."""
    records = row.tuned.records if row.tuned else []
    rates = [rate for r in records for rate in r["curve"].get("samples_per_second", []) if rate is not None]
    return sum(rates) / len(rates) if rates else float("nan")


def verdict(summary: ProblemSummary, ours: str) -> list[str]:
    """Say in words where ours stands, and what the interval says of it."""
    mine = summary.row(ours)
    if mine is None or mine.tuned is None:
        return []
    place, score = [row.optimizer for row in summary.rows].index(ours) + 1, 100 * mine.tuned.score.value
    best = summary.rows[0]
    assert best.tuned is not None
    line = f"{summary.title}: {mine.title} has place {place} of {len(summary.rows)} ({score:.1f} %"
    if place > 1:
        line += f"; the best, {best.title}, {100 * best.tuned.score.value:.1f} %"
    if len(mine.tuned.records) < MIN_SEEDS:
        return [f"{line}); too few seeds to tell differences from noise."]
    level = [row.title for row in summary.rows if row.optimizer in summary.best]
    return [f"{line}); level with the best by the seeds: {', '.join(level)}."]


def waited(found: Sequence[ProblemSummary]) -> str:
    """Say which share of the training's time was spent waiting for data."""
    records = [r for s in found for row in s.rows if row.tuned for r in row.tuned.records]
    shares = [share for r in records for share in r["curve"].get("wait_share", []) if share is not None]
    mean = sum(shares) / len(shares) if shares else float("nan")
    return f"Waiting for data took {100 * mean:.1f} % of the training time."


def charts(found: Sequence[ProblemSummary]) -> list[Chart]:
    """Return the learning curves and the final scores of each problem."""
    styles = looks(list(found), None)
    return [chart for s in found for chart in (curves(s, styles), score_chart(s, styles))]


def problem_of(name: str, title: str, train: Run, published_steps: int, n_evals: int, target: float) -> Problem:
    """Return a problem of classification, scored by accuracy.

    Args:
        name: On the command line and in records.
        title: For people.
        train: Trains once; it has a method `describe`, which returns what it is trained and scored on.
        published_steps: Steps of a run.
        n_evals: How often it is scored on the way.
        target: Accuracy that "steps to target" waits for.
    """
    steps = n_steps(published_steps)
    return Problem(
        name=name,
        title=title,
        metric="accuracy",
        is_higher_better=True,
        target=target,
        worst=0.0,
        n_steps=steps,
        n_evals=min(n_evals, steps),
        run=train,
    )
