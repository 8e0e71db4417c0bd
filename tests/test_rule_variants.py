"""Presets, ablations, and rules as plain data."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from rule_contract import hard_gradients, trajectory

from frankenstein import rule as R


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
