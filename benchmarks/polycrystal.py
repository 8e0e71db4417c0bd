"""Time how long it takes to build polycrystals, and to write them for LAMMPS.

python benchmarks/polycrystal.py           print
python benchmarks/polycrystal.py --write   keep the result in docs/records
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

from frankenstein.compare.store.provenance import provenance
from frankenstein.experiments.alloys.polycrystal import build
from frankenstein.experiments.alloys.runs import ELEMENTS, LATTICE_CONSTANT

RECORD = Path(__file__).resolve().parents[1] / "docs" / "records" / "polycrystal.json"
BOXES = [(45.0, 4), (105.0, 10), (153.0, 10)]
"""Edge in Angstrom, and grains: about 7,000, 100,000 and 300,000 atoms."""


def measure(length: float, n_grains: int, n_rounds: int) -> dict[str, float]:
    """Return the number of atoms and the seconds that building and writing take, medians over seeds."""
    building, writing = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(n_rounds):
            began = time.perf_counter()
            crystal = build(length, n_grains, lattice_constant=LATTICE_CONSTANT, seed=seed)
            built = time.perf_counter()
            crystal.write_lammps(Path(folder) / "crystal.data", list(ELEMENTS.values()))
            building.append(built - began)
            writing.append(time.perf_counter() - built)
    return {
        "length": length,
        "n_grains": n_grains,
        "n_atoms": len(crystal.positions),
        "building_s": round(median(building), 3),
        "writing_s": round(median(writing), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RECORD}")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found = [measure(length, n_grains, options.rounds) for length, n_grains in BOXES]
    print(json.dumps(found, indent=1))
    if options.write:
        RECORD.write_text(json.dumps({"boxes": found, "provenance": provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
