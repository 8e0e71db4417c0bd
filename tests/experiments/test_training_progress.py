from __future__ import annotations

import io
import multiprocessing
import sys
import threading

import pytest
from training_cases import noisy, plain, train

from frankenstein.compare.problems.problem import Budget
from frankenstein.experiments.training import Progress, Recipe, progress, read_progress
from frankenstein.experiments.training.progress import Reporter

HALF = Progress(5, 10, 0.5, 1.25, 0.75, 100.0, 0.125, 60.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the reporter sees; a test moves them."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_what_is_written_is_read(tmp_path):
    assert read_progress(tmp_path) is None
    with Reporter(tmp_path / "run", is_shown=False) as report:
        report(lambda: HALF)
    assert read_progress(tmp_path / "run") == HALF


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"step": 1}', '{"unknown": 1}'])
def test_what_cannot_be_read_is_no_progress(tmp_path, content):
    (tmp_path / "progress.json").write_text(content)
    assert read_progress(tmp_path) is None


def test_at_most_once_a_second_and_at_the_end(tmp_path, clock):
    asked = []
    with Reporter(tmp_path, is_shown=False) as report:
        for clock[0] in (0.0, 0.5, 0.9, 1.0, 1.9, 2.1):
            report(lambda: asked.append(clock[0]) or HALF)
        report(lambda: asked.append("end") or HALF, is_last=True)
    assert asked == [0.0, 1.0, 2.1, "end"]


def test_nobody_to_report_to(capsys):
    with Reporter(None, is_shown=True) as report:
        report(lambda: pytest.fail("nobody reads it"))
    assert capsys.readouterr().err == ""


def test_readers_never_see_half_a_file(tmp_path, clock):
    seen, is_over = [], threading.Event()

    def read():
        while not is_over.is_set():
            seen.append(read_progress(tmp_path))

    with Reporter(tmp_path, is_shown=False) as report:
        report(lambda: HALF)
        reader = threading.Thread(target=read)
        reader.start()
        for clock[0] in range(1, 300):
            report(lambda: HALF)
        is_over.set()
        reader.join()
    assert seen
    assert set(seen) == {HALF}


def test_a_training_says_how_far_it_is(tmp_path):
    measured = train(plain, Recipe(), Budget(25, 5, "test", folder=tmp_path))
    last = read_progress(tmp_path)
    assert (last.step, last.n_steps, last.epoch, last.seconds_left) == (25, 25, 2.5, 0.0)
    assert last.score == measured.curve["score"][-1]
    assert 0.0 < last.loss < 3.0
    assert last.samples_per_second > 1.0
    assert 0.0 <= last.wait_share <= 1.0


def test_numbers_are_those_of_the_time_since_the_last_report(tmp_path, clock, monkeypatch):
    """Guards against rates since the start, which hide that a training became slow, and an estimate without them."""
    seen = []
    monkeypatch.setattr(Reporter, "_write", lambda _, numbers: seen.append(numbers))

    def start(seed, budget):
        task = plain(seed, budget)

        def loss(*arguments, inner=task.loss):
            clock[0] += 2.0
            return inner(*arguments)

        task.loss = loss
        return task

    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    train(start, Recipe(), Budget(3, 1, "test", folder=tmp_path))
    assert [numbers.seconds_left for numbers in seen] == [4.0, 2.0, 0.0]
    assert [numbers.samples_per_second for numbers in seen] == [12.0, 12.0, 12.0]  # 24 samples in 2 s
    assert {numbers.wait_share for numbers in seen} == {0.0}


def test_a_bar_for_the_user_in_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    train(noisy, Recipe(), Budget(25, 5, "test"))
    shown = sys.stderr.getvalue()
    assert "25/25" in shown and "epoch 2.5" in shown and "samples/s" in shown and "0:00:00 left" in shown


@pytest.mark.parametrize("who", ["worker", "other rank", "file"])
def test_no_bar_for_anyone_else(monkeypatch, who):
    """Workers write to the terminal of their parent, which has a bar of its own."""
    stderr = io.StringIO() if who == "file" else Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    if who == "worker":
        monkeypatch.setattr(multiprocessing, "parent_process", object)
    with Reporter(None, is_shown=who != "other rank") as report:
        report(lambda: HALF)
    assert stderr.getvalue() == ""
