"""Drivers and workers as processes: start them, find them, see them end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
N_LOOKS = 12_000  # two minutes: Ray may need one on a busy machine


def wait_until(condition):
    """Wait for what must happen; fail rather than wait for ever."""
    for _ in range(N_LOOKS):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not happen")


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def session_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def processes_of(session):
    """Return the processes that a driver, which leads the session, and its children have started."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if session_of(pid) == session and is_running(pid)]


@contextmanager
def driver(name, folder, what, flags=("-W", "error")):
    """Start `drive_executor.py` in a session of its own; whatever a failed test leaves running is killed."""
    command = [sys.executable, *flags, HERE / "drive_executor.py", name, folder, what]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(HERE)},  # where nodes of a cluster find the jobs
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in processes_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def wait_for_end(*pids):
    wait_until(lambda: not any(map(is_running, pids)))


def pids(folder, *keys):
    """Return who runs the jobs of these names, as soon as all are started."""
    files = [folder / f"{key}.pid" for key in keys]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]
