"""The generated blocks about the time of steps: XLA's, that of a quantum state, and LAMMPS's iterations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

RECORDS = Path(__file__).resolve().parent / "records"


def cost() -> str:
    """Return the table of step times beside optax.adamw."""
    measured = json.loads((RECORDS / "optax_step.json").read_text())
    lines = ["| parameters | optimizer | a step, ms | times optax.adamw |", "|---|---|---:|---:|"]
    for title, case in measured["cases"].items():
        for name, milliseconds in case["step_ms"].items():
            ratio = case["ratios"].get(name)
            shown = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
            lines.append(f"| {title} | {name} | {milliseconds:g} | {shown} |")
    found = measured["versions"]
    where = (
        f"{measured['provenance']['device']}; jax {found['jax']}, optax {found['optax']}; medians, and the extremes."
    )
    return "\n".join([*lines, "", where])


def quantum_cost() -> str:
    """Return the table of the time of a step of Fig. 7 on one core, for one seed alone and for batches of them."""
    measured = json.loads((RECORDS / "quantum_step.json").read_text())
    sizes = list(next(iter(measured["cases"].values()))["ms_per_seed"])
    heads = ["one seed, ms" if size == "1" else f"batch of {size}, ms a seed" for size in sizes]
    lines = [f"| lattice | states | {' | '.join(heads)} |"]
    lines.append("|---|---:|" + "---:|" * len(sizes))
    for title, case in measured["cases"].items():
        figures = " | ".join(f"{case['ms_per_seed'][size]:g}" for size in sizes)
        lines.append(f"| {title} | {case['n_states']:,} | {figures} |")
    where = f"One thread of {measured['provenance']['device']}; torch {measured['versions']['torch']}; medians."
    return "\n".join([*lines, "", where])


def lammps_cost() -> str:
    """Return the table of the time of an iteration inside LAMMPS, beside its own FIRE."""
    measured = json.loads((RECORDS / "lammps_iteration.json").read_text())
    lines = ["| ranks | minimiser | an iteration, ms | times FIRE |", "|---:|---|---:|---:|"]
    for n_ranks, case in sorted(measured["cases"].items()):
        for name, milliseconds in case["iteration_ms"].items():
            ratio = case["ratios"].get(name)
            shown = f"{ratio['median']:.2f} ({ratio['lower']:.2f} to {ratio['upper']:.2f})" if ratio else ""
            lines.append(f"| {n_ranks} | {name} | {milliseconds:g} | {shown} |")
    n_atoms = next(iter(measured["cases"].values()))["n_atoms"]
    where = (
        f"{n_atoms:,} atoms of copper, EAM; {measured['provenance']['device']}; medians, and quartiles of the ratios."
    )
    return "\n".join([*lines, "", where])


BLOCKS: dict[str, Callable[[], str]] = {"optax-cost": cost, "quantum-cost": quantum_cost, "lammps-cost": lammps_cost}
