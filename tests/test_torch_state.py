"""State and resume: what is saved is what was there, and a resumed run is the uninterrupted one, bitwise."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from torch_contract import (
    DTYPES,
    SETTINGS,
    STATE_KEYS,
    assert_bitwise,
    assert_same,
    gradients,
    make,
    parameters,
    resumed,
    rule_trajectory,
    through_a_file,
    train,
    values,
)

from frankenstein import rule as R
from frankenstein.torch import Frankenstein

SHAPES = [(4, 3), (), (0,), (7,)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_resume_is_bitwise(setting, dtype):
    """Guards against state or options that a checkpoint does not hold: the fresh optimizer is built with defaults."""
    params = parameters(*SHAPES, dtype=dtype)
    start = [param.detach().clone().requires_grad_() for param in params]
    grads = gradients(params, 12)
    whole = train(make(params, **SETTINGS[setting]), grads)
    for k in (0, 1, 5, 12):
        part = train(make([p.detach().clone().requires_grad_() for p in start], **SETTINGS[setting]), grads[:k])
        assert_same(train(resumed(part), grads[k:]), whole)


def test_resume_every_few_steps_of_a_real_training():
    """Guards against errors that a few steps do not show: 500 steps, stopped four times, end bitwise the same."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    batches = torch.randint(len(images), (500, 32), generator=torch.Generator().manual_seed(0))

    def run(stops):
        model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for param in model.parameters():
                param.copy_(torch.randn(param.shape, generator=generator) * 0.1)
        optimizer = Frankenstein(model.parameters(), lr=3e-3, weight_decay=0.01)
        for i, batch in enumerate(batches):
            if i in stops:
                saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
                model = copy.deepcopy(model)
                model.load_state_dict(saved["model"])
                optimizer = Frankenstein(model.parameters())
                optimizer.load_state_dict(saved["optimizer"])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        return model, optimizer

    model, whole = run(stops=())
    _, stopped = run(stops=(1, 50, 333, 499))
    assert_same(stopped, whole)
    with torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64], ids=str)
def test_load_keeps_the_states_dtype(dtype):
    """Guards against torch's cast of the state to the parameter's dtype, which rounds it in half precision."""
    params = parameters((50,), dtype=dtype)
    optimizer = train(make(params, lr=1e-2, kahan_sum=False), gradients(params, 5))
    expected = {torch.float16: torch.float32, torch.bfloat16: torch.float32}.get(dtype, dtype)
    loaded = resumed(optimizer)
    assert_bitwise(values(loaded)[1:], values(optimizer)[1:])
    assert all(tensor.dtype == expected for tensor in values(loaded)[1:])
    if expected != dtype:
        assert any(not torch.equal(tensor, tensor.to(dtype).float()) for tensor in values(loaded)[1:])


def test_load_takes_foreign_dtypes():
    """Guards against float64 or bfloat16 state, from a file of other making, that stays so for ever."""
    params = parameters((50,))
    optimizer = train(make(params), gradients(params, 3))
    saved = optimizer.state_dict()
    saved["state"][0] = {key: value.to(torch.float64) for key, value in saved["state"][0].items()}
    fresh = make(parameters((50,)))
    fresh.load_state_dict(saved)
    assert_bitwise(values(fresh)[1:], values(optimizer)[1:])


def test_load_neither_keeps_nor_changes_the_callers_dictionary():
    """Guards against two optimizers that share state, and against a checkpoint that training overwrites."""
    params = parameters(*SHAPES)
    grads = gradients(params, 6)
    saved = train(make(params, lr=torch.tensor(1e-2)), grads[:3]).state_dict()
    saved = copy.deepcopy(saved)
    before = copy.deepcopy(saved)
    loaded = [make(parameters(*SHAPES)) for _ in range(2)]
    for optimizer in loaded:
        optimizer.load_state_dict(saved)
    loaded[1].param_groups[0]["lr"].fill_(0.5)
    reference = values(loaded[1])
    train(loaded[0], grads[3:])
    assert saved["param_groups"] == before["param_groups"] and saved.keys() == before.keys()
    assert saved["state"].keys() == before["state"].keys()
    for key, entry in saved["state"].items():
        assert entry.keys() == before["state"][key].keys()
        assert_bitwise(entry.values(), before["state"][key].values())
    assert_bitwise(values(loaded[1]), reference)
    assert loaded[0].param_groups[0]["lr"] == before["param_groups"][0]["lr"]


def test_state_after_load():
    """Guards against a plain dict as state: the next new parameter would be a KeyError."""
    params = parameters((2,), (3,))
    grads = gradients(params, 2)
    optimizer = resumed(train(make(params), [[grads[0][0], None]]))
    assert isinstance(optimizer.state, defaultdict) and len(optimizer.state) == 1
    train(optimizer, grads[1:])
    assert len(optimizer.state) == 2 and all(entry.keys() == STATE_KEYS for entry in optimizer.state.values())


def test_parameters_that_never_had_a_gradient():
    """Guards against state restored by position: it would shift where one parameter has none."""
    params = parameters((3,), (3,), (3,))
    start = [param.detach().clone() for param in params]
    grads = gradients(params, 8)
    for step in grads[:4]:
        step[1] = None
    half = train(make(params), grads[:4])
    assert set(half.state_dict()["state"]) == {0, 2} and torch.equal(params[1], start[1])
    continued = resumed(half)
    assert_same(train(continued, grads[4:]), train(half, grads[4:]))


@pytest.mark.parametrize("missing", ["momentum", "base_lr", "rule", "nonfinite", "eps", "maximize", "differentiable"])
def test_checkpoint_from_before_an_option_existed(missing):
    """Guards against a KeyError at the first step after loading an older file."""
    params = parameters((3,))
    grads = gradients(params, 4)
    optimizer = train(make(params), grads[:2])
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["param_groups"][0][missing]
    fresh = make([params[0].detach().clone().requires_grad_()])
    fresh.load_state_dict(saved)
    assert_same(train(fresh, grads[2:]), train(optimizer, grads[2:]))


RELEASED = {"momentum_buffer": "m", "squared_grad": "s", "second_moment": "vmax"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fixed_beta", [0, 0.8])
def test_checkpoint_of_the_released_code(fixed_beta, dtype):
    """Guards against parts of the state in each other's place, and against going on by another rule than it began."""
    rule = replace(R.PRESETS["authors"], beta1_follows_lr=not fixed_beta)
    options = {"lr": 2e-3, "eps": 1e-7, "weight_decay": 0.1}
    params = parameters((3,), (2, 2), dtype=dtype)
    start = [param.detach().clone() for param in params]
    grads = gradients(params, 6)
    whole = train(make(params, rule=rule, momentum=fixed_beta or 0.9, kahan_sum=False, **options), grads[:3])
    state = copy.deepcopy(whole.state_dict()["state"])
    released = {
        "state": {i: {RELEASED[key]: value for key, value in entry.items()} for i, entry in state.items()},
        "param_groups": [{**options, "fixed_beta": fixed_beta, "params": [0, 1]}],
    }
    before = copy.deepcopy(released["param_groups"])
    fresh = make([param.detach().clone().requires_grad_() for param in params], kahan_sum=False)
    fresh.load_state_dict(through_a_file(released))
    assert released["param_groups"] == before and released["state"][0].keys() == set(RELEASED.values())
    assert all(entry.keys() == STATE_KEYS for entry in fresh.state.values())
    assert R.as_rule(fresh.param_groups[0]["rule"]) == rule and "fixed_beta" not in fresh.param_groups[0]

    half = values(fresh)
    train(fresh, grads[3:])
    assert_bitwise(values(fresh), values(train(whole, grads[3:])))
    assert_same(train(resumed(fresh), grads[:1]), train(fresh, grads[:1]))  # saved again it is a checkpoint of ours
    if dtype == torch.float64:
        for i, theta in enumerate(start):
            path = rule_trajectory(
                theta,
                [step[i] for step in grads],
                [2e-3] * 6,
                rule=rule,
                momentum=fixed_beta or 0.9,
                eps=1e-7,
                weight_decay=0.1,
            )
            torch.testing.assert_close(half[i], torch.from_numpy(path[2]), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(values(whole)[i], torch.from_numpy(path[5]), rtol=1e-12, atol=1e-12)


FOREIGN = {
    "AdamW": (torch.optim.AdamW, "'step', 'exp_avg', 'exp_avg_sq'"),
    "SGD": (lambda params: torch.optim.SGD(params, momentum=0.9), "'momentum_buffer'"),
}


@pytest.mark.parametrize("other, found", FOREIGN.values(), ids=FOREIGN)
def test_checkpoint_of_another_optimizer(other, found):
    """Guards against a KeyError at the next step, or momentum that means something else; nothing is changed."""
    params = parameters((3,), (2,))
    grads = gradients(params, 4)
    foreign = train(other(parameters((3,), (2,))), grads[:1]).state_dict()
    optimizer, untouched = make(params, lr=1e-2), make(parameters((3,), (2,)), lr=1e-2)
    for trained in (optimizer, untouched):
        train(trained, grads[1:3])
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the whole message is compared)
        optimizer.load_state_dict(foreign)
    assert str(raised.value) == (
        f"Invalid checkpoint: the state of parameter 0 has {found}; expected are 'momentum_buffer', 'second_moment', "
        "'squared_grad'. Was it saved by another optimizer?"
    )
    assert_same(train(optimizer, grads[3:]), train(untouched, grads[3:]))


def test_checkpoint_of_an_optimizer_that_never_stepped():
    """Guards against refusing a checkpoint that holds no state, our own or another's."""
    for saved in (make(parameters((3,))).state_dict(), torch.optim.AdamW(parameters((3,))).state_dict()):
        assert saved["state"] == {}
        fresh = make(parameters((3,)))
        fresh.load_state_dict(saved)
        train(fresh, gradients(parameters((3,)), 1))


def test_a_users_own_entries():
    """Guards against state that is not made, or refused in a checkpoint, because a user keeps something beside it."""
    params, others = parameters((3,), (2,)), parameters((3,), (2,))
    grads = gradients(params, 4)
    optimizer = make(params)
    for param in params:
        optimizer.state[param]["note"] = 7
    early = resumed(optimizer)
    for step in grads:
        step[1] = None
    train(optimizer, grads[:2])
    late = resumed(optimizer)
    expected = train(make(others), grads)
    for continued in (train(early, grads), train(late, grads[2:]), train(optimizer, grads[2:])):
        (first, second), (reference,) = continued.state.values(), expected.state.values()
        assert first["note"] == second["note"] == 7 and second.keys() == {"note"}
        assert_bitwise([first[key] for key in STATE_KEYS], [reference[key] for key in STATE_KEYS])


@pytest.mark.parametrize("setting", SETTINGS)
def test_group_values_are_plain_data(setting):
    """Guards against options, of the constructor or a group, that JSON or `weights_only=True` cannot hold."""
    params = parameters((3,), (2,))
    grads = gradients(params, 4)
    options = {**SETTINGS[setting], "lr": 2e-3}
    optimizer = train(make([{"params": params[:1], **options}, {"params": params[1:]}], **options), grads[:2])
    saved = through_a_file(optimizer.state_dict())
    saved["param_groups"] = json.loads(json.dumps(saved["param_groups"]))
    copies = [param.detach().clone().requires_grad_() for param in params]
    fresh = make([{"params": copies[:1]}, {"params": copies[1:]}])
    fresh.load_state_dict(saved)
    assert_bitwise(values(train(fresh, grads[2:])), values(train(optimizer, grads[2:])))


def to_a_file_and_back(optimizer):
    buffer = io.BytesIO()
    torch.save(optimizer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "torch.save": to_a_file_and_back,
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_copies_step(setting, duplicate):
    """Guards against attributes that `step` needs and a copy does not have."""
    params = parameters(*SHAPES, dtype=torch.bfloat16)
    grads = gradients(params, 6)
    optimizer = train(make(params, **SETTINGS[setting]), grads[:3])
    twin = duplicate(optimizer)
    before = values(optimizer)
    train(twin, grads[3:])
    assert_bitwise(values(optimizer), before)  # they share nothing
    assert_same(twin, train(optimizer, grads[3:]))
