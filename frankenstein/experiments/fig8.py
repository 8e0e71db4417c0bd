"""Fig. 8 of the paper: the ways of six optimizers through the landscape of a fine-tuning, seen in a plane.

Each training leaves snapshots of its weights. Loss and accuracy on test images are then taken on a grid in the plane of
the first two principal components: of all six together, and of each alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frankenstein.compare.executors.local import LocalExecutor, local_executor
from frankenstein.compare.problems.problem import Budget, Measurements
from frankenstein.compare.report.charts.chart import COLOURS, Chart
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.results.summary import ProblemSummary
from frankenstein.experiments import fine_tuning
from frankenstein.experiments.experiment import ExperimentError, Findings, Options
from frankenstein.experiments.networks import RUNS, Plan, n_steps, run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from frankenstein.analysis.landscape import Landscape, Plane, Snapshots, Subject
    from frankenstein.compare.optimizers import Factory

NAME = "fig8"
OURS = "frankenstein"
METHODS = [OURS, "sgd", "rmsprop", "adam", "lookahead", "adabelief"]
SHARED = "shared"
"""Name of the plane of all trainings together; the others have the name of their optimizer."""

SHARPNESS = "sharpness.json"
N_POINTS = {"local": 11, "paper": 25}  # of the grid, in each direction
N_IMAGES = {"local": 500, "paper": 2000}  # of the test set, on which the landscape is that
N_RECOMPUTE = {"local": 250, "paper": 1000}  # training images from which BatchNorm takes its statistics at each point
N_SHARP = 128  # training images of whose loss the Hessian is taken
N_PROBES = 2  # random vectors for its trace, which is not shown
TOLERANCE = 1e-2  # of its largest eigenvalue: those of different trainings lie further apart
TRIED_TOLERANCE = 0.5  # where a configuration is only tried (`--steps`)
IMAGES_PER_STEP = 10  # at most, where a configuration is only tried (`--steps`)


@dataclass(frozen=True)
class Recorded:
    """The `run` of a problem: a fine-tuning that leaves snapshots beside the folder of unfinished runs."""

    preset: str

    def __call__(self, make_optimizer: Factory, seed: int, budget: Budget) -> Measurements:
        """Train once."""
        from frankenstein.analysis.landscape import Snapshots

        if budget.folder is None:
            raise ExperimentError("fig8 keeps snapshots and needs a folder; run it by `frankenstein reproduce fig8`")
        assert budget.folder.parent.name == RUNS
        snapshots = Snapshots(_snapshots(budget.folder.parent.parent, make_optimizer.spec.name))
        return fine_tuning.VISION[self.preset].train(make_optimizer, seed, budget, snapshots.save)

    def describe(self) -> list[dict[str, Any]]:
        """Return the name, size and hash of the data."""
        return fine_tuning.VISION[self.preset].describe()


OPTIMIZERS = fine_tuning.optimizers(NAME)
PROBLEMS = fine_tuning.problems(NAME, Recorded)


def reproduce(options: Options) -> Findings:
    """Train with every optimizer, then evaluate the landscapes.

    Raises:
        ExperimentError: Snapshots are missing or damaged, or the folder holds landscapes of other trainings.
    """
    from frankenstein.analysis.landscape import LandscapeError

    optimizers = tuple(f"{NAME}-{options.preset}-{name}" for name in options.methods or METHODS)
    summaries = run(Plan(__name__, (f"{NAME}-{options.preset}",), optimizers, 1), options)
    trained = {
        name: _snapshots(options.out, name)
        for name in optimizers
        if any(row.optimizer == name and row.tuned and row.tuned.count("finished") for row in summaries[0].rows)
    }
    if not trained:
        raise ExperimentError("no training came to its end; there is no landscape to look at")
    try:
        return findings(summaries, _landscapes(trained, options), _sharpness(trained, options))
    except (LandscapeError, ImportError) as error:
        raise ExperimentError(str(error)) from None


def _tried(n: int, preset: str, per_step: int) -> int:
    """Return `n`, or less where a configuration is only tried: so many for each step of a training."""
    steps = n_steps(fine_tuning.STEPS[preset])
    return n if steps == fine_tuning.STEPS[preset] else min(n, per_step * steps)


def _snapshots(out: Path, optimizer: str) -> Path:
    return out / "snapshots" / optimizer


def _landscapes(trained: dict[str, Path], options: Options) -> dict[str, Landscape]:
    """Return the landscape of each plane; points that are there already are read."""
    import torch

    from frankenstein.analysis.landscape import Snapshots, trajectory_plane

    by_title = {fine_tuning.title(name): Snapshots(path) for name, path in trained.items()}
    groups: dict[str, dict[str, Snapshots]] = {SHARED: by_title} if len(by_title) > 1 else {}
    groups |= {name: {fine_tuning.title(name): Snapshots(path)} for name, path in trained.items()}
    n_gpus, found = float(torch.cuda.is_available()), {}
    with local_executor(options.workers, 1, n_gpus) as executor:
        for i, (name, group) in enumerate(groups.items(), 1):
            options.say(f"landscape {i} of {len(groups)}: the plane of {', '.join(group)}")
            plane = trajectory_plane(group, options.out / "planes" / name)
            found[name] = _landscape(plane, name, options, executor, n_gpus)
    return found


def _landscape(plane: Plane, name: str, options: Options, executor: LocalExecutor, n_gpus: float) -> Landscape:
    from frankenstein.analysis.landscape import Grid, evaluate_jobs

    return evaluate_jobs(
        plane,
        Grid.around(plane, _tried(N_POINTS[options.preset], options.preset, 1)),
        partial(subject, options.preset),
        options.out / "landscapes" / name,
        data=f"the first {N_IMAGES[options.preset]:,} test images of {fine_tuning.TITLES[options.preset]}",
        executor=executor,
        devices=["cuda" if n_gpus else "cpu"] * executor.n_parallel,
        n_gpus=n_gpus,
        progress=lambda done, total: options.progress(done, total, name),
    )


def subject(preset: str, device: str) -> Subject:
    """Return the network and how it is looked at, for the processes that evaluate points."""
    from frankenstein.analysis.landscape import MeanOver, Subject

    shown = fine_tuning.batches(preset, "train", _tried(N_RECOMPUTE[preset], preset, IMAGES_PER_STEP), device)

    def recompute(model: nn.Module) -> None:
        for pixels, _ in shown:
            model(pixels)

    scored = fine_tuning.batches(preset, "test", N_IMAGES[preset], device)
    return Subject(fine_tuning.VISION[preset].made().to(device), MeanOver(scored, _scores), recompute)


def _scores(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    from torch.nn.functional import cross_entropy

    pixels, labels = batch
    logits = model(pixels).float()
    return {
        "loss": cross_entropy(logits, labels, reduction="none"),
        "accuracy": (logits.argmax(1) == labels).float(),
    }


def _sharpness(trained: dict[str, Path], options: Options) -> dict[str, float]:
    """Return the largest eigenvalue of the Hessian where each training ended; those known already are kept."""
    from torch import nn

    from frankenstein.analysis.landscape import Snapshots
    from frankenstein.analysis.landscape.sharpness import sharpness

    path = options.out / SHARPNESS
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    model = None
    for name, folder in trained.items():
        snapshots = Snapshots(folder)
        last = snapshots.at(snapshots.steps()[-1])
        if known.get(name, {}).get("weights") == last.checksum:
            continue
        options.say(f"sharpness where {fine_tuning.title(name)} ended")
        model = model or fine_tuning.VISION[options.preset].made()
        snapshots.load(model, last.step)
        n_images = _tried(N_SHARP, options.preset, IMAGES_PER_STEP)
        is_whole = n_steps(fine_tuning.STEPS[options.preset]) == fine_tuning.STEPS[options.preset]
        shown = fine_tuning.batches(options.preset, "train", n_images, "cpu")
        seen = sharpness(
            model,
            nn.CrossEntropyLoss(),
            shown,
            n_largest=1,
            n_smallest=0,
            n_samples=N_PROBES,
            tolerance=TOLERANCE if is_whole else TRIED_TOLERANCE,
        )
        known[name] = {"weights": last.checksum, "largest": seen.largest[0]}
        path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return {name: known[name]["largest"] for name in trained}


def read_landscapes(folder: Path) -> tuple[dict[str, Landscape], dict[str, float]]:
    """Return the landscapes and the eigenvalues that an earlier run left in its folder.

    Raises:
        LandscapeError: A landscape is damaged.
    """
    from frankenstein.analysis.landscape import Landscape

    paths = sorted((folder / "landscapes").iterdir(), key=lambda path: (path.name != SHARED, path.name))
    known = json.loads((folder / SHARPNESS).read_text(encoding="utf-8"))
    return {path.name: Landscape.load(path) for path in paths}, {name: one["largest"] for name, one in known.items()}


# What is shown --------------------------------------------------------------------------------------------------------


def findings(
    summaries: Sequence[ProblemSummary], landscapes: dict[str, Landscape], sharp: dict[str, float]
) -> Findings:
    """Return the landscapes, how much of each way its plane holds, and how sharp the ends are."""
    rows = {row.optimizer: row for row in summaries[0].rows}
    table = _table(summaries[0], landscapes, sharp)
    lines = [_held(landscapes)]
    if ordered := sorted((name for name in sharp if name in rows), key=lambda name: sharp[name]):
        flat, steep = (fine_tuning.title(name) for name in (ordered[0], ordered[-1]))
        places = {name.split("-")[-1]: i for i, name in enumerate(ordered, 1)}
        lines.append(
            f"Flattest where it ended is {flat}, sharpest {steep} (largest eigenvalue of the Hessian of the training "
            f"loss: {sharp[ordered[0]]:.3g} and {sharp[ordered[-1]]:.3g})"
            + (f"; Frankenstein has place {places[OURS]} of {len(ordered)}." if OURS in places else ".")
        )
    lines += _after_arrival(landscapes)
    drawings = [_chart(name, landscape) for name, landscape in landscapes.items()]
    live = frozenset(one.name for one in drawings)
    for row in rows.values():
        if row.tuned and (seen := _rule(row.tuned.records[0])):
            lines.append(_of_rule(seen))
            drawings.append(_rule_chart(seen))
    return Findings("The landscape of a fine-tuning (Fig. 8)", lines, [table], drawings, live=live)


def _held(landscapes: dict[str, Landscape]) -> str:
    own = [sum(one.about.explained_variance[:2]) for name, one in landscapes.items() if name != SHARED]
    line = f"A training's own plane holds {100 * min(own):.0f} to {100 * max(own):.0f} % of the variance of its way"
    if shared := landscapes.get(SHARED):
        line += f", the plane of all {100 * sum(shared.about.explained_variance[:2]):.0f} % of that of all"
    return f"{line}; what lies off the plane is not in the picture."


def _after_arrival(landscapes: dict[str, Landscape]) -> list[str]:
    """Say whether trainings leave the best accuracy of their own plane again: the paper says so of Adam."""
    left = {}
    for name, one in landscapes.items():
        if name != SHARED:
            left[name] = _best_and_end(one)
    if not left:
        return []
    parts = [f"{fine_tuning.title(name)} {100 * best:.1f} and {100 * end:.1f} %" for name, (best, end) in left.items()]
    return [
        "Best accuracy at the grid's points along the way, and at the point where it ends, in the training's own "
        f"plane: {'; '.join(parts)}. Published: Adam leaves the flat region quickly, Frankenstein stays; seen in a "
        "picture, without numbers."
    ]


def _best_and_end(landscape: Landscape) -> tuple[float, float]:
    """Return the largest accuracy of the points of the grid next to the snapshots, and that next to the last one."""
    import numpy as np

    (track,) = landscape.about.tracks.values()
    columns, rows = (
        [int(np.abs(np.array(axis) - value).argmin()) for value in values]
        for axis, values in ((landscape.grid.x, track.x), (landscape.grid.y, track.y))
    )
    found = [float(landscape.metrics["accuracy"][row, column]) for row, column in zip(rows, columns, strict=True)]
    return max(found), found[-1]


def _rule(record: dict[str, Any]) -> dict[str, list[float | None]]:
    """Return what the rule did in the steps before the evaluations, by name; nothing of other optimizers."""
    curve: dict[str, list[float | None]] = record["curve"]
    prefix = "telemetry/0/"
    found = {name.removeprefix(prefix): values[1:] for name, values in curve.items() if name.startswith(prefix)}
    return found | {"step": curve["step"][1:]} if found else {}


def _of_rule(seen: dict[str, list[float | None]]) -> str:
    first, last = ({name: values[i] for name, values in seen.items()} for i in (0, -1))
    parts = [
        f"{what} {first[name]:.3g} at step {first['step']} and {last[name]:.3g} at step {last['step']}"
        for name, what in (("rho_q50", "rho has the median"), ("xi_q50", "xi"), ("update_to_weight", "the update is"))
    ]
    return (
        f"What the rule of Frankenstein does: {parts[0]}; {parts[1]}; {parts[2]} of the weights' size. P lies between "
        f"{last['P_q01']:.6g} and {last['P_q99']:.6g} for 98 % of the weights at the end, where 0.5 is no opinion."
    )


def _rule_chart(seen: dict[str, list[float | None]]) -> Chart:
    """Return rho and xi along the training: median, and where 80 % of the elements lie."""
    points = [
        {"factor": name, "step": step, "low": low, "median": median, "high": high}
        for name in ("rho", "xi")
        for step, *spread in zip(seen["step"], *(seen[f"{name}_q{q}"] for q in (10, 50, 90)), strict=True)
        for low, median, high in (spread,)
        if None not in spread
    ]
    x = {"field": "step", "type": "quantitative", "title": "step"}
    y: dict[str, Any] = {"type": "quantitative", "title": "factor", "scale": {"zero": False}}
    colour = {"field": "factor", "type": "nominal", "title": None, "scale": {"range": COLOURS[:2]}}
    spec: dict[str, Any] = {
        "width": 560,
        "height": 240,
        "encoding": {"x": x, "color": colour},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.25},
                "encoding": {"y": {"field": "low", **y}, "y2": {"field": "high"}},
            },
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"y": {"field": "median", **y}}},
        ],
    }
    caption = "Medians over a sample of the weights, and where 80 % of them lie, in the step before each evaluation."
    return Chart(f"{NAME}-rule", "Momentum reset rho and acceleration xi of Frankenstein", caption, spec, points)


def _table(summary: ProblemSummary, landscapes: dict[str, Landscape], sharp: dict[str, float]) -> Table:
    rows = []
    for row in summary.rows:
        if row.tuned is None or row.optimizer not in landscapes:
            continue
        (record,) = row.tuned.records[:1]
        held = sum(landscapes[row.optimizer].about.explained_variance[:2])
        eigenvalue = sharp.get(row.optimizer, float("nan"))
        rows.append(
            [
                Cell(row.title),
                Cell(f"{row.tuned.settings['lr']:g}", numbers={"": row.tuned.settings["lr"]}),
                Cell(f"{100 * record['score']:.1f}", numbers={"": record["score"]}),
                Cell(f"{eigenvalue:.3g}", numbers={"": eigenvalue}),
                Cell(f"{100 * held:.0f}", numbers={"": held}),
            ]
        )
    columns = ["optimizer", "learning rate", "accuracy, %", "largest eigenvalue", "variance in its plane, %"]
    note = f"One seed; eigenvalue of the Hessian of the loss on {N_SHARP} training images, where the training ended."
    return Table("fig8", summary.title, columns, rows, [note])


def _chart(name: str, landscape: Landscape) -> Chart:
    from frankenstein.analysis.landscape.chart import chart

    whose = "all trainings" if name == SHARED else fine_tuning.title(name)
    made = chart(landscape, "accuracy")
    return replace(made, name=f"{NAME}-{name.split('-')[-1]}", title=f"Test accuracy in the plane of {whose}")
