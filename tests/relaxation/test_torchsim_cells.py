"""Cells that relax with torch-sim: the same whatever the batch, at the stress asked for, by the energy's derivative."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torchsim_cases import PairModel, assert_same, crystals, state_of

from frankenstein.torchsim import frankenstein_init, frankenstein_step, is_done, relax
from frankenstein.torchsim.cells import deformation, exponential
from frankenstein.torchsim.installed import HAS_TUPLES, ts
from frankenstein.torchsim.moves import move

FMAX = 1e-3
CAP = {"maxstep": 0.08}
DIFFERENCE = 1e-5  # step of the central differences; their error is its square times a third derivative of some 1e3
ROUNDING = 1e-12


@pytest.mark.parametrize("cell_filter", ["unit", "frechet"])
def test_a_cell_in_a_batch_relaxes_as_it_does_alone(cell_filter):
    every = relax(crystals(), PairModel(), fmax=FMAX, cell_filter=cell_filter, **CAP)
    assert all(result.converged for result in every[1])
    for which in ([0], [1], [2], [2, 0, 1]):
        ended = relax([crystals()[i] for i in which], PairModel(), fmax=FMAX, cell_filter=cell_filter, **CAP)
        assert_same(ended, every, which)
    model = PairModel()
    batcher = ts.InFlightAutoBatcher(
        model, memory_scales_with="n_atoms", max_memory_scaler=16, **({} if HAS_TUPLES else {"return_indices": True})
    )
    ended = relax(crystals(), model, fmax=FMAX, cell_filter=cell_filter, autobatcher=batcher, **CAP)
    assert_same(ended, every, range(3))


@pytest.mark.parametrize("pressure", [0.0, 5.0])
def test_the_stress_ends_at_the_pressure(pressure):
    state, table = relax(crystals(), PairModel(), fmax=FMAX, cell_filter="frechet", scalar_pressure=pressure, **CAP)
    assert all(result.converged for result in table)
    volume = torch.linalg.det(state.cell)
    n_atoms = torch.bincount(state.system_idx)
    # a row of the cell's forces is at most FMAX, and that is stress times volume over cell_factor
    tolerance = FMAX * n_atoms / volume * 1.5  # the deformation of a crystal near its minimum is below 1.5
    wrong = (state.stress + pressure * torch.eye(3, dtype=torch.float64)).norm(dim=2).max(1).values
    assert (wrong <= tolerance).all()


@pytest.mark.parametrize("cell_filter", ["unit", "frechet"])
@pytest.mark.parametrize("pressure", [0.0, 5.0])
def test_forces_are_the_derivative_of_the_enthalpy_by_what_the_rule_moves(cell_filter, pressure):
    """Push every row of a strained batch along a random direction; the energy must change by force times way."""
    options = {"cell_filter": cell_filter, "scalar_pressure": pressure}
    state = frankenstein_init(state_of(crystals()), PairModel(), **options, **CAP)
    for _ in range(4):
        state = frankenstein_step(state, PairModel())
    assert (deformation(state) - torch.eye(3)).abs().max() > 0.01
    generator = torch.Generator().manual_seed(0)
    places = torch.linalg.solve(deformation(state)[state.system_idx], state.positions[:, :, None])[:, :, 0]
    along = torch.randn(places.shape, generator=generator, dtype=torch.float64)
    cell_along = torch.randn(state.cell_positions.shape, generator=generator, dtype=torch.float64)
    turned = (deformation(state)[state.system_idx].mT @ state.forces[:, :, None])[:, :, 0]
    slope = torch.zeros(3, dtype=torch.float64).index_add(0, state.system_idx, (turned * along).sum(1))
    slope = slope + (state.cell_forces * cell_along).sum((1, 2))

    def enthalpy(way):
        moved = state.clone()
        moved.cell_positions = state.cell_positions + way * cell_along
        moved.cell = deformation(moved) @ state.reference_cell
        moved.positions = (deformation(moved)[state.system_idx] @ (places + way * along)[:, :, None])[:, :, 0]
        return PairModel()(moved)["energy"].detach() + pressure * torch.linalg.det(moved.cell)

    difference = (enthalpy(-DIFFERENCE) - enthalpy(DIFFERENCE)) / (2 * DIFFERENCE)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-5)


def shape(cells):
    return cells / torch.linalg.det(cells)[:, None, None] ** (1 / 3)


@pytest.mark.parametrize("cell_filter", ["unit", "frechet"])
def test_hydrostatic_strain_keeps_the_shape(cell_filter):
    start = state_of(crystals())
    state, table = relax(start, PairModel(), fmax=FMAX, cell_filter=cell_filter, hydrostatic_strain=True, **CAP)
    assert all(result.converged for result in table)
    torch.testing.assert_close(shape(state.cell), shape(start.cell), rtol=0, atol=1e-9)
    assert (torch.linalg.det(state.cell) / torch.linalg.det(start.cell) - 1).abs().min() > 1e-3


def test_constant_volume_keeps_the_volume():
    start = state_of(crystals())
    state, table = relax(start, PairModel(), fmax=FMAX, cell_filter="frechet", constant_volume=True, **CAP)
    assert all(result.converged for result in table)
    torch.testing.assert_close(torch.linalg.det(state.cell), torch.linalg.det(start.cell), rtol=1e-9, atol=0)
    assert (shape(state.cell) - shape(start.cell)).abs().max() > 1e-3


def test_a_cell_that_goes_where_the_stress_is_no_number_is_put_back():
    model = PairModel(fails=lambda n_atoms, call: n_atoms == 8 and call == 6)
    state = frankenstein_init(state_of(crystals()), model, fmax=FMAX, cell_filter="frechet", **CAP)
    cells = []
    while not is_done(state).all():
        cells.append((state.cell[1].clone(), state.cell_positions[1].clone()))
        state = frankenstein_step(state, model)
    assert torch.equal(state.cell[1], cells[4][0]) and torch.equal(state.cell_positions[1], cells[4][1])


def test_a_model_without_stress_is_refused_for_cells():
    with pytest.raises(
        ValueError, match="The model gives no stress, which is needed here: make it with compute_stress=True"
    ):
        frankenstein_init(state_of(crystals()), PairModel(compute_stress=False), cell_filter="unit")


def test_a_given_cell_factor_is_that_of_each_system():
    state = frankenstein_init(
        state_of(crystals()), PairModel(), cell_filter="unit", cell_factor=torch.tensor([1, 2, 3])
    )
    assert state.cell_factor.flatten().tolist() == [1.0, 2.0, 3.0]
    default = frankenstein_init(state_of(crystals()), PairModel(), cell_filter="unit")
    assert default.cell_factor.flatten().tolist() == [4.0, 8.0, 12.0]
    torch.testing.assert_close(state.cell_forces * state.cell_factor, default.cell_forces * default.cell_factor)


def test_positions_in_single_precision():
    state, table = relax(crystals(), PairModel(dtype=torch.float32), fmax=0.05, cell_filter="frechet", **CAP)
    assert all(result.converged for result in table)
    assert state.positions.dtype == state.cell.dtype == state.cell_forces.dtype == torch.float32


def test_the_exponential():
    matrices = torch.randn(4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.4
    expected = np.array([scipy.linalg.expm(matrix) for matrix in matrices.numpy()])
    np.testing.assert_allclose(exponential(matrices).numpy(), expected, rtol=ROUNDING, atol=ROUNDING)
    assert torch.equal(exponential(torch.zeros(2, 3, 3)), torch.eye(3).expand(2, 3, 3))
    assert torch.equal(exponential(matrices[2:3])[0], exponential(matrices)[2])


@pytest.mark.skipif(not HAS_TUPLES, reason="this torch-sim has no constraints")
def test_a_constraint_on_the_cell_leaves_the_state_consistent():
    class FrozenLength(ts.constraints.FixAtoms):
        """The cells cannot change along x: what a constraint of the user may do to them."""

        def adjust_cell(self, state, cell):
            cell[:, 0] = state.cell[:, 0]

    start = state_of(crystals())
    start.constraints = [FrozenLength(atom_idx=torch.tensor([0]))]
    state = frankenstein_init(start, PairModel(), cell_filter="frechet", **CAP)
    before = state.cell_positions
    move(state, torch.ones(3, dtype=torch.bool))
    assert torch.equal(state.cell[:, 0], start.cell[:, 0])
    assert torch.equal(state.cell_displacement, state.cell_positions - before)  # the rule learns what was carried out
    torch.testing.assert_close(deformation(state) @ state.reference_cell, state.cell, rtol=0, atol=1e-9)
