"""Checkpoints by other hands: the user's own hooks, and torch.distributed.checkpoint."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch_contract import STATE_KEYS, assert_bitwise, assert_same, gradients, make, parameters, train, values

from frankenstein.rule import Rule

# Hooks ----------------------------------------------------------------------------------------------------------------


def saved_and_fresh(dtype=torch.bfloat16):
    params = parameters((5,), dtype=dtype)
    optimizer = train(make(params, lr=1e-2, kahan_sum=False), gradients(params, 3))
    return optimizer.state_dict(), make([params[0].detach().clone().requires_grad_()])


def test_load_pre_hook_may_return_another_dictionary():
    """Guards against state taken from the caller's dictionary instead of the hook's."""
    saved, fresh = saved_and_fresh()
    original = copy.deepcopy(saved["state"][0])

    def doubled(_, state_dict):
        state_dict = copy.deepcopy(state_dict)
        state_dict["state"][0]["momentum_buffer"] *= 2.0
        state_dict["param_groups"][0]["lr"] = 0.5
        return state_dict

    fresh.register_load_state_dict_pre_hook(doubled)
    fresh.load_state_dict(saved)
    state = next(iter(fresh.state.values()))
    assert torch.equal(state["momentum_buffer"], 2.0 * original["momentum_buffer"])
    assert torch.equal(state["second_moment"], original["second_moment"])
    assert fresh.param_groups[0]["lr"] == 0.5
    assert torch.equal(saved["state"][0]["momentum_buffer"], original["momentum_buffer"])


def test_load_pre_hook_may_change_the_dictionary_in_place():
    """Guards against hooks that return None being ignored; they run in order, and before names are translated."""
    saved, fresh = saved_and_fresh()
    seen = []

    def released(_, state_dict):
        names = {"momentum_buffer": "m", "squared_grad": "s", "second_moment": "vmax"}
        state_dict["state"] = {0: {names[key]: value for key, value in state_dict["state"][0].items()}}

    fresh.register_load_state_dict_pre_hook(released)
    fresh.register_load_state_dict_pre_hook(lambda _, state_dict: seen.append(set(state_dict["state"][0])))
    fresh.load_state_dict(saved)
    assert seen == [{"m", "s", "vmax"}]
    assert_bitwise(values(fresh)[1:], [saved["state"][0][key] for key in sorted(STATE_KEYS)])


@pytest.mark.parametrize("prepend", [False, True])
def test_load_post_hook_sees_and_keeps_the_state(prepend):
    """Guards against post-hooks that see rounded values, or whose changes are undone."""
    saved, fresh = saved_and_fresh()
    seen = []

    def zero_momentum(optimizer):
        state = next(iter(optimizer.state.values()))
        seen.append({key: value.clone() for key, value in state.items()})
        state["momentum_buffer"].zero_()

    fresh.register_load_state_dict_post_hook(zero_momentum, prepend=prepend)
    fresh.load_state_dict(saved)
    assert len(seen) == 1 and seen[0].keys() == STATE_KEYS
    for key, value in seen[0].items():
        assert value.dtype == torch.float32 and torch.equal(value, saved["state"][0][key])
    assert not next(iter(fresh.state.values()))["momentum_buffer"].any()


def test_loading_leaves_no_hooks_behind():
    """Guards against a leak of one hook per load, also where loading fails."""
    saved, fresh = saved_and_fresh()
    pre, post = fresh._optimizer_load_state_dict_pre_hooks, fresh._optimizer_load_state_dict_post_hooks
    for _ in range(5):
        fresh.load_state_dict(saved)
    before = values(fresh)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        fresh.load_state_dict({**saved, "param_groups": saved["param_groups"] * 2})
    assert not pre and not post
    assert_bitwise(values(fresh), before)


def test_state_dict_hooks():
    """Guards against a `state_dict` that goes past torch's hooks."""
    params = parameters((2,))
    optimizer = make(params)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("pre"))
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "note": "mine"})
    assert optimizer.state_dict()["note"] == "mine" and calls == ["pre"]


# torch.distributed.checkpoint -----------------------------------------------------------------------------------------


def model_and_optimizer(freeze=False, empty_group=False, **options):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        for i, param in enumerate(model.parameters()):
            param.copy_(parameters(param.shape, seed=i)[0])
    model[0].bias.requires_grad_(not freeze)
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "weight_decay": 0.1}]
    if empty_group:
        groups.append({"params": [], "lr": 0.25})
    return model, make(groups, **options)


OPTIONS = {
    "default": {},
    "tensor lr": {"lr": torch.tensor(1e-2)},
    "custom rule": {"rule": replace(Rule(), use_xi=False)},
}


def flat(value):
    return StateDictOptions(flatten_optimizer_state_dict=value)


def grads_of(model, n_steps):
    grads = gradients(list(model.parameters()), n_steps)
    return [[g if p.requires_grad else None for g, p in zip(step, model.parameters(), strict=True)] for step in grads]


@pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2)], ids=["float", "tensor"])
@pytest.mark.parametrize("flatten", [False, True])
def test_state_that_torch_makes_early_is_a_fresh_state(flatten, lr):
    """Guards against the step by which torch creates state, at lr = 0 with zero gradients, leaving any mark."""
    model, optimizer = model_and_optimizer(lr=lr)
    _, untouched = model_and_optimizer(lr=lr)
    before = [param.detach().clone() for param in model.parameters()]
    get_optimizer_state_dict(model, optimizer, options=flat(flatten))
    assert len(optimizer.state) == 3  # or this test would be about nothing
    assert_bitwise([param.detach() for param in model.parameters()], before)
    assert all(torch.isfinite(tensor).all() for tensor in values(optimizer))
    grads = grads_of(model, 10)
    assert_same(train(optimizer, grads), train(untouched, grads))


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_optimizer_state_dict(flatten, freeze, options):
    """Guards against state that torch loses on the way into a fresh optimizer, frozen parameters included."""
    model, optimizer = model_and_optimizer(freeze, **options)
    grads = grads_of(model, 10)
    train(optimizer, grads[:5])
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=flat(flatten)))
    other, fresh = model_and_optimizer(freeze)
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, fresh, copy.deepcopy(saved), options=flat(flatten))
    assert_same(fresh, optimizer)
    assert (other[0].bias in fresh.state) != freeze
    assert_same(train(fresh, grads[5:]), train(optimizer, grads[5:]))


def test_model_and_optimizer_state_dict():
    """Guards against the joint calls behaving unlike the single ones; an empty group keeps its options."""
    model, optimizer = model_and_optimizer(empty_group=True)
    grads = grads_of(model, 10)
    train(optimizer, grads[:5])
    weights, saved = copy.deepcopy(get_state_dict(model, optimizer))
    other, fresh = model_and_optimizer(empty_group=True, lr=0.7)
    set_state_dict(other, fresh, model_state_dict=weights, optim_state_dict=saved)
    assert fresh.param_groups[2]["lr"] == 0.25 and fresh.param_groups[2]["momentum"] == 0.9
    assert_same(train(fresh, grads[5:]), train(optimizer, grads[5:]))


def test_partly_initialised_optimizers():
    """Guards against loss of state where source or target had gradients for some parameters only."""
    model, optimizer = model_and_optimizer()
    grads = grads_of(model, 10)
    for step in grads[:5]:
        step[1] = None
    train(optimizer, grads[:5])
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    assert len(saved["state"]) == 2
    other, target = model_and_optimizer()
    train(target, [[None, *grads[-1][1:]]])  # holds state of other parameters than the file
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, target, saved, options=StateDictOptions(strict=False))
    assert_same(target, optimizer)
    assert_same(train(target, grads[5:]), train(optimizer, grads[5:]))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # one process is what is meant
def test_to_disk_and_back(tmp_path, options):
    """Guards against a checkpoint folder that holds less than the dictionaries; a custom rule is one of its values."""
    model, optimizer = model_and_optimizer(**options)
    grads = grads_of(model, 10)
    train(optimizer, grads[:5])
    weights, saved = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": saved}, checkpoint_id=tmp_path, no_dist=True)
    kinds = {key: value for key, value in options.items() if key == "lr"}  # torch asks for a tensor where one was saved
    other, fresh = model_and_optimizer(**kinds, momentum=0.5)
    weights, target = get_state_dict(other, fresh)
    loaded = {"model": weights, "optimizer": target}
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(other, fresh, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    assert_same(train(fresh, grads[5:]), train(optimizer, grads[5:]))
