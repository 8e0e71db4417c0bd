"""The real command, stopped in every way, goes on as if it had not been; bitwise, and with no call made twice."""

from __future__ import annotations

import os
import resource
import signal
import time

import pytest
from relax_cases import CALCULATORS, outcomes, start, write_clusters


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The arguments of the command, but for the folder."""
    file = write_clusters(tmp_path_factory.mktemp("starts") / "some.xyz", 3, 13)
    return [file, "--calculator", f"{CALCULATORS}:Counted", "--maxstep", "0.1", "--compare", "cg"]


@pytest.fixture(scope="module")
def whole(asked, tmp_path_factory):
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(*asked, "--out", folder / "out", variables={"CALLS": str(folder / "calls")})
    _, err = process.communicate()
    assert process.returncode == 0, err
    return folder


@pytest.fixture
def stopped(asked, tmp_path):
    """Start the command, let it send itself a signal in the middle of a call; return how it ended and what it said."""

    def run(*more, at, name, largest_file=None):
        variables = {"CALLS": str(tmp_path / "calls"), "KILL_AT": str(at), "SIGNAL": name}
        process = start(*asked, *more, "--out", tmp_path / "out", variables=variables)
        if largest_file:  # set from outside while it still imports: a fork that runs Python here could hang with JAX
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_file, largest_file))
        _, err = process.communicate()
        assert "Traceback" not in err
        return process.returncode, [line for line in err.splitlines() if line.startswith("frankenstein: ")]

    return run


@pytest.fixture
def go_on(asked, tmp_path, relax, monkeypatch):
    """Give the same command again; return how many calls there were in all."""

    def run(*more):
        monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
        code, _, said = relax(*asked, *more)
        assert (code, said) == (0, [])
        return n_calls(tmp_path)

    return run


def n_calls(folder):
    return (folder / "calls").stat().st_size


def assert_same(folder, other):
    assert outcomes(folder / "out") == outcomes(other / "out")
    names = ["relaxed.extxyz", *(f"trajectories/some-{i:04d}.traj" for i in range(3))]
    for name in names:
        assert (folder / "out" / name).read_bytes() == (other / "out" / name).read_bytes()


@pytest.mark.parametrize(
    "name, method", [("SIGINT", "frankenstein"), ("SIGKILL", "frankenstein"), ("SIGTERM", "cg"), ("SIGKILL", "cg")]
)
def test_a_run_that_is_stopped_in_the_middle_of_a_call_goes_on(stopped, go_on, whole, tmp_path, name, method):
    n_first = outcomes(whole / "out")["some-0000", "frankenstein"]["calls"]
    # the other optimizer comes second; it cannot save its state, and need not
    code, said = stopped(at=n_first + 12 if method == "cg" else 12, name=name)
    n_done = 1 if method == "cg" else 0
    ended = outcomes(tmp_path / "out") if n_done else {}
    assert list(ended) == [("some-0000", "frankenstein")][:n_done]
    if name == "SIGKILL":
        assert (code, said) == (-signal.SIGKILL, [])
    else:
        (line,) = said
        assert code == 130
        assert line.startswith(
            f"frankenstein: stopped; {n_done} of 6 are done, all calls are kept in {tmp_path / 'out'}: `"
        )
        assert line.endswith(f"--compare cg --out {tmp_path / 'out'}` goes on")
        assert (tmp_path / "out" / "relaxed.extxyz").read_text().count("some-0000") == n_done
    assert go_on() == n_calls(whole) + 1  # the call that was under way
    assert_same(tmp_path, whole)


def test_a_killed_worker_fails_what_it_had_and_the_same_command_mends_it(stopped, go_on, whole, tmp_path):
    code, said = stopped("--workers", "2", at=30, name="SIGKILL")
    ended = outcomes(tmp_path / "out")
    assert len(ended) == 6
    (failed,) = [outcome for outcome in ended.values() if outcome["reason"] == "failed"]
    assert failed["message"] == "the worker process ended with SIGKILL (out of memory?)"
    assert (code, len(said)) == ((1, 1) if failed["optimizer"] == "frankenstein" else (0, 0))
    go_on()
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_stopped_run_leaves_no_worker_behind(asked, go_on, whole, tmp_path, name):
    """Ctrl-C goes to all processes of the terminal, a kill to the first alone."""
    variables = {"CALLS": str(tmp_path / "calls"), "KILL_AT": "60", "SIGNAL": "SIGSTOP"}
    process = start(*asked, "--workers", "2", "--out", tmp_path / "out", variables=variables)
    while not (tmp_path / "calls.killed").exists():  # a worker stands still in the middle of a call
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
        os.killpg(process.pid, signal.SIGCONT)
    process.communicate()  # waits for all that have its output open: its workers
    assert process.returncode == (130 if name == "SIGINT" else -signal.SIGKILL)
    go_on("--workers", "2")
    assert_same(tmp_path, whole)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits the size of files as Linux has it")
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(stopped, go_on, whole, tmp_path):
    code, said = stopped(at=0, name="", largest_file=20_000)
    assert code == 1
    (line,) = said
    assert line.startswith("frankenstein: error: cannot write ")
    assert line.endswith("goes on where it stopped")
    assert go_on() <= n_calls(whole) + 1
    assert_same(tmp_path, whole)


def test_a_journal_of_another_path_is_not_believed(stopped, go_on, whole, tmp_path):
    stopped(at=10, name="SIGKILL")
    (journal,) = (tmp_path / "out" / "journals" / "frankenstein").iterdir()
    os.replace(journal, journal.with_name("some-0001.calls"))
    assert go_on() == n_calls(whole) + 10
    assert_same(tmp_path, whole)
