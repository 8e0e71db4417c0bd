"""Checkpoints of `frankenstein.lammps`: one file for all ranks, read by any number of them.

A zip archive of numpy arrays, what `numpy.load` opens: `about` (JSON), `shared/NAME` and, for the atoms of each rank
that wrote it, `RANK/NAME`. The ranks send their parts to the first one after the other, so that no process ever holds
the atoms of more than one other.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["KEPT", "VERSION", "read", "write"]

VERSION = 2
KEPT = ("maxcalls", "timeout", "stopped")
"""Reasons for which a run ends and may go on later."""

Arrays = dict[str, np.ndarray]


def write(path: Path, about: dict[str, Any], shared: Arrays, per_atom: Arrays, comm: Any) -> None:
    """Write a checkpoint in one piece: whenever this is interrupted, there is the one before or the new one.

    Args:
        path: Name of the file.
        about: What it belongs to, plain data.
        shared: The same on all ranks.
        per_atom: One row for each atom of this rank; `id` among them.
        comm: mpi4py's communicator; None: one process.

    Raises:
        OSError: It could not be written; on all ranks.
    """
    per_atom = {name: np.ascontiguousarray(array) for name, array in per_atom.items()}
    if comm is not None and comm.rank > 0:
        comm.send(list(per_atom), 0)  # that it is ready
        for array in per_atom.values():
            comm.send((array.dtype.str, array.shape), 0)
            comm.Send(array, 0)
        problem = comm.bcast(None)
    else:
        problem = _write_all(path, about, shared, per_atom, comm)
        if comm is not None:
            comm.bcast(problem)
    if problem:
        raise OSError(problem)


def _write_all(path: Path, about: dict[str, Any], shared: Arrays, per_atom: Arrays, comm: Any) -> str | None:
    part = path.with_name(path.name + ".part")
    problem = None
    try:
        archive: zipfile.ZipFile | None = zipfile.ZipFile(part, "w")
    except OSError as error:
        archive, problem = None, f"cannot write the checkpoint {path}: {error.strerror}"

    def add(name: str, array: np.ndarray) -> None:
        nonlocal problem
        if archive is None or problem:
            return
        try:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        except OSError as error:
            problem = f"cannot write the checkpoint {path}: {error.strerror}"

    ranks = 1 if comm is None else comm.size
    add("about", np.array(json.dumps({**about, "version": VERSION, "n_ranks": ranks})))
    for name, array in shared.items():
        add(f"shared/{name}", array)
    for name, array in per_atom.items():
        add(f"0/{name}", array)
    for rank in range(1, ranks):  # received whether it can be written or not: they wait
        for name in comm.recv(source=rank):
            dtype, shape = comm.recv(source=rank)
            array = np.empty(shape, dtype)
            comm.Recv(array, source=rank)
            add(f"{rank}/{name}", array)
    if archive is not None:
        try:
            archive.close()
            if not problem:
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
                os.replace(part, path)
        except OSError as error:
            problem = f"cannot write the checkpoint {path}: {error.strerror}"
        if problem:
            with contextlib.suppress(OSError):
                part.unlink()
    return problem


def read(path: Path, about: dict[str, Any], tags: np.ndarray, same: Arrays, per_atom: Arrays, comm: Any) -> Arrays:
    """Read a checkpoint into the arrays of the atoms of this rank; nothing is written before all of it is found sound.

    Args:
        path: Name of the file.
        about: What it must belong to.
        tags: (n_local,) ids of the atoms of this rank.
        same: One row for each of them, which must be what the checkpoint has.
        per_atom: One row for each of them; written.
        comm: As for `write`.

    Returns:
        What is the same on all ranks.

    Raises:
        ValueError: It is no checkpoint, damaged, or of another system; on all ranks.
    """
    shared: Arrays = {}
    problem = None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            n_ranks = _check_about(json.loads(str(archive["about"])), about)
            shared = {n.removeprefix("shared/"): archive[n] for n in archive.files if n.startswith("shared/")}
            n_found = 0
            for rank in range(n_ranks):
                mine, theirs = _places(tags, archive[f"{rank}/id"].ravel())
                n_found += len(mine)
                for name, wanted in same.items():
                    if not np.array_equal(archive[f"{rank}/{name}"].ravel()[theirs], wanted.ravel()[mine]):
                        raise ValueError(f"the {name} of its atoms is another")
                for name in per_atom:
                    archive[f"{rank}/{name}"]  # its checksum is compared
            if n_found != len(tags):
                raise ValueError(f"{len(tags) - n_found} atoms are not in it")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        problem = f"cannot go on from {path}: {error}; delete it to start anew"
    problems = [problem] if comm is None else comm.allgather(problem)
    if any(problems):
        raise ValueError(next(one for one in problems if one))
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        for rank in range(n_ranks):
            mine, theirs = _places(tags, archive[f"{rank}/id"].ravel())
            for name, view in per_atom.items():
                view[mine] = archive[f"{rank}/{name}"].reshape(-1, *view.shape[1:])[theirs]
    return shared


def _check_about(found: dict[str, Any], about: dict[str, Any]) -> int:
    """Return how many ranks wrote a checkpoint.

    Raises:
        ValueError: It belongs to something else.
    """
    n_ranks = int(found.pop("n_ranks"))
    for name, wanted in {**about, "version": VERSION}.items():
        if found.get(name) != wanted:
            raise ValueError(f"its {name} is {found.get(name)}, not {wanted}")
    return n_ranks


def _places(tags: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where atoms are that are in both: their indices in tags, and in ids."""
    _, mine, theirs = np.intersect1d(tags, ids, assume_unique=True, return_indices=True)
    return mine, theirs
