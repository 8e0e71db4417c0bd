"""Fig. 1: how the optimizers move on a function with periodic gradients, and on four in the plane."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from frankenstein.cli import main
from frankenstein.compare.store.records import RecordError, read
from frankenstein.experiments import EXPERIMENTS, Experiment, fig1, fig1_charts, fig1_descent, fig1_scenes, page
from frankenstein.experiments.experiment import ExperimentError, Findings, Options, Picture
from frankenstein.experiments.fig1_descent import DESCENTS, SPECS, Job, Way, descend, measured_factor
from frankenstein.experiments.fig1_scenes import SCENES, STAIRS, TUNED_STAIRS, settings

ROUNDING = 5e-4  # of a factor kept with four digits
STEP_ERROR = 2e-3  # of a displacement put together from such factors, relative to the largest


class Here:
    """Runs jobs at once, in this process."""

    n_parallel = 1

    def __init__(self):
        self.ran = []

    def submit(self, job):
        self.ran.append(job.key)
        future = Future()
        try:
            future.set_result(job.run())
        except RuntimeError as error:
            future.set_exception(error)
        return future


@pytest.fixture(scope="module")
def ours():
    """The record of Frankenstein on the stairs."""
    return Job("stairs", "frankenstein", 1).run()


@pytest.fixture(scope="module")
def few():
    """Records of two optimizers on every function, and of Frankenstein on some."""
    own = [Job(scene, "frankenstein", 2).run() for scene in ("stairs", "booth")]
    return own + [Job(scene, name, 2).run() for scene in SCENES for name in ("sgd", "ranger")]


@pytest.fixture
def listed(monkeypatch):
    """Put the experiment on the command line's list."""
    entry = Experiment("fig1", "how they move", "1 min", ("torch", "matplotlib"), "experiments", fig1.__name__)
    monkeypatch.setitem(EXPERIMENTS, "fig1", entry)


def test_the_factors_are_those_of_the_steps_that_were_taken(ours):
    """The path follows from the factors and the gradient alone, by Algorithm 1's last lines."""
    factors = {name: np.array(column) for name, column in ours["factors"].items()}
    beta1, lr = 0.9, STAIRS.lr  # base_lr moves with the rate, so beta1 is the momentum
    x, momentum, path = 20.0, 0.0, [20.0]
    for adaptive, decay in zip(factors["adaptive"], factors["rho beta1"], strict=True):
        d = lr * adaptive * 2.0 * math.copysign(1.0 - math.cos(x), x)
        momentum = decay * momentum - d
        x += beta1 * momentum - d
        path.append(x)
    np.testing.assert_allclose(ours["path"][0], path, atol=STEP_ERROR * 20.0)


def test_xi_follows_from_p_and_the_gradient_of_the_step_before(ours):
    xi, misalignment = (np.array(ours["factors"][name]) for name in ("xi", "P"))
    squared = (2.0 * (1.0 - np.cos(ours["path"][0]))) ** 2
    distance = np.abs(squared[:-2] - misalignment[1:])  # eq. 13
    expected = (1.0 + math.exp(-0.5)) / (1.0 + np.exp(-distance))
    np.testing.assert_allclose(xi[1:], expected, atol=20 * ROUNDING)  # x has four digits, and the gradient is steep


def test_the_figure_has_the_features_of_the_published_one(ours):
    xi = ours["factors"]["xi"]
    assert max(xi) > 1.6
    assert xi[-1] == pytest.approx(1.0, abs=1e-3)
    first, second = fig1.features(ours)
    assert "rises to 1.607 (published: up to 1.6" in first and "ends at 1.000 (published: 1)" in first
    # from 20 to 0 lie three flats, at multiples of 2 pi, and three slopes
    assert "6 peaks (published: two distinct ones): 3 on slopes" in second and "and 3 on flats" in second


def test_features_that_are_not_there_are_not_claimed(ours):
    still = {**ours, "path": [[20.0] * 3], "factors": {"xi": [1.0, 0.9]}}
    assert fig1.features(still) == [
        "xi of Frankenstein rises to 1.000 (published: up to 1.6; eq. 13 allows 1.6065) and ends at 0.900 "
        "(published: 1)."
    ]


@pytest.mark.parametrize(
    "name, factor",
    [
        ("adam", 10.0),  # step lr, momentum g / 10
        ("lookahead", 10.0),  # the momentum is that of the optimizer within
        ("sgd", 1.9),  # step lr (g + 0.9 b), momentum b = g
        ("rmsprop", math.sqrt(10.0)),  # no momentum: step lr g / sqrt(g^2 / 10)
        ("sophia", 0.01 / 0.04),  # step 0.01 lr, which clips; momentum g / 25
    ],
)
@pytest.mark.filterwarnings(r"ignore:Using backward\(\) with create_graph=True")
def test_the_factor_of_the_others_is_measured(name, factor):
    """After one step from 1, where the gradient g is 1."""
    x = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    optimizer = SPECS[name].make([x], {"lr": 1e-3})
    (x**2 / 2).sum().backward(**SPECS[name].backward)
    before = x.detach().clone()
    optimizer.step()
    assert measured_factor(optimizer, x, before, 1e-3) == pytest.approx(factor, rel=1e-6)
    optimizer.zero_grad()  # a graph in the gradient would keep itself alive


def test_there_is_no_factor_without_a_momentum():
    x = torch.tensor([3.0], requires_grad=True)
    optimizer = SPECS["sgd"].make([x], {"lr": 1e-3})
    x.grad = torch.zeros(1)
    optimizer.step()
    assert math.isnan(measured_factor(optimizer, x, x.detach().clone(), 1e-3))


def test_a_way_counts_from_the_step_that_stays_near():
    assert Way([], [1.0, 1e-4, 1.0, 1e-4, 1e-5]).steps == 3
    assert Way([], [1e-4, 1e-4]).steps == 0
    assert Way([], [1.0, 1e-4, 1.0]).steps is None
    assert Way([], [1.0, 1e-4], diverged="the loss was not finite").steps is None


def test_fewer_steps_are_better_then_a_lower_end_and_divergence_is_worst():
    fast, slow = Way([], [1.0, 1e-4]), Way([], [1.0, 1.0, 1e-9])
    low, high = Way([], [1.0, 0.1]), Way([], [1.0, 0.2])
    lost = Way([], [1.0, 1e-5], diverged="the loss was not finite at step 2")
    assert sorted([lost, high, slow, low, fast], key=fig1_descent._merit) == [fast, slow, low, high, lost]


@pytest.mark.parametrize("name", SCENES)
def test_the_scenes_have_their_minima_where_they_say(name):
    scene = SCENES[name]
    for minimum in scene.minima or [(0.0,)]:
        at = torch.tensor(minimum, dtype=torch.float64, requires_grad=True)
        value = scene.function(at)
        (slope,) = torch.autograd.grad(value, at)
        assert value.item() == 0.0 and slope.tolist() == [0.0] * len(minimum)
    assert scene.value(*scene.start) > 0.2  # the saddle's start is higher than its pass, 1/4
    if scene.window:
        left, right, bottom, top = scene.window
        assert all(left < x < right and bottom < y < top for x, y in (*scene.minima, scene.start))


def test_every_optimizer_gets_the_same_search_and_one_rate_for_all_is_one():
    for spec in SPECS.values():
        rates = TUNED_STAIRS.rates(spec)
        assert len(rates) == 9 and rates[-1] / rates[0] == pytest.approx(1e4, rel=0.01)
        assert rates[4] == pytest.approx(1000.0 * spec.default["lr"], rel=0.01)
        assert STAIRS.rates(spec) == [0.02]
    assert settings(SPECS["frankenstein"], 0.02) == {"lr": 0.02, "base_lr": 0.02}
    assert settings(SPECS["adam"], 0.02) == {"lr": 0.02}


def test_starts_lie_around_the_drawn_one():
    assert STAIRS.starts(3) == [(20.0,), (19.8,), (20.2,)]
    assert len(STAIRS.starts(99)) == 11 and {19.0, 21.0} < {x for (x,) in STAIRS.starts(11)}
    assert SCENES["saddle"].starts(11) == [(1.5, 0.001)]


def test_the_best_rate_is_taken_and_one_that_diverges_is_not():
    record = Job("booth", "sgd", 1).run()
    scene, spec = SCENES["booth"], SPECS["sgd"]
    tried = {lr: descend(scene, spec, lr, scene.start) for lr in scene.rates(spec)}
    assert any(way.diverged for way in tried.values())
    steps = {lr: way.steps for lr, way in tried.items() if way.steps is not None}
    assert record["steps"] == min(steps.values()) == steps[record["settings"]["lr"]]
    assert record["end"] == pytest.approx([1.0, 3.0], abs=1e-3)


def test_an_optimizer_that_diverges_is_recorded_and_shown(monkeypatch, tmp_path):
    steep = replace(STAIRS, name="booth", function=fig1_scenes.booth, start=(-6.0, -2.0), lr=10.0, n_starts=1)
    monkeypatch.setitem(SCENES, "booth", replace(steep, window=(-8.0, 6.0, -4.0, 8.0)))
    monkeypatch.setattr(fig1_descent, "_Watched", lambda factory, way: factory)  # factors are of one dimension
    jobs = [Job("booth", "sgd", 1)]
    (record,) = fig1.run(jobs, Options("local", tmp_path, None), Here())
    assert record["outcome"] == "diverged" and "not finite at step" in record["reason"]
    assert record["value"] is None and record["steps"] is None and np.isfinite(record["path"]).all()
    assert read(tmp_path, pytest.fail, DESCENTS) == [record]
    (row,) = fig1.findings([record]).tables[0].rows
    assert [cell.text for cell in row[2:]] == ["diverged", "", ""]


def test_it_goes_on_where_it_stopped_and_runs_anew_what_has_changed(tmp_path, monkeypatch):
    options = Options("local", tmp_path, None)
    jobs = [Job("saddle", name, 1) for name in ("adam", "lion")]
    first = Here()
    records = fig1.run(jobs[:1], options, first)
    second = Here()
    assert fig1.run(jobs, options, second)[:1] == records
    assert first.ran == ["saddle/adam"] and second.ran == ["saddle/lion"]
    monkeypatch.setitem(SCENES, "saddle", replace(SCENES["saddle"], n_steps=10))
    third = Here()
    assert [len(record["path"][0]) for record in fig1.run(jobs, options, third)] == [11, 11]
    assert third.ran == ["saddle/adam", "saddle/lion"]


def test_a_run_that_fails_is_one_line_and_costs_no_other(tmp_path, monkeypatch):
    def broken(x):
        raise RuntimeError("no such place")

    monkeypatch.setitem(SCENES, "booth", replace(SCENES["booth"], function=broken))
    options = Options("local", tmp_path, None)
    fig1.run([Job("saddle", "lion", 1)], options, Here())
    with pytest.raises(ExperimentError, match=r"^booth/lion failed: no such place; the same command goes on"):
        fig1.run([Job("saddle", "lion", 1), Job("booth", "lion", 1)], options, Here())
    assert [record["cell"] for record in read(tmp_path, pytest.fail, DESCENTS)] == ["saddle/lion"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"path": [[1.0, 2.0], [1.0]]}, "has a path that is not lists of numbers"),
        ({"path": [[1.0, None]]}, "has a path"),
        ({"path": []}, "has a path"),
        ({"factors": {"adaptive": [1.0]}}, "has factors that are not lists of numbers, one for each step"),
        ({"outcome": "lost"}, "has 'lost' in 'outcome'"),
        ({"n_found": None}, "has 'None' in 'n_found'"),
    ],
)
def test_a_damaged_record_is_refused(change, message, ours, tmp_path):
    lines = [json.dumps({**ours, **change}), json.dumps(ours)]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(RecordError, match=f"line 1 {message}"):
        read(tmp_path, pytest.fail, DESCENTS)


def test_findings_are_of_the_records_alone_in_any_order(few):
    found, again = fig1.findings(few), fig1.findings(few[::-1])
    assert found.sentences == again.sentences and found.tables == again.tables
    assert [chart.rows for chart in found.charts] == [chart.rows for chart in again.charts]
    assert [chart.name for chart in found.charts] == ["fig1", "fig1-factors", "fig1-tuned"]
    assert [table.name for table in found.tables] == [f"fig1-{name}" for name in SCENES]
    text = "\n".join(found.sentences)
    assert "one rate for all: 2 of 3 are at the minimum after 300 steps" in text
    assert "of 2: Frankenstein 2, SGD (Nesterov) 2, all others 0." in text
    for table in found.tables:  # the fastest first, and bold
        steps = [cell[4].numbers[""] for cell in table.rows]
        assert steps == sorted(steps)
        assert [row[4].is_best for row in table.rows] == [step == steps[0] < math.inf for step in steps]


def test_without_frankenstein_the_others_are_shown(few):
    others = [record for record in few if record["optimizer"] != "frankenstein"]
    found = fig1.findings(others)
    assert "Frankenstein takes" not in "\n".join(found.sentences) and "xi" not in "\n".join(found.sentences)
    assert [chart.name for chart in found.charts] == ["fig1", "fig1-tuned"]


def test_the_chart_shows_the_records_and_the_function(few):
    chart = fig1_charts.paper_figure([record for record in few if record["scene"] == "stairs"])
    shares = [row["factor"] for row in chart.rows if "factor" in row and row["optimizer"] == "Frankenstein"]
    assert max(shares) == 1.0 and len(shares) == fig1_charts.N_FACTOR_STEPS
    slopes = {row["at"]: row["height"] for row in chart.rows if row.get("curve") == "gradient"}
    assert slopes == pytest.approx({x: math.copysign(2 * (1 - math.cos(x)), x) for x in slopes}, abs=1e-3)
    assert max(slopes.values()) == pytest.approx(4.0, abs=0.01)


def test_no_two_optimizers_look_alike():
    assert len({(colour, *dash) for colour, dash in map(fig1_charts.colour_and_dash, SPECS)}) == len(SPECS) == 21


def pixels_of(image, colour):
    """Count the pixels of a colour, nearly."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(np.asarray(image.convert("RGB"), int) - wanted).max(-1) <= 8).sum())


def test_pictures_show_the_trajectories_and_are_small(few):
    found = fig1.findings(few)
    assert [picture.name for picture in found.pictures] == [
        f"fig1-{name}.{suffix}" for name in ("beale", "rosenbrock", "booth", "saddle") for suffix in ("png", "gif")
    ]
    still, moving = (picture.draw() for picture in found.pictures[4:6])
    assert (still, moving) == tuple(picture.draw() for picture in found.pictures[4:6])  # the same records, bytes
    image, animation = Image.open(io.BytesIO(still)), Image.open(io.BytesIO(moving))
    assert image.format == "PNG" and animation.format == "GIF" and animation.n_frames > 40
    assert len(still) < 500_000 and len(moving) < 500_000
    for name in ("frankenstein", "sgd", "ranger"):
        assert pixels_of(animation, fig1_charts.colour_and_dash(name)[0]) > 20  # its line in the legend, at least
    half = image.crop((0, 0, int(0.72 * image.width), image.height))  # without the legend
    assert pixels_of(half, fig1_charts.colour_and_dash("frankenstein")[0]) > 500
    animation.seek(animation.n_frames // 4)
    assert np.any(np.asarray(animation.convert("RGB")) != np.asarray(Image.open(io.BytesIO(moving)).convert("RGB")))


def test_the_page_holds_its_pictures(tmp_path):
    picture = Picture("a-dot.png", "A <dot>.", lambda: b"\x89PNG dot")
    written = page.write(Findings("Dots", ["One."], pictures=[picture]), tmp_path)
    assert tmp_path / "figures" / "a-dot.png" in written
    assert (tmp_path / "figures" / "a-dot.png").read_bytes() == b"\x89PNG dot"
    text = (tmp_path / "report.html").read_text()
    assert 'src="data:image/png;base64,iVBORyBkb3Q="' in text and "<figcaption>A &lt;dot&gt;.</figcaption>" in text


def test_nothing_optional_is_imported_before_it_is_needed():
    optional = {"torch", "pytorch_optimizer", "matplotlib", "PIL", "vl_convert"}
    code = f"import sys, frankenstein.experiments.fig1; print(*{optional} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_wrong_names_get_one_line(listed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "fig1", "--methods", "adm"]) == 2
    printed = capsys.readouterr().err
    assert "unknown method 'adm'; did you mean 'adam'?" in printed and printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_runs_shows_and_writes(listed, capsys, tmp_path):
    words = ["reproduce", "fig1", "--out", str(tmp_path), "--workers", "1", "--starts", "1"]
    assert main([*words, "--methods", "SGD"]) == 0
    printed = capsys.readouterr().out
    assert "of 1: SGD (Nesterov) 1, all others 0." in printed and "Booth: 1 of 1 are at the minimum" in printed
    for name in ("report.html", "tables/fig1-booth.csv", "figures/fig1.svg", "figures/fig1-saddle.gif"):
        assert (tmp_path / name).stat().st_size > 50 and str(tmp_path / name) in printed
    records = (tmp_path / "records.jsonl").read_bytes()
    assert records.count(b"\n") == len(SCENES)
    assert main([*words, "--methods", "sgd"]) == 0
    assert (tmp_path / "records.jsonl").read_bytes() == records
