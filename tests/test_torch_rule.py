"""`frankenstein.torch` computes the rule: parity with numpy in float64, with the reference, and rounding below that."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import StepLR
from torch_contract import SETTINGS, STATE_KEYS, gradients, make, parameters, rule_trajectory, train, values

from frankenstein.torch import Frankenstein

# Float64 rounding over some tens of steps. eps dropped would show: it moves parameters by 1e-9.
PARITY_TOLERANCE = 1e-12


@pytest.mark.parametrize("setting", SETTINGS)
def test_trajectory_is_the_rules(setting):
    """Guards against a second, different statement of the rule, and against options that are ignored."""
    options = SETTINGS[setting]
    other = {"lr": 2e-2, "weight_decay": 0.01, "rule": "authors", "momentum": 0.95, "base_lr": 1e-2, "eps": 1e-7}
    params = parameters((4, 3), (), (5,), dtype=torch.float64)
    grads = gradients(params, 40)
    for step in grads[:7]:
        step[1] = None  # joins late
    for step in grads[20:25]:
        step[2] = None  # pauses
    start = [param.detach().numpy().copy() for param in params]
    optimizer = make([{"params": params[:2]}, {"params": params[2:], **other}], **options)
    schedule = StepLR(optimizer, step_size=15, gamma=0.3)

    lrs, paths = [], []
    for step in grads:
        lrs.append([float(group["lr"]) for group in optimizer.param_groups])
        train(optimizer, [step])
        schedule.step()
        paths.append([param.detach().numpy().copy() for param in params])

    for i, group in enumerate([0, 0, 1]):
        expected = rule_trajectory(
            start[i], [step[i] for step in grads], [lr[group] for lr in lrs], **{**options, **(other if group else {})}
        )
        assert len({lr[group] for lr in lrs}) == 3
        actual = np.array([path[i] for path in paths])
        np.testing.assert_allclose(actual, expected, rtol=PARITY_TOLERANCE, atol=PARITY_TOLERANCE)


def test_golden_trajectories(shared):
    """Guards against a slip that the rule and its front-end share."""
    for case in json.loads((shared / "reference" / "golden_rule.json").read_text())["cases"]:
        theta = torch.tensor(case["theta0"], dtype=torch.float64, requires_grad=True)
        options = {key: case[key] for key in ("eps", "momentum", "base_lr", "weight_decay")}
        optimizer = Frankenstein([theta], rule=case["preset"], **options)
        for grad, lr, expected in zip(case["grads"], case["lrs"], case["theta"], strict=True):
            optimizer.param_groups[0]["lr"] = lr
            train(optimizer, [[torch.tensor(grad, dtype=torch.float64)]])
            np.testing.assert_allclose(theta.detach().numpy(), expected, rtol=0, atol=PARITY_TOLERANCE)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_once(dtype, setting):
    """Guards against arithmetic in half precision: each step is the float32 step, rounded once, bitwise."""
    low = parameters((37,), (), dtype=dtype)
    high = [param.detach().float().requires_grad_() for param in low]
    fused = False if dtype == torch.float16 else None  # which has no kernel: both the same way
    optimizers = [make(params, **SETTINGS[setting], kahan_sum=False, fused=fused) for params in (low, high)]
    for step in gradients(low, 30):
        train(optimizers[0], [step])
        train(optimizers[1], [[grad.float() for grad in step]])
        with torch.no_grad():
            for a, b in zip(low, high, strict=True):
                b.copy_(b.to(dtype))
                assert torch.equal(a.float(), b)
        for a, b in zip(values(optimizers[0])[2:], values(optimizers[1])[2:], strict=True):
            assert a.dtype == torch.float32 and torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128],
    ids=str,
)
def test_state_is_float32_or_wider(dtype):
    """Guards against a dtype that the table of state dtypes lacks, or has wrong."""
    param = torch.ones(3, dtype=dtype, requires_grad=True)
    optimizer = train(make([param], lr=0.1), [[torch.ones(3, dtype=dtype)]])
    assert {optimizer.state[param][key].dtype for key in STATE_KEYS} == {torch.promote_types(dtype, torch.float32)}
    assert (torch.view_as_real(param)[:, 0] if dtype.is_complex else param).double().max() < 1


def test_float16_gradients_may_square_to_more_than_float16():
    """Guards against x = g * g in float16, where 300 squared is inf and 1e-4 squared is 0."""
    param = torch.ones(3, dtype=torch.float16, requires_grad=True)
    grads = [[torch.tensor([300.0, 6e4, 1e-4], dtype=torch.float16)]] * 3
    optimizer = train(make([param], lr=1e-2), grads)
    x = optimizer.state[param]["squared_grad"]
    assert torch.equal(x, grads[0][0].float() ** 2 + 1e-8)
    assert torch.isfinite(param).all() and (param < 1).all()
