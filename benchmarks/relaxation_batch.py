"""Relax 1,000 LJ38 clusters in one batch, with numpy and with torch.

    python benchmarks/relaxation_batch.py [--starts N] [--write]

`--write` keeps the result in docs/records/relaxation_batch.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from frankenstein.compare.store.provenance import provenance
from frankenstein.experiments.relaxations.potentials import random_cluster
from frankenstein.relaxation import relax

RECORD = Path(__file__).resolve().parents[1] / "docs" / "records" / "relaxation_batch.json"
N_ATOMS, SEED, FMAX = 38, 3801, 0.01


def lennard_jones(xp):
    """Return the batched function on arrays of `xp`: distances by the Gram matrix, forces by a product."""
    here = xp.arange(N_ATOMS)

    def energy_and_forces(positions, systems):
        x = positions.reshape(len(systems), N_ATOMS, 3)
        norms = (x * x).sum(-1)
        squared = norms[:, :, None] + norms[:, None] - 2.0 * (x @ xp.swapaxes(x, 1, 2))
        squared[:, here, here] = 1.0
        inverse = 1.0 / squared
        sixth = inverse * inverse * inverse
        sixth[:, here, here] = 0.0
        push = 24.0 * sixth * (2.0 * sixth - 1.0) * inverse
        energies = 2.0 * (sixth * (sixth - 1.0)).sum((1, 2))
        return energies, (push.sum(-1)[..., None] * x - push @ x).reshape(-1, 3)

    return energy_and_forces


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=1000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    n = options.starts
    clusters = [random_cluster(N_ATOMS, np.random.default_rng([SEED, number])) for number in range(n)]
    positions, system_idx = np.concatenate(clusters), np.repeat(np.arange(n), N_ATOMS)
    found = {}
    for xp in (np, torch):
        arrays = (positions, system_idx) if xp is np else (torch.tensor(positions), torch.tensor(system_idx))
        begin = time.perf_counter()
        result = relax(lennard_jones(xp), *arrays, fmax=FMAX)
        found[xp.__name__] = {
            "seconds": time.perf_counter() - begin,
            "mean_calls": float(result.calls.mean()),
            "n_converged": int(result.converged.sum()),
        }
        print(f"{xp.__name__:6} {found[xp.__name__]}", flush=True)
    if options.write:
        content = {"n_systems": n, "n_threads": torch.get_num_threads(), "runs": found, "provenance": provenance()}
        RECORD.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
