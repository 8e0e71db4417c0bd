"""The generated blocks about time and memory: of steps of XLA, of a quantum state and LAMMPS, and of large boxes."""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

from frankenstein.compare.store.records import read
from frankenstein.experiments import table3
from frankenstein.experiments.alloys import runs

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


def polycrystals() -> str:
    """Say how long it takes to build polycrystals."""
    measured = json.loads((RECORDS / "polycrystal.json").read_text())
    lines = ["| edge, nm | grains | atoms | to build, s | to write, s |", "|---:|---:|---:|---:|---:|"]
    for box in measured["boxes"]:
        size = f"| {box['length'] / 10:g} | {box['n_grains']} | {box['n_atoms']:,} |"
        lines.append(f"{size} {box['building_s']:.2f} | {box['writing_s']:.2f} |")
    return "\n".join([*lines, "", f"One core of {measured['provenance']['device']}; medians over five seeds."])


def large_box() -> str:
    """Say what a run of the larger box took, and what follows for the published one."""
    record = max(read(RECORDS / "large", _fail, runs.ALLOYS), key=itemgetter("n_atoms"))
    n_atoms, n_ranks, calls = record["n_atoms"], record["n_ranks"], record["calls"]
    call = record["seconds"] / calls
    each = call * n_ranks / n_atoms
    asked = table3.PAPER["n_atoms"]
    gib = runs.memory(asked, table3.RANKS)
    hours = 1000 * asked * each / table3.RANKS / 3600
    box = f"{record['box']['length'] / 10:g} nm, {record['box']['n_grains']} grains"
    return "\n".join(
        [
            f"- {n_atoms:,} atoms ({box}) on {n_ranks} ranks: {calls} calls in {record['seconds']:.0f} s, "
            f"{call:.1f} s each, {1e6 * each:.0f} microseconds of one core for each atom. {record['gib']:.2f} GiB "
            f"on all ranks; {record['gib_with_analysis']:.2f} with OVITO's analysis on the first. "
            f"{record['provenance']['device']}.",
            f"- {asked / 1e6:g} million atoms (40 nm) on {table3.RANKS} ranks, by that: {gib:.0f} GiB "
            f"({runs.BYTES_PER_ATOM / 1024:.1f} KiB for each atom and {runs.BYTES_PER_RANK / 2**20:.0f} MiB for each "
            f"rank), {asked * each / table3.RANKS:.1f} s a call, {hours:.1f} hours for 1,000 calls.",
        ]
    )


def _fail(line: str) -> None:
    raise SystemExit(line)


BLOCKS: dict[str, Callable[[], str]] = {
    "optax-cost": cost,
    "quantum-cost": quantum_cost,
    "lammps-cost": lammps_cost,
    "polycrystals": polycrystals,
    "large-box": large_box,
}
