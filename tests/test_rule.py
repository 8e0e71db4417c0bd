from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace

import array_api_strict
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frankenstein import rule as R

# float64 rounding over a few hundred steps of a contracting recursion, against 50 digits.
ORACLE_TOLERANCE = 1e-12
# A few float32 roundings (2^-24 each) in a chain of about twenty operations.
FLOAT32_TOLERANCE = 2e-6

jax.config.update("jax_enable_x64", True)
NAMESPACES = {"numpy": np, "torch": torch, "jax": jnp, "strict": array_api_strict}


def asarray(xp, value, dtype="float64"):
    return (
        xp.asarray(np.asarray(value, dtype=dtype))
        if xp is not torch
        else torch.from_numpy(np.array(value, dtype=dtype))
    )


def trajectory(xp, theta, grads, lrs, *, preset="paper", weight_decay=0.0, dtype="float64", **options):
    """Run the rule; return theta after each step, as numpy, and the last state."""
    theta = asarray(xp, theta, dtype)
    state = R.init(xp, theta)
    path = []
    for grad, lr in zip(grads, map(float, lrs), strict=True):
        theta = theta * (1.0 - lr * weight_decay)
        delta, state = R.update(xp, asarray(xp, grad, dtype), state, lr=lr, rule=R.as_rule(preset), **options)
        theta = theta + delta
        path.append(np.asarray(theta))
    return np.array(path), state


def hard_gradients(n_steps, n_params, seed):
    """Six decades, zeros, sign flips, plateaus and jumps: each column another kind."""
    rng = np.random.default_rng(seed)
    sign = rng.choice([-1.0, 1.0], (n_steps, n_params))
    grads = sign * 10.0 ** rng.uniform(-3, 3, (n_steps, n_params))
    grads[:, 0] = 1e-3 * np.cos(np.arange(n_steps))  # smooth and small
    grads[:, 1] *= rng.random(n_steps) < 0.5  # half of them zero
    grads[n_steps // 2 :, 2] = 0.7  # constant: momentum aligns, P saturates
    return grads


@pytest.mark.parametrize("preset", ["paper", "authors"])
@pytest.mark.parametrize("momentum, base_lr, eps, weight_decay", [(0.9, 1e-3, 1e-8, 0.0), (0.8, 2e-4, 1e-6, 0.05)])
def test_oracle(preset, momentum, base_lr, eps, weight_decay):
    grads = hard_gradients(300, 5, seed=0)
    lrs = 1e-2 * 0.5 ** (np.arange(300) // 60)
    theta = [0.3, -1.2, 2.0, 0.0, 1e-3]
    options = {"momentum": momentum, "base_lr": base_lr, "eps": eps}
    path, state = trajectory(np, theta, grads, lrs, preset=preset, weight_decay=weight_decay, **options)
    for j, start in enumerate(theta):
        steps = oracle.trajectory(start, grads[:, j], lrs, preset=preset, weight_decay=weight_decay, **options)
        expected = np.array([float(step["theta"]) for step in steps])
        np.testing.assert_allclose(path[:, j], expected, rtol=ORACLE_TOLERANCE, atol=ORACLE_TOLERANCE)
        for key, value in zip("mvx", state, strict=True):
            np.testing.assert_allclose(value[j], float(steps[-1][key]), rtol=ORACLE_TOLERANCE, atol=ORACLE_TOLERANCE)


@pytest.mark.parametrize("preset", ["paper", "authors"])
def test_factors_are_the_oracles(preset):
    grads = hard_gradients(80, 5, seed=1)
    lrs = np.full(80, 3e-3)
    steps = [oracle.trajectory(0.0, grads[:, j], lrs, preset=preset) for j in range(5)]
    state = R.init(np, grads[0])
    for t, grad in enumerate(grads):
        f = R.factors(np, grad, state, lr=lrs[t], rule=R.PRESETS[preset])
        for name in ("P", "rho", "xi", "beta1", "beta2"):
            expected = [float(steps[j][t][name]) for j in range(5)]
            np.testing.assert_allclose(
                np.broadcast_to(getattr(f, name), 5),
                expected,
                rtol=ORACLE_TOLERANCE,
                atol=ORACLE_TOLERANCE,
                err_msg=name,
            )
        _, state = R.update(np, grad, state, lr=lrs[t], rule=R.PRESETS[preset])


def test_golden_trajectories(shared):
    golden = json.loads((shared / "reference" / "golden_rule.json").read_text())
    assert {case["preset"] for case in golden["cases"]} == {"paper", "authors"}
    for case in golden["cases"]:
        options = {key: case[key] for key in ("preset", "eps", "momentum", "base_lr", "weight_decay")}
        path, _ = trajectory(np, case["theta0"], case["grads"], case["lrs"], **options)
        np.testing.assert_allclose(path, case["theta"], rtol=0, atol=ORACLE_TOLERANCE)


@pytest.mark.parametrize("name", ["torch", "jax", "strict"])
@pytest.mark.parametrize("dtype, tolerance", [("float64", ORACLE_TOLERANCE), ("float32", FLOAT32_TOLERANCE)])
@pytest.mark.parametrize("shape", [(7,), (), (0,), (2, 1, 3)])
def test_frameworks_agree(name, dtype, tolerance, shape):
    grads = np.random.default_rng(2).normal(size=(25, *shape)) * 0.1
    theta, lrs = np.full(shape, 0.5), np.full(25, 2e-3)
    expected, _ = trajectory(np, theta, grads, lrs, dtype=dtype)
    path, state = trajectory(NAMESPACES[name], theta, grads, lrs, dtype=dtype)
    np.testing.assert_allclose(path, expected, rtol=tolerance, atol=tolerance)
    assert all(dtype in str(part.dtype) and part.shape == shape for part in state)


@pytest.mark.parametrize("name", NAMESPACES)
@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_inputs_are_never_written(name, skip_nonfinite):
    xp = NAMESPACES[name]
    grad = asarray(xp, [0.5, -1.0, 0.0])
    state = R.State(asarray(xp, [-1e-3, 2e-3, 0.0]), asarray(xp, [0.3, 0.1, 0.0]), asarray(xp, [0.2, 0.1, 0.0]))
    before = [np.array(np.asarray(a)) for a in (grad, *state)]
    for lr in (1e-3, 0.0, asarray(xp, 1e-3)):
        R.update(xp, grad, state, lr=lr, skip_nonfinite=skip_nonfinite)
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip((grad, *state), before, strict=True))


@pytest.mark.parametrize("name", NAMESPACES)
def test_learning_rate_may_be_an_array(name):
    """One value per system gives what each system gives alone, a paused one included."""
    xp = NAMESPACES[name]
    grads = np.random.default_rng(3).normal(size=(10, 3, 4))
    rates = np.array([[1e-3], [0.0], [2e-2]])
    state = R.init(xp, asarray(xp, grads[0]))
    alone = [R.init(np, grads[0, i]) for i in range(3)]
    for grad in grads:
        delta, state = R.update(xp, asarray(xp, grad), state, lr=asarray(xp, rates))
        for i in range(3):
            expected, alone[i] = R.update(np, grad[i], alone[i], lr=float(rates[i, 0]))
            np.testing.assert_allclose(np.asarray(delta)[i], expected, rtol=ORACLE_TOLERANCE, atol=ORACLE_TOLERANCE)
    for i in range(3):
        for part, expected in zip(state, alone[i], strict=True):
            np.testing.assert_allclose(np.asarray(part)[i], expected, rtol=ORACLE_TOLERANCE, atol=ORACLE_TOLERANCE)


@pytest.mark.parametrize("number", [np.float64, np.float32, int])
def test_numbers_of_any_kind_keep_the_arrays_dtype(number):
    """Guards against numpy scalars, from a schedule say, that promote float32 arrays, in any of the options."""
    grad = np.array([0.5, -1.0], "float32")
    state = R.State(*(np.array(a, "float32") for a in ([-1e-3, 2e-3], [0.3, 0.1], [0.2, 0.1])))
    options = {"lr": number(2), "eps": number(1), "momentum": number(0), "base_lr": number(3)}
    plain = {name: float(value) for name, value in options.items()}
    for actual, expected in [
        (R.factors(np, grad, state, **options), R.factors(np, grad, state, **plain)),
        (R.update(np, grad, state, **options)[1], R.update(np, grad, state, **plain)[1]),
    ]:
        for a, b in zip(actual, expected, strict=True):
            assert type(a) is type(b) and np.array_equal(a, b)
            assert isinstance(a, float) or a.dtype == "float32"
    assert R.update(np, grad, state, **options)[0].dtype == "float32"


class Recording:
    """A namespace of numpy's functions that notes which are used."""

    def __init__(self):
        self.used = set()

    def __getattr__(self, name):
        self.used.add(name)
        return getattr(np, name)


def test_namespace_needs_what_is_documented():
    """Guards against a function that front-ends with a namespace of their own do not have."""
    xp = Recording()
    rules = [*R.PRESETS.values(), *(replace(R.Rule(), **{switch: False}) for switch in R.SWITCHES)]
    for rule, lr in itertools.product(rules, (1e-3, np.full(2, 1e-3))):
        state = R.init(xp, np.ones(2))
        R.update(xp, np.ones(2), state, lr=lr, rule=rule, skip_nonfinite=True)
    listed = R.__doc__.partition("must have, besides the operators of its arrays:")[2].split("\n\n")[1]
    assert xp.used == set(listed.split())


def test_factors_make_no_arrays_to_throw_away():
    """Guards against fills that the next line overwrites: only a part that is switched off is an array of ones."""
    for switch, fills in [(None, set()), ("use_rho", {"ones_like"}), ("beta2_adapts", {"full_like"})]:
        xp = Recording()
        rule = replace(R.Rule(), **{switch: False} if switch else {})
        f = R.factors(xp, np.ones(3), R.init(np, np.ones(3)), lr=1e-3, rule=rule)
        assert xp.used & {"ones_like", "full_like", "zeros_like"} == fills
        assert all(part.shape == (3,) for part in f[:-1])


def test_traceable():
    """Under jit the learning rate is a tracer; a second call with another value does not compile again."""
    n_traces = 0

    @jax.jit
    def step(grad, state, lr):
        nonlocal n_traces
        n_traces += 1
        return R.update(jnp, grad, state, lr=lr)

    grad = jnp.asarray([0.1, -2.0, 0.0])
    state = plain = R.init(jnp, grad)
    for lr in (0.0, 1e-3, 1e-2):
        delta, state = step(grad, state, lr)
        expected, plain = R.update(jnp, grad, plain, lr=lr)
        np.testing.assert_allclose(delta, expected, rtol=ORACLE_TOLERANCE, atol=ORACLE_TOLERANCE)
    assert n_traces == 1


# Properties -----------------------------------------------------------------------------------------------------------

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


# The traps ------------------------------------------------------------------------------------------------------------


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


# Rule: presets, ablations, plain data ---------------------------------------------------------------------------------


def by_hand(grads, lr, switch):
    """The rule with one part taken out, on one scalar: plain arithmetic, for the ablations only."""
    m = v = 0.0
    x_before, path, theta = lr, [], 0.0
    for t, g in enumerate(grads):
        beta1 = 0.9 if switch == "beta1_follows_lr" else 1 - min(max(0.1 * math.sqrt(lr / 1e-3), 0.05), 0.99)
        P, x = math.acos(math.tanh(m * g)) / math.pi, g * g + 1e-8
        if switch == "use_max":
            v_hat = x if t == 0 else max(v, 1e-8)
        else:
            v_hat = max(v, x)
        rho = math.log(min(max(math.e + math.sqrt(x) + 0.5 - P, math.exp(0.8)), math.exp(1.05)))
        xi = (1 + math.exp(-0.5)) / (1 + math.exp(-abs(x_before - P)))
        d = lr * g * (1 if switch == "use_xi" else xi) / (1 if switch == "use_v" else math.sqrt(v_hat))
        m = (1 if switch == "use_rho" else rho) * beta1 * m - d
        theta += beta1 * m - d
        w = 0.001 if switch == "beta2_adapts" else x / x_before * abs(0.5 - P)
        v = v_hat if switch == "use_ema" else (1 - w) * v_hat + w * x
        x_before = x
        path.append(theta)
    return path


@pytest.mark.parametrize("switch", R.SWITCHES)
def test_ablation(switch):
    grads = hard_gradients(60, 5, seed=6)[:, 3] * 0.1
    rule = replace(R.Rule(), **{switch: False})
    path, _ = trajectory(np, [0.0], grads[:, None], np.full(60, 5e-3), preset=rule)
    # plain doubles with arccos on one side: its cancellation, times the gradient's range, is the error
    np.testing.assert_allclose(path[:, 0], by_hand(grads, 5e-3, switch), rtol=1e-9, atol=1e-9)
    full, _ = trajectory(np, [0.0], grads[:, None], np.full(60, 5e-3))
    assert np.max(np.abs(path - full)) > 1e-6


def test_rule_as_plain_data():
    custom = replace(R.Rule(), use_xi=False, rho_log_range=(0.5, 1.0))
    assert R.rule_config("paper") == R.rule_config(R.Rule()) == "paper"
    assert R.rule_config(R.PRESETS["authors"]) == "authors"
    assert isinstance(R.rule_config(custom), str)
    assert R.as_rule(R.rule_config(custom)) == custom
    assert hash(R.as_rule(R.rule_config(custom))) == hash(custom)
    of_numpy = replace(R.Rule(), ratio_limit=np.float32(2.0), rho_log_range=(np.float64(0.5), np.int64(1)))
    assert R.as_rule(R.rule_config(of_numpy)) == of_numpy


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: R.as_rule("papr"),
            r"Invalid rule: 'papr'; allowed are 'paper', 'authors' or a frankenstein.rule.Rule",
        ),
        (lambda: R.as_rule(None), r"Invalid rule: None"),
        (lambda: R.as_rule({"use_xi": True}), r"Invalid rule: \{'use_xi': True\}"),
        (lambda: R.as_rule('{"use_yi": true}'), r"use_yi"),
        (lambda: R.as_rule('{"use_xi"'), r"Invalid rule: "),
        (lambda: R.Rule(use_xi="False"), r"Invalid use_xi: 'False'; allowed are True and False"),
        (lambda: R.Rule(ratio_limit=-1.0), r"Invalid ratio_limit: -1.0"),
        (lambda: R.Rule(rho_log_range=(1.0, 0.5)), r"Invalid rho_log_range: \(1.0, 0.5\)"),
        (lambda: R.Rule(beta1_gap_range=(-0.1, 0.5)), r"Invalid beta1_gap_range"),
        (lambda: R.Rule(rho_source="v"), r"Invalid rho_source: 'v'"),
        (lambda: R.Rule(ratio_limit="x"), r"Invalid ratio_limit: 'x'; allowed are numbers > 0 and None"),
        (lambda: R.Rule(ratio_limit=True), r"Invalid ratio_limit: True; allowed are numbers > 0 and None"),
        *(
            (
                lambda name=name, value=value: R.Rule(**{name: value}),
                rf"Invalid {name}: {shown}; allowed are two numbers",
            )
            for name in ("rho_log_range", "beta1_gap_range")
            for value, shown in [
                (3, "3"),
                ((1, 2, 3), r"\(1, 2, 3\)"),
                (("a", "b"), r"\('a', 'b'\)"),
                (None, "None"),
                ("ab", "'ab'"),
            ]
        ),
    ],
)
def test_wrong_rules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The package ----------------------------------------------------------------------------------------------------------


def test_import_needs_numpy_only():
    code = (
        "import sys, frankenstein, frankenstein.rule, numpy; "
        "heavy = {'torch', 'jax', 'keras', 'scipy', 'sklearn', 'matplotlib', 'rich', 'ase'} & set(sys.modules); "
        "assert not heavy, heavy; assert frankenstein.__version__; "
        "assert frankenstein.Frankenstein.__module__ == 'frankenstein.torch' and 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch():
    """Guards against "No module named 'torch'", which does not say what to install."""
    code = (
        "import sys; sys.modules['torch'] = None; from frankenstein import Rule; from frankenstein import Frankenstein"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ") and "pip install 'frankenstein-optimizer[torch]'" in last
    assert "The above exception was the direct cause" in done.stderr


def test_unknown_attribute():
    import frankenstein

    assert set(frankenstein.__all__) <= set(dir(frankenstein))
    with pytest.raises(AttributeError, match="nothing"):
        frankenstein.nothing  # noqa: B018
