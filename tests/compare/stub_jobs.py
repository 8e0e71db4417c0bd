"""Jobs for the executors: what `run` does is named by a word."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class StubJob:
    """Attributes as in `frankenstein.compare.executors.Job`; `folder` is where the job leaves its traces."""

    key: str
    what: str = "return"
    folder: Path | None = None
    n_cpus: int = 1
    n_gpus: float = 0.0
    timeout: float | None = None
    modules: tuple[str, ...] = field(default=())

    def run(self):
        record = {"cell": self.key, "pid": os.getpid()}
        getattr(self, f"do_{self.what}")(record)
        return record

    def do_return(self, record):
        pass

    def do_environment(self, record):
        import torch

        record["n_threads"] = torch.get_num_threads()
        record["variables"] = {name: os.environ.get(name) for name in VARIABLES}

    def do_raise(self, record):
        raise ValueError("first line\nsecond line")

    def do_leave(self, record):
        sys.exit(3)

    def do_die(self, record):
        os.kill(os.getpid(), signal.SIGKILL)

    def do_exit(self, record):
        os._exit(7)

    def do_lock(self, record):
        """Hold a lock of the system, as libraries with progress bars do, and wait."""
        lock = multiprocessing.get_context("spawn").Lock()
        with lock:
            self.do_wait(record)

    def do_wait(self, record):
        """Say who runs it, and go on when the file `go` is there."""
        record["devices"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        (self.folder / f"{self.key}.pid").write_text(str(os.getpid()))
        while not (self.folder / "go").exists():
            time.sleep(0.01)

    def do_hang(self, record):
        """Wait in C and keep the interpreter locked: neither signal handlers nor threads of Python run here."""
        (self.folder / f"{self.key}.pid").write_text(str(os.getpid()))
        ctypes.PyDLL(None).sleep(1000)

    def do_fork(self, record):
        """Die and leave a child behind that keeps every pipe open."""
        child = os.fork()
        if child == 0:
            time.sleep(1000)
        (self.folder / f"{self.key}.pid").write_text(str(child))
        os.kill(os.getpid(), signal.SIGKILL)

    def do_number(self, record):
        """Give back what JSON cannot hold."""
        record["value"] = threading.Lock()

    def do_fill(self, record):
        memory = []
        while True:
            memory.append(bytearray(10**7))
            time.sleep(0.01)
