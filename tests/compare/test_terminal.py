"""Progress; the tables in the terminal are tested beside the tables."""

from __future__ import annotations

import io

import pytest
from compare.hand_made import run
from rich.console import Console
from rich.progress import Progress

from frankenstein.compare.engine import State
from frankenstein.compare.report import terminal


def test_counts():
    with terminal.progress() as counter:
        assert (str(counter), counter.n_run) == ("0 of 0 runs", 0)
        counter(None, State(3, 10, None))
        assert (str(counter), counter.n_run) == ("3 of 10 runs", 0)
        counter(run(0, "a", 0.5), State(4, 10, 90.0))
        assert (str(counter), counter.n_run) == ("4 of 10 runs", 1)
        counter(run(0, "a", 0.5), State(5, 9, 80.0))  # the default was chosen: fewer cells
        assert (str(counter), counter.n_run) == ("5 of 9 runs", 2)


def test_nothing_is_shown_before_it_starts(capsys):
    with terminal.progress() as counter:
        assert not counter.bar.live.is_started
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_the_terminal_is_put_right(error):
    bars = []

    def stopped():
        with terminal.progress() as counter:
            counter(None, State(0, 10, None))
            bars.append(counter.bar)
            assert counter.bar.live.is_started
            raise error

    with pytest.raises(error):
        stopped()
    assert not bars[0].live.is_started


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_is_the_engines():
    """It counts down from the last estimate; the bar's own rate does not come in."""
    clock = Clock()
    bar = Progress(terminal._TimeLeft(), console=Console(file=io.StringIO(), width=80), get_time=clock)
    counter = terminal.Counter(bar)

    def shown() -> str:
        console = Console(file=io.StringIO(), width=80)
        console.print(bar.make_tasks_table(bar.tasks))
        return console.file.getvalue().strip()

    assert shown() == ""
    counter(None, State(0, 1000, None))
    assert shown() == ""
    counter(run(0, "a", 0.5), State(1, 1000, 600.0))
    assert shown() == "~10 min left"
    clock.now += 560.0
    assert shown() == "~40 s left"
    clock.now += 600.0
    assert shown() == "< 10 s left"
    counter(run(0, "a", 0.5), State(2, 1000, 8000.0))
    assert shown() == "~2.2 h left"
    counter(run(0, "a", 0.5), State(1000, 1000, 0.0))
    assert shown() == ""
    bar.stop()


def test_names_are_no_markup(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with terminal.progress() as counter:
        counter(None, State(0, 10, None))
        counter(run(0, "a", 0.5) | {"problem": "[red]x[/blue]", "optimizer": "m:C"}, State(1, 10, 5.0))
    assert "[red]x[/blue], m:C" in capsys.readouterr().err
