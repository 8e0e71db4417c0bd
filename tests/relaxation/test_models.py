"""Batched models: what their own calculators say of every structure of a batch, and a clear word where they cannot."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from frankenstein.models import BatchedModel, Prediction, chgnet, sevennet
from frankenstein.torchsim import TorchSimModel, relax

# single precision: numbers of some -100 eV, 10 eV/A and 0.3 eV/A^3, summed in another order
ENERGY, FORCE, STRESS = 2e-6, 1e-5, 1e-6  # eV/atom, eV/A, eV/A^3


def crystal(atoms, seed):
    rng = np.random.default_rng(seed)
    atoms.rattle(0.1, rng=rng)
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.03 * rng.standard_normal((3, 3))), scale_atoms=True)
    return atoms


def crystals():
    return [
        crystal(bulk("NaCl", "rocksalt", a=5.64, cubic=True), 0),
        crystal(bulk("Si", "diamond", a=5.43, cubic=True), 1),
        crystal(bulk("Cu", "fcc", a=3.6, cubic=True), 2),
        crystal(bulk("MgO", "rocksalt", a=4.2) * (2, 1, 1), 3),
    ]


@pytest.fixture(scope="module")
def loaded():
    """Each model once, with its own calculator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages, while they load
        from chgnet.model.dynamics import CHGNetCalculator
        from sevenn.calculator import SevenNetCalculator

        calculators = {
            "chgnet": CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore"),
            "sevennet": SevenNetCalculator("7net-0", device="cpu"),
        }
    return {name: (make(), calculators[name]) for name, make in (("chgnet", chgnet), ("sevennet", sevennet))}


@pytest.fixture(params=["chgnet", "sevennet"])
def model(request, loaded):
    return loaded[request.param][0]


@pytest.fixture
def calculator(model, loaded):
    return loaded[model.name][1]


def assert_close(one, other):
    assert abs(one.energy - other.energy) <= ENERGY * len(one.forces)
    np.testing.assert_allclose(one.forces, other.forces, rtol=0, atol=FORCE)
    np.testing.assert_allclose(one.stress, other.stress, rtol=0, atol=STRESS)


def test_a_batch_is_what_the_packages_own_calculator_says_of_each(model, calculator):
    for atoms, prediction in zip(crystals(), model(crystals()), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages
            atoms.calc = calculator
            expected = Prediction(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False))
        assert_close(prediction, expected)
        assert prediction.forces.dtype == prediction.stress.dtype == np.float64
        assert abs(prediction.forces).max() > 0.1 and abs(prediction.stress).max() > 0.001


def test_neighbours_in_the_batch_hardly_matter(model):
    alone = [model([atoms])[0] for atoms in crystals()]
    for order in ([3, 0, 2, 1], [1, 3]):
        for i, prediction in zip(order, model([crystals()[i] for i in order]), strict=True):
            assert_close(prediction, alone[i])


def lonely():
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell([20.0, 20.0, 40.0])
    atoms.positions = [[0, 0, 0], [7, 7, 7], [14, 14, 14], [0, 0, 25]]
    return atoms


def broken(change):
    atoms = bulk("Cu", cubic=True)
    change(atoms)
    return atoms


BAD = {
    "not trained on Po": bulk("Po", "sc", a=3.3),
    "without atoms": Atoms(cell=[3.0] * 3, pbc=True),
    "neighbour within": lonely(),
    "a position or the cell is not finite": broken(lambda atoms: atoms.positions.__setitem__((0, 0), np.nan)),
    "do atoms overlap": broken(lambda atoms: atoms.positions.__setitem__(1, atoms.positions[0])),
}


def test_structures_that_cannot_be_computed_say_why_and_spoil_nothing(model, capsys):
    good = crystals()
    bad = [atoms.copy() for atoms in BAD.values()]
    answers = model([good[0], *bad, good[1]])
    assert_close(answers[0], model(good[:1])[0])
    assert_close(answers[-1], model(good[1:2])[0])
    for reason, answer in zip(BAD, answers[1:-1], strict=True):
        assert isinstance(answer, Exception)
        assert str(answer).startswith(f"{model.name} cannot compute ") and reason in str(answer)
        assert "\n" not in str(answer)
    assert capsys.readouterr() == ("", "")


def test_nothing_of_a_structure_is_modified_and_its_luggage_is_ignored(model):
    (atoms,) = crystals()[:1]
    expected = model([atoms])[0]
    atoms.info = {"spacegroup": object(), "note": "x"}
    atoms.set_initial_magnetic_moments(np.arange(8))
    kept = atoms.copy()
    assert_close(model([atoms])[0], expected)
    assert atoms == kept and atoms.calc is None


def test_a_molecule_needs_a_cell_or_has_no_stress(model):
    (answer,) = model([molecule("H2O")])
    if model.name == "chgnet":
        assert str(answer) == "chgnet cannot compute H2O: it has no cell; give it one with some vacuum"
    else:
        assert np.isfinite(answer.forces).all() and answer.stress is None


def test_they_load_silently_and_say_what_they_are(capsys):
    model = chgnet(batch_atoms=10)
    assert capsys.readouterr() == ("", "")
    assert (model.name, model.device, model.batch_atoms) == ("chgnet", "cpu", 10)
    assert model.version.startswith("0.3.0 (chgnet ")
    assert {"H", "Pu", "Cu"} <= model.elements and not {"Po", "Am"} & model.elements


def test_both_know_the_elements_of_their_training_set(loaded):
    assert loaded["chgnet"][0].elements == loaded["sevennet"][0].elements


@pytest.mark.parametrize(
    "module, make, remedy",
    [("chgnet.model.model", chgnet, "chgnet"), ("sevenn.train.dataload", sevennet, "sevennet")],
)
def test_a_package_that_is_not_here_is_named_with_the_remedy(monkeypatch, module, make, remedy):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"is not here .*: pip install '\.\[{remedy}\]' \(in the checkout\)$"):
        make()


@pytest.mark.parametrize("batch_atoms", [0, 2.5])
def test_a_batch_holds_at_least_an_atom(batch_atoms):
    with pytest.raises(ValueError, match=f"Invalid batch_atoms: {batch_atoms}; allowed are whole numbers"):
        chgnet(batch_atoms=batch_atoms)


class Passes:
    """A model that notes the sizes of its forward passes, has room for so many atoms, and fails on one size."""

    def __init__(self, room=1000, fails_at=None):
        self.sizes, self.room, self.fails_at = [], room, fails_at

    def forward(self, graphs):
        self.sizes.append(graphs)
        if sum(graphs) > self.room:
            raise torch.OutOfMemoryError("out of memory\nand a page of details")
        if self.fails_at in graphs:
            raise RuntimeError("no")
        return [Prediction(float(size), np.zeros((size, 3)), None) for size in graphs]

    def model(self, batch_atoms):
        return BatchedModel("passes", "1", None, "cpu", batch_atoms, len, self.forward)


def structures(*sizes):
    return [Atoms(f"H{size}", np.zeros((size, 3))) for size in sizes]


def test_a_pass_holds_as_many_atoms_as_it_may():
    passes = Passes()
    answers = passes.model(10)(structures(4, 5, 3, 12, 7, 3))
    assert passes.sizes == [[4, 5], [3], [12], [7, 3]]
    assert [answer.energy for answer in answers] == [4, 5, 3, 12, 7, 3]


def test_a_pass_that_does_not_fit_into_memory_is_halved():
    passes = Passes(room=9)
    answers = passes.model(100)(structures(4, 5, 3, 12))
    assert passes.sizes == [[4, 5, 3, 12], [4, 5], [3, 12], [3], [12]]
    assert [answer.energy for answer in answers[:3]] == [4, 5, 3]
    assert str(answers[3]) == "passes cannot compute H12: out of memory"


def test_one_graph_at_fault_is_found():
    answers = Passes(fails_at=3).model(100)(structures(1, 2, 3, 4, 5))
    assert [getattr(answer, "energy", str(answer)) for answer in answers] == [
        1, 2, "passes cannot compute H3: no", 4, 5
    ]  # fmt: skip


def test_no_structures_no_answers():
    assert Passes().model(10)([]) == []


def test_torch_sim_relaxes_with_them(model):
    state, table = relax(crystals()[1:3], TorchSimModel(model), fmax=0.1, maxcalls=60, cell_filter="frechet")
    assert [result.reason for result in table] == ["converged"] * 2
    for atoms, result in zip(state.to_atoms(), table, strict=True):
        (prediction,) = model([atoms])
        assert prediction.energy == pytest.approx(result.energy, abs=ENERGY * len(atoms))
        assert (
            np.linalg.norm(prediction.forces, axis=1).max() <= 0.1 * 1.2
        )  # the strain of the cell turns them a little
