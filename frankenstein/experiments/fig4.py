"""Fig. 4 of the paper: tuning a language network on instructions, with LoRA on the queries and values.

The preset `local` takes SmolLM2-135M, LLaMA's architecture, whose weights come in a package, on a part of Alpaca: a few
dozen steps on short samples, or, where there is a GPU, three epochs at both of the paper's lengths. `paper` takes all
of Alpaca and the network that `--model` names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import fmean

from frankenstein.compare.executors.here import n_processes
from frankenstein.compare.problems.problem import Budget, Problem
from frankenstein.compare.report.charts import looks
from frankenstein.compare.report.charts.chart import Chart, Look
from frankenstein.compare.report.charts.curves import curves, parameters, scale, views
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.report.words import estimate
from frankenstein.compare.results.summary import ProblemSummary, Row
from frankenstein.compare.statistics.seeds import MIN_SEEDS, bootstrap_mean
from frankenstein.compare.store.records import Record
from frankenstein.experiments.experiment import ExperimentError, Findings, Options, Passage
from frankenstein.experiments.language import Instructions
from frankenstein.experiments.networks import Plan, at, charts, n_steps, run, table, waited
from frankenstein.experiments.training import Recipe, cosine

NAME = "fig4"
OURS = f"{NAME}-frankenstein"
METHODS = ["frankenstein", "adamw", "sophia", "lion", "sgd"]
LR = 3e-4
"""The learning rate of Frankenstein, its `base_lr`, and AdamW's."""

N_SEEDS = {"local": 3, "paper": 1}
LENGTHS = (256, 512)
BATCH = 120
LOCAL_BATCH, LOCAL_LENGTH, LOCAL_STEPS = 8, 96, 24
EPOCH = {"alpaca_9k": (9_229 - 2_000) // BATCH, "alpaca": (52_002 - 2_000) // BATCH}
"""Steps of an epoch."""

TARGET, WORST = 1.5, 12.0  # nats; equal chances for all tokens would be 10.8 for 49,152 of them


def _recipe(part: int, budget: Budget) -> Recipe:
    """Return the recipe for batches of which a process has at most `part` samples at once."""
    share = max(1, BATCH // n_processes())
    n_parts = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= part)
    return Recipe(cosine(budget.n_steps), precision="bf16", accumulate=n_parts, parallel="fsdp")


def _local_recipe(budget: Budget) -> Recipe:
    return Recipe(cosine(budget.n_steps), precision="bf16")


def _problem(name: str, title: str, train: Instructions, published_steps: int, n_evals: int) -> Problem:
    steps = n_steps(published_steps)
    return Problem(
        name=f"{NAME}-{name}",
        title=title,
        metric="test loss",
        is_higher_better=False,
        target=TARGET,
        worst=WORST,
        n_steps=steps,
        n_evals=min(n_evals, steps),
        run=train,
    )


OPTIMIZERS = (
    at(NAME, "frankenstein", {"lr": LR, "base_lr": LR}),
    at(NAME, "adamw", {"lr": LR}),
    at(NAME, "sophia", {}),  # as published: a step is at most 0.06 times its bound 0.01
    at(NAME, "lion", {"lr": 1e-4}),  # its authors: a third to a tenth of AdamW's
    at(NAME, "sgd", {"lr": 0.1}),
)
LOCAL = (
    _problem(
        f"alpaca_9k-{LOCAL_LENGTH}",
        f"LoRA on a part of Alpaca, {LOCAL_LENGTH} tokens",
        Instructions("alpaca_9k", LOCAL_LENGTH, 64, LOCAL_BATCH, _local_recipe, window=8),
        LOCAL_STEPS,
        2,
    ),
)
LOCAL_ON_GPU = tuple(
    _problem(
        f"alpaca_9k-{length}",
        f"LoRA on a part of Alpaca, {length} tokens",
        Instructions("alpaca_9k", length, 2000, BATCH, partial(_recipe, 40)),
        3 * EPOCH["alpaca_9k"],
        12,
    )
    for length in LENGTHS
)
PAPER = tuple(
    _problem(
        f"alpaca-{length}",
        f"LoRA on Alpaca, {length} tokens",
        Instructions("alpaca", length, 2000, BATCH, partial(_recipe, 5), dtype="bfloat16"),
        3 * EPOCH["alpaca"],
        12,
    )
    for length in LENGTHS
)
PROBLEMS = (*LOCAL, *LOCAL_ON_GPU, *PAPER)


def reproduce(options: Options) -> Findings:
    """Tune with every optimizer and every seed.

    Raises:
        ExperimentError: The preset `paper` has no network to tune.
    """
    import torch

    from frankenstein.experiments.llama import VARIABLE

    problems = LOCAL_ON_GPU if torch.cuda.is_available() else LOCAL
    if options.preset == "paper":
        problems = PAPER
        if not os.environ.get(VARIABLE):
            raise ExperimentError(
                "fig4 --preset paper needs --model NAME_OR_PATH: a LLaMA in a folder, a gguf file or on the hub"
            )
    methods = options.methods or METHODS
    if not options.methods and n_processes() > 1:
        methods = [name for name in METHODS if name != "sophia"]
        options.say(
            "Sophia-H takes second derivatives, which processes cannot share: run it with --methods sophia in one"
        )
    optimizers, names = tuple(f"{NAME}-{name}" for name in methods), tuple(problem.name for problem in problems)
    return findings(run(Plan(__name__, names, optimizers, N_SEEDS[options.preset]), options))


def findings(summaries: list[ProblemSummary]) -> Findings:
    """Return test and training losses, their curves, and what the networks answer before and after."""
    lines = [line for summary in summaries for line in _sentences(summary)]
    lines += [
        f"Rates are not tuned: Frankenstein and AdamW {LR:g}, Lion 0.0001, SGD 0.1, Sophia-H its published 0.06.",
        waited(summaries),
    ]
    tables = [one for s in summaries for one in (table(_slug(s), s, OURS, {}, scale=1.0), _losses(s))]
    styles = looks(summaries, None)
    drawings = [*charts(summaries), *(_training_curves(summary, styles) for summary in summaries)]
    passages = [passage for summary in summaries for passage in _passages(summary)]
    return Findings("Instruction tuning (Fig. 4)", lines, tables, drawings, passages=passages)


def _slug(summary: ProblemSummary) -> str:
    return summary.name.replace("_", "-")


def _records(row: Row | None) -> list[Record]:
    """Return the runs of an optimizer that came to their end, in the order of their seeds."""
    found = row.tuned.records if row and row.tuned else []
    return [record for record in found if record["outcome"] == "finished"]


def _mean_losses(row: Row) -> tuple[float, float]:
    """Return training and test loss at the end, means over seeds."""
    found = _records(row)
    return fmean(record["curve"]["train_loss"][-1] for record in found), fmean(record["score"] for record in found)


def _sentences(summary: ProblemSummary) -> Iterator[str]:
    done = [record for row in summary.rows for record in _records(row)]
    if not done:
        return
    data, network = done[0]["data"]
    yield (
        f"{summary.title}: {network['name']}, {data['n_train']:,} samples to train on and {data['n_test']:,} held out. "
        f"{data['n_cut']:,} of them were longer and are cut; {data['n_empty']} without an answer and "
        f"{data['n_too_long']} with too long a prompt are left out. "
        f"Before training the test loss is {done[0]['curve']['score'][0]:.3f}."
    )
    order = [row for row in summary.rows if _records(row)]
    ours = next((row for row in order if row.optimizer == OURS), None)
    if ours is None:
        return
    best, losses = order[0], {row.optimizer: _mean_losses(row) for row in order}
    line = f"Frankenstein has place {order.index(ours) + 1} of {len(order)} by test loss ({losses[OURS][1]:.3f}"
    line += "" if best is ours else f"; the best, {best.title}, {losses[best.optimizer][1]:.3f}"
    level = ", ".join(row.title for row in order if row.optimizer in summary.best)
    is_enough = len(_records(ours)) >= MIN_SEEDS
    yield line + (
        f"); level with the best by the seeds: {level}." if is_enough else "); one seed tells no differences."
    )
    if sophia := losses.get(f"{NAME}-sophia"):
        train, test = (theirs - mine for theirs, mine in zip(sophia, losses[OURS], strict=True))
        yield (
            "Published: Sophia has the lower training loss and the worse test loss. Here Sophia-H's training loss less "
            f"Frankenstein's is {train:+.3f}, and its test loss {test:+.3f}."
        )


def _losses(summary: ProblemSummary) -> Table:
    """Return training and test loss beside each other, and how far they are apart."""
    rows = []
    for row in summary.rows:
        if found := _records(row):
            train = [record["curve"]["train_loss"][-1] for record in found]
            test = [record["score"] for record in found]
            gap = [b - a for a, b in zip(train, test, strict=True)]
            means = [bootstrap_mean(values) for values in (train, test, gap)]
            rows.append([Cell(row.title), *(Cell(estimate(mean), numbers={"": mean.value}) for mean in means)])
    columns = ["optimizer", "training loss", "test loss", "test less training"]
    notes = [
        "Nats per token of the answers. Training loss: mean over the steps since the evaluation before the last, each "
        "taken before its update; it is of other samples, so that the difference is not that of fitting alone."
    ]
    return Table(f"{_slug(summary)}-losses", f"{summary.title}: both losses", columns, rows, notes)


def _training_curves(summary: ProblemSummary, styles: list[Look]) -> Chart:
    """Return the curves of the training loss."""
    chart = curves(summary, styles)
    view = next((one for one in views(summary, chart.rows) if one["quantity"] == "train_loss"), None)
    if view is None:  # every run failed
        return replace(chart, rows=[])
    names = {one["name"]: one for one in parameters(view)}
    axis = chart.spec["encoding"]["y"] | {"title": view["title"], "scale": scale(view)}
    spec = chart.spec | {
        "params": [names.get(one["name"], one) for one in chart.spec["params"]],
        "encoding": chart.spec["encoding"] | {"y": axis},
    }
    caption = "Mean training loss since the evaluation before. Line: median over seeds; band: their middle half."
    return replace(chart, name=f"training-{summary.name}", title="Training loss", caption=caption, spec=spec)


def _passages(summary: ProblemSummary) -> Iterator[Passage]:
    """Return what the networks of the first seed answer to held-out instructions."""
    samples = {row.title: _records(row)[0]["samples"] for row in summary.rows if _records(row)}
    for i, asked in enumerate(next(iter(samples.values()), [])):
        texts = [("instruction", asked["instruction"]), *([("input", asked["input"])] if asked["input"] else [])]
        texts += [("answer in the data", asked["expected"]), ("before", asked["before"])]
        texts += [(f"after, {title}", found[i]["after"]) for title, found in samples.items()]
        yield Passage(f"{summary.title}: held-out instruction {i + 1}", texts)
