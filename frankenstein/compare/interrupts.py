"""Ctrl-C at a bad moment: held back until the moment is over."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def take_polite_kill_for_interrupt() -> Any:
    """Make SIGTERM do what Ctrl-C does, also where a shell has Ctrl-C ignored: for a job in the background of a script.

    Returns:
        The handler of SIGTERM before.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        is_killed: list[bool] = []

        def interrupt(*_: Any) -> None:
            if is_killed:
                raise KeyboardInterrupt

        def kill(*_: Any) -> None:
            is_killed.append(True)
            signal.raise_signal(signal.SIGINT)

        signal.signal(signal.SIGINT, interrupt)  # a Ctrl-C is ignored as before
        return signal.signal(signal.SIGTERM, kill)
    return signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Hold SIGINT back, here and in the threads and processes that are started meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the end, and deliver it then.

    Blocking the signal in this thread is not enough: the system hands it to any thread that does not block it, and
    libraries have such threads (numpy's BLAS, Ray). Python then interrupts the main thread all the same.
    """
    with interrupts_blocked():
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or before is None:
            yield
            return
        arrived = []
        signal.signal(signal.SIGINT, lambda *_: arrived.append(True))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            if arrived:
                signal.raise_signal(signal.SIGINT)


def start_tracker() -> None:
    """Start Python's process that tidies up after child processes, before the first child; SIGINT must be held.

    The first child would start it too, and unblock SIGINT on the way. And it would report on standard error, after the
    user's Ctrl-C, what it tidied up after workers that were killed: locks that libraries made.
    """
    if os.name != "posix":
        return
    from multiprocessing import resource_tracker

    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before
