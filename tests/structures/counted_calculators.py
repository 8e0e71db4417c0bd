"""Calculators for the tests of `frankenstein relax`: they note every call in a file, and end the process at one.

What they are told stands in environment variables, so that the real command can be used.
"""

import os
import signal

from frankenstein.structures.calculators import LennardJones


class Counted(LennardJones):
    """Lennard-Jones that adds a byte to the file CALLS at each call, and sends SIGNAL to itself at number KILL_AT."""

    def calculate(self, *arguments, **options):
        path = os.environ["CALLS"]
        with open(path, "ab") as file:
            file.write(b".")
        kill_at = int(os.environ.get("KILL_AT", "0"))
        if kill_at and os.path.getsize(path) >= kill_at:
            try:
                os.close(os.open(f"{path}.killed", os.O_CREAT | os.O_EXCL))  # once, whichever of several workers
                os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
            except FileExistsError:
                pass
        super().calculate(*arguments, **options)


class Failing(LennardJones):
    """Lennard-Jones that fails at its third call, and gives a force that is not finite at its ninth."""

    n_calls = 0

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.n_calls += 1
        if self.n_calls == 3:
            raise RuntimeError("no convergence\nin 60 iterations")
        if self.n_calls == 9:
            self.results["forces"][0] = float("nan")


def for_one_process():
    """Lennard-Jones, of which there may be one: the file LICENCE says whether it is in use."""
    os.close(os.open(os.environ["LICENCE"], os.O_CREAT | os.O_EXCL))
    return LennardJones()


def needs_a_licence():
    raise OSError("no licence\nfound")
