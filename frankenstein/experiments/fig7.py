"""Fig. 7 of the paper: networks that are trained to be the ground state of the J1-J2 model, by many optimizers.

The paper gives neither the lattice nor the size of the network nor the learning rates. Here: three lattices, two hidden
layers of 64, and each optimizer at the best of a few learning rates, chosen on another seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from frankenstein.compare.problems.problem import Budget, Measurements, Problem
from frankenstein.compare.report.charts.chart import Chart, Look, looks
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.results.summary import ProblemSummary, Row
from frankenstein.experiments.experiment import Findings, Options
from frankenstein.experiments.networks import Plan, at, charts, n_steps, run

if TYPE_CHECKING:
    from frankenstein.compare.optimizers import Factory
    from frankenstein.experiments.quantum import Lattice

NAME = "fig7"
OURS = "frankenstein"
METHODS = [OURS, "sgd", "rmsprop", "adam", "amsgrad", "lookahead", "adabound", "ranger", "radam", "adabelief"]
N_SEEDS = {"local": 8, "paper": 32}
N_TRIALS = 4
LR = 1e-2
"""Where the search of learning rates begins, except for SGD, which begins at `SGD_LR`."""

SGD_LR = 1.0
SUCCESS = (1e-3, 1e-6)  # relative errors of the energy
WORST = 2.0  # of any state: the spectrum is not symmetric, but nearly
PAPER_STEPS = 10_000
LOCAL = (((3, 3, False), 2000), ((3, 4, False), 800), ((4, 4, True), 400))
"""Rows, columns, and whether it is the sector of zero magnetisation only; steps."""

PAPER = ((3, 3, False), (3, 4, False), (4, 4, False), (4, 4, True))


@dataclass(frozen=True)
class GroundState:
    """The `run` of a problem: a network becomes the ground state of a lattice."""

    rows: int
    columns: int
    in_sector: bool

    @property
    def lattice(self) -> Lattice:
        """The lattice."""
        from frankenstein.experiments.quantum import Lattice

        return Lattice(self.rows, self.columns, self.in_sector)

    def __call__(self, make_optimizer: Factory, seed: int, budget: Budget) -> Measurements:
        """Train once.

        Raises:
            ExperimentError: It would take more memory than there is.
        """
        from frankenstein.compare.training import Training
        from frankenstein.experiments.quantum import NeuralState, ground_energy

        ground_energy(self.lattice)  # outside the time
        measured = Training(lambda seed, budget: NeuralState(self.lattice, seed, budget))(make_optimizer, seed, budget)
        measured.data = self.describe()
        measured.details = {"ground_energy": ground_energy(self.lattice)}
        return measured

    def describe(self) -> list[dict[str, Any]]:
        """Return name, number of states and hash of the Hamiltonian.

        Raises:
            ExperimentError: As above.
        """
        from frankenstein.experiments.quantum import hamiltonian

        matrix = hamiltonian(self.lattice)
        digest = hashlib.sha256()
        for part in (matrix.indptr, matrix.indices, matrix.data):
            digest.update(np.ascontiguousarray(part).tobytes())
        return [{"name": f"J1-J2 {_title(self)}", "n": self.lattice.n_states, "sha256": digest.hexdigest()}]


def _title(run: GroundState) -> str:
    return f"{run.rows}x{run.columns}" + (", zero magnetisation" if run.in_sector else "")


def _problem(preset: str, where: tuple[int, int, bool], published_steps: int) -> Problem:
    ground, steps = GroundState(*where), n_steps(published_steps)
    return Problem(
        name=f"{NAME}-{preset}-{ground.rows}x{ground.columns}" + ("-sector" if ground.in_sector else ""),
        title=f"Ground state of the J1-J2 model, {_title(ground)}",
        metric="relative error of the energy",
        is_higher_better=False,
        target=SUCCESS[0],
        worst=WORST,
        n_steps=steps,
        n_evals=min(20, steps),
        run=ground,
    )


OPTIMIZERS = tuple(
    at(NAME, name, {"lr": SGD_LR if name == "sgd" else LR} | ({"base_lr": LR} if name == OURS else {}))
    for name in METHODS
)
LOCAL_PROBLEMS = tuple(_problem("local", where, steps) for where, steps in LOCAL)
PAPER_PROBLEMS = tuple(_problem("paper", where, PAPER_STEPS) for where in PAPER)
PROBLEMS = (*LOCAL_PROBLEMS, *PAPER_PROBLEMS)


def reproduce(options: Options) -> Findings:
    """Train with every optimizer and every seed."""
    names = tuple(problem.name for problem in (LOCAL_PROBLEMS if options.preset == "local" else PAPER_PROBLEMS))
    optimizers = tuple(f"{NAME}-{name}" for name in options.methods or METHODS)
    return findings(run(Plan(__name__, names, optimizers, N_SEEDS[options.preset], N_TRIALS), options))


# What is shown --------------------------------------------------------------------------------------------------------


def findings(summaries: list[ProblemSummary]) -> Findings:
    """Return how the errors at the end are distributed, and how often each optimizer succeeds."""
    lines = [line for summary in summaries for line in _sentences(summary)]
    lines.append(
        "Published, without numbers: a distribution of losses over 32 runs in which Frankenstein has the lowest most "
        "often; lattice, network and learning rates are not given."
    )
    styles = looks(summaries, None)
    drawings = [_distribution(summary, styles) for summary in summaries] + charts(summaries)
    return Findings("A quantum state (Fig. 7)", lines, [_table(summary) for summary in summaries], drawings)


def _errors(row: Row) -> np.ndarray:
    """Return the errors at the end, one for each seed, the smallest first; a run that diverged has the worst."""
    records = row.tuned.records if row.tuned else []
    return np.sort([r["score"] if r["outcome"] == "finished" else WORST for r in records])


def _ranked(summary: ProblemSummary) -> list[Row]:
    rows = [row for row in summary.rows if len(_errors(row))]
    return sorted(rows, key=lambda row: float(np.median(_errors(row))))


def _sentences(summary: ProblemSummary) -> list[str]:
    rows = _ranked(summary)
    names = [row.optimizer.removeprefix(f"{NAME}-") for row in rows]
    if OURS not in names:
        return []
    place, best = names.index(OURS), rows[0]
    mine = _errors(rows[place])
    line = f"{summary.title}: by the median error Frankenstein has place {place + 1} of {len(rows)}"
    line += f" ({np.median(mine):.2g}" + (")" if place == 0 else f"; {best.title} {np.median(_errors(best)):.2g})")
    shares = [f"below {limit:g} in {np.sum(mine < limit)} of {len(mine)} runs" for limit in SUCCESS]
    lowest = min(rows, key=lambda row: float(_errors(row)[0]))
    return [f"{line}; it is {' and '.join(shares)}. The lowest error of all is {lowest.title}'s."]


def _table(summary: ProblemSummary) -> Table:
    rows = []
    for row in _ranked(summary):
        assert row.tuned is not None
        errors = _errors(row)
        low, middle, high = np.quantile(errors, [0.25, 0.5, 0.75]).tolist()
        rows.append(
            [
                Cell(row.title),
                Cell(f"{row.tuned.settings['lr']:g}", numbers={"": row.tuned.settings["lr"]}),
                Cell(f"{middle:.2g} ({low:.2g} to {high:.2g})", numbers={"": middle, "low": low, "high": high}),
                *(
                    Cell(f"{np.mean(errors < limit):.0%}", numbers={"": float(np.mean(errors < limit))})
                    for limit in SUCCESS
                ),
                Cell(f"{1e3 * row.tuned.cost('seconds_per_step'):.2f}"),
            ]
        )
    columns = ["optimizer", "learning rate", "relative error, median (quartiles)"]
    columns += [f"below {limit:g}" for limit in SUCCESS] + ["ms a step"]
    n_seeds, steps = max(len(_errors(row)) for row in summary.rows), summary.config["n_steps"]
    notes = [
        f"{n_seeds} seeds, {steps:,} steps; relative error of the energy (E - E0) / |E0| at the end, E0 by exact "
        "diagonalisation",
        f"each optimizer at the best of {N_TRIALS} learning rates, half a decade apart, on another seed",
        "ms a step: as it went, whatever else the machine did",
    ]
    return Table(summary.name, summary.title, columns, rows, notes)


def _distribution(summary: ProblemSummary, styles: Sequence[Look]) -> Chart:
    """Return the share of runs that end at or below an error."""
    points = []
    for look in styles:
        row = summary.row(look.optimizer)
        errors = _errors(row) if row else np.array([])
        points += [
            {"optimizer": look.label, "error": float(f"{max(error, 1e-16):.4g}"), "share": (i + 1) / len(errors)}
            for i, error in enumerate(errors)
        ]
    labels, colours, dashes = (list(one) for one in zip(*((s.label, s.colour, s.dash) for s in styles), strict=True))
    colour = {"field": "optimizer", "type": "nominal", "title": None, "scale": {"domain": labels, "range": colours}}
    dash = {"field": "optimizer", "type": "nominal", "title": None, "scale": {"domain": labels, "range": dashes}}
    error = {
        "field": "error",
        "type": "quantitative",
        "title": "relative error of the energy",
        "scale": {"type": "log"},
    }
    spec: dict[str, Any] = {
        "width": 560,
        "height": 320,
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2, "point": {"size": 20}},
        "encoding": {
            "x": error,
            "y": {"field": "share", "type": "quantitative", "title": "share of runs", "scale": {"domain": [0, 1]}},
            "color": colour,
            "strokeDash": dash,
        },
    }
    caption = "Share of the runs that end with this error or less: the further left, and the steeper, the better."
    return Chart(f"{summary.name}-errors", "Errors at the end", caption, spec, points, subject=summary.title)
