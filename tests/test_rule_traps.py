"""What is easy to get wrong about the rule, each with the test that would notice."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from rule_contract import NAMESPACES, ORACLE_TOLERANCE, asarray, hard_gradients, trajectory

from frankenstein import rule as R


@pytest.mark.parametrize("dtype, tolerance", [("float32", 3e-7), ("float64", 1e-15)])
def test_alignment_keeps_its_digits(dtype, tolerance):
    """Trap 1, and its mirror image: arccos loses small m*g, arcsin loses large m*g; the rule loses neither."""
    z = (10.0 ** np.linspace(-12, 1.5, 400)).astype(dtype)
    state = R.State(z, np.ones_like(z), np.ones_like(z))
    with mpmath.workdps(50):
        exact = np.array([float(mpmath.asin(mpmath.tanh(mpmath.mpf(float(value)))) / mpmath.pi) for value in z])

    def worst(alignment):
        return np.max(np.abs(alignment.astype("float64") - exact) / exact)

    assert worst(R.factors(np, np.ones_like(z), state, lr=1e-3).alignment) < tolerance
    assert worst(0.5 - np.arccos(np.tanh(z)) / np.pi) > 1e3 * tolerance
    assert worst(np.arcsin(np.tanh(z)) / np.pi) > 30 * tolerance


def test_second_moment_may_be_negative_and_recovers():
    """Trap 2: w > 1 after a jump of the gradient."""
    state = R.State(np.array([-5e-3]), np.array([1e4]), np.array([1e-4]))
    f = R.factors(np, np.array([50.0]), state, lr=1e-3)
    assert f.w[0] > 1 and f.beta2[0] < 0
    _, state = R.update(np, np.array([50.0]), state, lr=1e-3)
    assert state.v[0] < 0
    delta, state = R.update(np, np.array([50.0]), state, lr=1e-3)
    assert np.isfinite(delta[0]) and state.v[0] == 50.0**2 + 1e-8


def test_second_moment_is_exact_at_a_new_maximum():
    """Trap 2: v_hat - w (v_hat - x_t) is x_t bitwise where v_hat == x_t, for a w that a rearrangement would round."""
    state = R.State(np.array([-0.3]), np.array([1e-9]), np.array([0.7]))
    _, state = R.update(np, np.array([1.1]), state, lr=1e-3)
    assert state.v[0] == state.x[0]


@pytest.mark.parametrize("name", NAMESPACES)
@pytest.mark.parametrize("grad", [[0.0, 0.0], [0.3, -2.0]])
def test_learning_rate_zero_is_a_pause(name, grad):
    """Trap 3: nothing moves, and what follows is what would have followed from a fresh state, bitwise."""
    xp = NAMESPACES[name]
    grad, fresh = asarray(xp, grad), R.init(xp, asarray(xp, grad))
    for lr in (0.0, asarray(xp, 0.0)):
        delta, paused = R.update(xp, grad, fresh, lr=lr)
        assert not np.asarray(delta).any()
        after = [R.update(xp, asarray(xp, [0.1, 0.2]), state, lr=1e-2) for state in (paused, fresh)]
        for a, b in zip((after[0][0], *after[0][1]), (after[1][0], *after[1][1]), strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b))
    _, moving = R.update(xp, grad, fresh, lr=1e-3)
    delta, paused = R.update(xp, grad, moving, lr=0.0)
    assert not np.asarray(delta).any()
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(moving, paused, strict=True))


def test_eps_matters_at_this_tolerance():
    """Trap 4: the parity tolerance of this file sees a dropped eps, which moves parameters by about 1e-9."""
    grads, lrs = hard_gradients(300, 5, seed=0), np.full(300, 1e-3)
    with_eps, _ = trajectory(np, np.ones(5), grads, lrs, eps=1e-8)
    without, _ = trajectory(np, np.ones(5), grads, lrs, eps=1e-30)
    assert np.max(np.abs(with_eps - without)) > 10 * ORACLE_TOLERANCE


@pytest.mark.parametrize("dtype, largest", [("float32", 3.4028235e38), ("float64", 1.7976931e308)])
@pytest.mark.parametrize("eps", [1e-8, 1e-4, 100.0])
def test_gradient_limit_is_the_valid_range(dtype, largest, eps):
    """Traps 5 and 7: just inside the limit every factor is finite, from any legal state; just outside, not."""
    limit = R.gradient_limit(np, np.dtype(dtype), eps)
    assert limit == pytest.approx(math.sqrt(largest) * min(1.0, math.sqrt(eps)), rel=1e-6)
    grad, twice = np.array([0.999 * limit], dtype), np.array([2 * limit], dtype)
    for previous in (eps, 1.0 + eps, limit**2 * 0.9):
        for m in (0.0, -1e-3, 1e3):
            state = R.State(*(np.array([a], dtype) for a in (m, previous, previous)))
            f = R.factors(np, grad, state, lr=1e-3, eps=eps)
            assert all(np.isfinite(part).all() for part in f)
    state = R.State(*(np.array([a], dtype) for a in (-1e-3, eps, eps)))
    with np.errstate(over="ignore"):
        assert not np.isfinite(R.factors(np, twice, state, lr=1e-3, eps=eps).w).all()


def test_second_moment_may_overflow_within_the_limit_and_recovers():
    """The limit is about the factors: v becomes -inf after a jump from nothing to the limit, for one step."""
    limit = R.gradient_limit(np, np.dtype("float32"))
    state = R.State(*(np.array([a], "float32") for a in (-1e-3, limit**2 * 0.9, 1e-8)))
    grad = np.array([0.7 * limit], "float32")
    with np.errstate(over="ignore"):
        delta, state = R.update(np, grad, state, lr=1e-3)
    assert state.v[0] == -math.inf and np.isfinite(delta).all()
    delta, state = R.update(np, grad, state, lr=1e-3)
    assert np.isfinite([delta, *state]).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_nonfinite_gradients(bad):
    """Trap 6: skipped elements keep their state, the others are as if alone; propagated NaN stays for ever."""
    grads = np.array([[0.3, 0.2], [bad, 0.1], [0.2, 0.4]])
    skipped = alone = before = propagated = R.init(np, grads[0])
    for i, grad in enumerate(grads):
        delta, skipped = R.update(np, grad, skipped, lr=1e-3, skip_nonfinite=True)
        expected, alone = R.update(np, np.array([0.3, grad[1]]) if i == 1 else grad, alone, lr=1e-3)
        assert delta[1] == expected[1] and np.isfinite(delta).all()
        if i == 1:
            assert delta[0] == 0.0
            alone = R.State(*(np.array([old[0], new[1]]) for old, new in zip(before, alone, strict=True)))
        before = alone
        with np.errstate(invalid="ignore", over="ignore"):
            _, propagated = R.update(np, grad, propagated, lr=1e-3)
        assert all(np.array_equal(a, b) for a, b in zip(skipped, alone, strict=True))
    assert not np.isfinite(propagated.v[0]) and np.isfinite(propagated.v[1])


def test_the_rule_has_units():
    """Trap 7: scaling the loss changes the trajectory (Adam's would not change, but for eps)."""
    grads, lrs = hard_gradients(50, 5, seed=4), np.full(50, 1e-3)
    one, _ = trajectory(np, np.zeros(5), grads, lrs)
    scaled, _ = trajectory(np, np.zeros(5), 10 * grads, lrs)
    assert np.max(np.abs(one - scaled)) > 1e-6


def test_aligned_descent_has_P_above_one_half():
    """Trap 8: the sign of Algorithm 1 and the released code, not that of the paper's section 2.1."""
    grad, state = np.array([2.0]), R.init(np, np.zeros(1))
    for _ in range(3):
        _, state = R.update(np, grad, state, lr=1e-2)
    assert state.m[0] < 0
    assert R.factors(np, grad, state, lr=1e-2).P[0] > 0.5


def test_learning_rate_is_inside_the_recursion():
    """Trap 9: scaling the steps of lr = 1 by a schedule afterwards is another method."""
    grads = hard_gradients(30, 5, seed=5)
    inside, _ = trajectory(np, np.zeros(5), grads, np.linspace(1e-2, 1e-3, 30))
    state, outside = R.init(np, grads[0]), np.zeros(5)
    for grad, lr in zip(grads, np.linspace(1e-2, 1e-3, 30), strict=True):
        delta, state = R.update(np, grad, state, lr=1.0)
        outside = outside + lr * delta
    assert np.max(np.abs(inside[-1] - outside)) > 1e-2


def test_step_at_rest_is_about_ten_times_adams():
    """Trap 10: a constant gradient moves theta by lr * (beta1 / (1 - rho beta1) + 1) per step; Adam moves it by lr."""
    grad, state = np.array([1e-3]), R.init(np, np.zeros(1))
    for _ in range(500):
        delta, state = R.update(np, grad, state, lr=1e-3)
    f = R.factors(np, grad, state, lr=1e-3)
    expected = -1e-3 * f.xi[0] * (f.beta1 / (1 - f.rho[0] * f.beta1) + 1) * 1e-3 / math.sqrt(1e-6 + 1e-8)
    assert delta[0] == pytest.approx(expected, rel=1e-6)
    assert 8e-3 < -delta[0] < 12e-3
