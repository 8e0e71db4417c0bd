"""The rule in torch-sim: the path of the rule, whatever else is in the batch, and a reason for every system."""

from __future__ import annotations

import gc
import importlib
import math

import numpy as np
import pytest
import torch
from ase.calculators.calculator import Calculator
from threadpoolctl import threadpool_limits
from torchsim_cases import SIZES, PairModel, assert_same, clusters, crystals, state_of

from frankenstein.models import BatchedModel, Prediction
from frankenstein.relaxation import RelaxationRule
from frankenstein.relaxation import relax as relax_arrays
from frankenstein.torchsim import (
    TorchSimModel,
    frankenstein,
    frankenstein_init,
    frankenstein_step,
    installed,
    is_done,
    optimizer_settings,
    relax,
    results,
)
from frankenstein.torchsim.installed import HAS_TUPLES, ts
from frankenstein.torchsim.state import from_bytes, to_bytes

FMAX = 1e-3
CAP = {"maxstep": 0.08}
PARITY = 1e-9  # Angstrom: ASE and torch keep atoms, cells and forces in other operations, which round otherwise


@pytest.fixture(scope="module")
def together():
    return relax(clusters(), PairModel(), fmax=FMAX, **CAP)


@pytest.mark.parametrize("which", [[i] for i in range(len(SIZES))] + [[4, 2, 0, 3, 1], [3, 1]])
def test_a_system_in_a_batch_goes_the_way_it_goes_alone(together, which):
    ended = relax([clusters()[i] for i in which], PairModel(), fmax=FMAX, **CAP)
    assert len({result.calls for result in together[1]}) > 2  # or none would leave before another
    assert_same(ended, together, which)


def autobatcher(model, n_atoms):
    return ts.InFlightAutoBatcher(
        model,
        memory_scales_with="n_atoms",
        max_memory_scaler=n_atoms,
        **({} if HAS_TUPLES else {"return_indices": True}),
    )


def test_systems_that_enter_a_running_batch_go_the_way_they_go_alone(together):
    model = PairModel()
    ended = relax(clusters(), model, fmax=FMAX, autobatcher=autobatcher(model, 20), **CAP)
    assert_same(ended, together, range(len(SIZES)))


def test_the_path_is_that_of_the_rule_on_arrays(together):
    state, table = together
    start, model = state_of(clusters()), PairModel()

    def energy_and_forces(positions, numbers):
        some = start[[int(number) for number in numbers]]
        some.positions = positions
        output = model(some)
        return output["energy"], output["forces"]

    expected = relax_arrays(energy_and_forces, start.positions, start.system_idx, fmax=FMAX, **CAP)
    assert torch.equal(state.positions, expected.positions)
    for i, result in enumerate(table):
        row = (expected.converged[i], expected.reasons[i], expected.calls[i], expected.energies[i], expected.fmax[i])
        assert result[:5] == row and result.message == ""


class OfModel(Calculator):
    """The same forces for ASE."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=(), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        output = PairModel()(state_of([atoms]))
        stress = output["stress"][0].numpy()
        self.results = {"energy": float(output["energy"].detach()), "forces": output["forces"].numpy()}
        self.results["stress"] = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


@pytest.mark.parametrize("cell_filter", [None, "unit", "frechet"])
def test_ase_goes_the_same_way(cell_filter):
    ase_filters = pytest.importorskip("ase.filters")
    optimizer_class = pytest.importorskip("frankenstein.ase").Frankenstein
    atoms = crystals()[1]
    (state, (result,)) = relax([atoms], PairModel(), fmax=FMAX, cell_filter=cell_filter, **CAP)
    atoms.calc = OfModel()
    wrap = {None: lambda a: a, "unit": ase_filters.UnitCellFilter, "frechet": ase_filters.FrechetCellFilter}[
        cell_filter
    ]
    optimizer = optimizer_class(wrap(atoms), logfile=None, **CAP)
    with threadpool_limits(1):  # SciPy's matrices are 3 x 3: its threads would only wait for each other
        assert optimizer.run(fmax=FMAX)
    assert optimizer.force_calls == result.calls > 10
    np.testing.assert_allclose(state.positions.numpy(), atoms.positions, atol=PARITY)
    np.testing.assert_allclose(state.cell[0].T.numpy(), atoms.cell.array, atol=PARITY)


@pytest.mark.skipif(HAS_TUPLES, reason="this torch-sim's own models sum over the batch as a whole")
@pytest.mark.parametrize("name", ["lennard_jones.LennardJonesModel", "morse.MorseModel"])
def test_a_batch_with_a_model_of_torch_sim(name):
    module, _, cls = name.partition(".")
    model = getattr(importlib.import_module(f"torch_sim.models.{module}"), cls)(
        sigma=1.0, epsilon=1.0, dtype=torch.float64, cutoff=6.0, use_neighbor_list=False, compute_forces=True
    )
    every = relax(clusters(), model, fmax=FMAX, **CAP)
    assert all(result.converged for result in every[1])
    for i, atoms in enumerate(clusters()):
        assert_same(relax([atoms], model, fmax=FMAX, **CAP), every, [i])


def test_torch_sim_runs_it_with_its_own_criterion():
    criterion = ts.generate_force_convergence_fn(force_tol=0.05, include_cell_forces=False)
    state = ts.optimize(
        clusters(), PairModel(), optimizer=frankenstein, convergence_fn=criterion, **optimizer_settings(**CAP)
    )
    for result in results(state):
        assert result.fmax < 0.05
        assert result.reason == "stopped" and not result.converged  # it was not told what convergence is


def test_what_is_done_stays_where_it_was_done_however_rarely_the_batch_is_sorted_out(together):
    options = optimizer_settings(fmax=FMAX, **CAP)
    state = ts.optimize(
        clusters(), PairModel(), optimizer=frankenstein, convergence_fn=is_done, steps_between_swaps=17, **options
    )
    assert_same((state, results(state)), together, range(len(SIZES)))


def test_a_converged_start_is_left_alone():
    ended, (first,) = relax([clusters()[1]], PairModel(), fmax=FMAX, **CAP)
    again, (result,) = relax(ended.to_atoms(), PairModel(), fmax=FMAX)
    assert torch.equal(again.positions, ended.positions)
    assert result == first._replace(calls=1)


def test_calls_are_counted_and_limited():
    model = PairModel()
    _, table = relax(clusters(), model, fmax=1e-6, maxcalls=12, **CAP)
    assert model.calls == dict(zip(SIZES, [result.calls for result in table], strict=True))
    assert {(result.reason, result.calls, result.converged) for result in table} == {("maxcalls", 12, False)}
    assert all(result.fmax > 1e-6 for result in table)


def test_a_system_whose_forces_are_no_numbers_is_put_back_and_the_others_go_on(together):
    path = []
    model = PairModel(fails=lambda n_atoms, call: n_atoms == 10 and call == 9)
    state = frankenstein_init(state_of(clusters()), model, fmax=FMAX, **CAP)
    number = SIZES.index(10)
    while not is_done(state).all():
        path.append((state.positions[state.system_idx == number], state.energy[number]))
        state = frankenstein_step(state, model)
    table = results(state)
    assert (table[number].reason, table[number].calls, table[number].converged) == ("nonfinite", 9, False)
    assert table[number].message == "the energy, a force or a stress is not finite"
    good, energy = path[7]
    assert torch.equal(state.positions[state.system_idx == number], good)
    assert table[number].energy == energy and math.isfinite(table[number].fmax)
    for i in set(range(len(SIZES))) - {number}:
        assert table[i] == together[1][i]
        assert torch.equal(state.positions[state.system_idx == i], together[0].positions[together[0].system_idx == i])


def test_a_start_that_cannot_be_computed_ends_at_once():
    model = PairModel(fails=lambda n_atoms, call: n_atoms == 4)
    _, table = relax(clusters(), model, fmax=FMAX, **CAP)
    assert [result.reason for result in table] == ["nonfinite" if n == 4 else "converged" for n in SIZES]
    assert model.calls[4] < max(result.calls for result in table)  # it has left the batch
    assert table[2].calls == 1 and math.isnan(table[2].fmax)


@pytest.mark.parametrize("cell_filter", [None, "frechet"])
def test_a_state_goes_on_where_it_ended(cell_filter):
    options = CAP | {"cell_filter": cell_filter}
    whole = relax(crystals(), PairModel(), fmax=FMAX, **options)
    half, table = relax(crystals(), PairModel(), fmax=1.0, **options)
    assert all(result.converged and result.fmax > FMAX for result in table)
    state = frankenstein_init(half, PairModel(), fmax=FMAX, **options)
    while not is_done(state).all():
        state = frankenstein_step(state, PairModel())
    assert_same((state, results(state)), whole, range(3))


def tensors_alive():
    gc.collect()
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())  # isinstance wakes deprecated objects


def test_memory_does_not_grow_and_nothing_keeps_its_history():
    model = PairModel()
    state = frankenstein_init(state_of(clusters()), model, **CAP)
    alive = []
    for _ in range(4):
        for _ in range(5):
            state = frankenstein_step(state, model)
        alive.append(tensors_alive())
    assert len(set(alive)) == 1
    fields = [value for value in vars(state).values() if torch.is_tensor(value)]
    assert len(fields) > 20 and not any(field.requires_grad for field in fields)


def test_single_precision_stays_and_converges():
    state, table = relax(clusters(), PairModel(dtype=torch.float32), fmax=0.01, **CAP)
    assert state.positions.dtype == state.forces.dtype == torch.float32
    assert state.directions.dtype == torch.float64
    assert all(result.converged for result in table)


def test_a_step_too_small_for_the_positions_ends_a_system():
    (atoms,) = [clusters()[4]]
    _, (result,) = relax([atoms], PairModel(dtype=torch.float32), fmax=1e-30, **CAP)
    assert (result.reason, result.converged) == ("stalled", False)
    assert 0.0 < result.fmax < 1e-5  # single precision


def test_no_atom_moves_farther_than_the_cap():
    state = frankenstein_init(state_of(clusters()), PairModel(), maxstep=0.05)
    for _ in range(20):
        before = state.positions
        state = frankenstein_step(state, PairModel())
        assert (state.positions - before).norm(dim=1).max() <= 0.05 * (1 + 1e-12)  # rounding


def test_the_start_is_not_modified():
    start = state_of(clusters())
    kept = start.positions.clone()
    state = frankenstein_init(start, PairModel(), **CAP)
    frankenstein_step(frankenstein_step(state, PairModel()), PairModel())
    assert torch.equal(start.positions, kept)


@pytest.mark.skipif(not HAS_TUPLES, reason="this torch-sim has no constraints")
@pytest.mark.parametrize("cell_filter", [None, "frechet"])
def test_fixed_atoms_stay(cell_filter):
    start = state_of(crystals())
    start.constraints = [ts.constraints.FixAtoms(atom_idx=torch.tensor([0, 5, 6]))]
    state, table = relax(start, PairModel(), fmax=FMAX, cell_filter=cell_filter, **CAP)
    assert all(result.converged for result in table)
    if cell_filter is None:
        assert torch.equal(state.positions[[0, 5, 6]], start.positions[[0, 5, 6]])
    assert not torch.equal(state.positions[1], start.positions[1])


@pytest.mark.skipif(not HAS_TUPLES, reason="this torch-sim has no constraints")
def test_the_rule_learns_which_step_a_constraint_has_left():
    class Half(ts.constraints.FixAtoms):
        def adjust_positions(self, state, new_positions):
            new_positions.copy_((state.positions + new_positions) / 2)

        def adjust_forces(self, state, forces):
            pass

    start = state_of(clusters())
    start.constraints = [Half(atom_idx=torch.tensor([0]))]
    state = frankenstein_step(frankenstein_init(start, PairModel(), **CAP), PairModel())
    assert torch.equal(state.displacement, state.positions - start.positions)
    # a first step is 0.8 of the cap long
    np.testing.assert_allclose(state.displacement.norm(dim=1).max(), 0.4 * CAP["maxstep"], rtol=1e-12)  # rounding


REFUSED = (4, 10)


def answers_for(structures):
    good = [(1.0, np.zeros((len(atoms), 3)), None) for atoms in structures]
    return [
        ValueError(f"no weights for Ar{len(a)}") if len(a) in REFUSED else Prediction(*g)
        for a, g in zip(structures, good, strict=True)
    ]


def test_a_batched_model_and_a_structure_that_it_cannot_compute():
    class Fake(BatchedModel):
        def __call__(self, structures):
            return answers_for(structures)

    model = TorchSimModel(Fake("fake", "1", None, "cpu", 100, lambda a: a, answers_for))
    for options in ({}, {"autobatcher": autobatcher(model, 20)}):  # all at once, and some after others
        with pytest.warns(UserWarning, match="no weights for Ar"):
            state, table = relax(clusters(), model, fmax=FMAX, **options)
        assert [result.reason for result in table] == ["nonfinite" if n in REFUSED else "converged" for n in SIZES]
        assert [result.message for result in table] == [f"no weights for Ar{n}" if n in REFUSED else "" for n in SIZES]
        assert state.energy.dtype == torch.float64


@pytest.mark.parametrize("text, kept", [("", ""), ("7 \u00c5", "7 \u00c5"), ("a" * 255 + "\u00c5", "a" * 255)])
def test_a_message_is_cut_between_letters(text, kept):
    assert from_bytes(to_bytes(text)) == kept


def test_a_refusal_on_the_way_has_the_words_of_the_model():
    class Refuses(PairModel):
        def forward(self, state, **kwargs):
            output = super().forward(state, **kwargs)
            return output | {"message": torch.stack([to_bytes(f"call {self.calls[4]}")] * state.n_systems)}

    model = Refuses(fails=lambda n_atoms, call: n_atoms == 4 and call == 3)
    _, table = relax(clusters(), model, fmax=FMAX, **CAP)
    assert [result.message for result in table] == ["call 3" if n == 4 else "" for n in SIZES]


def test_what_is_no_model_of_torch_sim_is_refused_with_one_that_is():
    batched = BatchedModel("chgnet", "1", None, "cpu", 100, lambda a: a, answers_for)
    with pytest.raises(TypeError, match=r"^Invalid model: chgnet .*; give TorchSimModel\(chgnet\(\)\)$"):
        relax(clusters(), batched, fmax=FMAX)
    with pytest.raises(TypeError, match=r"^Invalid model: OfModel is no .*; give TorchSimModel\(chgnet\(\)\)"):
        relax(clusters(), OfModel(), fmax=FMAX)


def test_no_structures_are_refused():
    with pytest.raises(ValueError, match=r"^Invalid structures: the list is empty; give at least one structure$"):
        relax([], PairModel(), fmax=FMAX)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"maxstep": 0.0}, "Invalid maxstep: 0.0; allowed are numbers above 0"),
        ({"fmax": -1.0}, "Invalid fmax: -1.0; allowed are numbers above 0"),
        ({"maxcalls": "many"}, "Invalid maxcalls: 'many'; allowed are numbers above 0"),
        ({"cell_filter": "cubic"}, "Invalid cell_filter: 'cubic'; allowed are 'frechet', 'unit' and None"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        frankenstein_init(state_of(clusters()), PairModel(), **settings)


def test_a_state_goes_on_only_as_it_began():
    state = frankenstein_init(state_of(clusters()), PairModel())
    with pytest.raises(ValueError, match="with the cell filter and memory it began with"):
        frankenstein_init(state, PairModel(), cell_filter="unit")
    with pytest.raises(ValueError, match="with the cell filter and memory it began with"):
        frankenstein_init(state, PairModel(), rule=RelaxationRule(memory=3))


def test_the_constants_of_the_rule_are_the_users():
    start = state_of(clusters())
    state = frankenstein_init(start, PairModel(), rule=RelaxationRule(memory=3, first_step=0.5), maxstep=0.1)
    assert state.directions.shape[1] == 3
    frankenstein_step(state, PairModel())
    steps = (state.positions - start.positions).norm(dim=1)
    longest = [steps[start.system_idx == i].max() for i in range(len(SIZES))]
    np.testing.assert_allclose(longest, 0.05, rtol=1e-12)  # rounding


@pytest.fixture
def reloaded():
    yield
    importlib.reload(installed)


def test_a_torch_sim_that_is_not_here_is_named_with_the_remedy(monkeypatch, reloaded):
    monkeypatch.setitem(__import__("sys").modules, "torch_sim", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[torchsim\]'"):
        importlib.reload(installed)
    monkeypatch.undo()


def test_a_torch_sim_that_is_not_supported_is_named_with_those_that_are(monkeypatch, reloaded):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.2.2")
    if HAS_TUPLES:
        monkeypatch.delattr("torch_sim.optimizers.OptimState.set_constrained_forces")
    with pytest.raises(ImportError, match=r"torch-sim 0\.2\.2 is not supported; allowed are 0.3, and 0.5 and later"):
        importlib.reload(installed)
    monkeypatch.undo()
