"""How much each constant of the relaxation rule matters, on the starts that it was tuned on.

    python benchmarks/relaxation_search.py [--starts N] [--write]

One constant at a time is moved away from its published value. The starts are made here, from other seeds and of other
kinds than those on which the rule is judged (`frankenstein reproduce table2 | relaxation`). `--write` keeps it in
docs/records/relaxation_search.json, beside what else was tried.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from frankenstein.compare.store.provenance import provenance
from frankenstein.experiments.relaxations.potentials import random_cluster
from frankenstein.experiments.relaxations.summary import geometric_mean
from frankenstein.relaxation import RelaxationRule, relax

RECORD = Path(__file__).resolve().parents[1] / "docs" / "records" / "relaxation_search.json"
SEED, FMAX, MAXSTEP, MAXCALLS = 55, 0.01, 0.2, 3000
# name: atoms, starts, scale of the OptBench rule, share of the smaller atoms of a binary mixture
KINDS = {
    "LJ13": (13, 100, 1.0, 0.0),
    "LJ38": (38, 100, 1.0, 0.0),
    "LJ55": (55, 40, 1.0, 0.0),
    "binary LJ40": (40, 60, 1.6, 0.2),
}
WAYS: dict[str, list[float]] = {
    "memory": [1, 5, 10, 20, 40, 60, 100],
    "first_step": [0.2, 0.5, 0.8, 1.0],
    "acceleration": [1.0, 1.25, 1.45, RelaxationRule.acceleration, 1.8, 2.2],
    "alignment": [1e-9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    "reset_slope": [0.3, 0.5, 1.0, 2.0],
    "shrink": [0.25, 0.5, 0.75, 1.0],
    "grow": [1.1, 1.3, 2.0],
    "maxstep": [0.05, 0.08, 0.1, 0.2, 0.3, 0.5],
}


def pair_potential(n_atoms: int, share: float):
    """Return the batched function of Lennard-Jones clusters; `share` of the atoms are those of Kob and Andersen's B."""
    is_small = np.arange(n_atoms) % 5 == 0 if share else np.zeros(n_atoms, bool)
    both, mixed = is_small[:, None] & is_small, is_small[:, None] ^ is_small
    epsilon = np.where(both, 0.5, np.where(mixed, 1.5, 1.0))
    sigma_squared = np.where(both, 0.88, np.where(mixed, 0.8, 1.0)) ** 2
    here = np.arange(n_atoms)

    def energy_and_forces(positions, systems):
        x = positions.reshape(len(systems), n_atoms, 3)
        apart = x[:, :, None] - x[:, None]
        squared = (apart**2).sum(-1)
        squared[:, here, here] = np.inf
        sixth = (sigma_squared / squared) ** 3
        push = 24.0 * epsilon * sixth * (2.0 * sixth - 1.0) / squared
        energies = 2.0 * (epsilon * sixth * (sixth - 1.0)).sum((1, 2))
        return energies, (push[..., None] * apart).sum(2).reshape(-1, 3)

    return energy_and_forces


def starts(name: str, n_starts: int) -> np.ndarray:
    """Return the positions of a kind's starts, one below the other."""
    n_atoms, _, scale, _ = KINDS[name]
    clusters = [
        scale * random_cluster(n_atoms, np.random.default_rng([SEED, n_atoms, number])) for number in range(n_starts)
    ]
    return np.concatenate(clusters)


def mean_calls(name: str, n_starts: int, rule: RelaxationRule, maxstep: float) -> dict[str, float]:
    """Return mean calls and failures of a kind."""
    n_atoms, _, _, share = KINDS[name]
    result = relax(
        pair_potential(n_atoms, share),
        starts(name, n_starts),
        np.repeat(np.arange(n_starts), n_atoms),
        fmax=FMAX,
        maxstep=maxstep,
        maxcalls=MAXCALLS,
        rule=rule,
    )
    return {"mean": float(result.calls.mean()), "failed": int((~result.converged).sum())}


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, help="of each kind, at most")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    published, rows = RelaxationRule(), []
    reference: dict[str, float] = {}
    for constant, values in {"published": [0.0], **WAYS}.items():
        for value in values:
            is_rule = constant in ("published", "maxstep")
            rule = published if is_rule else replace(published, **{constant: value})
            maxstep = value if constant == "maxstep" else MAXSTEP
            kinds = {
                name: mean_calls(name, min(options.starts or count, count), rule, maxstep)
                for name, (_, count, _, _) in KINDS.items()
            }
            reference = reference or {name: found["mean"] for name, found in kinds.items()}
            ratio = geometric_mean([found["mean"] / reference[name] for name, found in kinds.items()])
            rows.append({"constant": constant, "value": value, "kinds": kinds, "relative": ratio})
            shown = "  ".join(f"{name} {found['mean']:.1f}" for name, found in kinds.items())
            print(f"{constant:12} {value:<8.4g} {ratio:.3f}  {shown}", flush=True)
    if options.write:
        known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        counts = {name: min(options.starts or count, count) for name, (_, count, _, _) in KINDS.items()}
        known["constants"] = {"rows": rows, "n_starts": counts, "fmax": FMAX, "provenance": provenance()}
        RECORD.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
