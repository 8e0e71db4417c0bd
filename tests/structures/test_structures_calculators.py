from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones as TheirLennardJones
from relax_cases import CALCULATORS, cluster

from frankenstein import models
from frankenstein.structures.calculators import CalculatorError, LennardJones, load

ROUNDING = 1e-11  # of sums over all pairs in another order, relative to the largest term
GLOBAL_MINIMUM = -173.928427  # of 38 atoms; published to six decimals


def test_lennard_jones_is_that_of_ase_without_a_cutoff():
    atoms = cluster(0, 20)
    ours, theirs = atoms.copy(), atoms.copy()
    ours.calc, theirs.calc = LennardJones(epsilon=2.0, sigma=0.9), TheirLennardJones(epsilon=2.0, sigma=0.9, rc=1e3)
    shift = 4 * 2.0 * ((0.9 / 1e3) ** 12 - (0.9 / 1e3) ** 6) * 20 * 19 / 2  # ASE's energy is 0 at its cutoff
    scale = abs(theirs.get_forces()).max()
    assert ours.get_potential_energy() == pytest.approx(theirs.get_potential_energy() + shift, abs=ROUNDING * scale)
    np.testing.assert_allclose(ours.get_forces(), theirs.get_forces(), rtol=0, atol=ROUNDING * scale)


def test_lennard_jones_at_the_global_minimum(shared):
    atoms = ase.io.read(shared / "data" / "lj38" / "lj38_global_minimum.xyz")
    energy, forces = LennardJones().energy_and_forces(atoms.positions)
    assert energy == pytest.approx(GLOBAL_MINIMUM, abs=1e-6)
    assert abs(forces).max() < 1e-3


def test_lennard_jones_of_one_atom_and_of_atoms_on_each_other():
    assert LennardJones().energy_and_forces(np.zeros((1, 3)))[0] == 0.0
    energy, forces = LennardJones().energy_and_forces(np.zeros((2, 3)))
    assert not np.isfinite(energy)
    assert not np.isfinite(forces).any()


def test_lennard_jones_refuses_a_crystal():
    atoms = bulk("Ar", cubic=True)
    atoms.calc = LennardJones()
    with pytest.raises(ValueError, match="this structure is periodic"):
        atoms.get_potential_energy()


def test_emt_does_not_depend_on_what_it_saw_before():
    """ASE's keeps a neighbour list, so that its last digits would."""
    evaluate, (one, other) = load("emt").evaluate, (bulk("Cu", cubic=True) * 2, bulk("Cu", cubic=True) * 2)
    one.rattle(0.1, seed=1)
    other.rattle(0.05, seed=2)
    (alone,) = evaluate([one], True)
    _, beside = evaluate([other, one], True)
    assert alone.energy == beside.energy
    np.testing.assert_array_equal(alone.forces, beside.forces)
    np.testing.assert_array_equal(alone.stress, beside.stress)
    assert alone.stress.shape == (3, 3)


def test_a_factory_of_a_file_or_a_module_makes_the_calculator(monkeypatch, tmp_path):
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    for name in (f"{CALCULATORS}:Counted", "counted_calculators:Counted"):
        (prediction,) = load(name).evaluate([cluster(0)], False)
        assert prediction.energy == LennardJones().energy_and_forces(cluster(0).positions)[0]


@pytest.mark.parametrize(
    "name, told",
    [
        ("lennard", "unknown calculator 'lennard'; allowed are lj, emt, chgnet, sevennet, module:Factory"),
        (f"{CALCULATORS}:Nobody", "has no 'Nobody' that can be called"),
        (f"{CALCULATORS}:os", "has no 'os' that can be called"),
        (f"{CALCULATORS}:needs_a_licence", "OSError: no licence"),
        ("ase:Atoms", "Atoms() returns no calculator of ASE"),
        ("nowhere/to/be/found.py:Factory", "there is no Python file nowhere/to/be/found.py"),
        ("not_a_module:Factory", "No module named 'not_a_module'"),
    ],
)
def test_what_is_no_calculator_is_one_line(name, told):
    with pytest.raises(CalculatorError) as caught:
        load(name)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch):
    def absent(**_):
        raise ImportError("No module named 'sevenn'")

    monkeypatch.setattr(models, "sevennet", absent)
    with pytest.raises(CalculatorError, match=r"pip install '\.\[sevennet\]'"):
        load("sevennet")


def test_a_calculator_that_raises_spoils_no_other_structure():
    good, bad = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]]), Atoms("Xe")
    answers = load("emt").evaluate([bad, good], False)
    assert isinstance(answers[0], NotImplementedError)
    assert np.isfinite(answers[1].energy)
