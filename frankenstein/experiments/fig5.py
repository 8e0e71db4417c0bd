"""Fig. 5 of the paper: MAML on Omniglot, with eight optimizers in the outer loop and gradient descent in the inner one.

The preset `paper` has the numbers of the authors' scripts: 64 tasks in a meta-batch, outer learning rate 2e-4, inner
learning rate 0.1. How many steps the inner loop has the paper does not say, nor how many meta-batches an epoch; here it
is one step and 100 meta-batches. The preset `local` has the inner loop of Finn et al. for five ways (learning rate 0.4,
one step in training and three in scoring), and a smaller network.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from frankenstein.compare.optimizers import OptimizerSpec
from frankenstein.compare.problems.problem import Problem
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.results.summary import ProblemSummary, Row
from frankenstein.experiments import published
from frankenstein.experiments.experiment import Findings, Options
from frankenstein.experiments.few_shot import FewShot
from frankenstein.experiments.networks import Plan, at, charts, problem_of, run, table, verdict, waited

NAME = "fig5"
METHODS = ["frankenstein", "sgd", "rmsprop", "adam", "amsgrad", "lookahead", "adabound", "ranger"]
LOGS = {"lookahead": "lookahead_adam"}  # where the authors' logs have another name
LR = {"local": 1e-3, "paper": 2e-4}
"""The learning rate of all optimizers, and `base_lr`; that of SGD in local runs is `LOCAL_SGD_LR`."""

LOCAL_SGD_LR = 0.1
N_SEEDS = {"local": 2, "paper": 3}
N_SEEDS_OTHERS = 1  # of the other local settings: their differences cannot be told from noise
N_EPOCHS = 100
SETTINGS = ((5, 1), (5, 5), (20, 1), (20, 5))
TARGETS = {"local": (0.7, 0.95, 0.3, 0.3), "paper": (0.98, 0.99, 0.94, 0.98)}
LOCAL = FewShot(5, 5, n_queries=5, meta_batch=8, n_filters=16, inner_lr=0.4, n_inner=(1, 3), n_scored=100)
LOCAL_20 = replace(LOCAL, n_ways=20, meta_batch=4, n_scored=30)
LOCAL_STEPS = 700
OTHERS = (
    (replace(LOCAL, is_first_order=True), 200),
    (replace(LOCAL, n_shots=1), 80),
    (replace(LOCAL_20, n_shots=1), 40),
    (LOCAL_20, 20),
)
"""The other local settings, and the steps of each: shorter, and with one seed."""


def _optimizers(preset: str) -> list[OptimizerSpec]:
    rates = {name: {"lr": LR[preset]} for name in METHODS}
    rates["frankenstein"]["base_lr"] = LR[preset]
    if preset == "local":
        rates["sgd"]["lr"] = LOCAL_SGD_LR
    return [at(f"{NAME}-{preset}", name, rate) for name, rate in rates.items()]


def _name(preset: str, few_shot: FewShot) -> str:
    order = "-first-order" if few_shot.is_first_order else ""
    return f"{NAME}-{preset}-{few_shot.n_ways}way-{few_shot.n_shots}shot{order}"


def _problem(preset: str, few_shot: FewShot, n_steps: int, n_evals: int) -> Problem:
    ways, shots = few_shot.n_ways, few_shot.n_shots
    title = f"Omniglot, {ways}-way {shots}-shot"
    if few_shot.is_first_order:
        title += ", first-order MAML"
    target = TARGETS[preset][SETTINGS.index((ways, shots))]
    return problem_of(_name(preset, few_shot), title, few_shot, n_steps, n_evals, target)


OPTIMIZERS = (*_optimizers("local"), *_optimizers("paper"))
LOCAL_PROBLEMS = (
    _problem("local", LOCAL, LOCAL_STEPS, 4),
    *(_problem("local", few_shot, n_steps, 2) for few_shot, n_steps in OTHERS),
)
PAPER_PROBLEMS = tuple(
    _problem("paper", FewShot(ways, shots, is_first_order=is_first_order), N_EPOCHS * 100, N_EPOCHS)
    for ways, shots in SETTINGS
    for is_first_order in (False, True)
)
PROBLEMS = (*LOCAL_PROBLEMS, *PAPER_PROBLEMS)


def reproduce(options: Options) -> Findings:
    """Train with every optimizer and every seed."""
    optimizers = tuple(f"{NAME}-{options.preset}-{name}" for name in options.methods or METHODS)
    if options.preset == "paper":
        names = tuple(problem.name for problem in PAPER_PROBLEMS)
        return findings(run(Plan(__name__, names, optimizers, N_SEEDS["paper"]), options))
    first, *others = (problem.name for problem in LOCAL_PROBLEMS)
    plans = (
        Plan(__name__, (first,), optimizers, N_SEEDS["local"]),
        Plan(__name__, tuple(others), optimizers, N_SEEDS_OTHERS),
    )
    return findings(run(plans[0], options, plans[1]))


def findings(summaries: list[ProblemSummary]) -> Findings:
    """Return our accuracies beside the authors', and the curves of both."""
    preset = summaries[0].name.split("-")[1]
    ours = f"{NAME}-{preset}-frankenstein"
    lines = [line for summary in summaries for line in verdict(summary, ours)]
    lines += [_rates(preset), waited(summaries)]
    drawings = charts(summaries)
    for ways, shots in SETTINGS:
        found = published.curves("maml_omniglot", f"{ways}way_{shots}shot", "accuracy")
        heading = f"Published: Omniglot, {ways}-way {shots}-shot"
        drawings.append(published.chart(f"fig5-authors-{ways}way-{shots}shot", heading, "accuracy", found))
    return Findings("MAML on Omniglot (Fig. 5)", lines, [_table(summary, preset) for summary in summaries], drawings)


def _rates(preset: str) -> str:
    line = f"All have the outer learning rate {LR[preset]:g}"
    if preset == "local":
        line += f", SGD {LOCAL_SGD_LR:g}"
    return f"{line}, and published defaults otherwise: equal rates are no equal terms; see `frankenstein compare`."


def _table(summary: ProblemSummary, preset: str) -> Table:
    """Return the scores, with the interval over tasks of a run beside the one over seeds."""
    few_shot = next(problem.run for problem in PROBLEMS if problem.name == summary.name)
    assert isinstance(few_shot, FewShot)
    best = {name: _best(name, few_shot) for name in METHODS}
    shown = {f"{NAME}-{preset}-{name}": value for name, value in best.items() if not few_shot.is_first_order}
    notes = [f"Over tasks: half of the 95 % interval over the {few_shot.n_scored} tasks that a run is scored on."]
    if shown:
        notes.append(
            "Published: best accuracy in the authors' logs, in percent; more filters, tasks and steps than in `local`."
        )
    notes.append("A sample is a task.")
    made = table(summary.name, summary, f"{NAME}-{preset}-frankenstein", shown, notes)
    widths = [_half_width(row) for row in summary.rows if row.tuned]
    rows = [
        [*row[:2], Cell(f"{100 * width:.2f}", numbers={"": 100 * width}), *row[2:]]
        for row, width in zip(made.rows, widths, strict=True)
    ]
    return replace(made, columns=[*made.columns[:2], "over tasks, ±", *made.columns[2:]], rows=rows)


def _half_width(row: Row) -> float:
    """Return that of the last score's interval over tasks, as the runs had it on average."""
    assert row.tuned is not None
    found = [record["curve"]["half_width"][-1] for record in row.tuned.records if record["curve"].get("half_width")]
    return fmean(found) if found else float("nan")


def _best(name: str, few_shot: FewShot) -> str:
    task = f"{few_shot.n_ways}way_{few_shot.n_shots}shot"
    points = published.curves("maml_omniglot", task, "accuracy").get(LOGS.get(name, name))
    return f"{100 * max(value for _, value in points):.2f}" if points else ""
