"""One contract for all front-ends: the same gradients give the rule's trajectory, through save and load too."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import front_ends
import numpy as np
import oracle
import pytest

from frankenstein.rule import Rule

N_STEPS, SAVED_AFTER = 60, 23
# float64: a few roundings a step of a contracting recursion. float32: the same, of 6e-8 each, against float64.
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
CASES = {
    "plain": {},
    "authors": {"rule": "authors"},
    "another rule": {"rule": replace(Rule(), use_xi=False, rho_log_range=(0.5, 1.0))},
    "decay": {"weight_decay": 0.5},
    "fine-tuning": {"momentum": 0.8, "base_lr": 2e-4, "eps": 1e-6},
    "schedule": {"weight_decay": 0.125},  # exact in float32, to which Keras rounds it on TensorFlow
    "skip": {"skip_nonfinite": True},
}


def given(case, dtype):
    """Return the arguments of a front-end: gradients of four decades with zeros and jumps, in that precision."""
    rng = np.random.default_rng(7)
    theta = rng.normal(size=(3, 5)).astype(dtype).astype("float64")
    grads = rng.normal(size=(N_STEPS, 3, 5)) * 10.0 ** rng.uniform(-3, 1, (N_STEPS, 1, 5))
    grads[:, 0] *= rng.random((N_STEPS, 5)) < 0.5
    grads[N_STEPS // 2 :, 1] = 0.7
    grads = grads.astype(dtype).astype("float64")
    if case == "skip":
        grads[5, 2, 3], grads[40, 1, 1] = np.nan, np.inf
    lrs = np.full(N_STEPS, 1e-3)
    if case == "schedule":  # a warm-up from zero
        lrs = 1e-2 * np.minimum(1.0, np.arange(N_STEPS) / 10)
    return theta, grads, lrs.astype(dtype).astype("float64"), dtype, SAVED_AFTER, CASES[case]


def all_given():
    return {(case, dtype): given(case, dtype) for case in CASES for dtype in TOLERANCE}


def here(run, needs):
    def results():
        for module in needs:
            pytest.importorskip(module)
        return {key: run(*arguments) for key, arguments in all_given().items()}

    return results


def on_keras(backend, module):
    missing = [name for name in ("keras", module) if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {missing[0]}")
    return front_ends.keras_cases(backend, all_given())


FRONT_ENDS = {
    "numpy": here(front_ends.numpy, []),
    "torch": here(front_ends.torch, []),
    "optax": here(front_ends.optax, ["optax", "orbax.checkpoint"]),
    "keras-torch": partial(on_keras, "torch", "torch"),
    "keras-jax": partial(on_keras, "jax", "jax"),
    "keras-tensorflow": partial(on_keras, "tensorflow", "tensorflow"),
}


@pytest.fixture(scope="module", params=FRONT_ENDS)
def results(request):
    return FRONT_ENDS[request.param]()


@pytest.fixture(scope="module")
def expected():
    """The rule in float64, without a pause."""
    return {key: front_ends.numpy(*args[:3], "float64", None, args[5]) for key, args in all_given().items()}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_the_trajectory_is_that_of_the_rule(results, expected, case, dtype):
    path, rule = results[case, dtype], expected[case, dtype]
    assert path.shape == rule.shape == (N_STEPS, 3, 5) and np.isfinite(rule).all()
    np.testing.assert_allclose(path, rule, rtol=0, atol=TOLERANCE[dtype] * np.abs(rule).max())
    assert np.abs(rule[-1] - rule[0]).max() > 100 * TOLERANCE[dtype]  # it did move


def test_the_expected_trajectory_is_the_paper_s(expected):
    """By the scalar oracle with 50 digits."""
    theta, grads, lrs, *_ = given("plain", "float64")
    for i in np.ndindex(theta.shape):
        path = [float(step["theta"]) for step in oracle.trajectory(theta[i], grads[(slice(None), *i)], lrs)]
        np.testing.assert_allclose(expected["plain", "float64"][(slice(None), *i)], path, rtol=1e-12, atol=1e-12)
