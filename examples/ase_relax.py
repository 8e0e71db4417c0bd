"""Relax a platinum surface with an oxygen atom in ASE, and count force calls beside FIRE and L-BFGS.

python examples/ase_relax.py
"""

from ase.build import add_adsorbate, fcc111
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.optimize import FIRE, LBFGS

from frankenstein.ase import Frankenstein


class CountingEMT(EMT):
    """ASE's effective medium theory, counting."""

    n_calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Compute energy and forces."""
        self.n_calls += 1
        super().calculate(atoms, properties, system_changes)


slab = fcc111("Pt", size=(3, 3, 4), vacuum=8.0)
add_adsorbate(slab, "O", height=1.5, position="fcc")
slab.set_constraint(FixAtoms(mask=[atom.tag == 4 for atom in slab]))  # the bottom layer
slab.rattle(0.1, seed=0)

for optimizer in (Frankenstein, FIRE, LBFGS):
    atoms = slab.copy()
    atoms.calc = CountingEMT()
    is_converged = optimizer(atoms, logfile=None).run(fmax=0.01, steps=500)
    n_calls, energy = atoms.calc.n_calls, atoms.get_potential_energy()
    print(f"{optimizer.__name__:12} {n_calls:3} force calls, {energy:.3f} eV, converged: {is_converged}")
