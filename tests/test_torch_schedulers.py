"""Every scheduler of torch drives the optimizer: by the learning rate, and two of them by the momentum too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim import lr_scheduler as S
from torch.optim import swa_utils
from torch_contract import assert_bitwise, assert_same, gradients, make, parameters, through_a_file, train, values

SCHEDULERS = {
    "LambdaLR": lambda opt: S.LambdaLR(opt, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda opt: S.MultiplicativeLR(opt, lambda step: 0.9),
    "StepLR": lambda opt: S.StepLR(opt, 3),
    "MultiStepLR": lambda opt: S.MultiStepLR(opt, [2, 5]),
    "ConstantLR": S.ConstantLR,
    "LinearLR": S.LinearLR,
    "ExponentialLR": lambda opt: S.ExponentialLR(opt, 0.9),
    "SequentialLR": lambda opt: S.SequentialLR(opt, [S.ConstantLR(opt), S.ExponentialLR(opt, 0.9)], [4]),
    "PolynomialLR": S.PolynomialLR,
    "CosineAnnealingLR": lambda opt: S.CosineAnnealingLR(opt, 10),
    "ChainedScheduler": lambda opt: S.ChainedScheduler([S.ConstantLR(opt), S.ExponentialLR(opt, 0.9)], opt),
    "ReduceLROnPlateau": S.ReduceLROnPlateau,
    "CyclicLR": lambda opt: S.CyclicLR(opt, 1e-4, 1e-2, step_size_up=4),
    "CosineAnnealingWarmRestarts": lambda opt: S.CosineAnnealingWarmRestarts(opt, 5),
    "OneCycleLR": lambda opt: S.OneCycleLR(opt, 1e-2, total_steps=20),
    "SWALR": lambda opt: swa_utils.SWALR(opt, swa_lr=5e-3, anneal_epochs=5),
}
N_STEPS = 20
# The fused kernel rounds each step in its own way, by some units in the last place of float32.
FUSED_TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


def run(optimizer, scheduler, grads, start=0):
    """Train; return learning rates and momenta of each step, group by group."""
    seen = []
    for i, step in enumerate(grads, start + 1):
        seen.append([(float(group["lr"]), group["momentum"]) for group in optimizer.param_groups])
        train(optimizer, [step])
        if i < N_STEPS:  # OneCycleLR counts, and refuses to go on
            scheduler.step(*([1.0] if isinstance(scheduler, S.ReduceLROnPlateau) else []))
    return seen


def test_the_table_is_complete():
    """Guards against a scheduler that torch adds and nobody tries."""
    found = {
        name
        for name, cls in (vars(S) | vars(swa_utils)).items()
        if isinstance(cls, type) and issubclass(cls, S.LRScheduler)
    }
    assert {name for name in found if not name.startswith("_")} - {"LRScheduler"} == set(SCHEDULERS)


@pytest.mark.parametrize("lr", [2e-3, torch.tensor(2e-3, dtype=torch.float64)], ids=["float", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(name, lr):
    """Guards against a schedule that is not followed: bitwise the run with the same values set by hand."""
    params, others = parameters((3,), (2,), dtype=torch.float64), parameters((3,), (2,), dtype=torch.float64)
    grads = gradients(params, N_STEPS)
    optimizer = make([{"params": params[:1]}, {"params": params[1:], "momentum": 0.8}], lr=lr)
    rate = optimizer.param_groups[0]["lr"]
    seen = run(optimizer, SCHEDULERS[name](optimizer), grads)
    by_hand = make([{"params": others[:1]}, {"params": others[1:]}], lr=lr)
    for step, options in zip(grads, seen, strict=True):
        for group, (value, momentum) in zip(by_hand.param_groups, options, strict=True):
            group["momentum"] = momentum
            if isinstance(lr, torch.Tensor):
                group["lr"] = torch.tensor(value, dtype=lr.dtype)
            else:
                group["lr"] = value
        train(by_hand, [step])
    assert_bitwise(values(optimizer), values(by_hand))
    assert len({options[0][0] for options in seen}) > 1
    if isinstance(lr, torch.Tensor):
        assert optimizer.param_groups[0]["lr"] is rate  # filled in place, so that compiled steps see it


@pytest.mark.parametrize("name", SCHEDULERS)
def test_resume_with_scheduler(name):
    """Guards against options, written into groups by schedulers, that a checkpoint does not carry."""
    params = parameters((3,), (2,))
    grads = gradients(params, N_STEPS)
    optimizer = make([{"params": params[:1]}, {"params": params[1:], "lr": 5e-3}])
    scheduler = SCHEDULERS[name](optimizer)
    run(optimizer, scheduler, grads[:7])
    copies = [param.detach().clone().requires_grad_() for param in params]
    twin = make([{"params": copies[:1]}, {"params": copies[1:]}])
    other = SCHEDULERS[name](twin)  # sets learning rates of its own, so the optimizer is loaded after it
    other.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    twin.load_state_dict(through_a_file(optimizer.state_dict()))
    assert run(twin, other, grads[7:], 7) == run(optimizer, scheduler, grads[7:], 7)
    assert_same(twin, optimizer)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_fused_kernel_follows(name):
    """Guards against a kernel that keeps a learning rate or a momentum from an earlier step."""
    runs = {}
    for fused in (None, False):
        params = parameters((3,), (2,))
        runs[fused] = make([{"params": params[:1]}, {"params": params[1:], "lr": 5e-3}], fused=fused)
        run(runs[fused], SCHEDULERS[name](runs[fused]), gradients(params, N_STEPS))
    for mine, other in zip(values(runs[None]), values(runs[False]), strict=True):
        torch.testing.assert_close(mine, other, **FUSED_TOLERANCE)


@pytest.mark.parametrize("name", ["CyclicLR", "OneCycleLR"])
def test_momentum_is_cycled(name):
    """Guards against a momentum that schedulers write and the step does not read."""
    make_cycling, make_still = {
        "CyclicLR": (SCHEDULERS["CyclicLR"], lambda opt: S.CyclicLR(opt, 1e-4, 1e-2, 4, cycle_momentum=False)),
        "OneCycleLR": (SCHEDULERS["OneCycleLR"], lambda opt: S.OneCycleLR(opt, 1e-2, 20, cycle_momentum=False)),
    }[name]
    params, others = parameters((3,)), parameters((3,))
    grads = gradients(params, N_STEPS)
    cycling, still = make(params), make(others)
    seen = run(cycling, make_cycling(cycling), grads)
    unmoved = run(still, make_still(still), grads)
    assert [options[0][0] for options in seen] == [options[0][0] for options in unmoved]
    assert len({options[0][1] for options in seen}) > 4 and {options[0][1] for options in unmoved} == {0.9}
    assert (params[0] - others[0]).abs().max() > 1e-4
