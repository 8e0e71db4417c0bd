"""Fig. 8 and Fig. 9, end to end on tiny data, and what they say of made-up findings."""

from __future__ import annotations

import json
import shutil

import pytest
from network_cases import reproduce, write

from frankenstein.compare.problems.problem import Budget
from frankenstein.compare.store.records import read
from frankenstein.experiments import fig2, fig8, fig9, fine_tuning, networks
from frankenstein.experiments.experiment import ExperimentError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write(folder, "cifar10_12k", 10, 32)
    return folder


@pytest.fixture(scope="module")
def ran(data, tmp_path_factory):
    """A run of each with two optimizers."""
    out = tmp_path_factory.mktemp("out")
    variables = {"FRANKENSTEIN_DATA": str(data), "FRANKENSTEIN_CACHE": str(out / "cache")}
    for name in ("fig8", "fig9"):
        arguments = [name, "--out", out / name, "--steps", 3, "--starts", 1, "--methods", "frankenstein", "rmsprop"]
        done = reproduce(*arguments, **variables)
        assert done.returncode == 0, done.stderr
    return out


def test_rates_are_those_that_fig2_chose(pytestconfig):
    """Guards against rates that were typed in and no longer are what the records say."""
    folder = pytestconfig.rootpath / "docs" / "records" / "fig2"
    (summary,) = networks.summaries(read(folder, pytest.fail), ["fig2-cifar10_12k"])
    chosen = {row.optimizer.removeprefix("fig2-local-"): row.tuned.settings["lr"] for row in summary.rows}
    assert chosen == fine_tuning.LOCAL_RATES
    for spec in fine_tuning.optimizers("fig8"):
        name, preset = spec.name.split("-")[-1], spec.name.split("-")[1]
        assert spec.default["lr"] == (fine_tuning.LOCAL_RATES[name] if preset == "local" else fig2.LR["paper"])


def test_landscapes(ran):
    out = ran / "fig8"
    landscapes, sharp = fig8.read_landscapes(out)
    names = [f"fig8-local-{name}" for name in ("frankenstein", "rmsprop")]
    assert list(landscapes) == [fig8.SHARED, *names] and list(sharp) == names
    for name, landscape in landscapes.items():
        values = landscape.metrics["accuracy"]
        assert values.shape == (3, 3) and landscape.batchnorm == "recompute"
        assert 0 <= values.min() <= values.max() <= 1
        assert len(landscape.about.tracks) == (2 if name == fig8.SHARED else 1)
        assert all(track.steps == [0, 1, 2, 3] for track in landscape.about.tracks.values())
    page = (out / "report.html").read_text()
    assert page.count('class="live"') == 3 and "up to step" in page and "largest eigenvalue" in page
    assert page.count("<svg") >= 3 and "vegaEmbed" in page


def test_what_is_there_is_not_done_again(ran, data):
    out = ran / "fig8"
    points = {path: path.read_bytes() for path in (out / "landscapes").glob("*/*.jsonl")}
    assert len(points) == 3
    eigenvalues = json.loads((out / fig8.SHARPNESS).read_text())
    variables = {"FRANKENSTEIN_DATA": str(data), "FRANKENSTEIN_CACHE": str(ran / "cache")}
    arguments = ["fig8", "--out", out, "--steps", 3, "--starts", 1, "--methods", "frankenstein", "rmsprop"]
    done = reproduce(*arguments, **variables)
    assert done.returncode == 0 and "sharpness" not in done.stderr
    assert {path: path.read_bytes() for path in points} == points
    assert json.loads((out / fig8.SHARPNESS).read_text()) == eigenvalues


def test_snapshots_that_are_gone_are_named(ran, data, tmp_path):
    out = tmp_path / "fig8"
    shutil.copytree(ran / "fig8", out)
    shutil.rmtree(out / "snapshots" / "fig8-local-rmsprop")
    variables = {"FRANKENSTEIN_DATA": str(data), "FRANKENSTEIN_CACHE": str(ran / "cache")}
    arguments = ["fig8", "--out", out, "--steps", 3, "--starts", 1, "--methods", "frankenstein", "rmsprop"]
    done = reproduce(*arguments, **variables)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "fig8-local-rmsprop" in done.stderr.strip().splitlines()[-1]


def test_similarities(ran):
    records = read(ran / "fig9", pytest.fail)
    assert len(records) == 2
    for record in records:
        history, found = record["curve"]["similarity_to_last"], record["details"]
        assert history[-1] == 1.0 and len(history) == 4 and all(value <= 1 for value in history)
        n = len(found["layers"])
        assert n == 20 and found["layers"][1] == "blocks.0.0"
        assert all(found["map"][i][i] == 1.0 for i in range(n))
        assert all(found["map"][i][j] == found["map"][j][i] for i in range(n) for j in range(n))
    page = (ran / "fig9" / "report.html").read_text()
    assert page.count('class="live"') == 3 and "SSIM to the last map" in page


def test_a_run_without_a_folder_is_refused():
    with pytest.raises(ExperimentError, match="frankenstein reproduce fig8"):
        fig8.Recorded("local")(None, 0, Budget(n_steps=1, n_evals=1, split="test"))


def test_the_first_third_with_the_last():
    of = [[1.0, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 1.0]]
    assert fig9._near_far(of) == 0.25
