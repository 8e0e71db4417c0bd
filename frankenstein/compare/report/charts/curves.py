"""Learning curves, and the final scores of single seeds."""

from __future__ import annotations

from typing import Any

from frankenstein.compare.report.charts.chart import (
    GREY,
    WIDTH,
    Chart,
    Look,
    Row,
    Spec,
    by_optimizer,
    colour,
    dash,
    emphasis,
    field,
    labels,
    opacity,
    rounded,
)
from frankenstein.compare.results.summary import ProblemSummary, Setting
from frankenstein.compare.store.records import Record

FOOT = 1e-4  # where an error of 0 is drawn on a log axis
PADDING = 7  # pixels between the outermost marks and the end of an axis
Reference = dict[str, Any]

# What is shown of a run: its score, the score as an error, or the training loss.
VALUE = (
    f"quantity == 'error' ? max(1 - datum.score, is_log ? {FOOT} : 0) : "
    "quantity == 'train_loss' ? datum.train_loss : datum.score"
)
HOW_TO_READ = "Line: median over seeds. A run that diverged or failed counts as the worst score from there on."


def curves(summary: ProblemSummary, styles: list[Look], references: list[Reference] | None = None) -> Chart:
    """Return the learning curves of one problem."""
    rows = run_rows(summary, styles)
    shown = views(summary, rows)
    view, columns = shown[0], ["step", "score", "seconds", *(["train_loss"] if _has_loss(rows) else [])]
    spec: Spec = {
        "width": 620,
        "height": 340,
        "params": [*parameters(view), {"name": "x_axis", "value": "step"}, {"name": "band", "value": "quartiles"}],
        "encoding": {
            "x": {
                "field": "x",
                "type": "quantitative",
                "title": "step",
                "axis": {"grid": False},
                "scale": {"nice": False},
            },
            "y": {"type": "quantitative", "title": view["title"], "scale": scale(view)},
        },
        "layer": [*_frame(summary, references or []), *_runs(styles, columns)],
        "usermeta": {"axes": "xy", "value": "y", "views": shown},
    }
    spec["params"] += emphasis(styles)
    caption = f"{HOW_TO_READ} Band: the middle half of the seeds. Dotted: the target."
    if references:
        names = "; ".join(f"{reference['title']} ({reference['source']})" for reference in references)
        caption += f" Dashed grey, published by others and not measured here: {names}."
    return Chart(f"curves-{summary.name}", "Learning curves", caption, spec, rows, summary.name)


def _runs(styles: list[Look], columns: list[str]) -> list[Spec]:
    """Return the layers of our runs: bands, medians, single seeds."""
    points = [
        {"filter": "datum.setting == setting"},
        {"flatten": columns},
        {"calculate": VALUE, "as": "value"},
        {"calculate": "x_axis == 'step' ? datum.step : datum.seconds", "as": "x"},
    ]
    operations = {"mid": "median", "q1": "q1", "q3": "q3", "min": "min", "max": "max", "n_seeds": "valid"}
    over_seeds = [
        {
            "aggregate": [
                *({"op": operation, "field": "value", "as": name} for name, operation in operations.items()),
                *({"op": "median", "field": name, "as": name} for name in ("x", "seconds")),
            ],
            "groupby": ["optimizer", "step"],
        },
        {"filter": "datum.n_seeds > 0 && (!is_log || datum.mid > 0) && (!is_log_x || datum.x > 0)"},
        {"calculate": "band == 'quartiles' ? datum.q1 : band == 'range' ? datum.min : datum.mid", "as": "bottom"},
        {"calculate": "is_log ? max(datum.bottom, datum.mid / 1000) : datum.bottom", "as": "low"},
        {"calculate": "band == 'quartiles' ? datum.q3 : band == 'range' ? datum.max : datum.mid", "as": "high"},
    ]
    tooltip = [
        field("optimizer", "optimizer", None),
        field("step", "step", "~g"),
        field("seconds", "seconds"),
        field("mid", "median"),
        field("q1", "quarter"),
        field("q3", "three quarters"),
        field("n_seeds", "seeds", "d"),
    ]
    area = {"y": {"field": "low"}, "y2": {"field": "high"}, "color": colour(styles), "fillOpacity": opacity(0.14, 0.0)}
    line = {"y": {"field": "mid"}, "color": colour(styles), "strokeDash": dash(styles), "strokeWidth": WIDTH}
    seed = {"y": {"field": "value"}, "color": colour(styles), "strokeDash": dash(styles), "detail": {"field": "seed"}}
    singles = [{"filter": "band == 'seeds' && isValid(datum.value) && (!is_log || datum.value > 0)"}]
    return [
        {
            "transform": [*points, *singles, {"filter": "!is_log_x || datum.x > 0"}],
            "mark": {"type": "line", "strokeWidth": 0.8},
            "encoding": seed | {"strokeOpacity": opacity(0.5, 0.25)},
        },
        {
            "transform": [*points, *over_seeds],
            "layer": [
                {"mark": {"type": "area", "opacity": 1}, "encoding": area},
                {
                    "mark": {"type": "line", "strokeJoin": "round"},
                    "encoding": line | {"strokeOpacity": opacity(), "tooltip": tooltip},
                },
            ],
        },
    ]


def _frame(summary: ProblemSummary, references: list[Reference]) -> list[Spec]:
    """Return the layers that are not ours: the target and published curves; they have their own data."""
    layers: list[Spec] = [
        {
            "data": {"values": [{"score": summary.config["target"]}]},
            "transform": [{"filter": "quantity != 'train_loss'"}, {"calculate": VALUE, "as": "value"}],
            "mark": {"type": "rule", "strokeDash": [1, 3], "color": GREY},
            "encoding": {"x": None, "y": {"field": "value"}},
        }
    ]
    return layers + [_published(reference, i) for i, reference in enumerate(references)]


def _published(reference: Reference, i: int) -> Spec:
    """Return the layer of a curve that others published: dashed, grey, and called by its name."""
    name = f"{reference['title']} ({reference['source']})"
    points = zip(reference["step"], reference["score"], strict=True)
    tooltip = [field("reference", "published", None), field("x", "step", "~g"), field("value", "score")]
    return {
        "data": {"values": [{"x": x, "score": y, "reference": name} for x, y in points]},
        "transform": [
            {"filter": "x_axis == 'step' && quantity != 'train_loss' && (!is_log_x || datum.x > 0)"},
            {"calculate": VALUE, "as": "value"},
        ],
        "layer": [
            {
                "mark": {"type": "line", "strokeDash": [[6, 4], [3, 3], [10, 4, 2, 4]][i % 3], "color": GREY},
                "encoding": {"y": {"field": "value"}, "tooltip": tooltip},
            },
            {
                "transform": [
                    {"joinaggregate": [{"op": "max", "field": "x", "as": "end"}]},
                    {"filter": "datum.x == datum.end"},
                ],
                "mark": {
                    "type": "text",
                    "align": "right",
                    "baseline": "bottom",
                    "dy": -5,
                    "opacity": {"expr": "width < 400 ? 0 : 1"},
                    "limit": 260,
                    "fontSize": 11,
                },
                "encoding": {"y": {"field": "value"}, "text": {"field": "reference"}, "color": {"value": GREY}},
            },
        ],
    }


def scores(summary: ProblemSummary, styles: list[Look]) -> Chart:
    """Return the final test scores: every seed, and the mean with its interval."""
    names = labels(styles)
    rows: list[Row] = []
    for row in summary.rows:
        for setting, found in (("tuned", row.tuned), ("default", row.default)):
            if found:
                shared = {"optimizer": names[row.optimizer], "setting": setting}
                rows.append(shared | {"kind": "mean"} | {end: rounded(v) for end, v in found.score._asdict().items()})
                rows += [
                    shared
                    | {"kind": "run", "score": rounded(r["score"])}
                    | {key: r[key] for key in ("seed", "outcome")}
                    for r in found.records
                ]
    view = views(summary, rows)[0]
    error = f"quantity == 'error' ? max(1 - datum.{{0}}, is_log ? {FOOT} : 0) : datum.{{0}}"
    ends = [
        {"calculate": error.format(end), "as": name} for end, name in (("value", "mean"), ("low", "a"), ("high", "b"))
    ]
    means = [{"filter": "datum.kind == 'mean'"}, *ends]
    tooltip = [field("optimizer", "optimizer", None), field("mean", "mean"), field("a", "from"), field("b", "to")]
    one = [field("optimizer", "optimizer", None), field("seed", "seed", "d"), field("shown", "score")]
    spec = {
        "width": 480,
        "height": {"step": 24},
        "params": [*parameters(view), *emphasis(styles)],
        "transform": [{"filter": "datum.setting == setting"}],
        "encoding": {
            "x": {"type": "quantitative", "title": view["title"], "scale": scale(view, PADDING)},
            "y": by_optimizer([names[row.optimizer] for row in summary.rows]),
            "color": colour(styles, has_legend=False),
            "opacity": opacity(weak=1.0),
        },
        "layer": [
            {
                "transform": [{"filter": "datum.kind == 'run'"}, {"calculate": VALUE, "as": "shown"}],
                "mark": {"type": "tick", "thickness": 1.2, "size": 13},
                "encoding": {
                    "x": {"field": "shown"},
                    "opacity": opacity(0.55, 0.55),
                    "tooltip": [*one, field("outcome", "outcome", None)],
                },
            },
            {
                "transform": means,
                "mark": {"type": "rule", "strokeWidth": 2.5},
                "encoding": {"x": {"field": "a"}, "x2": {"field": "b"}},
            },
            {
                "transform": means,
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {"x": {"field": "mean"}, "tooltip": tooltip},
            },
        ],
        "usermeta": {"axes": "x", "value": "x", "padding": PADDING, "views": views(summary, rows)[:2]},
    }
    caption = (
        "Dot and line: mean over fresh seeds on the test split, with its 95 % bootstrap interval. Ticks: single seeds."
    )
    return Chart(f"scores-{summary.name}", "Final scores", caption, spec, rows, summary.name)


def run_rows(summary: ProblemSummary, styles: list[Look]) -> list[Row]:
    """Return one row for each test run, its curve as lists; what is drawn last, on top, comes last."""
    names, rank = labels(styles), {look.optimizer: i for i, look in enumerate(styles)}
    grid = _grid(summary)
    rows: list[Row] = []
    for row in sorted(summary.rows, key=lambda row: -rank[row.optimizer]):
        for name, setting in (("tuned", row.tuned), ("default", row.default)):
            rows += [
                {
                    "optimizer": names[row.optimizer],
                    "setting": name,
                    "seed": record["seed"],
                    **_whole(record, grid, summary),
                }
                for record in (setting.records if setting else [])
            ]
    if _has_loss(rows):  # a run that failed at once has none
        rows = [{"train_loss": [], **row} for row in rows]
    return rows


def _grid(summary: ProblemSummary) -> list[int]:
    """Return the steps of the longest curve: where the problem takes its scores."""
    settings: list[Setting] = [s for row in summary.rows for s in (row.tuned, row.default) if s]
    grids = [record["curve"]["step"] for setting in settings for record in setting.records]
    return max(grids, key=lambda grid: (len(grid), grid), default=[])


def _whole(record: Record, grid: list[int], summary: ProblemSummary) -> Row:
    """Return the columns of a curve; after a run that stopped early come worst scores, without a time."""
    curve = record["curve"]
    last = curve["step"][-1] if curve["step"] else -1
    missing = [step for step in grid if step > last] if record["outcome"] != "finished" else []
    worst: list[Any] = [summary.config["worst"]] * len(missing)
    gaps: list[Any] = [None] * len(missing)
    whole = {"step": [*curve["step"], *missing], "score": [*map(rounded, curve["score"]), *worst]}
    whole["seconds"] = [*(rounded(value, 4) for value in curve["seconds"]), *gaps]
    if "train_loss" in curve:
        whole["train_loss"] = [*(None if v is None else rounded(v) for v in curve["train_loss"]), *gaps]
    return whole


def _has_loss(rows: list[Row]) -> bool:
    return any("train_loss" in row for row in rows)


def views(summary: ProblemSummary, rows: list[Row]) -> list[Spec]:
    """Return what can be shown of this problem's runs, the default first: quantity, title, may it be on a log axis.

    Accuracy is shown as error, so that lower is better in every panel.
    """
    metric, config = summary.config["metric"], summary.config
    shown = [config["target"]]
    for row in rows:
        shown += row["score"] if isinstance(row.get("score"), list) else [row["score"]] if "score" in row else []
    is_logarithm = metric.startswith(("log10", "log of", "ln "))
    arrow = "higher" if config["is_higher_better"] else "lower"
    plain = {
        "quantity": "score",
        "title": f"{metric} ({arrow} is better)",
        "can_log": min(shown) > 0 and not is_logarithm,
    }
    made = [plain]
    if "accuracy" in metric.lower() and config["is_higher_better"] and all(0.0 <= score <= 1.0 for score in shown):
        made.insert(0, {"quantity": "error", "title": f"error, 1 \N{MINUS SIGN} {metric}", "can_log": True})
    if _has_loss(rows):
        values = [v for row in rows for v in row.get("train_loss", []) if v is not None]
        made.append({"quantity": "train_loss", "title": "training loss", "can_log": min(values, default=0.0) > 0})
    return made


def parameters(view: Spec) -> list[Spec]:
    """Return the parameters that the controls of the page set, as they are at first."""
    start = {"setting": "tuned", "quantity": view["quantity"], "is_log": view["can_log"], "is_log_x": False}
    return [{"name": name, "value": value} for name, value in start.items()]


def scale(view: Spec, padding: int = 0) -> Spec:
    """Return the scale of the axis of scores, as it is at first; `padding` pixels are kept free for the marks."""
    kind = {"type": "log", "nice": False} if view["can_log"] else {"type": "linear", "zero": False, "nice": True}
    return kind | {"padding": padding}
