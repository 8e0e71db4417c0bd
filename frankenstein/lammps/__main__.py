"""The command: relax the atoms of a LAMMPS data file, on as many ranks as `mpiexec` starts.

    mpiexec -n 2 python -m frankenstein.lammps IN.data --potential library.meam CoNiCrFeMn.meam \
        --elements Co Ni Cr Fe Mn --fmax 0.01

The relaxed atoms are written as a data file, with a file of JSON that says how far the run came. Interrupted or killed,
the same command goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frankenstein.cli.inputs import UsageError, amount, positive
from frankenstein.lammps import MEMORY, Minimized, load, minimize
from frankenstein.lammps.host import command
from frankenstein.relaxation.rule import RelaxationRule

STYLES = {
    ".eam.alloy": "eam/alloy",
    ".eam.fs": "eam/fs",
    ".adp": "adp",
    ".meam": "meam",
    ".sw": "sw",
    ".tersoff": "tersoff",
}
"""The pair style of a potential's file."""

SECONDS = 5.0
"""Between two lines of progress."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command on one rank; return the exit code: 0 converged, 1 stopped before, 2 wrong input, 130 Ctrl-C."""
    is_first = _rank() == 0
    try:
        options = _parser(is_first).parse_args(arguments)
        return _run(options, is_first)
    except (UsageError, ImportError, ValueError, RuntimeError, OSError) as error:
        if is_first:
            print(f"frankenstein.lammps: error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        if is_first:
            print("frankenstein.lammps: interrupted; the same command goes on", file=sys.stderr, flush=True)
        return 130


def _run(options: argparse.Namespace, is_first: bool) -> int:
    out: Path = options.out or options.data.with_name(f"{options.data.stem}.relaxed.data")
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if not options.data.is_file():
        raise UsageError(f"there is no file {options.data}")
    if out.exists() and not (options.overwrite or checkpoint.exists()):
        raise UsageError(f"{out} is there already; name another file (--out) or say --overwrite")
    if checkpoint.exists() and checkpoint.stat().st_mtime < options.data.stat().st_mtime:
        raise UsageError(f"{checkpoint} is older than {options.data}; delete it to start anew, or touch it to go on")
    if not out.parent.is_dir():
        raise UsageError(f"{out} would be in the folder {out.parent}, which is not there; make it first")
    pair = _pair(options)
    lmp = load(["-log", str(options.log) if options.log else "none", "-screen", "none"])
    began = time.monotonic()
    try:
        for text in (
            f"units {options.units}",
            "atom_style atomic",
            f"boundary {' '.join(options.boundary)}",
            f'read_data "{options.data}"',
            *pair,
            "thermo 0",
        ):
            command(lmp, text)
        if is_first:
            ranks = lmp.extract_setting("world_size")
            goes_on = f", goes on from {checkpoint}" if checkpoint.exists() else ""
            _say(f"{int(lmp.get_natoms()):,} atoms on {ranks} rank{'s' if ranks > 1 else ''}{goes_on}")
        found = minimize(
            lmp,
            fmax=options.fmax,
            ftol=options.ftol,
            etol=options.etol,
            maxcalls=options.maxcalls,
            maxstep=options.maxstep,
            timeout=options.timeout,
            rule=RelaxationRule(memory=options.memory),
            callback=_Progress() if is_first else None,
            checkpoint=checkpoint,
            checkpoint_every=options.checkpoint_every,
        )
        command(lmp, f'write_data "{out}" nocoeff')
    finally:
        lmp.close()
    if is_first:
        _tell(found, out, checkpoint, time.monotonic() - began)
    return 0 if found.converged or found.reason in ("ftol", "etol") else 1


def _tell(found: Minimized, out: Path, checkpoint: Path, seconds: float) -> None:
    about = {**vars(found), "seconds": round(seconds, 3)}
    out.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    line = f"{found.reason} after {found.calls} calls: energy {found.energy:.6f}, largest force {found.fmax:.3g}; {out}"
    if found.reason in ("maxcalls", "timeout"):
        line += f"; with a larger --{found.reason} the same command goes on"
    else:
        checkpoint.unlink(missing_ok=True)
    _say(line)


def _pair(options: argparse.Namespace) -> list[str]:
    """Return the commands that say what the forces are."""
    if options.pair_style:
        if not options.pair_coeff:
            raise UsageError("--pair-style needs --pair-coeff")
        return [f"pair_style {options.pair_style}", *(f"pair_coeff {one}" for one in options.pair_coeff)]
    if not options.potential:
        raise UsageError("no forces: name a file (--potential, with --elements), or --pair-style and --pair-coeff")
    if not options.elements:
        raise UsageError(
            "--potential needs --elements, one for each atom type in the order of the data file: Co Ni ..."
        )
    for path in options.potential:
        if not path.is_file():
            raise UsageError(f"there is no file {path}")
    name = options.potential[-1].name
    style = next((style for suffix, style in STYLES.items() if name.endswith(suffix)), None)
    if style is None:
        raise UsageError(f"{name}: the style is known of {', '.join(STYLES)}; else say --pair-style and --pair-coeff")
    if len(options.potential) != (2 if style == "meam" else 1):
        wanted = "two files, the library and the parameters" if style == "meam" else "one file"
        raise UsageError(f"{style} has {wanted}; {len(options.potential)} given")
    elements = " ".join(options.elements)
    files = " ".join(f'"{path}" {elements}' for path in options.potential)
    return [f"pair_style {style}", f"pair_coeff * * {files}"]


class _Progress:
    """One line every few seconds."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.first: int | None = None

    def __call__(self, calls: int, energy: float, fmax: float) -> None:
        now = time.monotonic()
        self.first = calls if self.first is None else self.first
        if now - self.last >= SECONDS:
            self.last = now
            each = (now - self.began) / max(calls - self.first, 1)
            _say(f"{calls:6d} calls, energy {energy:.6f}, largest force {fmax:.4g}, {each:.3g} s a call")


def _say(line: str) -> None:
    print(f"frankenstein.lammps: {line}", flush=True)


def _rank() -> int:
    try:
        from mpi4py import MPI
    except ImportError:  # one process then; `minimize` says so where there are more
        return 0
    return int(MPI.COMM_WORLD.rank)


class _Parser(argparse.ArgumentParser):
    """One that only the first rank speaks through."""

    is_first = True

    def _print_message(self, message: str, file: Any = None) -> None:
        if self.is_first:
            super()._print_message(message, file)

    def error(self, message: str) -> Any:
        raise UsageError(message)


def _parser(is_first: bool) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="[mpiexec -n N] python -m frankenstein.lammps",
        description="Relax the atoms of a LAMMPS data file. Interrupted or killed, the same command goes on.",
    )
    parser.is_first = is_first
    parser.add_argument("data", type=Path, metavar="IN.data", help="a data file of LAMMPS, atom style atomic")
    how = parser.add_argument_group("forces")
    how.add_argument("--potential", type=Path, nargs="+", metavar="FILE", help=f"one of {' '.join(STYLES)}; meam: two")
    how.add_argument("--elements", nargs="+", metavar="E", help="of the atom types, in their order")
    how.add_argument("--pair-style", metavar="STYLE", help="any pair style, with its arguments, in quotes")
    how.add_argument(
        "--pair-coeff", action="append", metavar="COEFF", help="its pair_coeff, in quotes; may be repeated"
    )
    how.add_argument("--units", default="metal", help="style of units (metal)")
    how.add_argument("--boundary", nargs=3, default=["p", "p", "p"], metavar="B", help="p, f, s or m each (p p p)")
    when = parser.add_argument_group("how far")
    when.add_argument("--fmax", type=amount, default=0.01, help="converged when no atom feels a larger force (0.01)")
    when.add_argument("--ftol", type=amount, help="or when the norm of all forces is not larger")
    when.add_argument("--etol", type=amount, help="or when a step changes the energy by a smaller share of it")
    when.add_argument("--maxcalls", type=positive, default=100_000, metavar="N", help="most force calls (100000)")
    when.add_argument("--maxstep", type=amount, help="longest step of an atom (0.2 Angstrom)")
    when.add_argument("--timeout", type=amount, metavar="SECONDS", help="stop after this time")
    when.add_argument("--memory", type=positive, default=MEMORY, help=f"steps that the rule remembers ({MEMORY})")
    where = parser.add_argument_group("where")
    where.add_argument("--out", type=Path, metavar="FILE", help="the relaxed atoms (IN.relaxed.data)")
    where.add_argument("--overwrite", action="store_true", help="even if that file is there")
    where.add_argument("--checkpoint-every", type=positive, default=100, metavar="N", help="force calls (100)")
    where.add_argument("--log", type=Path, metavar="FILE", help="LAMMPS's own log (none)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
