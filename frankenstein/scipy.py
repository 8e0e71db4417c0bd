"""The relaxation rule as a method of `scipy.optimize.minimize`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult, approx_fprime

from frankenstein.relaxation import RelaxationRule, minimize
from frankenstein.relaxation.run import Reason

__all__ = ["frankenstein"]

STATUS: dict[Reason, int] = {"converged": 0, "maxcalls": 1, "stalled": 2, "nonfinite": 3, "timeout": 4, "stopped": 99}
"""`OptimizeResult.status` of each reason; the first three and the last are those of SciPy's own methods."""

MESSAGES: dict[Reason, str] = {
    "converged": "no component of the gradient at x is larger than gtol",
    "maxcalls": "the evaluations that were allowed are used up",
    "stalled": "the next step is too small to change x in floating point, or too large for it",
    "nonfinite": "the value or the gradient is not finite; x is the last point where they were, or the start",
    "timeout": "the time that was allowed is used up",
    "stopped": "the callback asked to stop",
}
"""What each reason means for a function."""


def frankenstein(
    fun: Callable[..., float],
    x0: np.ndarray,
    args: tuple[Any, ...] = (),
    *,
    jac: Callable[..., np.ndarray] | bool | None = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[..., Any] | None = None,
    tol: float | None = None,
    gtol: float | None = None,
    maxcalls: int = 10_000,
    maxiter: int | None = None,
    maxstep: float | None = None,
    memory: int | None = None,
    timeout: float | None = None,
    disp: bool = False,
    **unknown: Any,
) -> OptimizeResult:
    """Minimise a smooth function: `scipy.optimize.minimize(fun, x0, jac=True, method=frankenstein)`.

    One call of value and gradient per iteration, no line search; see `frankenstein.relaxation.minimize`.

    Args:
        fun: Called as `fun(x, *args)`; returns the value, and with `jac=True` (value, gradient).
        x0: (n,) start. Never modified.
        args: Further arguments of `fun` and `jac`.
        jac: Gradient (n,), called as `jac(x, *args)`. True: `fun` returns it too. None: forward differences, which
            cost n more calls of `fun` per iteration and are too coarse for a small `gtol`. (SciPy hands
            over None for its other difference schemes, too.)
        hess: Not used.
        hessp: Not used.
        bounds: Must be None.
        constraints: Must be empty.
        callback: Called after every evaluation, that of x0 too, as `callback(intermediate_result)` if that is its
            argument's name, else as `callback(x)`; `StopIteration` ends the run.
        tol: Used as `gtol` where that is not given.
        gtol: Ends when no component of the gradient is larger; by default 1e-5.
        maxcalls: Most evaluations of the gradient.
        maxiter: Most iterations, which is one less; for those used to it.
        maxstep: Longest step of one variable, in its unit; None: no limit beyond the one that the method keeps.
        memory: How many steps are remembered, by default 60; each takes twice the room of x.
        timeout: Most seconds.
        disp: Print why it ended.
        **unknown: Options that the method does not have are told with a warning, as SciPy does.

    Returns:
        x, fun, jac, nfev, njev, nit, status, message, and success, which is true only if `gtol` holds at x.

    Raises:
        ValueError: Bounds or constraints were given, or an argument is outside its range.

    Example:
        >>> from scipy.optimize import minimize, rosen, rosen_der
        >>> result = minimize(rosen, [-1.2, 1.0], jac=rosen_der, method=frankenstein, options={"gtol": 1e-8})
        >>> result.success, result.x.round(6).tolist()
        (True, [1.0, 1.0])
    """
    if bounds is not None:
        raise ValueError("Invalid bounds: this method has none; use method='L-BFGS-B', or change variables")
    if not isinstance(constraints, tuple | list) or len(constraints):
        raise ValueError("Invalid constraints: this method has none; use method='SLSQP' or 'trust-constr'")
    for name, value in (("hess", hess), ("hessp", hessp)):
        if value is not None:
            warnings.warn(f"Method frankenstein does not use {name}.", RuntimeWarning, stacklevel=3)
    if unknown:
        from scipy.optimize import OptimizeWarning

        warnings.warn(f"Unknown solver options: {', '.join(unknown)}", OptimizeWarning, stacklevel=3)
    if maxiter is not None:
        if not (isinstance(maxiter, int | np.integer) and maxiter >= 0):
            raise ValueError(f"Invalid maxiter: {maxiter!r}; allowed are whole numbers of at least 0")
        maxcalls = min(maxcalls, int(maxiter) + 1)
    counted = _Counted(fun, args, jac)
    result = minimize(
        counted.value_and_grad,
        np.atleast_1d(np.asarray(x0, dtype=np.float64)),
        gtol=next(value for value in (gtol, tol, 1e-5) if value is not None),
        maxcalls=maxcalls,
        maxstep=maxstep,
        rule=None if memory is None else RelaxationRule(memory=memory),
        timeout=timeout,
        callback=_scipy_callback(callback),
    )
    message = f"Optimization terminated: {MESSAGES[result.reason]}."
    if disp:
        print(f"{message} Value {result.fun:.6g}, {result.calls} evaluations.")
    return OptimizeResult(
        x=result.x,
        fun=result.fun,
        jac=result.grad,
        nit=result.calls - 1,
        nfev=counted.nfev,
        njev=result.calls,
        status=STATUS[result.reason],
        success=result.converged,
        message=message,
    )


class _Counted:
    """A function with its gradient, however SciPy hands them over, and how often it was called."""

    def __init__(self, fun: Callable[..., Any], args: tuple[Any, ...], jac: Callable[..., Any] | bool | None) -> None:
        self.fun, self.jac, self.nfev = fun, jac, 0
        self.args = args if isinstance(args, tuple) else (args,)

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        point = x.copy()  # the user's function may keep or change what it is given
        value = self._value(point)
        if self.jac is True:
            return _number(value[0]), np.asarray(value[1], dtype=np.float64)
        if callable(self.jac):
            gradient = self.jac(x.copy(), *self.args)
        else:
            known = _number(value)
            others = lambda y: known if np.array_equal(y, x) else _number(self._value(y))  # noqa: E731
            gradient = approx_fprime(x.copy(), others)
        return _number(value), np.asarray(gradient, dtype=np.float64)

    def _value(self, x: np.ndarray) -> Any:
        self.nfev += 1
        return self.fun(x, *self.args)


def _number(value: Any) -> float:
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"Invalid value of the function: its shape is {array.shape}; it must be one number")
    return float(array.item())


def _scipy_callback(callback: Callable[..., Any] | None) -> Callable[[np.ndarray, float, float], None] | None:
    """Return the callback of `minimize` that calls SciPy's."""
    if callback is None:
        return None
    takes_result = set(inspect.signature(callback).parameters) == {"intermediate_result"}

    def call(x: np.ndarray, value: float, _: float) -> None:
        if takes_result:
            callback(intermediate_result=OptimizeResult(x=x.copy(), fun=value))
        else:
            callback(x.copy())

    return call
