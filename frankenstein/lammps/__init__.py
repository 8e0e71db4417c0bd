"""The relaxation rule inside LAMMPS: `minimize`, and a command, `python -m frankenstein.lammps`."""

from frankenstein.lammps.host import load
from frankenstein.lammps.minimizer import MAXSTEP, MEMORY, REASONS, Minimized, minimize

__all__ = ["MAXSTEP", "MEMORY", "REASONS", "Minimized", "load", "minimize"]
