"""Fig. 3 of the paper: is a film review good or bad? BERT, and two recurrent layers on top of it.

Three trainings: of the recurrent layers on a frozen encoder, as the authors released it; of all, from the encoder's
weights; and of all, from random weights. The preset `local` takes the encoder MiniLM, which comes in a package, the
beginnings of some reviews, and a small encoder where it starts at random; `paper` takes BERT on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frankenstein.compare.optimizers import OptimizerSpec
from frankenstein.compare.report.formats import Table
from frankenstein.compare.results.summary import ProblemSummary
from frankenstein.experiments import published
from frankenstein.experiments.experiment import Findings, Options
from frankenstein.experiments.networks import Plan, at, charts, problem_of, run, table, verdict, waited
from frankenstein.experiments.sentiment import Sentiment, Start
from frankenstein.experiments.training import Recipe

NAME = "fig3"
METHODS = ["frankenstein", "sgd", "rmsprop", "adam", "amsgrad", "lookahead", "adabound", "ranger"]
LOGS = {"lookahead": "lookahead_adam"}  # where the authors' logs have another name
TASKS = {"frozen": "pretrained", "random": "random_init"}
"""What the authors' logs call our trainings; of a fully tuned encoder they have none."""

RATES = ("2e-4", "1e-3")
"""Learning rates of all optimizers, and `base_lr`. The first is the published one; where the network starts at random
or its encoder is frozen, a local run takes the second, for it has a hundredth of the published steps."""

N_SEEDS = 3
PAPER_BATCH, PAPER_LENGTH = 128, 512
N_EPOCHS = 50
N_TRAIN = 17_346  # what is left of IMDB without its duplicates, and without 30 % for validation
PAPER_STEPS = N_EPOCHS * (N_TRAIN // PAPER_BATCH)
LENGTH = 64
RECIPE = Recipe(precision="auto")

# start, title, batch, steps, reviews scored on, how often, target
_LOCAL: tuple[tuple[Start, str, int, int, int, int, float], ...] = (
    ("frozen", "GRU on a frozen MiniLM", 32, 50, 400, 5, 0.65),
    ("tuned", "GRU and MiniLM, all trained", 16, 30, 300, 2, 0.65),
    ("random", "GRU and a small BERT from random weights", 32, 120, 400, 4, 0.6),
)
_PAPER: tuple[tuple[Start, str, float], ...] = (
    ("frozen", "GRU on a frozen BERT", 0.9),
    ("tuned", "GRU and BERT, all trained", 0.9),
    ("random", "GRU and BERT from random weights", 0.75),
)
LOCAL_PROBLEMS = tuple(
    problem_of(
        f"{NAME}-minilm-{start}" if start != "random" else f"{NAME}-small-random",
        title,
        Sentiment(
            start,
            "all-MiniLM-L6-v2",
            LENGTH,
            batch,
            RECIPE,
            shape=(2, 128) if start == "random" else None,
            n_train=batch * steps,  # every review once
            n_scored=n_scored,
        ),
        steps,
        n_evals,
        target=target,
    )
    for start, title, batch, steps, n_scored, n_evals, target in _LOCAL
)
PAPER_PROBLEMS = tuple(
    problem_of(
        f"{NAME}-bert-{start}",
        title,
        Sentiment(start, "bert-base-uncased", PAPER_LENGTH, PAPER_BATCH, RECIPE),
        PAPER_STEPS,
        N_EPOCHS,
        target=target,
    )
    for start, title, target in _PAPER
)
PROBLEMS = (*LOCAL_PROBLEMS, *PAPER_PROBLEMS)


def _rate(problem: str) -> str:
    return "2e-4" if "-bert-" in problem or problem.endswith("-tuned") else "1e-3"


def _optimizer(method: str, rate: str) -> OptimizerSpec:
    settings = {"lr": float(rate)} | ({"base_lr": float(rate)} if method == "frankenstein" else {})
    return at(f"{NAME}-{rate}", method, settings)


OPTIMIZERS = tuple(_optimizer(method, rate) for rate in RATES for method in METHODS)


def plans(preset: str, methods: Sequence[str]) -> list[Plan]:
    """Return what a preset runs: a plan for each problem, since rates and numbers of seeds differ."""
    problems = LOCAL_PROBLEMS if preset == "local" else PAPER_PROBLEMS
    return [
        Plan(
            __name__,
            (problem.name,),
            tuple(f"{NAME}-{_rate(problem.name)}-{method}" for method in methods),
            N_SEEDS if preset == "paper" or problem.name.endswith("-frozen") else 1,
        )
        for problem in problems
    ]


def reproduce(options: Options) -> Findings:
    """Train all three networks with every optimizer."""
    options.say("the frozen encoder's hidden states are worked out once and kept: the first time takes a minute")
    first, *others = plans(options.preset, options.methods or METHODS)
    return findings(run(first, options, *others))


def findings(summaries: list[ProblemSummary]) -> Findings:
    """Return our scores beside the authors', what was left out of the data, and the curves of both."""
    lines = [line for summary in summaries for line in verdict(summary, _ours(summary))]
    lines += _left_out(summaries[0])
    rates = "; ".join(f"{summary.title}: {_rate(summary.name)}" for summary in summaries)
    lines += [
        f"All optimizers have one learning rate ({rates}), and published defaults otherwise: equal rates are no equal "
        "terms, for Frankenstein's step is larger than Adam's at the same rate.",
        waited(summaries),
    ]
    drawings = [chart for summary in summaries for chart in charts([summary])]
    for start, title in (("frozen", "GRU on a frozen BERT"), ("random", "GRU and BERT from random weights")):
        found = published.curves("imdb_bert_gru", TASKS[start], "test_accuracy")
        drawings.append(published.chart(f"fig3-authors-{start}", f"Published: {title}", "test accuracy", found))
    return Findings("Sentiment of film reviews (Fig. 3)", lines, list(map(_table, summaries)), drawings)


def _ours(summary: ProblemSummary) -> str:
    return f"{NAME}-{_rate(summary.name)}-frankenstein"


def _table(summary: ProblemSummary) -> Table:
    start, (train, test, _) = summary.name.rpartition("-")[2], _data(summary)
    notes = [f"Trained on {train['n_used']:,} reviews, scored on {test['n_used']:,}."]
    if start not in TASKS:
        return table(summary.name, summary, _ours(summary), {}, notes)
    shown = {f"{NAME}-{_rate(summary.name)}-{method}": _best(method, TASKS[start]) for method in METHODS}
    notes.append(
        "Published: best test accuracy over 50 epochs on all of IMDB, in the authors' logs, in percent; another "
        "encoder, and more and longer texts, than in the preset local."
    )
    return table(summary.name, summary, _ours(summary), shown, notes)


def _data(summary: ProblemSummary) -> list[dict[str, Any]]:
    """Return what the records say of the data."""
    found: list[dict[str, Any]] = next(
        record["data"] for row in summary.rows if row.tuned for record in row.tuned.records if record["data"]
    )
    return found


def _left_out(summary: ProblemSummary) -> list[str]:
    train, test = _data(summary)[:2]
    n_cut, n = train["n_cut"] + test["n_cut"], train["n_used"] + test["n_used"]
    return [
        f"{train['n_also_in_test'] + train['n_repeated']} of {train['n']:,} training reviews were left out: "
        f"{train['n_also_in_test']} are in the test set too, {train['n_repeated']} are there twice.",
        f"Of a review the first {train['max_length']} tokens are read; {n_cut:,} of {n:,} are longer.",
    ]


def _best(name: str, task: str) -> str:
    points = published.curves("imdb_bert_gru", task, "test_accuracy")[LOGS.get(name, name)]
    return f"{100 * max(value for _, value in points):.1f}"
