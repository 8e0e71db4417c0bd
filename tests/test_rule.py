"""The rule against the oracle, the golden numbers, and itself on other frameworks."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from rule_contract import FLOAT32_TOLERANCE, NAMESPACES, ORACLE_TOLERANCE, asarray, hard_gradients, trajectory

from frankenstein import rule as R


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
