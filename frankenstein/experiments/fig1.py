"""Fig. 1 of the paper: adaptive factors and trajectories on a function with periodic gradients, and four in the plane.

The paper does not give its function. Ours is 2 (|x| - sin|x|), for its gradient is periodic and changes from 0 to 4: on
the flat of every step the gradient vanishes, and an optimizer can stay there, as the paper says of its own.
"""

from __future__ import annotations

import math
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import groupby

from frankenstein.compare.executors import Executor
from frankenstein.compare.executors.local import local_executor
from frankenstein.compare.interrupts import interrupts_held
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.store.records import Record, appending
from frankenstein.experiments import fig1_charts, fig1_pictures
from frankenstein.experiments.experiment import ExperimentError, Findings, Options
from frankenstein.experiments.fig1_descent import DESCENTS, NEAR, SPECS, Job
from frankenstein.experiments.fig1_scenes import N_RATES, PLANE_SCENES, SCENES, STAIRS, TUNED_STAIRS, Scene
from frankenstein.rule import XI_GAIN

METHODS = list(SPECS)
OURS = "frankenstein"
DIP = 0.95  # xi below it is between two peaks: it falls to 0.81 where the squared gradient is P
BETWEEN = 1.3  # the two kinds of peak lie around 1, where the gradient vanishes, and near 1.6, where it is large
PERIOD = 2.0 * math.pi  # of the gradient


def reproduce(options: Options) -> Findings:
    """Follow every optimizer on every function; both presets are the same: the figure is small already."""
    n_starts = options.n_starts or STAIRS.n_starts
    todo = [Job(scene, name, n_starts, options.preset) for scene in SCENES for name in options.methods or METHODS]
    with local_executor(options.workers, 1, 0.0) as executor:
        return findings(run(todo, options, executor))


def run(todo: list[Job], options: Options, executor: Executor) -> list[Record]:
    """Run what the folder lacks, or has from other settings; return the records in the order of `todo`.

    Raises:
        RecordError: The folder cannot be used.
        ExperimentError: A run failed; what was finished is kept.
    """
    with appending(options.out, options.say, DESCENTS) as (known, append):
        configs = {job.key: job.config() for job in todo}
        done = {record["cell"]: record for record in known if _is_of(record, configs.get(record["cell"]))}
        futures: dict[Future[Record], Job] = {executor.submit(job): job for job in todo if job.key not in done}
        options.progress(len(done), len(todo), "")
        while futures:
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                job = futures[future]
                if error := future.exception():
                    raise ExperimentError(f"{job.key} failed: {error}; the same command goes on without what is done")
                with interrupts_held():  # what is written is counted
                    append(future.result())
                    done[job.key] = future.result()
                    del futures[future]
                options.progress(len(done), len(todo), job.key)
    return [done[job.key] for job in todo]


def _is_of(record: Record, config: Record | None) -> bool:
    return config is not None and all(record[name] == value for name, value in config.items())


def findings(records: list[Record]) -> Findings:
    """Return sentences, tables and pictures from the records alone."""
    by_cell = {record["cell"]: record for record in records}  # written as the runs ended, in any order
    by_scene = {name: [by_cell[f"{name}/{of}"] for of in SPECS if f"{name}/{of}" in by_cell] for name in SCENES}
    by_scene = {name: group for name, group in by_scene.items() if group}
    stairs, tuned = by_scene.get(STAIRS.name, []), by_scene.get(TUNED_STAIRS.name, [])
    own = [record for record in stairs if "xi" in record["factors"]]
    charts = [fig1_charts.paper_figure(stairs)] if stairs else []
    charts += [fig1_charts.factors(own)] if own else []
    charts += [fig1_charts.ways(tuned)] if tuned else []
    sentences = [
        f"The paper does not give its function. Ours is {STAIRS.formula}: its gradient, between 0 and 4, is periodic "
        "and vanishes on the flat of every step."
    ]
    sentences += [line for record in own if record["optimizer"] == OURS for line in features(record)]
    sentences += [line for name, group in by_scene.items() for line in outcome(SCENES[name], group)]
    pictures = [
        picture
        for scene in PLANE_SCENES
        if scene.name in by_scene
        for picture in fig1_pictures.pictures(scene, by_scene[scene.name])
    ]
    tables = [table(SCENES[name], group) for name, group in by_scene.items()]
    return Findings("Fig. 1: how the optimizers move", sentences, tables, charts, pictures)


def features(record: Record) -> list[str]:
    """Say which features of the published figure a trajectory of Frankenstein has, with numbers."""
    xi = [value for value in record["factors"]["xi"] if value is not None]
    values = [SCENES[record["scene"]].value(x) for x in record["path"][0]]
    arrival = next((step for step, value in enumerate(values) if value <= NEAR), 0)
    tops = peaks(xi[:arrival])[1:]  # the first is of the slope where it starts
    high, low = [top for top in tops if top > BETWEEN], [top for top in tops if top <= BETWEEN]
    lines = [
        f"xi of Frankenstein rises to {max(xi):.3f} (published: up to 1.6; eq. 13 allows {XI_GAIN:.4f}) and ends at "
        f"{xi[-1]:.3f} (published: 1)."
    ]
    if high and low:
        lines.append(
            f"Over {record['path'][0][0] / PERIOD:.1f} periods down to the minimum it has {len(tops)} peaks "
            f"(published: two distinct ones): {len(high)} on slopes, none below {min(high):.2f}, and {len(low)} on "
            f"flats, where P decides, from {min(low):.3f} to {max(low):.3f}. Between them it falls to "
            f"{min(xi[:arrival]):.2f}. How high the published second peak is, the paper does not say."
        )
    return lines


def peaks(xi: list[float]) -> list[float]:
    """Return the largest value of every stretch between two dips.

    Examples:
        >>> peaks([1.0, 1.6, 0.8, 1.0, 0.9, 1.5])
        [1.6, 1.0, 1.5]
    """
    return [max(stretch) for is_high, stretch in groupby(xi, key=lambda value: value >= DIP) if is_high]


def outcome(scene: Scene, records: list[Record]) -> list[str]:
    """Say who finds the scene's minimum, and how soon."""
    found = sorted((record for record in records if record["steps"] is not None), key=lambda record: record["steps"])
    ours = next((record for record in records if record["optimizer"] == OURS), None)
    line = f"{scene.title}: {len(found)} of {len(records)} are at the minimum after {scene.n_steps} steps"
    if found:
        line += f", {found[0]['optimizer_title']} first, with {found[0]['steps']}"
    if ours is not None and ours not in found[:1]:
        line += f"; Frankenstein {'does not find it' if ours['steps'] is None else 'takes ' + str(ours['steps'])}"
    if scene.lr is None:
        return [f"{line}."]
    others = [f"{record['optimizer_title']} {record['n_found']}" for record in records if record["n_found"]]
    return [
        f"{line}.",
        f"Starts from which the minimum is found at that rate, of {records[0]['n_starts']}: "
        f"{', '.join([*others, 'all others 0'])}.",
        "One rate is no equal term: at rest a step of Frankenstein is ten times as long as one of Adam's. So the same "
        "follows with the best rate of each.",
    ]


def table(scene: Scene, records: list[Record]) -> Table:
    """Return where the optimizers ended, the fastest first."""

    def order(record: Record) -> tuple[float, float]:
        steps, value = record["steps"], record["value"]
        return (math.inf if steps is None else steps, math.inf if value is None else value)

    columns = ["optimizer", "rate", "ended at", "value", "steps"]
    has_starts = any(record["n_starts"] > 1 for record in records)
    records = sorted(records, key=order)
    rows = []
    for record in records:
        steps, value, lr = record["steps"], record["value"], record["settings"]["lr"]
        end = ", ".join(f"{number:.3g}" for number in record["end"])
        row = [
            Cell(record["optimizer_title"]),
            Cell(f"{lr:.3g}", numbers={"": lr}),
            Cell(record["outcome"] if record["outcome"] == "diverged" else f"({end})" if scene.window else end),
            Cell("" if value is None else f"{value:.2g}", numbers={"": math.inf if value is None else value}),
            Cell("" if steps is None else str(steps), steps == records[0]["steps"] is not None, {"": _or_inf(steps)}),
        ]
        if has_starts:
            row.append(Cell(f"{record['n_found']} of {record['n_starts']}", numbers={"": record["n_found"]}))
        rows.append(row)
    return Table(f"fig1-{scene.name}", scene.title, columns + ["starts"] * has_starts, rows, notes(scene, has_starts))


def _or_inf(number: float | None) -> float:
    return math.inf if number is None else number


def notes(scene: Scene, has_starts: bool) -> list[str]:
    """Say how a table was made."""
    start = ", ".join(f"{value:g}" for value in scene.start)
    rate = f"rate: {scene.lr:g} for all" if scene.lr is not None else f"rate: the best of {N_RATES} over four decades"
    lines = [
        f"{scene.formula} from ({start}); steps: from which on the value stays below {NEAR:g}, of {scene.n_steps}",
        f"{rate}; all else as published, Frankenstein's base_lr moves with the rate; Muon, having no matrix here, is "
        "AdamW with 0.015 times its rate",
    ]
    if has_starts:
        lines.append(f"starts: of those within {scene.spread:g} of it, from how many the minimum is found")
        lines.append(
            "the minimum is the origin, to which weight decay (AdamW, SOAP, Tiger) and LAMB's trust ratio pull anyway"
        )
    return lines
