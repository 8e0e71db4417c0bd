from __future__ import annotations

import os
import re
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from driven import HERE, driver, pids, processes_of, wait_for_end, wait_until
from stub_jobs import StubJob

from frankenstein.compare import executors
from frankenstein.compare.executors import ExecutorError, WorkerError
from frankenstein.compare.executors.ray import QUIET, RayExecutor, _n_fitting, ray_executor

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install '.[ray]'"),
    # JAX, where another test has loaded it, warns of every fork; Ray's are followed by exec at once.
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning"),
]

DIED = "the worker process died (killed, or out of memory?)"

# A node that is lost is noticed within seconds, not within a quarter of a minute; a busy one is not taken for lost.
CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one node with two processors; tests may add nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))  # where the nodes find the jobs
        for name, value in QUIET.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "_system_config": CHECKS},
        )
        yield cluster
        cluster.shutdown()


@pytest.mark.parametrize("n_cpus, n_gpus", [(1, 1), (3, 0)])
def test_a_run_that_fits_on_no_node(cluster, n_cpus, n_gpus):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ExecutorError) as error, ray_executor(None, cluster.address, n_cpus, n_gpus):
        pass
    what = f"the {n_cpus} processor(s) and {n_gpus} GPU(s) that each run asks for"
    assert str(error.value) == f"no node of the Ray cluster at {cluster.address} has {what}; ask for fewer"
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", "no:port"])
def test_a_cluster_that_does_not_answer(address):
    """Port 1 is nobody's."""
    with pytest.raises(ExecutorError) as error, ray_executor(None, address, 1, 0):
        pass
    hint = "start one (ray start --head), or leave the address out to run on this machine"
    assert re.fullmatch(rf"no Ray cluster answers at {address} \(\w+: .+\); {re.escape(hint)}", str(error.value))


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError) as error, ray_executor(None, None, 1, 0):
        pass
    assert str(error.value) == "Ray is not installed; pip install '.[ray]' (in the checkout)"


@pytest.mark.parametrize(
    "resources, n_cpus, n_gpus, n_jobs",
    [
        ({"CPU": 7.0, "memory": 1e9}, 2, 0, 3),
        ({"CPU": 8.0}, 1, 0.5, 0),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.5, 4),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.4, 4),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.1, 8),
        ({"CPU": 8.0, "GPU": 5.0}, 1, 2, 2),
        ({"GPU": 5.0}, 1, 1, 0),
    ],
)
def test_jobs_that_fit_on_a_node(resources, n_cpus, n_gpus, n_jobs):
    assert _n_fitting(resources, n_cpus, n_gpus) == n_jobs


@pytest.fixture(scope="module")
def executor(cluster):
    with ray_executor(None, cluster.address, 1, 0) as executor:
        yield executor


def test_records_come_back(executor):
    assert executor.n_parallel == 2
    futures = [executor.submit(StubJob(str(i))) for i in range(20)]
    assert [future.result()["cell"] for future in futures] == [str(i) for i in range(20)]


def test_at_most_so_many_at_once(executor, tmp_path):
    narrow = RayExecutor(executor.ray, 1, 1, 0)
    assert narrow.n_parallel == 1
    a, b = (narrow.submit(StubJob(key, "wait", tmp_path)) for key in "ab")
    pids(tmp_path, "a")
    assert executor.submit(StubJob("c")).result()["cell"] == "c"  # there is room
    assert not (tmp_path / "b.pid").exists()
    (tmp_path / "go").touch()
    assert [future.result()["cell"] for future in (a, b)] == ["a", "b"]


def test_one_connection_at_a_time(executor):
    with pytest.raises(ExecutorError, match="connected to a Ray cluster already"), ray_executor(1, None, 1, 0):
        pass
    assert executor.submit(StubJob("a")).result()["cell"] == "a"


def test_threads_of_a_worker(executor):
    record = executor.submit(StubJob("a", "environment")).result()
    assert record["n_threads"] == 1
    assert {record["variables"][name] for name in executors.THREAD_VARIABLES} == {"1"}


@pytest.mark.parametrize(
    "what, why",
    [
        ("raise", "ValueError: first line"),
        ("leave", "SystemExit: 3"),
        ("number", "TypeError: cannot pickle '_thread.lock' object"),
    ],
)
def test_an_error_of_a_job(executor, what, why):
    error = executor.submit(StubJob("a", what)).exception()
    assert isinstance(error, WorkerError)
    assert str(error) == why


def test_a_killed_worker_fails_its_own_job_only(executor, tmp_path, capfd):
    futures = {key: executor.submit(StubJob(key, "wait", tmp_path)) for key in "abc"}
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    killed = next(tmp_path.glob("*.pid")).stem
    os.kill(pids(tmp_path, killed)[0], signal.SIGKILL)
    assert isinstance(futures[killed].exception(), WorkerError)
    assert str(futures[killed].exception()) == DIED
    (tmp_path / "go").touch()
    assert {futures[key].result()["cell"] for key in futures.keys() - {killed}} == set("abc") - {killed}
    assert capfd.readouterr() == ("", "")


def test_a_job_that_hangs_in_compiled_code_is_ended(executor, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "GRACE_SECONDS", 0.1)
    hangs = executor.submit(StubJob("a", "hang", tmp_path, timeout=0.2))
    assert str(hangs.exception()) == "timed out after 0.2 s; it did not stop by itself and was killed"
    wait_for_end(*pids(tmp_path, "a"))
    assert executor.submit(StubJob("b", timeout=100.0)).result()["cell"] == "b"


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_lost_node_fails_what_it_was_running(executor, cluster, tmp_path, capfd):
    """The jobs that were waiting, and those of the other node, do not notice."""
    node = cluster.add_node(num_cpus=1, num_gpus=0)
    wait_until(lambda: executor.n_parallel == 3)
    futures = {key: executor.submit(StubJob(key, "wait", tmp_path)) for key in "abcdef"}
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 3)
    workers = {path.stem: pids(tmp_path, path.stem)[0] for path in tmp_path.glob("*.pid")}
    (raylet,) = (process.process.pid for process in node.all_processes["raylet"])
    (lost,) = (key for key, pid in workers.items() if parent_of(pid) == raylet)
    for pid in (raylet, workers[lost]):
        os.kill(pid, signal.SIGKILL)
    assert isinstance(futures[lost].exception(), WorkerError)
    assert str(futures[lost].exception()) in ("the node that ran it was lost", DIED)
    (tmp_path / "go").touch()
    assert {futures[key].result()["cell"] for key in futures.keys() - {lost}} == set("abcdef") - {lost}
    wait_until(lambda: executor.n_parallel == 2)
    cluster.remove_node(node, allow_graceful=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("n_interrupts", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_interrupts_leave_nothing_behind(tmp_path, n_interrupts):
    """Ctrl-C to the whole group, as a terminal sends it, and again at once; a cluster of the driver's own."""
    with driver("ray", tmp_path, "hang") as process:
        pids(tmp_path, "a", "b")
        assert len(processes_of(process.pid)) > 3  # the driver, two workers and what they need
        for _ in range(n_interrupts):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.1)  # the second comes while the cluster is stopped, which takes a second
        out, err = process.communicate()
        assert (out, err, process.returncode) == ("interrupted\n", "", 130)
        wait_until(lambda: not processes_of(process.pid))


@pytest.mark.slow
def test_no_worker_outlives_a_killed_driver(tmp_path):
    """What may stay for a minute are two of Ray's own agents."""
    with driver("ray", tmp_path, "wait") as process:
        workers = pids(tmp_path, "a", "b")
        raylet = parent_of(workers[0])
        process.kill()
        process.communicate()
        wait_for_end(raylet, *workers)


def test_no_worker_of_a_cluster_outlives_a_killed_driver(cluster, tmp_path):
    with driver(cluster.address, tmp_path, "wait") as process:
        workers = pids(tmp_path, "a", "b")
        process.kill()
        process.communicate()
        wait_for_end(*workers)
