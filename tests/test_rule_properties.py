"""Properties of the rule that hold for any gradients."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from frankenstein import rule as R

finite = st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False)
gradients = st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=20).map(np.array)
rates = st.floats(1e-7, 1.0)
presets = st.sampled_from(["paper", "authors"])
ULP = 1e-15


@given(gradients, rates, presets)
def test_factors_stay_in_their_ranges(grads, lr, preset):
    rule = R.PRESETS[preset]
    state = R.init(np, grads[0])
    for grad in grads:
        f = R.factors(np, grad, state, lr=lr, rule=rule)
        assert np.all((f.xi >= R.XI_GAIN / 2 - ULP) & (f.xi <= R.XI_GAIN + ULP))
        assert np.all((f.rho >= rule.rho_log_range[0] - ULP) & (f.rho <= rule.rho_log_range[1] + ULP))
        assert rule.beta1_gap_range[0] - ULP <= 1 - f.beta1 <= rule.beta1_gap_range[1] + ULP
        assert np.all((f.P >= 0) & (f.P <= 1)) and np.all(f.w >= 0)
        _, state = R.update(np, grad, state, lr=lr, rule=rule)
        assert all(np.isfinite(part).all() for part in state)


@given(gradients, rates, presets)
def test_sign_symmetry(grads, lr, preset):
    up = down = R.init(np, grads[0])
    for grad in grads:
        delta, up = R.update(np, grad, up, lr=lr, rule=R.PRESETS[preset])
        mirrored, down = R.update(np, -grad, down, lr=lr, rule=R.PRESETS[preset])
        assert np.array_equal(mirrored, -delta)
        assert np.array_equal(down.m, -up.m)


@given(gradients, rates, st.permutations(range(3)))
def test_elementwise(grads, lr, order):
    whole = moved = R.init(np, grads[0])
    parts = [R.init(np, grads[0, :1]), R.init(np, grads[0, 1:])]
    for grad in grads:
        delta, whole = R.update(np, grad, whole, lr=lr)
        permuted, moved = R.update(np, grad[order], moved, lr=lr)
        assert np.array_equal(permuted, delta[order])
        (left, parts[0]), (right, parts[1]) = (
            R.update(np, piece, part, lr=lr) for piece, part in zip((grad[:1], grad[1:]), parts, strict=True)
        )
        assert np.array_equal(np.concatenate([left, right]), delta)


@given(finite, rates, presets)
def test_first_step(g, lr, preset):
    rule, grad = R.PRESETS[preset], np.array([g])
    delta, _ = R.update(np, grad, R.init(np, grad), lr=lr, rule=rule)
    low, high = rule.beta1_gap_range
    beta1 = 1 - min(max(0.1 * math.sqrt(lr / 1e-3), low), high)
    xi_0 = R.XI_GAIN / (1 + math.exp(-abs(lr - 0.5)))
    expected = -(1 + beta1) * lr * xi_0 * np.sign(g) * abs(g) / math.sqrt(g * g + 1e-8)
    np.testing.assert_allclose(delta[0], expected, rtol=1e-13, atol=1e-300)


def test_zero_gradient_decays():
    """With no gradient theta coasts on its momentum, which decays; nothing becomes infinite."""
    grad = np.array([0.5])
    state = R.init(np, grad)
    for _ in range(5):
        _, state = R.update(np, grad, state, lr=1e-3)
    travelled = []
    for _ in range(2000):
        delta, state = R.update(np, np.zeros(1), state, lr=1e-3)
        travelled.append(abs(delta[0]))
    assert all(later <= earlier for earlier, later in itertools.pairwise(travelled))
    assert travelled[-1] < 1e-30 < travelled[0]
    assert all(np.isfinite(part).all() for part in state)
