"""Kinds of system on which minimisers are judged. The relaxation rule was tuned on none of them (docs/relaxation.md).

Each start is made from the kind's seed and its number alone, so any part of a kind can be run anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.utils.abc import Optimizable

from frankenstein.experiments.relaxations import crystals
from frankenstein.experiments.relaxations.methods import PairCluster
from frankenstein.experiments.relaxations.potentials import lennard_jones, morse, random_cluster

__all__ = ["KINDS", "Kind", "find_kind", "lj38_starts"]

Make = Callable[[int, Path | None], Optimizable]


@dataclass(frozen=True)
class Kind:
    """A kind of system.

    Attributes:
        name: On the command line and in records.
        title: For people.
        recipe: How the starts are made, in a sentence.
        make: Called with the number of the start and the data folder (or None); returns the start.
        n_starts: How many.
        fmax: Tolerance, in the unit of the forces.
        maxcalls: Most force calls.
        packages: Modules that it needs beside ASE.
        data: File in the data folder that it needs; empty if none.
    """

    name: str
    title: str
    recipe: str
    make: Make
    n_starts: int
    fmax: float = 0.01
    maxcalls: int = 5_000
    packages: tuple[str, ...] = ()
    data: str = ""


def _cluster(n_atoms: int, potential: Callable[[np.ndarray], tuple[float, np.ndarray]], size: float, seed: int) -> Make:
    def make(number: int, _: Path | None) -> Optimizable:
        rng = np.random.default_rng([seed, number])
        return PairCluster(size * random_cluster(n_atoms, rng), potential)

    return make


def _optimizable(target: Any) -> Optimizable:
    return target.__ase_optimizable__()


def _vacancy(number: int, _: Path | None) -> Optimizable:
    from ase.build import bulk
    from ase.calculators.emt import EMT

    rng = np.random.default_rng([7501, number])
    atoms = bulk("Cu", cubic=True) * (3, 3, 3)
    del atoms[int(rng.integers(len(atoms)))]
    atoms.positions += rng.normal(0.0, 0.1, atoms.positions.shape)
    atoms.calc = EMT()
    return _optimizable(atoms)


def _slab(number: int, _: Path | None) -> Optimizable:
    from ase.build import add_adsorbate, fcc111
    from ase.calculators.emt import EMT
    from ase.constraints import FixAtoms

    rng = np.random.default_rng([7502, number])
    atoms = fcc111("Pt", (3, 3, 4), vacuum=8.0)
    add_adsorbate(atoms, "O", 1.6, ("fcc", "hcp", "bridge", "ontop")[number % 4])
    atoms.set_constraint(FixAtoms([atom.index for atom in atoms if atom.tag >= 3]))
    atoms.set_positions(atoms.positions + rng.normal(0.0, 0.1, atoms.positions.shape))
    atoms.calc = EMT()
    return _optimizable(atoms)


# From small to drug-like, each with torsions; a conformer of RDKit's distance geometry, not cleaned by a force field.
SMILES = (
    "CCCC",
    "OCC(O)CO",
    "CC(=O)Oc1ccccc1C(=O)O",
    "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "CC(=O)Nc1ccc(O)cc1",
    "CCOC(=O)c1ccc(N)cc1",
    "CC(=O)NC(C)C(=O)NC",
    "NCCc1ccc(O)c(O)c1",
    "CN1CCC(CC1)Oc1ccc(cc1)C(F)(F)F",
    "OC(=O)CCCCCCCC=C",
)


def _molecule(number: int, _: Path | None) -> Optimizable:
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom

    from frankenstein.experiments.relaxations.mmff import MMFF

    molecule = Chem.AddHs(Chem.MolFromSmiles(SMILES[number % len(SMILES)]))
    rdDistGeom.EmbedMolecule(molecule, randomSeed=1 + number)
    atoms = Atoms(
        [atom.GetSymbol() for atom in molecule.GetAtoms()],
        molecule.GetConformer().GetPositions(),
        calculator=MMFF(molecule),
    )
    return _optimizable(atoms)


LJ38 = "lj38/lj38_optbench_equivalent_1000.npz"


def lj38_starts(data: Path | None) -> np.ndarray:
    """Return the 1,000 clusters of Table 2, (1000, 38, 3).

    Args:
        data: Folder with `lj38/lj38_optbench_equivalent_1000.npz`; without it they are made here by the same rule.
    """
    if data is not None and (data / LJ38).exists():
        with np.load(data / LJ38) as file:
            return np.array(file["positions"])
    return np.array([random_cluster(38, np.random.default_rng([3800, number])) for number in range(1000)])


def source(kind: Kind, data: Path | None) -> str:
    """Say where the starts of a kind come from: a file's name and hash, or this package."""
    path = LJ38 if kind.name == "lj38" else kind.data
    if data is None or not path or not (data / path).exists():
        return "made here"
    target = data / path
    return _hashed(target) if target.is_file() else f"{target.name}, {sum(1 for _ in target.iterdir())} files"


@cache
def _hashed(path: Path) -> str:
    return f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


@cache
def _lj38(data: Path | None) -> np.ndarray:
    return lj38_starts(data)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "lj38", "LJ38 clusters", "compact random clusters by the OptBench rule",
            lambda number, data: PairCluster(_lj38(data)[number], lennard_jones), 1000, maxcalls=10_000,
        ),
        Kind(
            "lj75", "LJ75 clusters", "compact random clusters of 75 atoms by the OptBench rule",
            _cluster(75, lennard_jones, 1.0, 7500), 100,
        ),
        Kind(
            "morse30", "Morse clusters, rho = 6", "compact random clusters of 30 atoms by the OptBench rule",
            _cluster(30, morse(6.0), 1.0, 3000), 200,
        ),
        Kind(
            "morse4", "four atoms, Morse, rho = 6", "compact random clusters of 4 atoms by the OptBench rule",
            _cluster(4, morse(6.0), 1.0, 400), 200,
        ),
        Kind(
            "cu-vacancy", "Cu crystal with a vacancy, EMT",
            "3 x 3 x 3 cubic cells without one atom, atoms displaced by 0.1 A (sigma)", _vacancy, 20,
        ),
        Kind(
            "pt-slab", "Pt(111) slab with O, EMT",
            "3 x 3 x 4 atoms, the lower two layers fixed, O on one of four sites, atoms displaced by 0.1 A (sigma)",
            _slab, 20,
        ),
        Kind(
            "molecule", "molecules with torsions, MMFF94",
            f"{len(SMILES)} molecules of 14 to 35 atoms, three conformers each of RDKit's distance geometry",
            _molecule, 30, packages=("rdkit",),
        ),
        Kind(
            "chgnet", "crystals, CHGNet, fixed cell",
            crystals.RECIPE,
            crystals.wbm("chgnet", cell=False, seed=9720), 16, maxcalls=1_000, packages=("chgnet",), data=crystals.WBM,
        ),
        Kind(
            "chgnet-cell", "crystals, CHGNet, with the cell",
            crystals.RECIPE,
            crystals.wbm("chgnet", cell=True, seed=9721), 16, maxcalls=1_000, packages=("chgnet",), data=crystals.WBM,
        ),
    )
}  # fmt: skip


def find_kind(name: str) -> Kind:
    """Return a kind by name: one of `KINDS`, or `table4/MODEL` and `own/MODEL`, for which see `crystals.calculator`.

    Raises:
        KeyError: There is none of that name.
    """
    if name in KINDS:
        return KINDS[name]
    sort, _, model = name.partition("/")
    make = {"table4": crystals.wbm(model, cell=True, seed=9722), "own": crystals.own(model)}[sort]
    recipe = crystals.RECIPE if sort == "table4" else "the structures as they are in the file"
    data = crystals.WBM if sort == "table4" else "."
    return Kind(name, f"crystals, {model}", recipe, make, 24, maxcalls=500, data=data)
