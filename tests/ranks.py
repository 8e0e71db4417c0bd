"""Real processes with a process group between them: what is distributed is tested on these.

    with Ranks(folder) as ranks:
        a, b = ranks.run(function, *arguments)  # on both at once; `function` stands at the top of a module

The processes are started once, for starting takes seconds. They wait in a collective for those that did not come to it,
so everything has a limit: where a rank fails or says nothing, all of them are ended, and the next call starts others.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

LIMIT_SECONDS = 60  # for one call; the longest takes about five on two busy cores
COLLECTIVE_SECONDS = 40  # shorter, so that a rank left alone in a collective can still say in which
GRACE_SECONDS = 2  # what the others have to report after one has failed
NOTHING = object()


class Ranks:
    """`n` processes in one gloo process group on this machine, which find each other by a file in `folder`."""

    def __init__(self, folder: Path, n: int = 2) -> None:
        self.folder, self.n = folder, n
        self.n_starts = 0
        self.members: list[tuple[BaseProcess, Connection]] = []

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for _, connection in self.members:
            connection.close()  # which is the sign to leave
        for process, _ in self.members:
            process.join(GRACE_SECONDS)
        self.end()

    def run(self, function: Callable[..., Any], *arguments: Any, limit_seconds: float = LIMIT_SECONDS) -> list[Any]:
        """Call `function(*arguments)` on every rank at the same time; return what each of them returned.

        Raises:
            AssertionError: A rank raised, ended, or took too long; with the ranks' own tracebacks.
        """
        if not self.members:
            self.start()
        for _, connection in self.members:
            connection.send_bytes(pickle.dumps((function, arguments)))
        answers = self.answers(monotonic() + limit_seconds)
        faults = [f"rank {rank}: {answer[1]}" for rank, answer in enumerate(answers) if not answer[0]]
        if faults:
            self.end()
            raise AssertionError("\n".join(faults))
        return [answer[1] for answer in answers]

    def answers(self, deadline: float) -> list[tuple[bool, Any]]:
        """Return for each rank whether it did its work, and the result or what happened."""
        answers: dict[int, tuple[bool, Any]] = {}
        while len(answers) < self.n:
            waiting = {self.members[rank][1]: rank for rank in range(self.n) if rank not in answers}
            ready = wait(list(waiting), max(0.0, deadline - monotonic()))
            if not ready:
                break
            for rank in (waiting[connection] for connection in ready if isinstance(connection, Connection)):
                answers[rank] = self.answer(rank)
                if not answers[rank][0]:  # those that it left alone will not come to an end
                    deadline = min(deadline, monotonic() + GRACE_SECONDS)
        return [answers.get(rank, (False, "did not come to an end in time")) for rank in range(self.n)]

    def answer(self, rank: int) -> tuple[bool, Any]:
        process, connection = self.members[rank]
        try:
            return pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            process.join(GRACE_SECONDS)
            return False, f"ended with exit code {process.exitcode}"

    def start(self) -> None:
        """Start the processes, with a file of their own: in that of earlier ones their addresses are still written."""
        self.n_starts += 1
        store = self.folder / f"store-{self.n_starts}"
        context = multiprocessing.get_context("spawn")
        for rank in range(self.n):
            connection, other = context.Pipe()
            process = context.Process(target=_serve, args=(other, store, rank, self.n), name=f"rank-{rank}")
            process.start()
            other.close()
            self.members.append((process, connection))

    def end(self) -> None:
        """End the processes, whatever they do."""
        for process, connection in self.members:
            process.kill()
            process.join()
            connection.close()
        self.members = []


def _serve(connection: Connection, store: Path, rank: int, n: int) -> None:
    """Join the group and answer calls until the parent hangs up. The process's main function."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # no network need know this machine by a name
    limit = timedelta(seconds=COLLECTIVE_SECONDS)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), n), rank=rank, world_size=n, timeout=limit)
    while True:
        try:
            call = connection.recv_bytes()
        except (EOFError, OSError):
            break
        connection.send_bytes(_answer(call))
    dist.destroy_process_group()


def _answer(call: bytes) -> bytes:
    """Return, pickled, that it went well and the result, or that it did not and the traceback."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            function, arguments = pickle.loads(call)
            return pickle.dumps((True, function(*arguments)))
        except BaseException:  # those of distributed checkpoints are no Exception
            return pickle.dumps((False, traceback.format_exc()))


def _leave_with_parent() -> None:
    """End this process with its parent, also where it waits for another rank."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
