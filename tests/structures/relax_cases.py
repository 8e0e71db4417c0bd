"""What the tests of `frankenstein relax` share: starts, the command, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

COMMAND = [sys.executable, "-c", "import sys; from frankenstein.cli import main; sys.exit(main())"]
CALCULATORS = Path(__file__).with_name("counted_calculators.py")


def cluster(seed, n_atoms=8):
    """A random Lennard-Jones cluster: a cube, shaken."""
    side = round(n_atoms ** (1 / 3) + 0.49)
    grid = np.argwhere(np.ones((side, side, side)))[:n_atoms] * 1.12
    return Atoms(f"Ar{n_atoms}", grid + np.random.default_rng(seed).normal(scale=0.12, size=grid.shape))


def write_clusters(path, n=3, n_atoms=8):
    write(path, [cluster(seed, n_atoms) for seed in range(n)], format="extxyz")
    return path


def start(*arguments, variables=None, **options):
    """Start the command as a user does."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*COMMAND, "relax", *map(str, arguments)],
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        env=os.environ | (variables or {}),
        **options,
    )


def outcomes(folder):
    """What has ended, by name and optimizer, without the time it took."""
    lines = map(json.loads, (folder / "curves.jsonl").read_text().splitlines())
    return {
        (one["name"], one["optimizer"]): {key: value for key, value in one.items() if key != "seconds"} for one in lines
    }
