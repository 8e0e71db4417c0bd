"""`scipy.optimize.minimize(..., method=frankenstein)` behaves as SciPy's own methods do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import OptimizeResult, OptimizeWarning, minimize, rosen, rosen_der

from frankenstein.relaxation import REASONS, RelaxationRule
from frankenstein.relaxation import minimize as own_minimize
from frankenstein.scipy import MESSAGES, STATUS, frankenstein

START = np.array([-1.2, 1.0, 0.5])


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, x, *args):
        self.calls += 1
        return self.function(x, *args)


def both(x):
    return rosen(x), rosen_der(x)


@pytest.mark.parametrize("way", ["together", "apart", "differences"])
def test_every_way_to_give_the_gradient(way):
    value, gradient = Counted(both if way == "together" else rosen), Counted(rosen_der)
    jac = {"together": True, "apart": gradient, "differences": None}[way]
    gtol = 1e-3 if way == "differences" else 1e-8
    result = minimize(value, START, jac=jac, method=frankenstein, options={"gtol": gtol})
    assert isinstance(result, OptimizeResult)
    assert result.success and result.status == 0 and "larger than gtol" in result.message
    assert np.abs(result.jac).max() <= gtol
    np.testing.assert_allclose(result.x, 1.0, atol=10 * gtol)
    assert result.fun == rosen(result.x)
    assert result.nfev == value.calls  # counted at the function
    assert result.njev == result.nit + 1
    if way == "apart":
        assert result.njev == gradient.calls == result.nfev
    if way == "differences":
        assert result.nfev == result.njev * (len(START) + 1)


def test_it_takes_the_path_of_the_rule():
    result = minimize(both, START, jac=True, method=frankenstein)
    own = own_minimize(both, START)
    np.testing.assert_array_equal(result.x, own.x)
    assert result.njev == own.calls


def test_a_short_memory_is_the_rule_with_it():
    short = minimize(both, START, jac=True, method=frankenstein, options={"memory": 2})
    own = own_minimize(both, START, rule=RelaxationRule(memory=2))
    np.testing.assert_array_equal(short.x, own.x)
    assert short.success and short.njev == own.calls != own_minimize(both, START).calls


def test_args_reach_the_function_and_the_gradient():
    result = minimize(
        lambda x, a, b: a * (x - b) @ (x - b), np.zeros(2), args=(2.0, 3.0), jac=lambda x, a, b: 2 * a * (x - b),
        method=frankenstein,
    )  # fmt: skip
    np.testing.assert_allclose(result.x, 3.0, atol=1e-5)
    result = minimize(
        lambda x, b: ((x - b) @ (x - b), 2 * (x - b)), np.zeros(2), args=3.0, jac=True, method=frankenstein
    )
    np.testing.assert_allclose(result.x, 3.0, atol=1e-5)


def test_tol_is_gtol():
    result = minimize(both, START, jac=True, method=frankenstein, tol=1e-2)
    assert 1e-5 < np.abs(result.jac).max() <= 1e-2
    exact = minimize(both, START, jac=True, method=frankenstein, tol=1e-2, options={"gtol": 1e-9})  # as in SciPy
    assert np.abs(exact.jac).max() <= 1e-9


def test_the_function_may_spoil_what_it_is_given():
    def spoiling(x):
        value, gradient = both(x)
        x[:] = np.nan
        return value, gradient

    clean = minimize(both, START, jac=True, method=frankenstein)
    result = frankenstein(spoiling, START, jac=True)
    np.testing.assert_array_equal(result.x, clean.x)


@pytest.mark.parametrize(
    "options, function, reason",
    [
        ({"maxcalls": 5}, both, "maxcalls"),
        ({"maxiter": 4}, both, "maxcalls"),
        ({"timeout": 1e-9}, both, "timeout"),
        ({}, lambda x: (np.nan, np.zeros_like(x)), "nonfinite"),
        ({}, lambda x: (x.sum(), np.full_like(x, np.inf)), "nonfinite"),
    ],
)
def test_a_run_that_did_not_converge_does_not_claim_success(options, function, reason):
    result = minimize(function, START, jac=True, method=frankenstein, options=options)
    assert result.success is False
    assert result.status == STATUS[reason] != 0
    assert MESSAGES[reason] in result.message


def test_every_reason_has_a_status_of_its_own():
    assert set(STATUS) == set(MESSAGES) == set(REASONS) and len(set(STATUS.values())) == len(STATUS)


def test_both_kinds_of_callback_are_called_and_may_stop():
    seen = []
    minimize(both, START, jac=True, method=frankenstein, callback=lambda xk: seen.append(xk), options={"maxcalls": 7})
    assert len(seen) == 7 and seen[0] is not seen[1]
    np.testing.assert_array_equal(seen[0], START)

    count = itertools.count(1)

    def stop(intermediate_result):
        assert intermediate_result.fun == rosen(intermediate_result.x)
        if next(count) == 3:
            raise StopIteration

    result = minimize(both, START, jac=True, method=frankenstein, callback=stop)
    assert result.njev == 3 and not result.success and result.status == 99


def test_an_exception_of_the_function_passes_through():
    def broken(x):
        raise RuntimeError("licence expired")

    with pytest.raises(RuntimeError, match=r"^licence expired$"):
        minimize(broken, START, jac=True, method=frankenstein)


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match=r"^Invalid bounds: this method has none"):
        minimize(both, START, jac=True, method=frankenstein, bounds=[(0, 1)] * 3)
    with pytest.raises(ValueError, match=r"^Invalid constraints: this method has none"):
        minimize(both, START, jac=True, method=frankenstein, constraints={"type": "eq", "fun": lambda x: x[0]})
    with pytest.warns(RuntimeWarning, match=r"^Method frankenstein does not use hess\.$"):
        minimize(both, START, jac=True, method=frankenstein, hess=lambda x: np.eye(3), options={"maxcalls": 2})
    with pytest.warns(OptimizeWarning, match=r"^Unknown solver options: ftol$"):
        minimize(both, START, jac=True, method=frankenstein, options={"maxcalls": 2, "ftol": 3})
    with pytest.raises(ValueError, match=r"^Invalid maxiter: -1; allowed are whole numbers of at least 0"):
        minimize(both, START, jac=True, method=frankenstein, options={"maxiter": -1})
    with pytest.raises(ValueError, match=r"^Invalid value of the function: its shape is \(2,\); it must be one number"):
        minimize(lambda x: x[:2], START, jac=rosen_der, method=frankenstein)
    with pytest.raises(ValueError, match=r"^Invalid gtol: -1"):
        minimize(both, START, jac=True, method=frankenstein, tol=-1)


def test_disp_prints_one_line(capsys):
    minimize(both, START, jac=True, method=frankenstein, options={"disp": True, "maxcalls": 4})
    printed = capsys.readouterr().out
    assert printed.startswith("Optimization terminated: the evaluations that were allowed") and printed.count("\n") == 1


def test_it_needs_about_the_calls_of_its_peer():
    """Not a race: without a line search it must stay in the neighbourhood of L-BFGS-B on smooth functions."""
    rng = np.random.default_rng(1)
    design = rng.normal(size=(200, 20))
    labels = np.sign(design @ rng.normal(size=20) + rng.normal(size=200))

    def logistic(w):
        margin = labels * (design @ w)
        return np.logaddexp(0, -margin).sum() + 0.05 * w @ w, -(design.T @ (labels / (1 + np.exp(margin)))) + 0.1 * w

    ours = minimize(logistic, np.zeros(20), jac=True, method=frankenstein)
    peer = minimize(logistic, np.zeros(20), jac=True, method="L-BFGS-B", options={"gtol": 1e-5, "ftol": 0})
    assert ours.success and ours.fun == pytest.approx(peer.fun, rel=1e-9)
    assert ours.njev <= 1.5 * peer.nfev
