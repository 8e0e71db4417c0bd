"""Fig. 10 of the paper: do adaptive optimizers lean on inputs that tell one sample from the others?"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from frankenstein.compare.executors.local import local_executor
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.statistics.seeds import MIN_SEEDS, are_level, bootstrap_mean, leads
from frankenstein.compare.store.records import Record
from frankenstein.experiments.experiment import Findings, Options
from frankenstein.experiments.fig10_charts import beside_logs, ours
from frankenstein.experiments.fig10_logs import authors_curves, authors_last, least_loss_of_adam
from frankenstein.experiments.fig10_model import (
    LR,
    LR_OF,
    N_EPOCHS,
    N_INPUTS,
    N_SAMPLES,
    N_TRAIN,
    P_POSITIVE,
    SETTINGS,
)
from frankenstein.experiments.fig10_runs import Found, found_in, run

METHODS = ["frankenstein", "adam", "amsgrad", "sgd", "rmsprop", "lookahead", "adabound", "ranger"]
N_SEEDS = {"local": 10, "paper": 50}  # the paper has one
MOST_STEPS = 16  # of an epoch with batch size 128, were all 2,000 samples for training
MOST_ONES = 8  # in an input: three, and five of a sample's own


def reproduce(options: Options) -> Findings:
    """Train eight optimizers in three settings on several seeds, and draw the authors' logs behind them."""
    n_seeds = options.n_starts or N_SEEDS[options.preset]
    methods = [name for name in METHODS if name in (options.methods or METHODS)]
    with local_executor(options.workers, 1, 0.0) as executor:
        records = run(options, methods, n_seeds, executor)
    return findings(records)


def findings(records: list[Record]) -> Findings:
    """Return tables, figures and sentences from the records."""
    found = {name: found_in(records, name, METHODS) for name in SETTINGS}
    lines = [line for name, runs in found.items() for line in _sentences(name, runs, authors_last(name))]
    lines.append(_about_logs())
    tables = [_table(name, runs) for name, runs in found.items()]
    return Findings("Fig. 10: the over-adaptation test", lines, tables, [ours(found), beside_logs(found)])


def ranked(runs: list[Found]) -> list[Found]:
    """Return the runs by their mean test loss at the end, the lowest first."""
    return sorted(runs, key=lambda found: float(found.last.mean()))


def agreement(runs: list[Found], theirs: dict[str, float]) -> tuple[int, int, int]:
    """Compare the order of the test losses at the end with that of the authors' last ones.

    Returns:
        How many pairs of optimizers are in the authors' order, in the reverse, and level (paired bootstrap over seeds).
    """
    in_their_order = sorted(runs, key=lambda found: theirs[found.method])
    ahead = [leads(-one.last, -other.last).item() for one, other in combinations(in_their_order, 2)]
    return ahead.count(1), ahead.count(-1), ahead.count(0)


def _sentences(name: str, runs: list[Found], theirs: dict[str, float]) -> list[str]:
    title = SETTINGS[name].title.capitalize()
    listed = ", ".join(f"{found.title} {found.last.mean():.2g}" for found in ranked(runs))
    lines = [f"{title}: mean test loss after {N_EPOCHS} epochs, the lowest first: {listed}."]
    if len(runs) > 1:
        gaps = sorted(runs, key=lambda found: found.gap)
        lines.append(
            f"{title}: the test loss is {gaps[0].gap:.3g} times the training loss with {gaps[0].title}, where they are "
            f"closest, and {gaps[-1].gap:.3g} times with {gaps[-1].title}, where they are farthest apart."
        )
    if len(runs) > 1 and theirs and len(runs[0].last) >= MIN_SEEDS:
        same, reverse, level = agreement(runs, theirs)
        verdict = "does not hold" if reverse else "is not contradicted" if level else "holds"
        lines.append(
            f"{title}: the ranking by the authors' last test losses {verdict}: of {same + reverse + level} pairs of "
            f"optimizers, {same} are in their order, {reverse} in the reverse, {level} cannot be told apart."
        )
    return lines


def _about_logs() -> str:
    """Say what the authors' numbers are worth beside ours."""
    theirs = authors_curves("batch128", "test_loss")["adam"][0]
    bound = least_loss_of_adam(MOST_STEPS, LR, MOST_ONES)
    return (
        "The authors' logs are not of the model in their text and in their released script, and compare in rank only: "
        f"their Adam has a test loss of {theirs:.2g} after one epoch with batch size 128, but {MOST_STEPS} of its "
        f"steps with the learning rate {LR:g} from zeros leave at least {bound:.2g} on inputs of at most {MOST_ONES} "
        "ones."
    )


def _table(name: str, runs: list[Found]) -> Table:
    setting, order = SETTINGS[name], ranked(runs)
    last = authors_last(name)
    same = {method: losses[N_EPOCHS - 1] for method, losses in authors_curves(name, "test_loss").items()}
    columns = ["optimizer", "test loss", "training loss", "test / training", "test samples wrong, %"]
    columns += ["authors: test loss, same epoch", "authors: last test loss"] if last else []
    rows = []
    for found in runs:
        is_best = found is order[0] or are_level(found.last, order[0].last)
        row = [Cell(found.title), _mean(found.last, is_best), _mean(found.train[:, -1], False)]
        row += [Cell(f"{found.gap:.3g}", numbers={"": found.gap})]
        row += [Cell(f"{100 * found.error.mean():.2f}", numbers={"": float(100 * found.error.mean())})]
        if last:
            row += [_published(losses[found.method]) for losses in (same, last)]
        rows.append(row)
    n_seeds = len(runs[0].last)
    notes = [
        f"{N_SAMPLES:,} samples of {N_INPUTS:,} inputs, {N_TRAIN:,} for training; labels 1 with probability "
        f"{P_POSITIVE:g}, else {setting.negative}; logistic model without bias, from zeros, in float64; {N_EPOCHS} "
        f"epochs; learning rate {LR:g}, of SGD {LR_OF['sgd']:g}",
        f"mean over {n_seeds} seeds and its 95 % bootstrap interval; bold: the lowest test loss, and what is level",
        f"a model that calls every sample positive has about {100 * (1 - P_POSITIVE):.0f} % of the test samples wrong",
    ]
    return Table(f"fig10-{name}", setting.title.capitalize(), columns, rows, notes)


def _mean(values: np.ndarray, is_best: bool) -> Cell:
    mean, low, high = bootstrap_mean(values)
    return Cell(f"{mean:.2e} ({low:.2e} to {high:.2e})", is_best, {"": mean, "low": low, "high": high})


def _published(value: float) -> Cell:
    return Cell(f"{value:.1e}", numbers={"": value})
