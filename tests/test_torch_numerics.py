"""Numbers at the edge: not finite, huge, tiny, learning rates that are 0 or move, and gradients that must stay."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils._python_dispatch import TorchDispatchMode
from torch_contract import SETTINGS, STATE_KEYS, assert_bitwise, gradients, make, parameters, train, values

from frankenstein.rule import gradient_limit
from frankenstein.torch import Frankenstein

# A learning rate in a tensor is rounded to the parameter's dtype; one in a float is not. A few float32 roundings.
TENSOR_LR_TOLERANCE = 2e-6

LIMIT = gradient_limit(torch, torch.float32)
BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "1e30": 1e30, "beyond the limit": 1.01 * LIMIT}

# Gradients that are not finite ----------------------------------------------------------------------------------------


def run_with_bad_element(bad, **options):
    """Six steps on five elements, element 2 bad at step 3; and the same without that element."""
    params, others = parameters((5,)), [parameters((5,))[0].detach()[[0, 1, 3, 4]].clone().requires_grad_()]
    grads = gradients(params, 6)
    expected = train(make(others, **options), [[step[0][[0, 1, 3, 4]]] for step in grads])
    grads[3][0][2] = bad
    optimizer = make(params, **options)
    history = []
    for step in grads:
        train(optimizer, [step])
        history.append(values(optimizer))
    assert_bitwise([tensor[[0, 1, 3, 4]] for tensor in history[-1]], values(expected))  # the others never notice
    return [[tensor[2] for tensor in snapshot] for snapshot in history]


@pytest.mark.parametrize("bad", list(BAD.values())[:-1], ids=list(BAD)[:-1])  # the last one is only near overflow
def test_propagate(bad):
    """Guards against one bad element spreading, and against documentation that promises a recovery there is not."""
    element = run_with_bad_element(bad)
    assert all(torch.isfinite(value) for value in element[2])
    assert not all(torch.isfinite(value) for value in element[-1])


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_skip(bad):
    """Guards against any change, weight decay's included, of an element that is skipped; then it goes on."""
    element = run_with_bad_element(bad, nonfinite="skip", weight_decay=0.5, lr=0.1)
    assert_bitwise(element[3], element[2])
    assert element[4][0] != element[3][0] and all(torch.isfinite(value) for value in element[-1])


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("named", [False, True])
def test_raise(bad, named):
    """Guards against a step that has moved the first groups before it finds the bad element in the last."""
    params = parameters((3,), (2, 2), (5,))
    members = [("a", params[0]), ("b", params[1])] if named else params[:2]
    groups = [{"params": members}, {"params": [("c", params[2])] if named else params[2:], "weight_decay": 0.1}]
    optimizer = make(groups, nonfinite="raise")
    grads = gradients(params, 4)
    train(optimizer, grads[:2])
    before = values(optimizer)
    grads[2][2][1], grads[2][2][4] = bad, bad
    name = "'c'" if named else "0 of group 1"
    with pytest.raises(
        RuntimeError, match=f"parameter {name} has 2 gradient elements that are NaN, infinite or larger"
    ):
        train(optimizer, grads[2:3])
    assert_bitwise(values(optimizer), before)
    train(optimizer, grads[3:])
    assert all(torch.isfinite(tensor).all() for tensor in values(optimizer))


class Unprintable(str):
    def __repr__(self):
        raise AssertionError("a description was made that nobody reads")


class Waits(TorchDispatchMode):
    """Counts how often the device is waited for."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


def test_raise_waits_once():
    """Guards against a wait, or a description, per parameter at every step where all is well."""
    params = parameters(*[(3,)] * 5)
    named = [(Unprintable(i), param) for i, param in enumerate(params)]
    optimizer = make([{"params": named[:2]}, {"params": named[2:], "eps": 1e-6}], nonfinite="raise")
    for step in gradients(params, 3):
        for param, grad in zip(params, step, strict=True):
            param.grad = grad
        with Waits() as waits:
            optimizer.step()
        assert waits.n == 1


def test_raise_without_any_gradient():
    """Guards against a sum over nothing."""
    params = parameters((3,))
    make(params, nonfinite="raise").step()
    assert_bitwise(params, parameters((3,)))


def test_each_group_has_its_policy():
    """Guards against the last group's policy, or the constructor's, being used for all."""
    params = parameters((2,), (2,))
    optimizer = make([{"params": params[:1]}, {"params": params[1:], "nonfinite": "skip"}])
    train(optimizer, [[torch.full((2,), math.nan)] * 2])
    assert params[0].isnan().all() and torch.equal(params[1], parameters((2,), (2,))[1])


@pytest.mark.parametrize("dtype, largest", [(torch.float32, 1.8e15), (torch.float64, 1e30), (torch.bfloat16, 1.7e15)])
@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
def test_huge_and_tiny_gradients(dtype, largest, nonfinite):
    """Guards against overflow inside the stated range, and against 0 / 0 for gradients that square to nothing."""
    params = parameters((4,), dtype=dtype)
    before = params[0].detach().clone()
    grad = torch.tensor([largest, -largest, 1e-30, 0.0], dtype=dtype)
    small = torch.tensor([1.0, 1e-30, -largest, 1e-30], dtype=dtype)
    optimizer = train(make(params, lr=1e-2, nonfinite=nonfinite), [[grad], [small], [grad], [-grad]])
    assert all(torch.isfinite(tensor).all() for tensor in values(optimizer))
    assert (params[0][:3] != before[:3]).all() and params[0][3] == before[3]


# Learning rates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("tensor", [False, True])
def test_learning_rate_zero_is_a_pause(setting, tensor):
    """Guards against 0 / 0 in a warm-up from zero, and against state made by it: as if those steps had not been."""
    options = {**SETTINGS[setting], "lr": torch.tensor(0.0) if tensor else 0.0}
    rate = 1e-2
    params, others = parameters((3, 2), ()), parameters((3, 2), ())
    before = [param.detach().clone() for param in params]
    grads = gradients(params, 12)
    optimizer = train(make(params, **options), grads[:4])
    assert_bitwise([param.detach() for param in params], before)
    expected = make(others, **{**options, "lr": torch.tensor(rate) if tensor else rate})
    for i, step in enumerate(grads[4:]):
        pauses = i in (2, 3)
        for group in optimizer.param_groups:
            value = 0.0 if pauses else rate
            if tensor:
                group["lr"].fill_(value)
            else:
                group["lr"] = value
        train(optimizer, [step])
        if not pauses:
            train(expected, [step])
    assert_bitwise(values(optimizer), values(expected))


LR_TENSORS = {
    "0-dim": torch.tensor(3e-3),
    "one element": torch.tensor([3e-3]),
    "float64": torch.tensor(3e-3, dtype=torch.float64),
    "two dims": torch.tensor([[3e-3]]),
}


@pytest.mark.parametrize("lr", LR_TENSORS.values(), ids=LR_TENSORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_tensor_learning_rate(lr, dtype):
    """Guards against a tensor's shape or dtype leaking into state, and against a value read once and kept."""
    params, others = parameters((4, 3), (), dtype=dtype), parameters((4, 3), (), dtype=dtype)
    grads = gradients(params, 12)
    optimizer, expected = make(params, lr=lr, weight_decay=0.1), make(others, weight_decay=0.1)
    rate = optimizer.param_groups[0]["lr"]
    for i, step in enumerate(grads):
        rate.fill_(3e-3 / (1 + i))
        expected.param_groups[0]["lr"] = rate.item()
        train(optimizer, [step])
        train(expected, [step])
    assert optimizer.param_groups[0]["lr"] is rate and rate.shape == lr.shape and rate.dtype == lr.dtype
    for a, b in zip(values(optimizer), values(expected), strict=True):
        assert a.dtype == b.dtype
        tolerance = torch.finfo(dtype).eps if dtype == torch.bfloat16 else TENSOR_LR_TOLERANCE
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2)], ids=["float", "tensor"])
def test_reduce_on_plateau(lr):
    """Guards against a scheduler's change that does not reach the step, and groups that share one learning rate."""
    params = parameters((3,), (3,))
    optimizer = make([{"params": params[:1]}, {"params": params[1:], "lr": 4e-2}], lr=lr)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    start = [param.detach().clone() for param in params]
    for _ in range(3):
        scheduler.step(1.0)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([1e-4, 4e-4])
    train(optimizer, [[torch.ones(3)] * 2])
    moved = [(param - before).detach().abs().mean().item() for param, before in zip(params, start, strict=True)]
    # The first step is about (1 + beta1) * lr * xi, and beta1 falls with the square root of lr.
    assert 1.5e-4 < moved[0] < 2e-4 < 6e-4 < moved[1] < 8e-4


def test_plain_numbers_of_numpy():
    """Guards against numpy scalars that pass the checks and fail in the step."""
    import numpy as np

    one, other = parameters((3,)), parameters((3,))
    names = ("lr", "eps", "momentum", "base_lr", "weight_decay")
    numbers = {name: np.float32(value) for name, value in zip(names, (1e-2, 1e-6, 0.8, 2e-3, 0.1), strict=True)}
    grads = gradients(one, 3)
    optimizer = train(Frankenstein(one, **numbers), grads)
    expected = train(Frankenstein(other, **{name: float(value) for name, value in numbers.items()}), grads)
    assert_bitwise(values(optimizer), values(expected))


# What a step must not touch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_gradients_are_never_written(setting, dtype):
    """Guards against `p.grad` as scratch: users accumulate, clip and log it afterwards."""
    params = parameters((4, 3), (), dtype=dtype)
    optimizer = make(params, **SETTINGS[setting])
    for step in gradients(params, 4):
        before = [grad.clone() for grad in step]
        for param, grad in zip(params, step, strict=True):
            param.grad = grad
        versions = [grad._version for grad in step]
        optimizer.step()
        assert all(param.grad is grad for param, grad in zip(params, step, strict=True))
        assert [grad._version for grad in step] == versions
        assert_bitwise(step, before)


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "maximize"])
def test_maximize_is_minimize_of_the_negative(setting):
    """Guards against a sign that reaches weight decay, or one that is applied to the gradient in place."""
    up, down = parameters((4, 3)), parameters((4, 3))
    grads = gradients(up, 6)
    maximizer = train(make(up, **SETTINGS[setting], maximize=True), [[-grad for grad in step] for step in grads])
    minimizer = train(make(down, **SETTINGS[setting]), grads)
    assert_bitwise(values(maximizer), values(minimizer))


def test_state_is_three_tensors():
    """Guards against growth of the state: entries shaped like the parameter, and nothing that counts."""
    params = parameters((4, 3))
    optimizer = train(make(params), gradients(params, 3))
    (state,) = optimizer.state.values()
    assert state.keys() == STATE_KEYS and all(tensor.shape == (4, 3) for tensor in state.values())
    assert not any(tensor.requires_grad for tensor in state.values())
