"""The relaxation rule against its literal statement, its invariances, and its constants."""

from __future__ import annotations

from dataclasses import asdict, replace

import mpmath
import numpy as np
import pytest
from relaxation_systems import batched, lennard_jones, literal_step, random_cluster

from frankenstein.relaxation import RelaxationRule, Systems, init, misalignment, relax, update

FMAX = 0.01
# The rule solves by a matrix that it keeps up to date, the literal statement loops over the pairs: 60 of them, of which
# the curvatures spread over six decades, leave some 1e-12 of the step.
LITERAL = 1e-9
ROUNDING = 1e-9  # of a path of 20 steps, where a step turned by rounding is turned a little more by each one after


def walk(positions, n_steps, rule, maxstep=0.2, energy_and_forces=lennard_jones):
    """Yield gradient, displacement and state of the first steps of one cluster."""
    systems = Systems(np.zeros(len(positions), int))
    state = None
    for _ in range(n_steps):
        gradient = -energy_and_forces(positions)[1]
        state = state or init(gradient, systems, rule, maxstep)
        displacement, state = update(state, gradient, systems, rule, maxstep)
        yield gradient, displacement, state
        positions = positions + displacement


@pytest.mark.parametrize("memory", [1, 2, 7, 60])
@pytest.mark.parametrize("seed", range(3))
def test_every_step_is_that_of_the_literal_rule(memory, seed):
    rule = RelaxationRule(memory=memory)
    pairs, secant, limit, last = [], None, 0.2, None
    n_resets = n_lifts = 0
    for gradient, displacement, _ in walk(random_cluster(13, seed), 150, rule):
        if last is not None:
            u, before = last
            change = gradient - before
            pairs.append((u, change))
            secant = abs((u * change).sum()) / (change**2).sum()
            is_reset = (gradient * u).sum() > abs((before * u).sum())
            limit = limit * rule.shrink if is_reset else min(limit * rule.grow, 0.2)
            n_resets += is_reset
            n_lifts += (u * change).sum() < rule.alignment * np.linalg.norm(u) * np.linalg.norm(change)
        expected = literal_step(pairs, gradient, secant, limit, rule)
        assert np.abs(displacement - expected).max() <= LITERAL * np.linalg.norm(expected, axis=1).max()
        if np.linalg.norm(gradient, axis=1).max() < 1e-6:
            break  # rounding of the forces begins to show
        last = displacement, gradient
    assert n_resets > 0 and n_lifts > 0  # the branches were taken


def test_no_atom_moves_more_than_maxstep():
    for maxstep in (0.01, 0.2):
        steps = [u for _, u, _ in walk(random_cluster(38, 1), 60, RelaxationRule(), maxstep)]
        assert max(np.linalg.norm(u, axis=1).max() for u in steps) <= maxstep * (1 + 1e-15)
        assert max(np.linalg.norm(u, axis=1).max() for u in steps) > 0.99 * maxstep  # the limit is reached


def test_the_first_step_has_no_unit():
    rule = RelaxationRule()
    (_, displacement, _), *_ = walk(random_cluster(13, 5), 1, rule)
    assert np.linalg.norm(displacement, axis=1).max() == pytest.approx(0.8 * 0.2, rel=1e-14)


@pytest.mark.parametrize("length, energy", [(2.0**-3, 2.0**9), (2.0**5, 2.0**-20)])
def test_other_units_give_the_same_path(length, energy):
    """Powers of two only: then rescaling is exact, and so is the comparison."""
    start = random_cluster(13, 2)
    reference = relax(batched(lennard_jones, [13]), start, fmax=FMAX)
    rescaled = relax(
        batched(lambda x: lennard_jones(x, energy, length), [13]),
        start * length,
        fmax=FMAX * energy / length,
        maxstep=0.2 * length,
    )
    assert rescaled.calls == reference.calls
    np.testing.assert_array_equal(rescaled.positions, reference.positions * length)


def test_rotation_translation_and_order_of_the_atoms_do_not_matter():
    start, rule = random_cluster(13, 3), RelaxationRule()
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    order = rng.permutation(13)
    path = [u for _, u, _ in walk(start, 20, rule)]
    other = [u for _, u, _ in walk((start @ rotation.T + [3.0, -2.0, 5.0])[order], 20, rule)]
    for u, turned in zip(path, other, strict=True):
        assert np.abs((u @ rotation.T)[order] - turned).max() <= ROUNDING * np.abs(u).max()


def test_the_carried_out_displacement_counts():
    """A front-end that moves atoms otherwise (constraints) says so in the state, and the pair is of that move."""
    rule, systems, start = RelaxationRule(), Systems(np.zeros(13, int)), random_cluster(13, 4)
    gradient = -lennard_jones(start)[1]
    displacement, state = update(init(gradient, systems, rule, 0.2), gradient, systems, rule, 0.2)
    half = 0.5 * displacement
    after = -lennard_jones(start + half)[1]
    _, state = update(state._replace(displacement=half), after, systems, rule, 0.2)
    change = after - gradient
    assert state.secant[0] == pytest.approx(abs((half * change).sum()) / (change**2).sum(), rel=1e-12)


def test_a_gradient_that_does_not_change_gives_the_same_step_again():
    rule, systems = RelaxationRule(), Systems(np.zeros(1, int))
    gradient = np.array([[0.0, 0.0, 2.0]])
    state = init(gradient, systems, rule, 0.2)
    for _ in range(5):
        displacement, state = update(state, gradient, systems, rule, 0.2)
        np.testing.assert_allclose(displacement, [[0.0, 0.0, -0.16]], rtol=1e-15)
    assert state.n_pairs[0] == 0


def test_a_zero_gradient_gives_a_zero_step():
    systems = Systems(np.zeros(2, int))
    gradient = np.zeros((2, 3))
    displacement, state = update(
        init(gradient, systems, RelaxationRule(), 0.2), gradient, systems, RelaxationRule(), 0.2
    )
    assert not displacement.any()
    displacement, _ = update(state, gradient, systems, RelaxationRule(), 0.2)
    assert not displacement.any()


def test_misalignment_is_that_of_equation_4():
    for slope in (-3.0, -1.0, 0.0, 0.3, 1.0, 20.0):
        with mpmath.workdps(50):
            expected = 0.5 + mpmath.asin(mpmath.tanh(slope)) / mpmath.pi
        assert misalignment(slope) == pytest.approx(float(expected), rel=1e-14)
    assert misalignment(0.0) == 0.5


@pytest.mark.parametrize("seed", range(2))
def test_ranks_that_share_a_system_agree_with_one(seed):
    """Two halves of a cluster in two threads that exchange nothing but the reductions."""
    import threading

    start, rule, n_steps = random_cluster(13, seed), RelaxationRule(), 30
    whole = [u for _, u, _ in walk(start, n_steps, rule)]
    barrier, box = threading.Barrier(2, timeout=60), [None, None]
    paths = [[], []]

    def rank(number: int, part: slice) -> None:
        def reduce(values, operation):
            box[number] = values
            barrier.wait()
            both = np.stack(box)
            total = both.sum(0) if operation == "sum" else both.max(0)
            barrier.wait()
            return total

        systems = Systems(np.zeros(len(start[part]), int), reduce=reduce, n_systems=1)
        positions, state = start.copy(), None
        for step in range(n_steps):
            gradient = -lennard_jones(positions)[1][part]
            state = state or init(gradient, systems, rule, 0.2)
            displacement, state = update(state, gradient, systems, rule, 0.2)
            paths[number].append(displacement)
            positions = positions + whole[step]

    threads = [threading.Thread(target=rank, args=(i, part)) for i, part in enumerate((slice(0, 4), slice(4, None)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for step, u in enumerate(whole):
        both = np.concatenate([paths[0][step], paths[1][step]])
        assert np.abs(both - u).max() <= ROUNDING * np.abs(u).max()


@pytest.mark.parametrize(
    "field, value",
    [
        ("memory", 0), ("memory", 2.5), ("first_step", 0.0), ("first_step", 1.5), ("acceleration", -1.0),
        ("alignment", 1.1), ("alignment", float("nan")), ("reset_slope", "1"), ("shrink", True), ("grow", 0.9),
    ],
)  # fmt: skip
def test_a_constant_outside_its_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"^Invalid {field}: "):
        replace(RelaxationRule(), **{field: value})


def test_the_constants_are_those_of_the_docs():
    """They are published with what was measured: changing one means measuring again (docs/relaxation.md)."""
    assert asdict(RelaxationRule()) == {
        "memory": 60,
        "first_step": 0.8,
        "acceleration": 1.0 + np.exp(-0.5),
        "alignment": 0.4,
        "reset_slope": 1.0,
        "shrink": 0.5,
        "grow": 1.3,
    }
