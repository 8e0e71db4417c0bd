"""`relax` and `minimize`: batches, reasons, counts, and what the user gets back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relaxation_systems import batched, lennard_jones, random_cluster

from frankenstein.relaxation import REASONS, minimize, relax

FMAX = 0.01
SIZES = [13, 2, 7, 13, 5, 20]
STARTS = [random_cluster(size, seed) for seed, size in enumerate(SIZES)]


def run(which, **options):
    sizes = [SIZES[i] for i in which]
    return relax(
        batched(lennard_jones, sizes),
        np.concatenate([STARTS[i] for i in which]),
        np.repeat(np.arange(len(which)), sizes),
        fmax=FMAX,
        **options,
    )


ALONE = [run([i]) for i in range(len(SIZES))]


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(len(SIZES))), st.integers(1, len(SIZES)))
def test_a_system_in_a_batch_goes_the_way_it_goes_alone(order, n_systems):
    which = order[:n_systems]
    result = run(which)
    for number, (i, part) in enumerate(
        zip(which, np.split(result.positions, np.cumsum([SIZES[i] for i in which])[:-1]), strict=True)
    ):
        np.testing.assert_array_equal(part, ALONE[i].positions)  # to the last bit
        assert result.calls[number] == ALONE[i].calls[0]
        assert result.energies[number] == ALONE[i].energies[0]
        assert result.fmax[number] == ALONE[i].fmax[0]
        assert result.reasons[number] == "converged"


def test_systems_that_are_done_are_not_evaluated_again():
    evaluated = np.zeros(len(SIZES), int)
    inner = batched(lennard_jones, SIZES)

    def counting(positions, systems):
        evaluated[systems] += 1
        return inner(positions, systems)

    result = relax(counting, np.concatenate(STARTS), np.repeat(np.arange(len(SIZES)), SIZES), fmax=FMAX)
    np.testing.assert_array_equal(result.calls, evaluated)
    assert len(set(result.calls)) > 3


def test_the_result_holds_at_the_returned_positions():
    result = run(range(len(SIZES)))
    for number, part in enumerate(np.split(result.positions, np.cumsum(SIZES)[:-1])):
        energy, forces = lennard_jones(part)
        assert result.energies[number] == energy
        assert result.fmax[number] == np.sqrt((forces**2).sum(1)).max() <= FMAX
    assert result.converged.all()


def test_two_atoms_end_at_the_distance_of_the_minimum():
    for distance in np.linspace(0.3, 2.5, 12):
        result = relax(batched(lennard_jones, [2]), np.array([[0.0, 0, 0], [distance, 0, 0]]), fmax=1e-6)
        assert np.linalg.norm(result.positions[1] - result.positions[0]) == pytest.approx(2.0 ** (1 / 6), abs=1e-6)


def test_a_converged_start_takes_one_call_and_does_not_move():
    again = relax(batched(lennard_jones, [13]), ALONE[0].positions, fmax=FMAX)
    assert again.calls.tolist() == [1]
    np.testing.assert_array_equal(again.positions, ALONE[0].positions)


def test_one_atom_without_force_is_done_at_once():
    result = relax(lambda x, _: (np.zeros(1), np.zeros_like(x)), np.ones((1, 3)), fmax=FMAX)
    assert result.reasons == ("converged",) and result.calls.tolist() == [1] and result.fmax.tolist() == [0.0]


def test_atoms_whose_force_is_zeroed_stay():
    fixed = [0, 5]

    def held(positions):
        energy, forces = lennard_jones(positions)
        forces[fixed] = 0.0
        return energy, forces

    result = relax(batched(held, [13]), STARTS[0], fmax=FMAX)
    assert result.converged.all()
    np.testing.assert_array_equal(result.positions[fixed], STARTS[0][fixed])


def test_overlapping_atoms_come_apart():
    start = random_cluster(13, 0, closest=1e-3, reach=0.05)
    result = relax(batched(lennard_jones, [13]), start, fmax=FMAX)
    assert result.converged.all() and result.energies[0] < -30


@pytest.mark.parametrize("distance", [1e-8, 1e-4, 0.004, 0.05])
def test_two_atoms_almost_at_one_place_come_apart(distance):
    """The forces fall by twenty decades and more in the first steps, and the curvature with them."""
    start = np.vstack([ALONE[0].positions, ALONE[0].positions[3] + [distance, 0.0, 0.0]])
    result = relax(batched(lennard_jones, [14]), start, fmax=FMAX)
    assert result.reasons == ("converged",) and result.energies[0] < -35


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize("what", ["energy", "forces"])
def test_a_number_that_is_not_finite_ends_that_system_at_its_last_good_geometry(bad, at, what):
    count = itertools.count(1)
    seen = []

    def breaking(positions, systems):
        energies, forces = batched(lennard_jones, SIZES[:3])(positions, systems)
        if 1 in systems:
            where = slice(13, 15) if 0 in systems else slice(0, 2)
            if next(count) == at:
                if what == "energy":
                    energies[list(systems).index(1)] = bad
                else:
                    forces[where][0, 1] = bad
            seen.append(positions[where].copy())
        return energies, forces

    result = relax(breaking, np.concatenate(STARTS[:3]), np.repeat(np.arange(3), SIZES[:3]), fmax=FMAX)
    assert result.reasons == ("converged", "nonfinite", "converged")
    assert result.calls[1] == at and not result.converged[1]
    np.testing.assert_array_equal(result.positions[13:15], seen[max(at - 2, 0)])
    if at == 1:
        assert np.isnan(result.energies[1]) and np.isnan(result.fmax[1])
    else:
        assert result.energies[1] == lennard_jones(result.positions[13:15])[0]
    for other, part in ((0, slice(0, 13)), (2, slice(15, 22))):
        np.testing.assert_array_equal(result.positions[part], ALONE[other].positions)


@pytest.mark.parametrize("maxcalls", [1, 2, 30])
def test_maxcalls_is_kept_and_said(maxcalls):
    result = run([0, 5], maxcalls=maxcalls)
    assert result.calls.tolist() == [maxcalls] * 2
    assert result.reasons == ("maxcalls",) * 2 and not result.converged.any()


def test_convergence_at_the_last_allowed_call_counts():
    result = run([0], maxcalls=int(ALONE[0].calls[0]))
    assert result.reasons == ("converged",)


def test_a_timeout_ends_what_still_moves():
    result = run([0, 1], timeout=1e-9)
    assert result.reasons == ("timeout",) * 2 and result.calls.tolist() == [1, 1]


def test_a_step_below_rounding_is_told():
    """Far from the origin the positions have no digits left for the last steps."""
    far = np.array([1e17])
    result = minimize(
        lambda x: (float((x - far) @ (x - far)), 2 * (x - far) + 1e-3), far.copy(), gtol=1e-9, maxstep=1.0
    )
    assert result.reason == "stalled" and result.calls < 100


def test_the_callback_sees_every_call_and_may_stop():
    seen = []

    def callback(systems, positions, energies, fmax):
        seen.append((systems.tolist(), energies.copy(), fmax.copy(), len(positions)))
        if len(seen) == 5:
            raise StopIteration

    result = run([0, 1], callback=callback)
    assert [entry[0] for entry in seen] == [[0, 1]] * 5 and [entry[3] for entry in seen] == [15] * 5
    assert result.reasons == ("stopped",) * 2
    assert seen[-1][1].tolist() == result.energies.tolist() and seen[-1][2].tolist() == result.fmax.tolist()


def test_what_is_given_is_not_modified():
    start = STARTS[0].copy()
    start.setflags(write=False)
    relax(batched(lennard_jones, [13]), start, fmax=FMAX, maxcalls=3)
    result = minimize(lambda x: (lennard_jones(x)[0], -lennard_jones(x)[1]), start, maxcalls=1)
    assert not np.shares_memory(result.x, start)
    result.x[:] = 0.0  # the caller's own


def test_whole_numbers_are_read_as_positions():
    result = relax(batched(lennard_jones, [2]), np.array([[0, 0, 0], [2, 0, 0]]), fmax=1e-6)
    assert result.positions.dtype == np.float64 and result.converged.all()


@pytest.mark.parametrize(
    "change, line",
    [
        ({"fmax": 0.0}, "Invalid fmax: 0.0; allowed are numbers above 0"),
        ({"fmax": float("nan")}, "Invalid fmax: nan"),
        ({"maxstep": -1}, "Invalid maxstep: -1"),
        ({"maxcalls": 0}, "Invalid maxcalls: 0; allowed are whole numbers of at least 1"),
        ({"maxcalls": 1.5}, "Invalid maxcalls: 1.5"),
        ({"timeout": 0.0}, "Invalid timeout: 0.0"),
        ({"positions": np.zeros(3)}, r"Invalid positions: their shape is \(3,\); wanted is \(n_atoms, n_dims\)"),
        ({"positions": np.zeros((0, 3))}, r"Invalid positions: their shape is \(0, 3\)"),
        ({"system_idx": np.array([0])}, r"Invalid system_idx: its shape is \(1,\), for 2 atoms"),
        ({"system_idx": np.array([1, 0])}, "Invalid system_idx: it must ascend"),
        ({"system_idx": np.array([0, -1])}, "Invalid system_idx: allowed are whole numbers of at least 0"),
        ({"system_idx": [0.0, 0.5]}, "Invalid system_idx: allowed are whole numbers of at least 0"),
        ({"system_idx": np.array([0, 2])}, "Invalid system_idx: system 1 has no atom"),
    ],
)
def test_a_wrong_argument_gets_one_clear_line(change, line):
    options = {"positions": STARTS[1], "fmax": FMAX} | change
    positions, system_idx = options.pop("positions"), options.pop("system_idx", None)
    with pytest.raises(ValueError, match=f"^{line}"):
        relax(batched(lennard_jones, [2]), positions, system_idx, **options)


def test_arrays_that_are_no_arrays_get_one_clear_line():
    with pytest.raises(TypeError, match=r"^Invalid array: list; allowed are numpy arrays and torch tensors$"):
        relax(batched(lennard_jones, [2]), STARTS[1].tolist(), fmax=FMAX)


@pytest.mark.parametrize("energies, forces", [(np.zeros(2), np.zeros((2, 3))), (np.zeros(1), np.zeros((3, 3)))])
def test_results_of_a_wrong_shape_get_one_clear_line(energies, forces):
    with pytest.raises(ValueError, match=r"^Invalid energies or forces: their shapes are"):
        relax(lambda *_: (energies, forces), STARTS[1], fmax=FMAX)


def test_one_structure_may_return_a_plain_number_and_lists_are_arrays():
    def plain(positions, _):
        energy, forces = lennard_jones(positions)
        return float(energy), forces.tolist()

    result = relax(plain, STARTS[0], [0] * 13, fmax=FMAX)
    np.testing.assert_array_equal(result.positions, ALONE[0].positions)


def test_where_there_was_no_finite_value_there_is_no_gradient():
    result = minimize(lambda x: (float("nan"), np.zeros(2)), np.array([np.nan, 1.0]))
    assert result.reason == "nonfinite" and np.isnan(result.grad).all() and np.isnan(result.gnorm)


def test_a_function_without_a_bound_ends_without_warnings():
    result = minimize(lambda x: (-x.sum(), -np.ones(2)), np.zeros(2))
    assert not result.converged and result.reason in ("stalled", "nonfinite")


def test_every_reason_has_its_words():
    assert set(REASONS) == {"converged", "maxcalls", "nonfinite", "stalled", "timeout", "stopped"}


# One function ---------------------------------------------------------------------------------------------------------


def quadratic(x):
    scales = np.logspace(0, 3, x.size).reshape(x.shape)
    return 0.5 * (scales * x**2).sum(), scales * x


@pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 3), (2, 3, 2)])
@pytest.mark.parametrize("maxstep", [None, 0.3])
def test_any_shape_is_minimised(shape, maxstep):
    result = minimize(quadratic, np.full(shape, 2.0), gtol=1e-8, maxstep=maxstep)
    assert result.converged and result.reason == "converged"
    assert result.x.shape == result.grad.shape == shape
    np.testing.assert_allclose(result.x, 0.0, atol=1e-8)
    np.testing.assert_array_equal(result.grad, quadratic(result.x)[1])


@pytest.mark.parametrize("start", [[-1.2, 1.0], [-1.2, 1.0] * 5, [0.0] * 6])
def test_rosenbrock_is_minimised(start):
    from scipy.optimize import rosen, rosen_der

    result = minimize(lambda x: (rosen(x), rosen_der(x)), np.array(start), gtol=1e-8)
    assert result.converged
    np.testing.assert_allclose(result.x, 1.0, atol=1e-6)


def test_gtol_is_met_by_the_largest_component():
    result = minimize(quadratic, np.full(7, 2.0), gtol=1e-3)
    assert result.gnorm == np.abs(result.grad).max() <= 1e-3


def test_a_callback_of_minimize_sees_x_value_and_gradient_norm():
    seen = []
    result = minimize(quadratic, np.full((2, 3), 2.0), gtol=1e-6, callback=lambda *entry: seen.append(entry))
    assert len(seen) == result.calls
    assert seen[0][0].shape == (2, 3) and seen[0][1] == quadratic(np.full((2, 3), 2.0))[0]
    assert seen[-1][2] == result.gnorm


def test_an_empty_start_and_a_gradient_of_another_shape_get_one_clear_line():
    with pytest.raises(ValueError, match=r"^Invalid x0: its shape \(0,\) has no entries"):
        minimize(quadratic, np.zeros(0))
    with pytest.raises(ValueError, match=r"^Invalid gradient: its shape is \(2,\), that of x \(3,\)"):
        minimize(lambda x: (0.0, np.zeros(2)), np.zeros(3))
