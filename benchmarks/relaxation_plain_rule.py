"""The update rule of the paper on LJ38 clusters, with fixed learning rates: how small does the largest force become?

    python benchmarks/relaxation_plain_rule.py [--write]

`--write` keeps the result in docs/records/relaxation_plain_rule.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from frankenstein.compare.store.provenance import provenance
from frankenstein.experiments.relaxations.potentials import lennard_jones, random_cluster
from frankenstein.rule import as_rule, init, update

RECORD = Path(__file__).resolve().parents[1] / "docs" / "records" / "relaxation_plain_rule.json"
SEED, N_CLUSTERS, N_CALLS, MAXSTEP, FMAX = 3802, 5, 1500, 0.2, 0.01
PRESETS, RATES, CAPS = ("paper", "authors"), (0.001, 0.005, 0.02, 0.1, 0.2), (None, MAXSTEP)


def smallest_force(positions: np.ndarray, preset: str, lr: float, cap: float | None) -> float:
    """Return the smallest value of the largest force within the calls."""
    rule, state, smallest = as_rule(preset), init(np, positions), np.inf
    for _ in range(N_CALLS):
        forces = lennard_jones(positions)[1]
        if not np.isfinite(forces).all():
            break
        smallest = min(smallest, np.sqrt((forces**2).sum(1)).max())
        delta, state = update(np, -forces, state, lr=lr, base_lr=lr, rule=rule)
        longest = np.sqrt((delta**2).sum(1)).max()
        positions = positions + (delta if cap is None or longest <= cap else delta * (cap / longest))
    return float(smallest)


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    clusters = [random_cluster(38, np.random.default_rng([SEED, number])) for number in range(N_CLUSTERS)]
    rows = []
    for preset in PRESETS:
        for cap in CAPS:
            for lr in RATES:
                with np.errstate(all="ignore"):
                    found = [smallest_force(cluster, preset, lr, cap) for cluster in clusters]
                rows.append({"preset": preset, "lr": lr, "maxstep": cap, "smallest_force": found})
                print(f"{preset:8} lr {lr:<6g} maxstep {cap}: {min(found):.3g} to {max(found):.3g}", flush=True)
    if options.write:
        content = {"n_calls": N_CALLS, "fmax": FMAX, "rows": rows, "provenance": provenance()}
        RECORD.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
