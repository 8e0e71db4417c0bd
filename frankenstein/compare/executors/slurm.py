"""One Slurm job for each cell, through submitit.

What the nodes share: the run folder, the same installation of this package, and the user's modules at the same paths. A
Slurm job outlives a driver that is killed, so it leaves its record in the folder, where the next driver finds it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from frankenstein.compare.executors import (
    ExecutorError,
    Job,
    JobQueue,
    WorkerError,
    hard_limit,
    one_line,
    run_job,
    settle,
    threads_for_children,
    timed_out,
)
from frankenstein.compare.executors.local import how_it_ended
from frankenstein.compare.interrupts import interrupts_held

N_PARALLEL = 32  # where no number is asked for: a fair share of many clusters; twice as many stand in the queue
POLL_SECONDS = 1.0  # between looks at the folder
POLLS_PER_QUESTION = 10  # looks at the folder for each question to Slurm, which has a whole cluster to serve
START_SECONDS = 60.0  # what starting Python on a node may take, on top of a job's own limit
COMMAND_SECONDS = 10.0  # what a command of Slurm may take

# States in which a Slurm job may still bring a record; every other one is an end.
ALIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "STAGE_OUT", "SUSPENDED", "STOPPED", "SIGNALING"}
ALIVE |= {"RESIZING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
GONE = "is gone (cancelled, or lost with its node?)"
HUNG = "Timeout ("  # begins the trace of a process that was ended at its limit

# Parameters that are no option of sbatch by that name: what they are to submitit.
RENAMED = {"timeout_min": "time", "tasks_per_node": "ntasks_per_node"}


@contextmanager
def slurm_executor(
    n_workers: int | None, folder: Path, n_cpus: int, n_gpus: float, parameters: dict[str, str], cluster: str = "slurm"
) -> Iterator[SlurmExecutor]:
    """Run each job as a Slurm job.

    Args:
        n_workers: Slurm jobs at once; None for as many as are submitted.
        folder: Where jobs, logs and records go; made if absent. Every node sees it at the same path.
        n_cpus: Threads of each job.
        n_gpus: GPUs of each job, a whole number.
        parameters: `timeout_min`, `mem_gb`, and options of sbatch with underscores: `partition`, `account`, `qos`, ...
        cluster: "slurm"; "local" takes processes of this machine in its place, for a trial.

    Raises:
        ExecutorError: There is no Slurm here, or it does not take such a job.
    """
    try:
        import submitit
    except ImportError:
        raise ExecutorError("submitit is not installed; pip install '.[slurm]' (in the checkout)") from None
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise ExecutorError("there is no Slurm on this machine (sbatch is not in the PATH); start from a login node")
    if n_gpus != int(n_gpus):
        raise ExecutorError(f"{n_gpus:g} GPUs for each run, but Slurm gives whole ones; ask for 1, or try gres=shard:1")
    folder.mkdir(parents=True, exist_ok=True)
    backend = _Backend(submitit, cluster, folder.resolve(), _options(parameters, n_cpus, int(n_gpus)))
    executor = SlurmExecutor(backend, n_workers)
    with threads_for_children(n_cpus):
        try:
            yield executor
        finally:
            with interrupts_held():  # a second Ctrl-C waits until everything is cancelled
                executor.stop()


def finished_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records that jobs of an earlier driver left in `folder`; each is removed when the next is asked for.

    Some may be known already: a driver that is killed leaves those that it had collected, too.
    """
    for path in sorted(folder.glob("*.json")):
        yield json.loads(path.read_text())
        path.unlink()


class _Task(NamedTuple):
    """A job on its way: ours, submitit's, and the future of its record."""

    job: Job
    submitted: Any
    future: Future[dict[str, Any]]


class SlurmExecutor:
    """Submits jobs; a thread looks what becomes of them."""

    def __init__(self, backend: _Backend, n_workers: int | None) -> None:
        self.backend, self.n_parallel = backend, n_workers or N_PARALLEL
        self.queue = JobQueue(n_workers, self._start)
        self.tasks: list[_Task] = []
        self.collected: list[str] = []  # keys; their records stay in the folder to the end, when they are surely kept
        self.has_submitted = False
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._poll, name="frankenstein-slurm", daemon=True)
        # What the thread starts must not take a Ctrl-C that is meant for the driver; but with "local", where submitit
        # cancels by Ctrl-C, it must.
        with nullcontext() if backend.cluster == "local" else interrupts_held():
            self.thread.start()

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        """Return the future record of `job`; its exception is a WorkerError."""
        with nullcontext() if self.backend.cluster == "local" else interrupts_held():
            return self.queue.submit(job)

    def stop(self) -> None:
        """Cancel what is submitted."""
        self.stopping.set()
        self.queue.close()
        with self.lock:
            self.backend.cancel([task.submitted for task in self.tasks])
        self.thread.join(COMMAND_SECONDS)
        self.backend.tidy(self.collected)

    def _start(self, job: Job, future: Future[dict[str, Any]]) -> None:
        with self.lock:
            if self.stopping.is_set():
                return
            try:
                submitted = self.backend.submit(job)
            except Exception as error:
                why = f"{self.backend.cluster} does not take the job: {one_line(error)}"
                if not self.has_submitted:  # nor will it take the others
                    raise ExecutorError(why) from None
            else:
                self.has_submitted = True
                self.tasks.append(_Task(job, submitted, future))
                return
        future.set_exception(WorkerError(why))

    def _poll(self) -> None:
        while not self.stopping.wait(POLL_SECONDS):
            with self.lock:
                tasks = list(self.tasks)
            self.backend.ask([task.submitted for task in tasks])
            for task in tasks:
                with suppress(OSError):  # a shared folder fails now and then
                    answer = self.backend.answer(task.job, task.submitted)
                    if answer is not None and not self.stopping.is_set():
                        self._collect(task, answer)

    def _collect(self, task: _Task, answer: dict[str, Any] | str) -> None:
        with self.lock:
            self.tasks.remove(task)
        if isinstance(answer, dict):
            self.collected.append(task.job.key)
        settle(task.future, answer)


class _Backend:
    """Slurm, or what stands in for it."""

    def __init__(self, submitit: ModuleType, cluster: str, folder: Path, options: dict[str, Any]) -> None:
        self.submitit, self.cluster, self.folder, self.options = submitit, cluster, folder, options
        self.n_polls = 0
        self.ended: dict[str, str] = {}  # states of jobs that had ended when Slurm was asked last
        self.lost: dict[str, str] = {}  # and when it was asked before: if the record is not here by now, there is none
        self.executor(None)  # are the options known?

    def executor(self, limit: float | None) -> Any:
        if self.cluster != "slurm":
            executor = self.submitit.AutoExecutor(self.folder, cluster=self.cluster)
            executor.update_parameters(timeout_min=10**6 if limit is None else _minutes(limit))
            return executor
        executor = self.submitit.SlurmExecutor(self.folder, python=f"exec {shlex.quote(sys.executable)}")
        try:
            executor.update_parameters(**{"time": None if limit is None else _minutes(limit)} | self.options)
        except (TypeError, ValueError) as error:
            raise ExecutorError(f"{one_line(error)}; give options of sbatch, with underscores") from None
        return executor

    def submit(self, job: Job) -> Any:
        limit = hard_limit(job)
        return self.executor(limit).submit(_run_and_keep, job, self.folder, limit)

    def ask(self, submitted: list[Any]) -> None:
        """Find out what has ended; Slurm is asked now and then, and answers for all jobs at once."""
        self.n_polls += 1
        with suppress(OSError):
            self.folder.touch()  # a folder of another machine is looked at anew
        if self.cluster != "slurm":
            self.ended = self.lost = {job.job_id: job.state for job in submitted if job.done()}
        elif submitted and self.n_polls % POLLS_PER_QUESTION == 0:
            said = self._run(["squeue", "--me", "--noheader", "--states=all", "--format=%A %T"])
            if said is not None:
                states = dict(line.split(maxsplit=1) for line in said.splitlines())
                now = {job.job_id: states.get(job.job_id, GONE) for job in submitted}
                self.lost, self.ended = self.ended, {key: state for key, state in now.items() if state not in ALIVE}

    def answer(self, job: Job, submitted: Any) -> dict[str, Any] | str | None:
        """Return the record, or one line that says why there is none, or None: not yet."""
        if submitted.paths.result_pickle.exists():
            try:
                answer: dict[str, Any] | str = submitted.result()
            except self.submitit.core.utils.UncompletedJobError:  # it could not even start: no such module on the node?
                return self._failure(submitted, "failed")
            for path in self.folder.glob(f"{submitted.job_id}_*"):
                path.unlink(missing_ok=True)
            return answer
        if submitted.job_id not in self.ended or submitted.job_id not in self.lost:
            return None
        state = self.ended[submitted.job_id]
        if job.timeout is not None and (state == "TIMEOUT" or HUNG in _log(submitted)):
            return timed_out(job)
        return self._failure(submitted, f"ended as {state}{self._exit(submitted)}" if state != GONE else state)

    def _exit(self, submitted: Any) -> str:
        command = ["scontrol", "show", "job", submitted.job_id]
        if self.cluster != "slurm":
            return ""
        found = re.search(r"ExitCode=(\d+):(\d+)", self._run(command) or "")
        code, signum = map(int, found.groups()) if found else (0, 0)
        return f", {how_it_ended(-signum or code)}" if signum or code else ""

    def _failure(self, submitted: Any, what: str) -> str:
        lines = [line.strip() for line in _log(submitted).splitlines() if line.strip()]
        return f"{self.cluster} job {submitted.job_id} {what}" + (f": {lines[-1]}" if lines else "")

    def _run(self, command: list[str]) -> str | None:
        """Return what a command of Slurm says, or None: it may be down for a while."""
        with suppress(OSError, subprocess.SubprocessError):
            result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS)
            return result.stdout if result.returncode == 0 else None
        return None

    def cancel(self, submitted: list[Any]) -> None:
        if self.cluster != "slurm":
            for job in submitted:
                job.cancel()
        elif submitted:
            self._run(["scancel", *(job.job_id for job in submitted)])  # what is not cancelled ends by itself

    def tidy(self, collected: list[str]) -> None:
        """Remove the records that the driver has, and submitit's links to files that are gone."""
        for key in collected:
            _record_path(self.folder, key).unlink(missing_ok=True)
        for link in self.folder.glob(".submission_file_*"):
            if not link.exists():
                link.unlink(missing_ok=True)


def _run_and_keep(job: Job, folder: Path, kill_after: float | None) -> dict[str, Any] | str:
    """Run a job on its node, and leave its record in the folder."""
    # Slurm's signals mean what they mean to Slurm: submitit would wait through the first and requeue on the second.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    answer = run_job(job, kill_after)
    if isinstance(answer, str):
        return answer
    path = _record_path(folder, job.key)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(answer))
    except TypeError as error:
        return one_line(error)
    part.replace(path)
    return answer


def _record_path(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def _log(submitted: Any) -> str:
    return str(submitted.stderr() or "")


def _minutes(limit: float) -> int:
    """Return the time limit of a Slurm job: whole minutes, with time to start."""
    return math.ceil((limit + START_SECONDS) / 60)


def _options(parameters: dict[str, str], n_cpus: int, n_gpus: int) -> dict[str, Any]:
    """Return submitit's parameters for the user's."""
    # One process does it all: it needs no srun, which since Slurm 22.05 would give it one processor only.
    options: dict[str, Any] = {"cpus_per_task": n_cpus, "job_name": "frankenstein", "use_srun": False}
    if n_gpus:
        options["gpus_per_node"] = n_gpus
    for name, value in parameters.items():
        name = name.removeprefix("slurm_")
        options[RENAMED.get(name, name)] = int(value) if value.lstrip("-").isdigit() else value
    if "mem_gb" in options:
        memory = options.pop("mem_gb")
        try:
            options["mem"] = f"{float(memory) * 1024:.0f}MB"
        except ValueError:
            raise ExecutorError(f"mem_gb={memory}: give a number") from None
    if "setup" in options:
        options["setup"] = [options["setup"]]
    return options
