"""The experiments with networks, end to end on tiny data: the command, its records, its report, a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest
import torch
from network_cases import COMMAND, reproduce, write

from frankenstein.cli import main
from frankenstein.compare.engine import State
from frankenstein.compare.store.records import read
from frankenstein.experiments import fig2, models, networks, published, table1, table6
from frankenstein.experiments.experiment import Options
from frankenstein.experiments.models import NETWORKS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write(folder, "cifar10_12k", 10, 32)
    write(folder, "tinyimagenet100_32px", 100, 32)
    write(folder, "imagenette_96px", 10, 96, ("image", "label"), "JPEG")
    return folder


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path, data):
    monkeypatch.setenv("FRANKENSTEIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FRANKENSTEIN_DATA", str(data))
    monkeypatch.delenv("FRANKENSTEIN_STEPS", raising=False)


def check(out, problems, n_steps, n_runs):
    records = read(out, pytest.fail)
    assert len(records) == n_runs
    assert {record["problem"] for record in records} == set(problems)
    for record in records:
        assert record["outcome"] == "finished" and record["n_steps_done"] == n_steps
        assert all(part["sha256"] for part in record["data"])
    assert (out / "report.html").read_text().count("<svg") >= 2 * len(problems)
    assert not list((out / networks.RUNS).iterdir())


def test_a_killed_command_goes_on(tmp_path):
    """Guards against an experiment that runs in parts only, and runs that are lost when all is killed at once."""
    arguments = ["--steps", "30", "--starts", "2", "--methods", "whole", "--workers", "1"]
    whole = reproduce("table6", "--out", tmp_path / "whole", *arguments)
    assert whole.returncode == 0, whole.stderr
    check(tmp_path / "whole", table6.LOCAL, 30, 4)
    out = tmp_path / "killed"
    command = [*COMMAND, "table6", "--out", str(out), *arguments]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    records = out / "records.jsonl"
    while process.poll() is None and not (records.exists() and records.read_text().count("\n") >= 1):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = reproduce("table6", "--out", out, *arguments)
    assert done.returncode == 0, done.stderr
    check(out, table6.LOCAL, 30, 4)
    outcomes = [
        {record["cell"]: (record["score"], record["curve"]["score"]) for record in read(folder, pytest.fail)}
        for folder in (out, tmp_path / "whole")
    ]
    assert outcomes[0] == outcomes[1]


def test_fine_tuning(tmp_path):
    done = reproduce("fig2", "--out", tmp_path / "out", "--steps", 1, "--starts", 1, "--methods", "frankenstein")
    assert done.returncode == 0, done.stderr
    check(tmp_path / "out", [problem.name for problem in fig2.LOCAL_PROBLEMS], 1, 10)
    for problem in fig2.LOCAL_PROBLEMS:
        mine = [record for record in read(tmp_path / "out", pytest.fail) if record["problem"] == problem.name]
        tried = [record["settings"]["lr"] for record in mine if record["split"] == "validation"]
        assert sorted(tried) == [1e-4, 3.16e-4, 1e-3, 3.16e-3]
        chosen = next(record["settings"]["lr"] for record in mine if record["split"] == "test")
        page = (tmp_path / "out" / "report.html").read_text()
        assert chosen in tried and "learning rate" in page and f"{chosen:g}" in page


def test_from_scratch_and_other_data_are_not_mixed_in(tmp_path):
    """Guards against a mean over runs on two data sets of one name."""
    out = tmp_path / "out"
    arguments = ("table1", "--out", out, "--steps", 1, "--starts", 1, "--methods", "sgd")
    done = reproduce(*arguments)
    assert done.returncode == 0, done.stderr
    check(out, [table1.PROBLEMS[0].name], 1, 1)
    record = json.loads((out / "records.jsonl").read_text())
    record["data"][0]["sha256"] = "0" * 64
    (out / "records.jsonl").write_text(json.dumps(record) + "\n")
    done = reproduce(*arguments)
    assert done.returncode == 2
    assert "other data" in done.stderr and "--out" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fig2", "--methods", "adamm"), "adam"),
        (("fig2", "--data-dir", "/nowhere"), "no data folder /nowhere"),
        (("--all", "fig2"), "--all runs every experiment"),
        (("table6", "--steps", "0"), "--steps"),
        ((), "which experiment?"),
    ],
)
def test_wrong_arguments(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1
    assert not list(tmp_path.glob("runs/*"))


def test_missing_data(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    done = reproduce("table6", "--out", tmp_path / "out", FRANKENSTEIN_DATA=str(empty))
    assert done.returncode == 2
    assert "cifar10_12k" in done.stderr and "--data-dir" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name in NETWORKS if "random" in name or "-" not in name))
def test_networks_classify(name):
    import torch

    network = NETWORKS[name](7)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_published_curves():
    """The numbers that the paper's text gives are those of the logs."""
    found = published.curves("cifar10_finetune", "efficientnet_b0", "test_accuracy_percent")
    assert max(value for _, value in found["frankenstein"]) == 96.39
    assert len(published.curves("imagenet_scratch", "resnet18", "eval_top1_percent")["frankenstein"]) == 120


def test_on_one_pixel_lite0_is_the_network_that_it_was(monkeypatch):
    """The product with the kernels' middles, against torch's convolutions: output and every gradient, in float64."""
    torch.manual_seed(0)
    fast = NETWORKS["efficientnet-lite0"](10).double()
    with monkeypatch.context() as changed:
        changed.setattr(models, "_fast_on_one_pixel", lambda network: network)
        plain = NETWORKS["efficientnet-lite0"](10).double()
    plain.load_state_dict(fast.state_dict())
    changed_layers = sum(
        type(layer).__name__ == "Conv2d" and type(layer) is not torch.nn.Conv2d for layer in fast.modules()
    )
    assert changed_layers > 30
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    outputs = [network.train()(x) for network in (fast, plain)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(*outputs)
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)


def test_the_runs_of_all_plans_are_counted_together(tmp_path):
    """Guards against a bar that begins again with each plan, and a Ctrl-C that tells of the last plan's runs only."""
    shown = []
    plans = [networks.Plan("m", ("a", "b"), ("x",), 3), networks.Plan("m", ("c",), ("x", "y"), 1, n_trials=4)]
    options = Options("local", tmp_path, None, progress=lambda done, total, _: shown.append((done, total)))
    comparisons = [networks._comparison(plan, options) for plan in plans]
    with networks._shown(tmp_path, options, comparisons) as progress:
        progress(0, None, State(6, 6, None))
        progress(1, None, State(2, 10, None))
    assert shown[0] == (6, 16) and shown[1] == (8, 16)
