"""The C kernel's arithmetic: every factor, and the step, against the rule in float64, over the valid range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frankenstein import library
from frankenstein import rule as R
from frankenstein.kernels import Item, Options, cpu

pytestmark = pytest.mark.skipif(cpu.why_not() is not None, reason=f"there is no kernel for {cpu.why_not()}")

# Units in the last place of float32. A factor is a handful of roundings; w is the product of three such.
FACTOR_ULPS = {"x_t": 0.51, "v_hat": 0.51, "alignment": 2.0, "rho": 2.0, "xi": 2.0, "w": 4.0}
# Without fused multiply-add every product of a sum is one more rounding.
BASELINE_ULPS = {"x_t": 1.0, "v_hat": 1.0, "alignment": 2.5, "rho": 2.0, "xi": 2.0, "w": 5.0}
# Of the larger of the two terms of the step, rho beta1^2 m and (1 + beta1) d: they may cancel.
STEP_ULPS = 4.0
BASELINE_STEP_ULPS = 8.0
N = 300_000


def numbers(name, generator):
    """Gradient, momentum, second moment and last squared gradient, float32, in one part of the valid range."""
    sign = lambda: generator.choice([-1.0, 1.0], N)  # noqa: E731
    if name == "any scale":
        grad, m = (10.0 ** generator.uniform(-12, 6, N) * sign(), 10.0 ** generator.uniform(-12, 2, N) * sign())
    elif name == "largest gradients":
        grad, m = 10.0 ** generator.uniform(6, 15, N) * sign(), 10.0 ** generator.uniform(-20, 2, N) * sign()
    elif name == "training":
        grad, m = generator.normal(size=N) * 10.0 ** generator.uniform(-4, 0, N), 1e-3 * generator.normal(size=N)
    elif name == "P anywhere":
        grad, m = generator.normal(size=N), 3.0 * generator.normal(size=N)
    elif name == "P near one half":  # down to where the product is hardly a float32
        grad = 10.0 ** generator.uniform(-3, 0, N) * sign()
        m = 10.0 ** generator.uniform(-37, -2, N) * sign() / np.abs(grad)
    elif name == "inside the clips of rho":  # sqrt(x_t) + 0.5 - P from -0.5 to 0.14
        grad = generator.uniform(0.0, 0.64, N) * sign()
        m = generator.uniform(-3.0, 3.0, N) / (np.abs(grad) + 1e-3)
    v = grad * grad * generator.uniform(0.1, 10.0, N)
    x = np.minimum(grad * grad * 10.0 ** generator.uniform(-2, 2, N) + 1e-8, 1e30)
    return [np.asarray(array, np.float32) for array in (grad, m, v, x)]


RANGES = [
    "any scale",
    "largest gradients",
    "training",
    "P anywhere",
    "P near one half",
    "inside the clips of rho",
]


def options(rule="paper", lr=1e-3, **changes):
    given = {"momentum": 0.9, "base_lr": 1e-3, "weight_decay": 0.0, "skip_nonfinite": False, "maximize": False}
    eps = float(np.float32(1e-8))
    return Options(lr=lr, eps=eps, rule=R.as_rule(rule), differentiable=False, **{**given, **changes})


def ulps(actual, expected, scale=None):
    spacing = np.spacing(np.abs(expected if scale is None else scale).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(actual.astype(np.float64) - expected) / spacing))


def exact(arrays, given):
    grad, *state = (array.astype(np.float64) for array in arrays)
    terms = {"lr": given.lr, "eps": given.eps, "momentum": given.momentum, "base_lr": given.base_lr, "rule": given.rule}
    return grad, R.State(*state), terms


@pytest.mark.parametrize("instruction_set", range(len(library.SETS)), ids=library.SETS)
@pytest.mark.parametrize("rule", ["paper", "authors"])
@pytest.mark.parametrize("name", RANGES)
def test_factors(name, rule, instruction_set):
    if instruction_set > cpu.best_set():
        pytest.skip(f"this machine has no {library.SETS[instruction_set]}")
    arrays = numbers(name, np.random.default_rng(0))
    grad, *state = map(torch.from_numpy, arrays)
    actual = cpu.factors(grad, R.State(*state), options(rule), instruction_set)
    grad, state, terms = exact(arrays, options(rule))
    expected = R.factors(np, grad, state, **terms)
    for factor, limit in (FACTOR_ULPS if instruction_set else BASELINE_ULPS).items():
        assert ulps(actual[factor].numpy(), getattr(expected, factor)) <= limit, factor


@pytest.mark.parametrize("rule", ["paper", "authors"])
@pytest.mark.parametrize("name", RANGES)
def test_step(name, rule):
    arrays = numbers(name, np.random.default_rng(1))
    given = options(rule)
    theta, grad, m, v, x = torch.zeros(N), *map(torch.from_numpy, (array.copy() for array in arrays))
    job, rest = cpu.prepared([Item(theta, grad, m, v, x, None, None)], given)
    job()
    assert not rest
    g, state, terms = exact(arrays, given)
    delta, after = R.update(np, g, state, **terms)
    f = R.factors(np, g, state, **terms)
    d = given.lr * f.xi * g / np.sqrt(f.v_hat)
    scale = np.maximum(np.abs(f.rho * f.beta1**2 * state.m), (1.0 + f.beta1) * np.abs(d))
    limit = STEP_ULPS if cpu.best_set() else BASELINE_STEP_ULPS
    assert ulps(theta.numpy(), delta, scale) <= limit
    assert ulps(m.numpy(), after.m, np.maximum(np.abs(f.rho * f.beta1 * state.m), np.abs(d))) <= limit
    assert ulps(x.numpy(), after.x) <= FACTOR_ULPS["x_t"]


@pytest.mark.parametrize("what", ["m g", "x", "grad"])
@pytest.mark.parametrize("lr", [1e-3, 2.0])
def test_one_large_number_changes_no_bit_of_its_neighbours(what, lr):
    """Guards against a short cut for blocks of small numbers that is another arithmetic."""
    generator = np.random.default_rng(4)
    n = 64 * 256
    grad, m = generator.uniform(-1, 1, (2, n)) * 10.0 ** generator.uniform(-6, 0, (2, n))
    v, x = generator.uniform(0, 1, (2, n))
    x[:100] = 0.0  # never stepped
    arrays = [np.asarray(array, np.float32) for array in (grad, m, v, x)]
    others = [array.copy() for array in arrays]
    large = np.arange(7, n, 256)
    changes = {"m g": (1, 1e4), "x": (3, 2.0), "grad": (0, 3e4)}
    index, value = changes[what]
    others[0][large] = 0.5
    others[1][large] = 0.5 if what != "grad" else 0.0
    others[index][large] = value
    results = []
    for arrays_of_one in (arrays, others):
        theta = torch.ones(n)
        tensors = [torch.from_numpy(array.copy()) for array in arrays_of_one]
        grad, m, v, x = tensors
        job, _ = cpu.prepared([Item(theta, grad, m, v, x, None, None)], options(lr=lr))
        job()
        results.append(np.delete(np.stack([theta.numpy(), *(one.numpy() for one in tensors[1:])]), large, axis=1))
    np.testing.assert_array_equal(*results)


def test_a_gradient_beyond_the_range_is_skipped_among_small_numbers():
    """Guards against the same short cut where m is 0, so that m g is small whatever the gradient."""
    n = 256
    grad = torch.full((n,), 1e-3)
    grad[3] = 1e30
    theta, m, v, x = torch.ones(n), torch.zeros(n), torch.full((n,), 1e-6), torch.full((n,), 1e-6)
    job, _ = cpu.prepared([Item(theta, grad, m, v, x, None, None)], options(skip_nonfinite=True))
    job()
    assert [one[3].item() for one in (theta, m, v, x)] == [
        1.0,
        0.0,
        torch.tensor(1e-6).item(),
        torch.tensor(1e-6).item(),
    ]
    assert (theta[:3] < 1.0).all()


def test_the_wider_clips_of_other_rules():
    """Guards against a logarithm that is right for the presets only."""
    arrays = numbers("inside the clips of rho", np.random.default_rng(2))
    arrays[0] *= 2.5  # up to e + 1.1, beyond which there is no kernel
    given = options(R.Rule(rho_log_range=(0.0, 1.34)))
    grad, *state = map(torch.from_numpy, arrays)
    rho = cpu.factors(grad, R.State(*state), given)["rho"].numpy()
    g, state, terms = exact(arrays, given)
    assert rho.max() > 1.33
    assert ulps(rho, R.factors(np, g, state, **terms).rho) <= FACTOR_ULPS["rho"]


def test_instruction_sets_with_fused_multiply_add_agree_bitwise():
    """Guards against trajectories that depend on the machine."""
    if cpu.best_set() < 2:
        pytest.skip("this machine has one such set")
    grad, *state = map(torch.from_numpy, numbers("P anywhere", np.random.default_rng(3)))
    one, other = (cpu.factors(grad, R.State(*state), options(), k) for k in (1, 2))
    assert all(torch.equal(one[name], other[name]) for name in one)
