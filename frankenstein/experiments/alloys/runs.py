"""One minimisation of a polycrystal inside LAMMPS, by ours or by one of LAMMPS's own methods, with its dislocations.

On one rank it is a job of `frankenstein reproduce`; boxes that want more are run by hand, and their records lie in the
same folder:

    mpiexec -n 32 python -m frankenstein.experiments.alloys.runs --length 400 --grains 10 --seed 0 \
        --method frankenstein --potential DIR --fmax 0.05 --maxcalls 2000 --out runs/table3
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from frankenstein.compare.store.provenance import provenance
from frankenstein.compare.store.records import Format, Record, appending
from frankenstein.experiments import NOTE
from frankenstein.experiments.alloys.dislocations import Analysis, analyse
from frankenstein.experiments.alloys.polycrystal import build
from frankenstein.experiments.relaxations.runner import OUTCOME, check_numbers, plain

__all__ = [
    "ALLOYS",
    "METHODS",
    "POTENTIAL",
    "Job",
    "energy_function",
    "main",
    "memory",
    "structure_file",
    "trajectory",
]

ELEMENTS = {"Co": 58.933, "Ni": 58.693, "Cr": 51.996, "Fe": 55.845, "Mn": 54.938}
"""And their masses, g/mol."""

LATTICE_CONSTANT = 3.594  # Angstrom: of the random equiatomic crystal with this potential
POTENTIAL = Path("meam")
"""Folder of the two files of the potential, in the data folder: Choi et al., npj Comput. Mater. 4, 1 (2018)."""

FILES = ("library.meam", "CoNiCrFeMn.meam")
METHODS = {
    "frankenstein": "Frankenstein",
    "fire": "FIRE",
    "cg": "CG",
    "hftn": "HFTN",
}
SETTINGS = {
    "frankenstein": "as it is",
    "fire": "min_style fire, timestep 1 fs",
    "cg": "min_style cg, quadratic line search",
    "hftn": "min_style hftn",
}
TIMESTEP = 0.001  # ps, of FIRE: LAMMPS's default, and on other seeds better than 2 and 5 fs
SKIN = 1.0  # Angstrom, of the neighbour lists, for all methods: a call takes less time than with LAMMPS's 2
N_POINTS = 120  # of a curve
SCHEMA = 1
BYTES_PER_ATOM, BYTES_PER_RANK = 3_234, 116 * 2**20
"""Of a run of ours with this potential: from two runs on two ranks, of 7,355 and 299,172 atoms: docs/records/large."""


ALLOYS = Format(
    SCHEMA,
    {
        **OUTCOME,
        "box": {"length": Real, "n_grains": int, "potential": str},
        "settings": str,
        "n_ranks": int,
        "fmax_wanted": Real,
        "maxcalls": int,
        "curve": list,
        "structures": dict,
    },
    check_numbers,
)
"""The records of these experiments; `energy` and `fmax` are numbers or null."""


@dataclass(frozen=True)
class Job:
    """A run: a method from a polycrystal.

    Attributes:
        length: Edge of the box, Angstrom.
        n_grains: Grains in it.
        start: Seed of the polycrystal.
        method: A key of `METHODS`.
        potential: Folder of the potential.
        fmax: Largest force at the end, eV / Angstrom.
        maxcalls: Most force calls.
        at_calls: The structure is analysed after so many calls, too.
        out: Run folder; the atoms at the end are kept there.
        preset: `local` or `paper`.
    """

    length: float
    n_grains: int
    start: int
    method: str
    potential: str
    fmax: float
    maxcalls: int
    at_calls: int
    out: str
    preset: str = "local"
    timeout: float | None = None
    n_cpus: int = 1
    n_gpus: float = 0.0
    modules: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name of the run in the records."""
        return f"{self.length:g}A-{self.n_grains}-grains/{self.method}/{self.start}"

    def run(self) -> Record:
        """Minimise, analyse and return the record; on all ranks, of which the first has the whole of it."""
        lmp = _lammps(self)
        try:
            began = time.perf_counter()
            watch = _Watch(lmp, self.at_calls)
            minimise = _by_ours if self.method == "frankenstein" else _by_lammps
            outcome = minimise(lmp, self, watch)
            outcome["seconds"] = round(time.perf_counter() - began, 3)
            peaks = lmp.get_mpi_comm().allgather(_peak())
            outcome["gib"] = round(sum(peaks) / 2**30, 3)
            watch.note("end", outcome["energy"], outcome["fmax"])
            n_atoms, n_ranks = int(lmp.get_natoms()), lmp.extract_setting("world_size")
            if lmp.extract_setting("world_rank") == 0:
                _keep(structure_file(Path(self.out), self.key), np.full(3, self.length), watch.positions["end"])
                outcome["structures"] = {
                    name: {**watch.noted[name], **_describe(analyse(np.full(3, self.length), positions))}
                    for name, positions in watch.positions.items()
                }
                outcome["gib_with_analysis"] = round((_peak() + sum(peaks[1:])) / 2**30, 3)
        finally:
            lmp.close()
        return self.record(n_atoms, n_ranks=n_ranks, **outcome)

    def record(self, n_atoms: int, **outcome: Any) -> Record:
        """Return the record of an outcome."""
        digest = hashlib.sha256(b"".join((Path(self.potential) / name).read_bytes() for name in FILES)).hexdigest()
        return {
            "schema": SCHEMA,
            "cell": self.key,
            "box": {"length": self.length, "n_grains": self.n_grains, "potential": digest[:8]},
            "method": self.method,
            "method_title": METHODS[self.method],
            "settings": SETTINGS[self.method],
            "start": self.start,
            "n_atoms": n_atoms,
            "fmax_wanted": self.fmax,
            "maxcalls": self.maxcalls,
            **{"n_ranks": 0, "curve": [], "structures": {}},
            **{name: plain(value) for name, value in outcome.items()},
            "converged": outcome["reason"] == "converged",
            "preset": self.preset,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "provenance": provenance(),
        }


def structure_file(folder: Path, key: str) -> Path:
    """Return where a run keeps its atoms: positions (n_atoms, 3) and cell (3,), float32."""
    return folder / "structures" / f"{key.replace('/', '-')}.npz"


def memory(n_atoms: int, n_ranks: int) -> float:
    """Return how much memory a run of ours takes, all ranks together, in GiB."""
    return (n_atoms * BYTES_PER_ATOM + n_ranks * BYTES_PER_RANK) / 2**30


def trajectory(job: Job) -> np.ndarray:
    """Return all geometries of which a run asked the forces: (n_calls, n_atoms, 3) float32, not wrapped; one rank."""
    lmp = _lammps(job)
    visited: list[np.ndarray] = []

    class Followed(_Watch):
        def followed(self) -> None:
            visited.append(_unwrapped(lmp))

    try:
        watch = Followed(lmp, 0)
        (_by_ours if job.method == "frankenstein" else _by_lammps)(lmp, job, watch)
    finally:
        lmp.close()
    return np.array(visited)


def _unwrapped(lmp: Any) -> np.ndarray:
    """Return the positions in the order of the polycrystal, through the walls of the box: (n_atoms, 3) float32."""
    cell = np.array(lmp.extract_global("boxhi")) - np.array(lmp.extract_global("boxlo"))
    images = np.array(lmp.gather_atoms("image", 0, 3)).reshape(-1, 3)
    positions = np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3)
    return (positions + images * cell).astype(np.float32)


def energy_function(job: Job) -> tuple[Callable[[np.ndarray], float], Callable[[], None]]:
    """Return a function of positions (n_atoms, 3) that gives their energy (eV), and one that ends it."""
    lmp = _lammps(job)

    def energy(positions: np.ndarray) -> float:
        wrapped = np.asarray(positions, float) % job.length
        lmp.scatter_atoms("x", 1, 3, np.ctypeslib.as_ctypes(np.ascontiguousarray(wrapped).ravel()))
        lmp.command("run 0 post no")
        return float(lmp.get_thermo("pe"))

    return energy, lmp.close


def _peak() -> int:
    """Return the largest memory that this process has had, in bytes."""
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def _lammps(job: Job) -> Any:
    """Return a LAMMPS with the atoms and their forces; the first rank alone makes the polycrystal."""
    from frankenstein.lammps import load

    potential = Path(job.potential)
    lmp = load(["-log", "none", "-screen", "none"])
    comm = lmp.get_mpi_comm()
    path, problem = _polycrystal(job) if comm.rank == 0 else ("", "")
    path, problem = comm.bcast((path, problem))
    if problem:
        raise ValueError(problem)
    elements = " ".join(ELEMENTS)
    lmp.commands_string(f"""units metal
        atom_modify map array
        read_data "{path}"
        neighbor {SKIN} bin
        pair_style meam
        pair_coeff * * "{potential / FILES[0]}" {elements} "{potential / FILES[1]}" {elements}
        thermo 0
        thermo_style custom step pe
        thermo_modify format float %.12g
        timestep {TIMESTEP}""")
    comm.barrier()
    if comm.rank == 0:
        os.unlink(path)
    return lmp


def _polycrystal(job: Job) -> tuple[str, str]:
    """Write the polycrystal to a temporary file; return its name, and what went wrong or nothing."""
    missing = [name for name in FILES if not (Path(job.potential) / name).is_file()]
    if missing:
        return "", f"there is no {Path(job.potential) / missing[0]}; name the folder of the potential's two files"
    path = _temporary(".data")
    try:
        crystal = build(job.length, job.n_grains, lattice_constant=LATTICE_CONSTANT, seed=job.start)
        crystal.write_lammps(path, list(ELEMENTS.values()))
    except (ValueError, OSError, MemoryError) as error:
        os.unlink(path)
        return "", str(error) or type(error).__name__
    return path, ""


def _temporary(suffix: str) -> str:
    handle, path = tempfile.mkstemp(suffix=suffix, prefix="frankenstein-")
    os.close(handle)
    return path


class _Watch:
    """What a run passes through: calls, energies, forces, and the atoms where they are looked at."""

    def __init__(self, lmp: Any, at_calls: int) -> None:
        self.lmp, self.at_calls = lmp, at_calls
        self.calls = 0
        self.fmax = math.nan
        self.points: list[tuple[int, float, float]] = []  # calls, energy, largest force
        self.positions: dict[str, np.ndarray] = {}  # on the first rank
        self.noted: dict[str, dict[str, Any]] = {}

    def note(self, name: str, energy: float, fmax: float) -> None:
        """Keep the atoms as they are now, in the order of the polycrystal."""
        n_local = self.lmp.extract_global("nlocal")
        mine = [self.lmp.numpy.extract_atom(what, nelem=n_local).copy() for what in ("id", "x")]
        parts = self.lmp.get_mpi_comm().gather(mine)
        if parts is not None:
            ids, positions = (np.concatenate(part) for part in zip(*parts, strict=True))
            self.positions[name] = positions[np.argsort(ids.ravel())]
        self.noted[name] = {"calls": self.calls, "energy": energy, "fmax": fmax}

    def followed(self) -> None:
        """Look at a geometry of which the forces have been computed."""

    def largest(self) -> float:
        """Return the largest force on an atom, as it is now."""
        n_local = self.lmp.extract_global("nlocal")
        forces = self.lmp.numpy.extract_atom("f", nelem=n_local)
        mine = float(np.einsum("ij,ij->i", forces, forces).max(initial=0.0))
        return math.sqrt(max(self.lmp.get_mpi_comm().allgather(mine)))

    def norm(self) -> float:
        """Return the norm of the forces on all atoms, as it is now."""
        n_local = self.lmp.extract_global("nlocal")
        forces = self.lmp.numpy.extract_atom("f", nelem=n_local)
        return math.sqrt(sum(self.lmp.get_mpi_comm().allgather(float(np.vdot(forces, forces)))))

    def curve(self) -> list[list[float]]:
        """Return some of the points, denser at the beginning."""
        if not self.points:
            return []
        last = len(self.points) - 1
        chosen = {0, last} | {round((last + 1) ** (i / N_POINTS)) - 1 for i in range(N_POINTS)}
        return [[self.points[i][0], round(self.points[i][1], 6), round(self.points[i][2], 6)] for i in sorted(chosen)]


def _by_ours(lmp: Any, job: Job, watch: _Watch) -> dict[str, Any]:
    from frankenstein.lammps import minimize

    def callback(calls: int, energy: float, fmax: float) -> None:
        watch.calls = calls
        watch.points.append((calls, energy, fmax))
        watch.followed()
        if calls == job.at_calls:
            watch.note("calls", energy, fmax)

    found = minimize(lmp, fmax=job.fmax, maxcalls=job.maxcalls, callback=callback)
    return {**_plain(found.energy, found.fmax, found.reason, found.calls), "curve": watch.curve()}


def _plain(energy: float, fmax: float, reason: str, calls: int) -> dict[str, Any]:
    return {"energy": energy, "fmax": fmax, "reason": reason, "calls": calls}


def _by_lammps(lmp: Any, job: Job, watch: _Watch) -> dict[str, Any]:
    """Minimise by a method of LAMMPS until the tolerance, again after a line search that found no way on.

    LAMMPS tells neither how many force calls a method took nor the energy of each: calls are counted by a fix that
    does nothing else, and energies are those of its log, at the end of each iteration.
    """
    steps: dict[int, tuple[int, float]] = {}  # by timestep: calls until its end, largest force there

    def count(caller: Any, step: int, n_local: int, tags: Any, positions: Any, forces: Any) -> None:
        watch.calls += 1
        watch.fmax = watch.largest()
        watch.followed()
        steps[int(step)] = (watch.calls, watch.fmax)
        if watch.calls == job.at_calls:
            watch.note("calls", math.nan, watch.fmax)

    comm = lmp.get_mpi_comm()
    log = comm.bcast(_temporary(".log") if comm.rank == 0 else "")
    lmp.command("fix count all external pf/callback 1 1")
    lmp.set_fix_external_callback("count", count)
    lmp.commands_string(f"log {log}\nthermo 1\nmin_style {job.method}")
    tolerance = job.fmax
    if job.method == "hftn":  # it knows the norm over all atoms only
        tolerance *= 0.25 * math.sqrt(lmp.get_natoms())
    else:
        lmp.command("min_modify norm max")
    reason, energy = "maxcalls", math.inf
    while watch.calls < job.maxcalls:
        lmp.command(f"minimize 0.0 {tolerance} {job.maxcalls} {job.maxcalls - watch.calls}")
        before, energy = energy, lmp.get_thermo("pe")
        if watch.largest() <= job.fmax:
            reason = "converged"
            break
        if watch.calls < job.maxcalls and energy >= before:
            reason = "linesearch"
            break
        if job.method == "hftn":  # it would do nothing at a norm within the tolerance
            tolerance = 0.5 * min(tolerance, watch.norm())
    lmp.commands_string("log none\nunfix count")
    energies = comm.bcast(_energies(Path(log)) if comm.rank == 0 else None)
    if comm.rank == 0:
        os.unlink(log)
    watch.points = [(*steps[s][:1], energies[s], steps[s][1]) for s in sorted(steps) if s in energies]
    if "calls" in watch.noted:
        until = [point[1] for point in watch.points if point[0] <= job.at_calls]
        watch.noted["calls"]["energy"] = until[-1] if until else energy
    return {**_plain(energy, watch.largest(), reason, watch.calls), "curve": watch.curve()}


def _energies(log: Path) -> dict[int, float]:
    """Return the energies in a log, by timestep."""
    found = {}
    for line in log.read_text().splitlines():
        words = line.split()
        if len(words) == 2 and words[0].isdigit():
            try:
                found[int(words[0])] = float(words[1])
            except ValueError:
                continue
    return found


def _describe(found: Analysis) -> dict[str, Any]:
    return {
        "n_segments": found.n_segments,
        "length": round(found.length, 3),
        "length_by_type": {name: round(length, 3) for name, length in found.length_by_type.items()},
        "fractions": {name: round(share, 5) for name, share in found.structure_fractions.items()},
    }


def _keep(path: Path, cell: np.ndarray, positions: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, cell=cell.astype("float32"), positions=positions.astype("float32"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job on all ranks and add its record to a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m frankenstein.experiments.alloys.runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--length", type=float, required=True, help="edge of the box, Angstrom")
    parser.add_argument("--grains", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", choices=METHODS, default="frankenstein")
    parser.add_argument("--potential", type=Path, required=True, help=f"folder with {' and '.join(FILES)}")
    parser.add_argument("--fmax", type=float, default=0.05)
    parser.add_argument("--maxcalls", type=int, default=2000)
    parser.add_argument("--at-calls", type=int, default=0, help="analyse the structure there, too")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    options = parser.parse_args(arguments)
    from mpi4py import MPI

    job = Job(
        options.length,
        options.grains,
        options.seed,
        options.method,
        str(options.potential),
        options.fmax,
        options.maxcalls,
        options.at_calls,
        str(options.out),
        "paper",
    )
    is_first = MPI.COMM_WORLD.rank == 0
    try:
        if find_spec("ovito") is None:  # it would be missed at the end
            raise ImportError("the analysis of dislocations needs OVITO; pip install '.[alloys]' (in the checkout)")
        record = job.run()
    except (ImportError, ValueError) as error:
        if is_first:
            print(f"{parser.prog}: error: {error}", file=sys.stderr, flush=True)
        return 2
    if is_first:
        with appending(options.out, print, ALLOYS) as (_, append):
            append(record)
        note = options.out / NOTE
        if not note.exists():  # for `frankenstein reproduce table3 --preset paper`
            note.write_text("table3\n", encoding="utf-8")
        names = ("n_atoms", "n_ranks", "reason", "calls", "energy", "fmax", "seconds", "gib")
        print(", ".join(f"{name} {record[name]}" for name in names))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
