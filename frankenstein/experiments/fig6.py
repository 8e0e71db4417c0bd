"""Fig. 6 of the paper: what a polycrystal of CoNiCrFeMn looks like after each minimiser: grains and dislocations."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.store.records import Record
from frankenstein.experiments.alloys import pictures, runs
from frankenstein.experiments.alloys.dislocations import BURGERS_VECTORS, analyse
from frankenstein.experiments.alloys.polycrystal import build
from frankenstein.experiments.alloys.runs import METHODS
from frankenstein.experiments.experiment import ExperimentError, Findings, Options, Picture
from frankenstein.experiments.table3 import records

N_GRAINS, SEED = 2, 1


def reproduce(options: Options) -> Findings:
    """Minimise one polycrystal with every method, and draw what has become of it."""
    return findings(records(options, (N_GRAINS,), [SEED]), options.out)


def findings(found: list[Record], folder: Path) -> Findings:
    """Return the pictures of the first polycrystal, and what they show.

    Args:
        found: Records of runs.
        folder: Where they have left their atoms.
    """
    sound = [record for record in found if record["n_atoms"]]
    if not sound:
        raise ExperimentError("no run has come to an end")
    start = min(record["start"] for record in sound)
    own = sorted((r for r in sound if r["start"] == start), key=lambda r: list(METHODS).index(r["method"]))
    box = own[0]["box"]
    drawings = [_grains(box["length"], box["n_grains"], start)]
    for record in own:
        path = runs.structure_file(folder, record["cell"])
        if path.exists():
            drawings += _drawings(record, path)
    title = "Fig. 6: a polycrystal after its minimisation"
    return Findings(title, [_sentence(record) for record in own], [_table(own)], [], drawings)


def _sentence(record: Record) -> str:
    found = record["structures"]["end"]
    return (
        f"{record['method_title']}: {found['n_segments']} dislocation segments, {found['length'] / 10:.1f} nm in all; "
        f"{found['fractions']['fcc']:.0%} fcc, {found['fractions']['hcp']:.1%} hcp; {record['energy']:.2f} eV after "
        f"{record['calls']} force calls."
    )


def _grains(length: float, n_grains: int, seed: int) -> Picture:
    def draw() -> bytes:
        crystal = build(length, n_grains, lattice_constant=runs.LATTICE_CONSTANT, seed=seed)
        return pictures.slice_by_grain(crystal.cell, crystal.positions, crystal.grain_idx)

    return Picture("fig6-grains.png", f"The polycrystal as it was built: {n_grains} grains, one colour each.", draw)


def _drawings(record: Record, path: Path) -> list[Picture]:
    method, title = record["method"], record["method_title"]
    with np.load(path) as archive:
        cell, positions = archive["cell"].astype(float), archive["positions"].astype(float)

    def structures() -> bytes:
        return pictures.slice_by_structure(cell, positions, analyse(cell, positions).structures)

    def lines() -> bytes:
        return pictures.dislocation_lines(cell, analyse(cell, positions))

    what = "a slice, coloured by the structure around each atom"
    return [
        Picture(f"fig6-structure-{method}.png", f"{title}: {what}.", partial(structures)),
        Picture(
            f"fig6-lines-{method}.png", f"{title}: dislocations, coloured by their Burgers vector.", partial(lines)
        ),
    ]


def _table(own: list[Record]) -> Table:
    types = [*BURGERS_VECTORS, "other"]
    rows = []
    for record in own:
        found = record["structures"]["end"]
        lengths = [found["length_by_type"][name] / 10.0 for name in types]
        rows.append(
            [
                Cell(record["method_title"]),
                Cell(str(found["n_segments"]), numbers={"": found["n_segments"]}),
                Cell(f"{found['length'] / 10.0:.1f}", numbers={"": found["length"] / 10.0}),
                *(Cell(f"{length:.1f}", numbers={"": length}) for length in lengths),
                Cell(f"{found['fractions']['fcc']:.1%}", numbers={"": found["fractions"]["fcc"]}),
                Cell(f"{found['fractions']['hcp']:.1%}", numbers={"": found["fractions"]["hcp"]}),
            ]
        )
    columns = ["method", "segments", "length, nm", *(f"{name}, nm" for name in types), "fcc", "hcp"]
    box = own[0]["box"]
    notes = [f"{box['n_grains']} grains in {box['length'] / 10:g} nm, {own[0]['n_atoms']:,} atoms; DXA of OVITO"]
    return Table("fig6", "Dislocations by type", columns, rows, notes)
