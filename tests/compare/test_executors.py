from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from concurrent.futures import Future, wait

import pytest
from driven import driver, is_running, pids, processes_of, wait_for_end, wait_until
from stub_jobs import StubJob

from frankenstein.compare import executors
from frankenstein.compare.executors import ExecutorError, JobQueue, WorkerError, local
from frankenstein.compare.executors.local import gpu_slots, local_executor, n_processors
from frankenstein.compare.interrupts import interrupts_held

KILLED = "the worker process was ended by SIGKILL (out of memory?)"


@pytest.fixture
def soon(monkeypatch):
    """A job that hangs is ended soon after its time, not ten seconds after."""
    monkeypatch.setattr(executors, "GRACE_SECONDS", 0.1)


def test_records_come_back():
    with local_executor(2, 1, 0) as executor:
        assert executor.n_parallel == 2
        futures = [executor.submit(StubJob(str(i))) for i in range(20)]
        records = [future.result() for future in futures]
    assert [record["cell"] for record in records] == [str(i) for i in range(20)]
    assert 1 <= len({record["pid"] for record in records}) <= 2
    assert os.getpid() not in {record["pid"] for record in records}


def test_as_many_workers_as_jobs_fit_on_the_processors():
    with local_executor(None, 1, 0) as executor:
        assert executor.n_parallel == n_processors()
    with local_executor(None, 10 * n_processors(), 0) as executor:
        assert executor.n_parallel == 1


def test_jobs_run_side_by_side(tmp_path):
    with local_executor(2, 1, 0) as executor:
        futures = [executor.submit(StubJob(key, "wait", tmp_path)) for key in "ab"]
        first, second = pids(tmp_path, "a", "b")
        assert first != second
        (tmp_path / "go").touch()
        assert {future.result()["pid"] for future in futures} == {first, second}


def test_threads_of_a_worker(monkeypatch):
    """Set for libraries that read it when they are loaded, and gone from this process afterwards."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with local_executor(1, 3, 0) as executor:
        executor.submit(StubJob("a", "environment", n_cpus=3)).result()  # torch is not loaded before
        record = executor.submit(StubJob("b", "environment", n_cpus=3)).result()
    assert record["n_threads"] == 3
    assert [record["variables"][name] for name in executors.THREAD_VARIABLES] == ["3", "3", "3"]
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(
    "what, why",
    [
        ("raise", "ValueError: first line"),
        ("leave", "SystemExit: 3"),
        ("number", "TypeError: cannot pickle '_thread.lock' object"),
        ("missing", "AttributeError: 'StubJob' object has no attribute 'do_missing'"),
    ],
)
def test_an_error_of_a_job_leaves_its_worker_alive(what, why):
    with local_executor(1, 1, 0) as executor:
        before, failed, after = (executor.submit(StubJob("a", how)) for how in ("return", what, "return"))
        error = failed.exception()
        assert isinstance(error, WorkerError)
        assert str(error) == why
        assert before.result()["pid"] == after.result()["pid"]


def test_a_job_that_cannot_be_sent():
    with local_executor(1, 1, 0) as executor:
        error = executor.submit(StubJob("a", modules=(threading.Lock(),))).exception()
        assert isinstance(error, WorkerError)
        assert "cannot pickle" in str(error)
        assert executor.submit(StubJob("b")).result()["cell"] == "b"


def test_a_killed_worker_fails_its_own_job_only(tmp_path):
    with local_executor(2, 1, 0) as executor:
        a, b, c = (executor.submit(StubJob(key, "wait", tmp_path)) for key in "abc")
        os.kill(pids(tmp_path, "a", "b")[0], signal.SIGKILL)
        assert str(a.exception()) == KILLED
        assert isinstance(a.exception(), WorkerError)
        (tmp_path / "go").touch()
        assert [future.result()["cell"] for future in (b, c)] == ["b", "c"]


def test_an_idle_worker_killed_fails_no_job():
    with local_executor(1, 1, 0) as executor:
        pid = executor.submit(StubJob("a")).result()["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        assert executor.submit(StubJob("b")).result()["pid"] != pid


@pytest.mark.parametrize("what, why", [("die", KILLED), ("exit", "the worker process was ended with exit code 7")])
def test_how_a_worker_ended(what, why):
    with local_executor(1, 1, 0) as executor:
        failed, after = executor.submit(StubJob("a", what)), executor.submit(StubJob("b"))
        assert str(failed.exception()) == why
        assert after.result()["cell"] == "b"


def test_a_worker_that_dies_and_leaves_a_child_behind(tmp_path):
    """The child has inherited every pipe: none of them tells that the worker is dead."""
    with local_executor(1, 1, 0) as executor:
        failed = executor.submit(StubJob("a", "fork", tmp_path))
        assert str(failed.exception(timeout=100)) == KILLED
    os.kill(pids(tmp_path, "a")[0], signal.SIGKILL)


def test_a_job_that_hangs_in_compiled_code_is_ended(tmp_path, soon):
    with local_executor(1, 1, 0) as executor:
        hangs, after = executor.submit(StubJob("a", "hang", tmp_path, timeout=0.2)), executor.submit(StubJob("b"))
        assert str(hangs.exception()) == "timed out after 0.2 s; it did not stop by itself and was killed"
        assert after.result()["cell"] == "b"
        assert not is_running(*pids(tmp_path, "a"))


@pytest.mark.parametrize("what", ["wait", "hang"])
def test_leaving_waits_for_nothing(tmp_path, what):
    with local_executor(1, 1, 0) as executor:
        running, waiting = (executor.submit(StubJob(key, what, tmp_path)) for key in "ab")
        (pid,) = pids(tmp_path, "a")
    assert not is_running(pid)
    assert waiting.cancelled()
    wait([running])
    assert isinstance(running.exception(), WorkerError)
    assert not [process for process in multiprocessing.active_children() if process.name == "frankenstein-worker"]


def test_an_error_of_the_driver_stops_the_workers(tmp_path):
    with pytest.raises(ZeroDivisionError), local_executor(1, 1, 0) as executor:  # noqa: PT012
        executor.submit(StubJob("a", "wait", tmp_path))
        (pid,) = pids(tmp_path, "a")
        raise ZeroDivisionError
    assert not is_running(pid)


@pytest.mark.parametrize("n_interrupts", [1, 2, 3])
@pytest.mark.parametrize("what", ["wait", "hang"])
def test_interrupts_leave_nothing_behind(tmp_path, what, n_interrupts):
    """Ctrl-C to the whole group, as a terminal sends it, and again at once."""
    with driver("local", tmp_path, what) as process:
        workers = pids(tmp_path, "a", "b")
        for _ in range(n_interrupts):
            os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
        assert (out, err, process.returncode) == ("interrupted\n", "", 130)
        assert not any(map(is_running, workers))
        wait_until(lambda: not processes_of(process.pid))  # multiprocessing's own helper ends by itself


def test_nothing_is_said_of_locks_that_a_killed_worker_held(tmp_path):
    """Python's own helper tidies them up, and by itself it would write two lines about it after the user's Ctrl-C."""
    with driver("local", tmp_path, "lock", flags=()) as process:
        pids(tmp_path, "a", "b")
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate() == ("interrupted\n", "")


def test_an_interrupt_while_workers_are_stopped_waits(tmp_path, monkeypatch):
    stop = local._Place.stop

    def interrupted(place):
        signal.raise_signal(signal.SIGINT)
        stop(place)

    monkeypatch.setattr(local._Place, "stop", interrupted)
    with pytest.raises(KeyboardInterrupt), local_executor(2, 1, 0) as executor:  # noqa: PT012
        for key in "ab":
            executor.submit(StubJob(key, "wait", tmp_path))
        workers = pids(tmp_path, "a", "b")
    assert not any(map(is_running, workers))


def test_no_worker_outlives_a_killed_driver(tmp_path):
    with driver("local", tmp_path, "wait") as process:
        workers = pids(tmp_path, "a", "b")
        process.kill()
        process.communicate()
        wait_for_end(*workers)
        wait_until(lambda: not processes_of(process.pid))


@pytest.mark.parametrize(
    "n_gpus, gpus, slots",
    [
        (1, "01", ["0", "1"]),
        (2, "01234", ["0,1", "2,3"]),
        (0.5, "01", ["0", "1", "0", "1"]),
        (0.4, "0", ["0", "0"]),
        (0.1, "0", ["0"] * 10),
        (1 / 3, "7", ["7"] * 3),
        (0.7, "01", ["0", "1"]),
    ],
)
def test_gpu_slots(n_gpus, gpus, slots):
    assert gpu_slots(n_gpus, list(gpus)) == slots


@pytest.mark.parametrize(
    "n_gpus, gpus, why",
    [
        (1, "", "each run asks for 1 GPU(s), and torch sees none here; ask for fewer"),
        (0.5, "", "each run asks for 0.5 GPU(s), and torch sees none here; ask for fewer"),
        (3, "01", "each run asks for 3 GPU(s), and torch sees 2 of them here; ask for fewer"),
        (1.5, "01", "1.5 GPUs for each run: give a fraction below 1 or a whole number"),
        (-1, "01", "-1 GPUs for each run: give a fraction below 1 or a whole number"),
    ],
)
def test_gpus_that_are_not_there(monkeypatch, n_gpus, gpus, why):
    monkeypatch.setattr(local, "visible_gpus", lambda: list(gpus))
    with pytest.raises(ExecutorError) as error, local_executor(2, 1, n_gpus):
        pass
    assert str(error.value) == why


@pytest.mark.parametrize("n_workers, n_gpus, devices", [(8, 1, "013"), (2, 0.5, "01"), (8, 0.5, "001133")])
def test_each_worker_sees_its_own_gpus(monkeypatch, tmp_path, n_workers, n_gpus, devices):
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "1", "3"])
    with local_executor(n_workers, 1, n_gpus) as executor:
        assert executor.n_parallel == len(devices)
        keys = [str(i) for i in range(len(devices))]
        futures = [executor.submit(StubJob(key, "wait", tmp_path, n_gpus=n_gpus)) for key in keys]
        pids(tmp_path, *keys)  # all at once: each in a worker of its own
        (tmp_path / "go").touch()
        assert sorted(future.result()["devices"] for future in futures) == list(devices)


@pytest.mark.parametrize("chosen, expected", [(None, ["0", "1"]), ("3, 5", ["3", "5"]), ("3,5,-1,7", ["3", "5"])])
def test_visible_gpus(monkeypatch, chosen, expected):
    """Where the user chose some, the names are the user's."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert local.visible_gpus() == expected


def test_queue_keeps_what_has_no_place():
    started: list[tuple[str, Future]] = []
    queue = JobQueue(2, lambda job, future: started.append((job.key, future)))
    futures = [queue.submit(StubJob(key)) for key in "abcde"]
    assert [key for key, _ in started] == ["a", "b"]
    started[1][1].set_result({})
    started[0][1].set_exception(WorkerError("gone"))
    assert [key for key, _ in started] == ["a", "b", "c", "d"]
    queue.close()
    assert futures[4].cancelled()
    started[2][1].set_result({})
    assert queue.submit(StubJob("f")).cancelled()  # nothing is started any more
    assert [key for key, _ in started] == ["a", "b", "c", "d"]


def test_queue_without_a_limit():
    started = []
    queue = JobQueue(None, lambda job, future: started.append(job.key))
    for key in "abc":
        queue.submit(StubJob(key))
    assert started == ["a", "b", "c"]


def test_interrupts_are_held_though_another_thread_takes_them():
    """A thread of a library does not block the signal; Python interrupts the main thread all the same."""
    done, has_arrived = threading.Event(), False
    other = threading.Thread(target=done.wait)
    other.start()
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    before = signal.set_wakeup_fd(pythons.fileno())
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_held():  # noqa: PT012
            signal.pthread_kill(other.ident, signal.SIGINT)
            has_arrived = ours.recv(1) == bytes([signal.SIGINT])
    finally:
        signal.set_wakeup_fd(before)
        ours.close()
        pythons.close()
        done.set()
        other.join()
    assert has_arrived
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
