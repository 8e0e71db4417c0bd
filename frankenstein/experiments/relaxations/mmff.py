"""The MMFF94 force field of RDKit as an ASE calculator."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.units import kcal, mol
from rdkit.Chem import rdForceFieldHelpers

__all__ = ["MMFF"]


class MMFF(Calculator):
    """Energies (eV) and forces (eV/A) of one molecule in MMFF94 (Halgren 1996).

    Args:
        molecule: RDKit molecule with hydrogens and a conformer; atoms in the order of the structure.

    Raises:
        ValueError: MMFF94 has no parameters for it.
    """

    implemented_properties = [  # noqa: RUF012 - as in ASE
        "energy",
        "free_energy",
        "forces",
    ]

    def __init__(self, molecule: Any) -> None:
        super().__init__()
        parameters = rdForceFieldHelpers.MMFFGetMoleculeProperties(molecule)
        if parameters is None:
            raise ValueError("Invalid molecule: MMFF94 has no parameters for one of its atoms")
        self._molecule = molecule  # the force field refers to it
        self._field = rdForceFieldHelpers.MMFFGetMoleculeForceField(molecule, parameters, nonBondedThresh=1000.0)

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        """Compute energy and forces."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        x = self.atoms.positions.ravel().tolist()
        energy = self._field.CalcEnergy(x) * kcal / mol
        forces = -np.array(self._field.CalcGrad(x)).reshape(-1, 3) * kcal / mol
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
