"""A driver for the tests to kill: `python drive_executor.py EXECUTOR FOLDER WHAT` submits three jobs, two of which
can run at once, and waits for them. EXECUTOR is a word of `start`, or the address of a Ray cluster.
"""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import wait
from pathlib import Path

import numpy  # noqa: F401  # its threads do not block Ctrl-C, as in every real driver
from stub_jobs import StubJob

from frankenstein.compare.executors.local import local_executor
from frankenstein.compare.executors.ray import ray_executor
from frankenstein.compare.executors.slurm import slurm_executor


def start(name, folder):
    if name == "local":
        return local_executor(2, 1, 0)
    if name == "submitit":
        return slurm_executor(2, folder, 1, 0, {}, "local")
    if name == "slurm":
        return slurm_executor(2, folder, 1, 0, {})
    return ray_executor(2, None if name == "ray" else name, 1, 0)


def main(name, folder, what):
    try:
        with start(name, folder) as executor:
            (folder / "entered").touch()
            futures = [executor.submit(StubJob(key, what, folder)) for key in ("a", "b", "c")]
            wait(futures)
            os.write(1, b"done\n")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the command does: a second one cannot spoil the exit
        os.write(1, b"interrupted\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
