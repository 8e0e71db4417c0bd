"""The Frankenstein update rule (Algorithm 1 of arXiv:2503.02147), stated once, on arrays of any framework.

Everything is elementwise. `xp` is the array namespace (`numpy`, `torch`, `jax.numpy`, `array_api_strict`); the code
uses only functions that all of them have and never writes into an input, so it can be traced, compiled and
differentiated. A namespace made by hand must have, besides the operators of its arrays:

    zeros_like ones_like full_like where maximum clip abs sqrt exp log tanh atan finfo

The paper's letters are used here, in the fused kernels and in the tests' oracle, and nowhere else:

    m    momentum, a displacement of the parameters: it points downhill
    v    second moment with relaxed maximum
    x    squared gradient of the step before; 0 before the first step
    P    misalignment of momentum and gradient, in [0, 1]; 0.5 is "no opinion" (eq. 4)
    rho  momentum reset (eq. 5)
    xi   acceleration (eq. 13)
    w    1 - beta2 (eq. 10)

The state's names in files (`STATE_KEYS`) are a format: they do not change.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, Literal, NamedTuple

__all__ = [
    "PRESETS",
    "STATE_KEYS",
    "SWITCHES",
    "Factors",
    "Rule",
    "State",
    "as_rule",
    "beta1_at",
    "factors",
    "gradient_limit",
    "init",
    "rule_config",
    "update",
]

Array = Any  # an array of whichever framework `xp` names
Scalar = Any  # a float, or an array that broadcasts against the gradient (one value per system, say)

STATE_KEYS = ("momentum_buffer", "second_moment", "squared_grad")  # m, v, x in checkpoints

XI_GAIN = 1.0 + math.exp(-0.5)  # eq. 13: makes xi = 1 at rest, where |x - P| = 1/2
FIXED_W = 1.0 - 0.999  # 1 - beta2 of the ablation "beta2 fixed"


# the parts of the rule that the paper's ablation switches off
SWITCHES = ("beta1_follows_lr", "use_rho", "use_xi", "use_v", "beta2_adapts", "use_max", "use_ema")


@dataclass(frozen=True)
class Rule:
    """The constants of one variant of the rule, and the switches of the paper's ablation (Table 6).

    `Rule()` is the preset `"paper"`; `dataclasses.replace(Rule(), use_xi=False)` is one row of the ablation.

    Attributes:
        beta1_gap_range: Range of `1 - beta1` (eq. 3).
        rho_source: What rho looks at: `"squared_grad"` (Algorithm 1) or `"second_moment"` (the released code).
        rho_log_range: Range of rho, that is of the logarithm in eq. 5.
        ratio_limit: Upper limit of `x_t / x_{t-1}` in eq. 10; None leaves it free.
        beta1_follows_lr: Off: beta1 is `momentum` whatever the learning rate.
        use_rho: Off: rho is 1.
        use_xi: Off: xi is 1.
        use_v: Off: the step is not divided by the root of the second moment.
        beta2_adapts: Off: beta2 is 0.999.
        use_max: Off: the second moment is a moving average only, started at the first squared gradient, floored at eps.
        use_ema: Off: the second moment is the running maximum only.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    beta1_gap_range: tuple[float, float] = (0.05, 0.99)
    rho_source: Literal["squared_grad", "second_moment"] = "squared_grad"
    rho_log_range: tuple[float, float] = (0.8, 1.05)
    ratio_limit: float | None = None
    beta1_follows_lr: bool = True
    use_rho: bool = True
    use_xi: bool = True
    use_v: bool = True
    beta2_adapts: bool = True
    use_max: bool = True
    use_ema: bool = True

    def __post_init__(self) -> None:
        for name in ("beta1_gap_range", "rho_log_range"):
            bounds = getattr(self, name)
            if not (isinstance(bounds, tuple | list) and len(bounds) == 2 and all(map(_is_number, bounds))):
                raise ValueError(f"Invalid {name}: {bounds!r}; allowed are two numbers")
            if not bounds[0] <= bounds[1]:
                raise ValueError(f"Invalid {name}: {bounds!r}; the first value must not exceed the second")
            object.__setattr__(self, name, tuple(map(float, bounds)))  # a list, from JSON, is welcome
        if not (self.beta1_gap_range[0] >= 0.0 and self.beta1_gap_range[1] <= 1.0):
            raise ValueError(f"Invalid beta1_gap_range: {self.beta1_gap_range!r}; 1 - beta1 lies in [0, 1]")
        if self.rho_source not in ("squared_grad", "second_moment"):
            raise ValueError(f"Invalid rho_source: {self.rho_source!r}; allowed are 'squared_grad' and 'second_moment'")
        if self.ratio_limit is not None:
            if not (_is_number(self.ratio_limit) and self.ratio_limit > 0.0):
                raise ValueError(f"Invalid ratio_limit: {self.ratio_limit!r}; allowed are numbers > 0 and None")
            object.__setattr__(self, "ratio_limit", float(self.ratio_limit))
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"Invalid {name}: {getattr(self, name)!r}; allowed are True and False")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


PRESETS: dict[str, Rule] = {
    # Algorithm 1 as printed.
    "paper": Rule(),
    # The constants of the code that the authors released; where it truncates exact ones (1.60653065971), exact.
    "authors": Rule(
        beta1_gap_range=(0.05, 0.95),
        rho_source="second_moment",
        rho_log_range=(-0.2, 1.03),
        ratio_limit=1.0,
    ),
}


def as_rule(rule: str | Rule) -> Rule:
    """Return the `Rule` that a preset's name, or what `rule_config` returned, stands for.

    Raises:
        ValueError: The text is neither; the message says what is allowed.
    """
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, str) and rule in PRESETS:
        return PRESETS[rule]
    if isinstance(rule, str) and rule.startswith("{"):
        try:
            return Rule(**json.loads(rule))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"Invalid rule: {rule!r}; {error}") from None
    raise ValueError(f"Invalid rule: {rule!r}; allowed are {', '.join(map(repr, PRESETS))} or a frankenstein.rule.Rule")


def rule_config(rule: str | Rule) -> str:
    """Return `rule` as text for checkpoints and configurations: the preset's name, or JSON of the fields.

    Text, because that is what every checkpoint format keeps as it is.

    Examples:
        >>> rule_config(Rule()), as_rule(rule_config(Rule(use_xi=False))).use_xi
        ('paper', False)
    """
    rule = as_rule(rule)
    for name, preset in PRESETS.items():
        if rule == preset:
            return name
    return json.dumps(asdict(rule))


class State(NamedTuple):
    """What the rule remembers between steps: arrays shaped like the parameters, all zero before the first step."""

    m: Array
    v: Array
    x: Array


class Factors(NamedTuple):
    """The adaptive factors of one step, as `update` uses them and as plots and telemetry show them.

    Attributes:
        x_t: Squared gradient plus eps.
        v_hat: Second moment that divides this step's gradient.
        alignment: `0.5 - P`, which keeps its digits where P is near 0.5.
        rho: Momentum reset.
        xi: Acceleration.
        w: `1 - beta2`, which keeps its digits where beta2 is near 1.
        beta1: First momentum coefficient (a float where `lr` is one).
    """

    x_t: Array
    v_hat: Array
    alignment: Array
    rho: Array
    xi: Array
    w: Array
    beta1: Scalar

    @property
    def P(self) -> Array:
        """Misalignment of momentum and gradient (eq. 4), in [0, 1]."""
        return 0.5 - self.alignment

    @property
    def beta2(self) -> Array:
        """Second momentum coefficient (eq. 10); negative after a jump of the gradient."""
        return 1.0 - self.w


def init(xp: Any, params: Array) -> State:
    """Return the state before the first step: zeros like `params`.

    The paper starts `x` at the learning rate. That value is filled in at the first step with `lr > 0`, so a state made
    early, or at `lr = 0` (a warm-up from zero, distributed checkpointing), is the same as a fresh one.
    """
    return State(xp.zeros_like(params), xp.zeros_like(params), xp.zeros_like(params))


def gradient_limit(xp: Any, dtype: Any, eps: Scalar = 1e-8) -> Scalar:
    """Return the largest |gradient| for which no factor overflows: `sqrt(max * eps)`, for eps above 1 `sqrt(max)`.

    With the default eps that is 1.8e15 in float32 and 1.3e150 in float64. Beyond it the ratio of eq. 10, or the squared
    gradient itself, can overflow, so the policies `"skip"` and `"raise"` treat larger gradients like inf.

    Within it the *factors* are finite (at the first step, where `lr` stands for x, if `lr >= eps`). The second moment
    may become -inf, after a jump of the gradient by many decades: the next maximum repairs it.
    """
    largest = math.sqrt(float(xp.finfo(dtype).max))
    return largest * (min(1.0, math.sqrt(eps)) if isinstance(eps, Real) else xp.sqrt(xp.clip(eps, 0.0, 1.0)))


def _plain(scalar: Scalar) -> Scalar:
    """Return any kind of number as a float, because numpy's scalars promote float32 arrays; an array as it is."""
    return float(scalar) if isinstance(scalar, Real) else scalar


def beta1_at(xp: Any, lr: Scalar, *, momentum: Scalar, base_lr: Scalar, rule: Rule) -> Scalar:
    """Return the first momentum coefficient (eq. 3): `momentum` at `lr == base_lr`.

    An array lr (traced, or one per system) stays in the framework; a float costs nothing.
    """
    if not rule.beta1_follows_lr:
        return momentum
    low, high = rule.beta1_gap_range
    gap = (1.0 - momentum) * (lr / base_lr) ** 0.5
    beta1 = 1.0 - (min(max(gap, low), high) if isinstance(gap, float) else xp.clip(gap, low, high))
    return beta1


def factors(
    xp: Any,
    grad: Array,
    state: State,
    *,
    lr: Scalar,
    eps: float = 1e-8,
    momentum: Scalar = 0.9,
    base_lr: float = 1e-3,
    rule: Rule = PRESETS["paper"],
) -> Factors:
    """Return P, rho, xi, beta1 and beta2 of the step that `grad` and `state` lead to (eq. 3, 4, 5, 10, 13).

    Args:
        xp: Array namespace.
        grad: Gradient, any shape, real floating point, at least float32. Never modified.
        state: State of the same shape. Never modified.
        lr: Learning rate: a float, or an array that broadcasts against `grad`.
        eps: Floor of the squared gradient.
        momentum: beta1 at `lr == base_lr`.
        base_lr: Learning rate at which beta1 is `momentum`.
        rule: Constants and switches.
    """
    lr, eps, momentum, base_lr = map(_plain, (lr, eps, momentum, base_lr))
    beta1 = beta1_at(xp, lr, momentum=momentum, base_lr=base_lr, rule=rule)

    # x_0 = lr; later x >= eps > 0. At lr = 0 the step is a pause and base_lr only keeps the ratio below finite.
    x_0 = (lr or base_lr) if isinstance(lr, float) else xp.where(lr == 0.0, base_lr, lr)
    x = xp.where(state.x == 0.0, x_0, state.x)
    x_t = grad * grad + eps

    # Eq. 4 as 0.5 - P = gd(m g) / pi with the Gudermannian gd(z) = 2 atan(tanh(z / 2)): arccos(tanh(z)) cancels where
    # m g is small (everywhere, in training), asin(tanh(z)) where it is large. docs/rule.md has the errors.
    alignment = (2.0 / math.pi) * xp.atan(xp.tanh(0.5 * (state.m * grad)))

    if rule.use_max:
        v_hat = xp.maximum(state.v, x_t)
    else:
        v_hat = xp.where(state.x == 0.0, x_t, xp.maximum(state.v, xp.full_like(x_t, eps)))

    if not rule.use_rho:
        rho = xp.ones_like(x_t)
    else:  # eq. 5
        low, high = rule.rho_log_range
        root = xp.sqrt(x_t if rule.rho_source == "squared_grad" else v_hat)
        rho = xp.log(xp.clip(math.e + root + alignment, math.exp(low), math.exp(high)))

    if not rule.use_xi:
        xi = xp.ones_like(x_t)
    else:  # eq. 13
        xi = XI_GAIN / (1.0 + xp.exp(-xp.abs(x - 0.5 + alignment)))

    if not rule.beta2_adapts:
        w = xp.full_like(x_t, FIXED_W)
    else:  # eq. 10
        ratio = x_t / x
        if rule.ratio_limit is not None:
            ratio = xp.clip(ratio, 0.0, rule.ratio_limit)
        w = ratio * xp.abs(alignment)

    return Factors(x_t, v_hat, alignment, rho, xi, w, beta1)


def update(
    xp: Any,
    grad: Array,
    state: State,
    *,
    lr: Scalar,
    eps: float = 1e-8,
    momentum: Scalar = 0.9,
    base_lr: float = 1e-3,
    rule: Rule = PRESETS["paper"],
    skip_nonfinite: bool = False,
) -> tuple[Array, State]:
    """Return the displacement of the parameters and the next state (one step of Algorithm 1).

    A step at `lr = 0` is a pause: the displacement is zero and the state stays as it is (the paper's formula would go
    on coasting on its momentum, which no user of `lr = 0` expects). Weight decay is the caller's.

    Args:
        xp: Array namespace.
        grad: Gradient, any shape, real floating point, at least float32. Never modified.
        state: State of the same shape. Never modified.
        lr: Learning rate: a float, or an array that broadcasts against `grad`.
        eps: Floor of the squared gradient.
        momentum: beta1 at `lr == base_lr`.
        base_lr: Learning rate at which beta1 is `momentum`.
        rule: Constants and switches.
        skip_nonfinite: Elements whose gradient is NaN, infinite or beyond `gradient_limit` neither move nor change
            their state.

    Examples:
        >>> import numpy as np
        >>> theta = np.array([1.0, -2.0])
        >>> delta, state = update(np, 2 * theta, init(np, theta), lr=1e-3)
        >>> print(np.round(delta, 7), np.round(state.v, 6))
        [-0.0018993  0.0018993] [ 4. 16.]
    """
    active = None  # where the step counts; None: everywhere
    lr = _plain(lr)
    if not isinstance(lr, float):
        active = lr != 0.0
    elif lr == 0.0:
        return xp.zeros_like(grad), state
    if skip_nonfinite:
        usable = xp.abs(grad) <= gradient_limit(xp, grad.dtype, eps)  # False for NaN
        active = usable if active is None else active & usable
        grad = xp.where(usable, grad, xp.zeros_like(grad))

    f = factors(xp, grad, state, lr=lr, eps=eps, momentum=momentum, base_lr=base_lr, rule=rule)
    d = lr * f.xi * grad
    if rule.use_v:
        d = d / xp.sqrt(f.v_hat)
    m = f.rho * f.beta1 * state.m - d
    delta = f.beta1 * m - d  # Nesterov form
    # This form is exact where v_hat == x_t, whatever w. A negative v is legal: the next maximum repairs it.
    v = f.v_hat - f.w * (f.v_hat - f.x_t) if rule.use_ema else f.v_hat
    new = State(m, v, f.x_t)

    if active is not None:
        delta = xp.where(active, delta, xp.zeros_like(delta))
        new = State(*(xp.where(active, after, before) for after, before in zip(new, state, strict=True)))
    return delta, new
