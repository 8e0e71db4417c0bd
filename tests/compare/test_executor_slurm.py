from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
from driven import HERE, driver, pids, processes_of, wait_for_end, wait_until
from stub_jobs import StubJob

from frankenstein.compare import executors
from frankenstein.compare.executors import ExecutorError, WorkerError, slurm
from frankenstein.compare.executors.slurm import finished_records, slurm_executor

pytestmark = pytest.mark.skipif(find_spec("submitit") is None, reason="needs submitit: pip install '.[slurm]'")

TIMED_OUT = "timed out after 0.2 s; it did not stop by itself and was killed"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Looks follow each other at once, and nodes find the jobs."""
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(slurm, "POLLS_PER_QUESTION", 2)
    monkeypatch.setattr(executors, "GRACE_SECONDS", 0.1)
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def keys(records):
    return sorted(record["cell"] for record in records)


# Processes of this machine in place of Slurm.


def test_records_come_back(tmp_path):
    """Until the executor is left they are in the folder, too; then nothing is."""
    folder = tmp_path / "new" / "slurm"
    with slurm_executor(None, folder, 1, 0, {}, "local") as executor:
        assert executor.n_parallel == slurm.N_PARALLEL
        futures = [executor.submit(StubJob(key)) for key in "abc"]
        assert keys(future.result() for future in futures) == ["a", "b", "c"]
        assert sorted(path.name for path in folder.glob("*.json")) == ["a.json", "b.json", "c.json"]
        assert len({future.result()["pid"] for future in futures} | {os.getpid()}) == 4
    assert list(folder.iterdir()) == []


def test_at_most_so_many_at_once(tmp_path):
    with slurm_executor(2, tmp_path, 1, 0, {}, "local") as executor:
        assert executor.n_parallel == 2
        futures = [executor.submit(StubJob(key, "wait", tmp_path)) for key in "abc"]
        pids(tmp_path, "a", "b")
        assert len(executor.tasks) == 2
        assert not (tmp_path / "c.pid").exists()
        (tmp_path / "go").touch()
        assert keys(future.result() for future in futures) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "what, why",
    [
        ("raise", "ValueError: first line"),
        ("leave", "SystemExit: 3"),
        ("number", "TypeError: Object of type lock is not JSON serializable"),
        ("die", r"local job \d+ ended as FINISHED"),
        ("hang", re.escape(TIMED_OUT)),
    ],
)
def test_a_job_without_a_record(tmp_path, what, why):
    with slurm_executor(1, tmp_path, 1, 0, {}, "local") as executor:
        failed = executor.submit(StubJob("a", what, tmp_path, timeout=0.2))
        assert isinstance(failed.exception(), WorkerError)
        assert re.fullmatch(why, str(failed.exception()))
    assert list(finished_records(tmp_path)) == []


def test_a_node_that_lacks_the_modules(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    with slurm_executor(1, tmp_path, 1, 0, {}, "local") as executor:
        error = executor.submit(StubJob("a")).exception()
        assert isinstance(error, WorkerError)
        assert re.fullmatch(r"local job \d+ failed: ModuleNotFoundError: No module named 'stub_jobs'", str(error))


def test_threads_of_a_worker(tmp_path):
    with slurm_executor(1, tmp_path, 1, 0, {}, "local") as executor:
        record = executor.submit(StubJob("a", "environment")).result()
    assert record["n_threads"] == 1
    assert [record["variables"][name] for name in executors.THREAD_VARIABLES] == ["1", "1", "1"]


def test_interrupts_leave_nothing_behind(tmp_path):
    """To the driver alone: the jobs of a cluster are not in its group."""
    with driver("submitit", tmp_path, "hang") as process:
        workers = pids(tmp_path, "a", "b")
        for _ in range(2):
            process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
        assert (out, process.returncode) == ("interrupted\n", 130)
        wait_for_end(*workers)
        wait_until(lambda: not processes_of(process.pid))


def test_a_killed_driver_leaves_the_records_of_its_jobs(tmp_path):
    with driver("submitit", tmp_path, "wait") as process:
        workers = pids(tmp_path, "a", "b")
        process.kill()
        (tmp_path / "go").touch()
        wait_for_end(*workers)
    assert keys(list(finished_records(tmp_path))) == ["a", "b"]
    assert list(finished_records(tmp_path)) == []
    assert list(tmp_path.glob("*.json")) == []


def test_no_records_yet(tmp_path):
    assert list(finished_records(tmp_path)) == []
    assert list(finished_records(tmp_path / "missing")) == []


# Scripts in place of Slurm's commands: what is asked of them, and what becomes of their answers.

COMMANDS = {
    "srun": "",
    "sbatch": """
        [ ! -f refuse ] || { echo "sbatch: error: invalid account" >&2; exit 1; }
        number=$(($(cat number 2> /dev/null || echo 0) + 1)); echo $number > number
        cp "$1" script
        echo "Submitted batch job $number"
        [ -f hold ] || SLURM_JOB_ID=$number setsid sh -c ". $1" > /dev/null 2>&1 &""",
    "squeue": """
        [ ! -f down ] || exit 1
        cat states 2> /dev/null
        echo x >> questions""",
    "scontrol": 'echo "   Requeue=1 ExitCode=0:9"',
    "scancel": 'echo "$@" >> cancelled',
}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    folder = tmp_path / "fake"
    folder.mkdir()
    for name, text in COMMANDS.items():
        script = folder / name
        script.write_text(f"#!/bin/sh\ncd {folder}\n{text}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_a_slurm_job_brings_its_record(fake, tmp_path):
    (fake / "states").write_text("1 RUNNING\n")
    with slurm_executor(None, tmp_path / "run", 1, 0, {}) as executor:
        assert executor.submit(StubJob("a")).result()["cell"] == "a"
    assert not (fake / "cancelled").exists()
    assert list((tmp_path / "run").iterdir()) == []


def test_what_slurm_is_told(fake, tmp_path):
    (fake / "hold").touch()
    parameters = {"partition": "long", "slurm_account": "17", "mem_gb": "1.5", "setup": "module load python"}
    with slurm_executor(None, tmp_path, 3, 2, parameters) as executor:
        executor.submit(StubJob("a"))
        script = (fake / "script").read_text()
        for option in ("partition=long", "account=17", "mem=1536MB", "cpus-per-task=3", "gpus-per-node=2"):
            assert f"#SBATCH --{option}\n" in script
        assert "\nmodule load python\n" in script
        assert f"exec {sys.executable} -u -m submitit" in script
        assert "srun" not in script
        assert "--time" not in script  # the partition's own limit
        executor.submit(StubJob("b", timeout=600.0))
        assert "#SBATCH --time=12\n" in (fake / "script").read_text()  # and a minute to start, and the grace
    with slurm_executor(None, tmp_path, 1, 0, {"timeout_min": "7"}) as executor:
        executor.submit(StubJob("a", timeout=600.0))
        assert "#SBATCH --time=7\n" in (fake / "script").read_text()  # the user knows best


@pytest.mark.parametrize(
    "state, why",
    [
        ("OUT_OF_MEMORY", "ended as OUT_OF_MEMORY, the worker process was ended by SIGKILL (out of memory?)"),
        ("CANCELLED", "ended as CANCELLED, the worker process was ended by SIGKILL (out of memory?)"),
        ("PREEMPTED", "ended as PREEMPTED, the worker process was ended by SIGKILL (out of memory?)"),
        ("TIMEOUT", "timed out after 0.2 s; it did not stop by itself and was killed"),
        (None, "is gone (cancelled, or lost with its node?)"),
    ],
)
def test_a_slurm_job_that_ended_without_a_record(fake, tmp_path, state, why):
    (fake / "hold").touch()
    (fake / "states").write_text("1 PENDING\n2 RUNNING\n")
    with slurm_executor(None, tmp_path, 1, 0, {}) as executor:
        failed, going = executor.submit(StubJob("a", timeout=0.2)), executor.submit(StubJob("b"))
        wait_until(lambda: (fake / "questions").exists() and len((fake / "questions").read_text()) > 6)
        assert not failed.done()
        (fake / "down").touch()  # no answer is no end
        (fake / "states").write_text(f"1 {state}\n2 RUNNING\n" if state else "2 RUNNING\n")
        (fake / "down").unlink()
        error = failed.exception()
        assert isinstance(error, WorkerError)
        assert str(error) == (why if state == "TIMEOUT" else f"slurm job 1 {why}")
        assert not going.done()


def test_a_record_may_come_a_little_later_than_the_end(fake, tmp_path, monkeypatch):
    """A folder of another machine shows it late: only who is still without when Slurm is asked again has none."""
    monkeypatch.setattr(slurm, "POLL_SECONDS", 1000)  # looks are made here
    monkeypatch.setattr(slurm, "POLLS_PER_QUESTION", 1)
    (fake / "hold").touch()
    (fake / "states").write_text("1 COMPLETED\n")
    with slurm_executor(None, tmp_path, 1, 0, {}) as executor:
        job = StubJob("a")
        executor.submit(job)
        backend, submitted = executor.backend, executor.tasks[0].submitted
        for n_looks in range(2):
            assert backend.answer(job, submitted) is None, n_looks
            backend.ask([submitted])
        assert backend.answer(job, submitted).startswith("slurm job 1 ended as COMPLETED")


def test_the_last_line_of_the_log_is_told(fake, tmp_path):
    (fake / "hold").touch()
    (fake / "states").write_text("1 FAILED\n")
    (tmp_path / "1_0_log.err").write_text("first\nslurmstepd: error: Exceeded job memory limit\n\n")
    with slurm_executor(None, tmp_path, 1, 0, {}) as executor:
        error = executor.submit(StubJob("a")).exception()
    assert str(error).endswith("(out of memory?): slurmstepd: error: Exceeded job memory limit")


def test_leaving_cancels(fake, tmp_path):
    (fake / "hold").touch()
    with pytest.raises(ZeroDivisionError), slurm_executor(2, tmp_path, 1, 0, {}) as executor:  # noqa: PT012
        futures = [executor.submit(StubJob(key)) for key in "abc"]
        raise ZeroDivisionError
    assert (fake / "cancelled").read_text() == "1 2\n"
    assert (fake / "number").read_text() == "2\n"
    assert futures[2].cancelled()


def test_an_interrupt_while_jobs_are_cancelled_waits(fake, tmp_path, monkeypatch):
    (fake / "hold").touch()
    run = slurm._Backend._run

    def interrupted(backend, command):
        if command[0] == "scancel":
            signal.raise_signal(signal.SIGINT)
        return run(backend, command)

    monkeypatch.setattr(slurm._Backend, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt), slurm_executor(None, tmp_path, 1, 0, {}) as executor:
        executor.submit(StubJob("a"))
    assert (fake / "cancelled").read_text() == "1\n"


def test_what_slurm_refuses(fake, tmp_path, capfd):
    """The first job: so will the others be. A later one: it may be for the moment."""
    why = "slurm does not take the job: FailedJobError: sbatch: error: invalid account"
    (fake / "hold").touch()
    with slurm_executor(None, tmp_path, 1, 0, {}) as executor:
        executor.submit(StubJob("a"))
        (fake / "refuse").touch()
        error = executor.submit(StubJob("b")).exception()
        assert isinstance(error, WorkerError)
        assert str(error) == why
    with pytest.raises(ExecutorError) as refused, slurm_executor(None, tmp_path, 1, 0, {}) as executor:
        executor.submit(StubJob("a"))
    assert str(refused.value) == why
    capfd.readouterr()


@pytest.mark.parametrize(
    "n_gpus, parameters, why",
    [
        (0.5, {}, "0.5 GPUs for each run, but Slurm gives whole ones; ask for 1, or try gres=shard:1"),
        (0, {"partitoin": "x"}, r"ValueError: Unavailable parameter\(s\): \['partitoin'\]; give options of sbatch.*"),
        (0, {"mem_gb": "much"}, "mem_gb=much: give a number"),
    ],
)
def test_what_cannot_be_asked(fake, tmp_path, n_gpus, parameters, why):
    with pytest.raises(ExecutorError) as error, slurm_executor(1, tmp_path, 1, n_gpus, parameters):
        pass
    assert re.fullmatch(why, str(error.value))


def test_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExecutorError) as error, slurm_executor(1, tmp_path, 1, 0, {}):
        pass
    assert str(error.value) == "there is no Slurm on this machine (sbatch is not in the PATH); start from a login node"


def test_without_submitit(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ExecutorError) as error, slurm_executor(1, tmp_path, 1, 0, {}):
        pass
    assert str(error.value) == "submitit is not installed; pip install '.[slurm]' (in the checkout)"


# The real Slurm: a cluster's, or that of `tests/slurm_node.sh`.


def squeue():
    return subprocess.run(["squeue", "--me", "--noheader"], capture_output=True, text=True).stdout


@pytest.fixture
def cluster():
    if not shutil.which("sbatch"):
        pytest.skip("needs Slurm (sbatch is not in the PATH); tests/slurm_node.sh starts one")
    if subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("needs a Slurm that answers; tests/slurm_node.sh starts one")


@pytest.mark.slow
@pytest.mark.parametrize(
    "what, why",
    [
        ("raise", "ValueError: first line"),
        ("die", r"slurm job \d+ ended as FAILED, the worker process was ended by SIGKILL \(out of memory\?\)"),
        ("exit", r"slurm job \d+ ended as FAILED, the worker process was ended with exit code 7"),
        ("hang", re.escape(TIMED_OUT)),
    ],
)
def test_real_job_without_a_record(cluster, tmp_path, what, why):
    with slurm_executor(1, tmp_path, 1, 0, {}) as executor:
        failed, after = executor.submit(StubJob("a", what, tmp_path, timeout=0.2)), executor.submit(StubJob("b"))
        assert re.fullmatch(why, str(failed.exception()))
        assert after.result()["cell"] == "b"


@pytest.mark.slow
def test_real_job_that_is_cancelled(cluster, tmp_path):
    with slurm_executor(None, tmp_path, 1, 0, {}) as executor:
        futures = {key: executor.submit(StubJob(key, "wait", tmp_path)) for key in "ab"}
        pids(tmp_path, "a", "b")
        cancelled = next(task.submitted.job_id for task in executor.tasks if task.job.key == "a")
        subprocess.run(["scancel", cancelled], check=True)
        assert f"slurm job {cancelled} ended as CANCELLED" in str(futures["a"].exception())
        (tmp_path / "go").touch()
        assert futures["b"].result()["cell"] == "b"


@pytest.mark.slow
def test_real_job_that_takes_too_much_memory(cluster, tmp_path):
    with slurm_executor(None, tmp_path, 1, 0, {"mem_gb": "0.2"}) as executor:
        error = executor.submit(StubJob("a", "fill")).exception()
        assert re.search(r"ended as (FAILED|OUT_OF_MEMORY).*(exceeded memory limit|OOM|out of memory)", str(error))


@pytest.mark.slow
def test_real_interrupts_leave_nothing_behind(cluster, tmp_path):
    with driver("slurm", tmp_path, "hang") as process:
        workers = pids(tmp_path, "a", "b")
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
        assert (out, err, process.returncode) == ("interrupted\n", "", 130)
        wait_for_end(*workers)
        wait_until(lambda: squeue() == "")


@pytest.mark.slow
def test_real_jobs_outlive_a_killed_driver(cluster, tmp_path):
    with driver("slurm", tmp_path, "wait") as process:
        workers = pids(tmp_path, "a", "b")
        process.kill()
        process.communicate()
        (tmp_path / "go").touch()
        wait_for_end(*workers)
        wait_until(lambda: squeue() == "")
    assert keys(list(finished_records(tmp_path))) == ["a", "b"]
