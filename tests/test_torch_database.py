"""The checks that torch runs on its own optimizers, on ours; torch's AdamW beside it shows that the checks are right.

Torch describes each of its optimizers by an `OptimizerInfo` (arguments to try, errors to expect, schedulers); ours has
one here. The checks are written anew.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
    get_error_inputs_for_all_optims,
    optim_db,
)
from torch_contract import assert_bitwise, gradients, parameters, through_a_file, train, values

from frankenstein.torch import Frankenstein

# lr as a tensor is rounded to float32: a few roundings over a few steps.
TENSOR_LR_TOLERANCE = 2e-6

INPUTS = {
    "default": {},
    "lr": {"lr": 0.01},
    "weight decay": {"weight_decay": 0.1},
    "maximize": {"weight_decay": 0.1, "maximize": True},
    "authors": {"rule": "authors"},
    "fine-tuning": {"base_lr": 2e-4, "momentum": 0.8, "eps": 1e-6},
    "skip": {"nonfinite": "skip", "weight_decay": 0.1},
    "raise": {"nonfinite": "raise"},
    "Tensor lr": {"lr": torch.tensor(0.001)},
}
ERRORS = [
    ({"lr": -1.0}, "Invalid lr: -1.0"),
    ({"momentum": 1.0}, "Invalid momentum: 1.0"),
    ({"weight_decay": -1}, "Invalid weight_decay: -1"),
    ({"rule": "adam"}, "Invalid rule: 'adam'"),
]


def inputs(device, dtype=None):
    return [OptimizerInput(params=None, kwargs=kwargs, desc=desc) for desc, kwargs in INPUTS.items()]


def error_inputs(device, dtype):
    own = [
        ErrorOptimizerInput(OptimizerInput(None, kwargs, message), error_type=ValueError, error_regex=message)
        for kwargs, message in ERRORS
    ]
    return get_error_inputs_for_all_optims(device, dtype) + own


ADAMW = next(info for info in optim_db if info.optim_cls is torch.optim.AdamW)
FRANKENSTEIN = OptimizerInfo(
    Frankenstein,
    optim_inputs_func=inputs,
    optim_error_inputs_func=error_inputs,
    scheduler_inputs=ADAMW.scheduler_inputs,
    supported_impls=("differentiable",),
    not_og_supported_flags=("differentiable", "maximize", "nonfinite"),
)
INFOS = [FRANKENSTEIN, ADAMW]
each = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
each_input = pytest.mark.parametrize(
    "info, kwargs",
    [
        pytest.param(info, given.kwargs, id=f"{info.name}, {given.desc}")
        for info in INFOS
        for given in _get_optim_inputs_including_global_cliquey_kwargs(
            "cpu", torch.float32, info, skip=("differentiable", "foreach")
        )
    ],
)


def build(info, params, kwargs, **more):
    return info.optim_cls(params, **copy.deepcopy({**kwargs, **more}))


def regression(noncontiguous=False):
    weight, bias = parameters((4, 6), (4,))
    if noncontiguous:
        weight = weight.detach().T.contiguous().T.requires_grad_()
    x, y = parameters((20, 6), (20, 4), seed=5)
    return [weight, bias], lambda: ((x @ weight.T + bias - y.detach()) ** 2).mean()


def descend(optimizer, loss, n_steps=30, schedulers=()):
    """Train; return the losses before and after."""
    before = loss().item()
    for _ in range(n_steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        for scheduler in schedulers:
            takes_loss = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(value.item()) if takes_loss else scheduler.step()
    return before, loss().item()


@each_input
@pytest.mark.parametrize("noncontiguous", [False, True])
def test_right_direction(info, kwargs, noncontiguous):
    """Guards against a step that goes up where it should go down."""
    params, loss = regression(noncontiguous)
    before, after = descend(build(info, params, kwargs), loss)
    assert after > before if kwargs.get("maximize") else after < before


@each
@pytest.mark.parametrize("i", range(len(ADAMW.scheduler_inputs)))
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["float", "tensor"])
def test_right_direction_with_schedulers(info, i, lr):
    """Guards against combinations of schedulers that the optimizer does not follow."""
    params, loss = regression()
    optimizer = build(info, params, {"lr": lr})
    schedulers = [make_scheduler(optimizer) for make_scheduler in info.scheduler_inputs[i]]
    before, after = descend(optimizer, loss, schedulers=schedulers)
    assert after < before


@each_input
def test_groups_have_their_own_learning_rate(info, kwargs):
    """Guards against one learning rate for all groups: that of the second is 0."""
    params, loss = regression()
    start = [param.detach().clone() for param in params]
    descend(build(info, [{"params": params[:1]}, {"params": params[1:], "lr": 0.0}], kwargs), loss)
    assert torch.equal(params[1], start[1]) and not torch.equal(params[0], start[0])


@each_input
def test_groups_have_their_own_weight_decay(info, kwargs):
    """Guards against weight decay in the wrong group, and of the wrong size: gradients are zero, only decay moves."""
    params = parameters((3,), (3,))
    start = [param.detach().clone() for param in params]
    groups = [{"params": params[:1], "weight_decay": 0.0}, {"params": params[1:], "weight_decay": 0.5}]
    train(build(info, groups, kwargs, lr=0.1), [[torch.zeros(3)] * 2] * 4)
    assert torch.equal(params[0], start[0])
    torch.testing.assert_close(params[1].detach(), start[1] * (1 - 0.1 * 0.5) ** 4)


@each_input
def test_no_gradients_no_step(info, kwargs):
    """Guards against a step that moves parameters which have no gradient."""
    params = parameters((3,), (2, 2))
    start = [param.detach().clone() for param in params]
    optimizer = build(info, params, kwargs)
    optimizer.step()
    assert_bitwise([param.detach() for param in params], start)
    assert not optimizer.state


@each_input
def test_zero_gradients_from_the_start(info, kwargs):
    """Guards against a step from nothing: with no momentum and no weight decay, a zero gradient moves nothing."""
    params = parameters((3,), (2, 2))
    start = [param.detach().clone() for param in params]
    train(build(info, params, kwargs, weight_decay=0.0), [[torch.zeros_like(param) for param in params]] * 3)
    assert_bitwise([param.detach() for param in params], start)


@each_input
@pytest.mark.parametrize("named", [False, True])
def test_save_and_load(info, kwargs, named):
    """Guards against state dictionaries that do not hold everything, or are not safe to load."""
    params, others = parameters((3,), (2, 2)), parameters((3,), (2, 2))
    grads = gradients(params, 8)
    optimizer = train(build(info, [(f"p{i}", p) for i, p in enumerate(params)] if named else params, kwargs), grads[:4])
    fresh = info.optim_cls(others)
    with torch.no_grad():
        for param, value in zip(others, params, strict=True):
            param.copy_(value)
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    train(fresh, grads[4:])
    train(optimizer, grads[4:])
    assert_bitwise(values(fresh), values(optimizer))
    assert len(values(optimizer)) > len(params)  # a state that is empty is easy to load


@each_input
def test_older_checkpoints(info, kwargs):
    """Guards against files from before a flag existed."""
    params = parameters((3,))
    optimizer = train(build(info, params, kwargs), gradients(params, 2))
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for flag in info.not_og_supported_flags:
            group.pop(flag, None)
    optimizer.load_state_dict(saved)
    train(optimizer, gradients(params, 2))


@each_input
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"]
)
def test_copies(info, kwargs, duplicate):
    """Guards against copies that cannot step, or that fire hooks of the original; those stay where they are."""
    params = parameters((3,), (2, 2))
    grads = gradients(params, 6)
    optimizer, calls = train(build(info, params, kwargs), grads[:3]), []
    twin = duplicate(optimizer)
    for opt in (optimizer, twin):
        opt.register_step_post_hook(lambda opt, args, kwargs: calls.append(opt is optimizer))
    train(twin, grads[3:])
    train(optimizer, grads[3:])
    assert calls == [False] * 3 + [True] * 3
    assert_bitwise(values(twin), values(optimizer))


@each_input
def test_gradients_untouched(info, kwargs):
    """Guards against gradients as scratch."""
    params = parameters((3,), (2, 2))
    for step in gradients(params, 3):
        before = [grad.clone() for grad in step]
        for param, grad in zip(params, step, strict=True):
            param.grad = grad
        build(info, params, kwargs).step()
        assert_bitwise(step, before)


@each_input
def test_tensor_lr_is_a_float_lr(info, kwargs):
    """Guards against a tensor as learning rate meaning something else than its number."""
    grads = gradients(parameters((4, 3)), 8)
    runs = [train(build(info, parameters((4, 3)), kwargs, lr=lr), grads) for lr in (0.01, torch.tensor(0.01))]
    for a, b in zip(*map(values, runs), strict=True):
        torch.testing.assert_close(a, b, rtol=TENSOR_LR_TOLERANCE, atol=TENSOR_LR_TOLERANCE)


@each
@pytest.mark.parametrize("lr", [0.01, 0.1])
def test_complex_2d(info, lr):
    """Guards against complex numbers going elsewhere than their two parts: on a function of two complex variables."""
    pairs = parameters((2, 2), dtype=torch.float64)
    numbers = [torch.view_as_complex(pairs[0].detach().clone()).requires_grad_()]

    def loss(z):
        return ((z[0] - 1j) ** 2 + 3 * (z[1] - z[0] ** 2) ** 2).abs()

    for params, view in ((pairs, torch.view_as_complex), (numbers, lambda z: z)):
        before, after = descend(build(info, params, {"lr": lr}), lambda p=params, v=view: loss(v(p[0])))
        assert after < before
    torch.testing.assert_close(torch.view_as_real(numbers[0].detach()), pairs[0].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "info, case",
    [
        pytest.param(info, case, id=f"{info.name}, {case.optimizer_error_input.desc}")
        for info in INFOS
        for case in info.optim_error_inputs_func("cpu", torch.float32)
    ],
)
def test_errors(info, case):
    """Guards against errors of another type or wording than torch's users know."""
    given = case.optimizer_error_input
    assert case.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
    expects = pytest.warns if issubclass(case.error_type, Warning) else pytest.raises
    with expects(case.error_type, match=case.error_regex):
        info.optim_cls(parameters((1,)) if given.params is None else given.params, **given.kwargs)
