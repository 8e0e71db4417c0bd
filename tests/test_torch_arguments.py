"""Wrong arguments: refused at once, with the argument's name, its value, and what is allowed."""

from __future__ import annotations

import math

import pytest
import torch
from torch_contract import gradients, make, parameters, train, values

from frankenstein.rule import Rule
from frankenstein.torch import Frankenstein

NOT_NEGATIVE = "allowed is a finite number >= 0"
EPS = r"allowed is a finite number >= 1.2e-38 \(smaller is 0 in float32\)"
MOMENTUM = r"allowed is a number in \[0, 1\)"
BASE_LR = "allowed is a finite number > 0"
BOOL = "allowed are True and False"
RULE = r"allowed are 'paper', 'authors' or a frankenstein.rule.Rule"

WRONG = [
    *[
        ({name: value}, rf"Invalid {name}: {shown}; {allowed}")
        for name, allowed in [("lr", NOT_NEGATIVE), ("weight_decay", NOT_NEGATIVE), ("eps", EPS), ("base_lr", BASE_LR)]
        for value, shown in [
            (-1e-3, "-0.001"),
            (math.nan, "nan"),
            (math.inf, "inf"),
            (-math.inf, "-inf"),
            ("1e-3", "'1e-3'"),
            (True, "True"),
            (None, "None"),
            (1e-3 + 0j, r"\(0.001\+0j\)"),
            ([1e-3], r"\[0.001\]"),
        ]
    ],
    ({"eps": 0.0}, rf"Invalid eps: 0.0; {EPS}"),
    ({"eps": 1e-50}, rf"Invalid eps: 1e-50; {EPS}"),
    ({"base_lr": 0.0}, rf"Invalid base_lr: 0.0; {BASE_LR}"),
    ({"momentum": 1}, rf"Invalid momentum: 1; {MOMENTUM}"),
    ({"momentum": -0.1}, rf"Invalid momentum: -0.1; {MOMENTUM}"),
    ({"momentum": math.nan}, rf"Invalid momentum: nan; {MOMENTUM}"),
    ({"momentum": "0.9"}, rf"Invalid momentum: '0.9'; {MOMENTUM}"),
    ({"momentum": False}, rf"Invalid momentum: False; {MOMENTUM}"),
    ({"lr": torch.tensor([1e-3, 1e-3])}, "Invalid lr: a tensor of 2 elements; Tensor lr must be 1-element"),
    ({"lr": torch.empty(0)}, "Invalid lr: a tensor of 0 elements; Tensor lr must be 1-element"),
    ({"lr": torch.tensor(-0.5)}, rf"Invalid lr: -0.5; {NOT_NEGATIVE}"),
    ({"lr": torch.tensor([math.nan])}, rf"Invalid lr: nan; {NOT_NEGATIVE}"),
    ({"lr": torch.tensor(True)}, rf"Invalid lr: True; {NOT_NEGATIVE}"),
    ({"rule": "papr"}, rf"Invalid rule: 'papr'; {RULE}"),
    ({"rule": None}, rf"Invalid rule: None; {RULE}"),
    ({"rule": {"use_xi": True}}, rf"Invalid rule: \{{'use_xi': True\}}; {RULE}"),
    ({"rule": '{"use_yi": true}'}, "Invalid rule: .*; .*use_yi"),
    ({"nonfinite": "ignore"}, "Invalid nonfinite: 'ignore'; allowed are 'propagate', 'skip', 'raise'"),
    ({"nonfinite": None}, "Invalid nonfinite: None; allowed are 'propagate', 'skip', 'raise'"),
    ({"maximize": "False"}, f"Invalid maximize: 'False'; {BOOL}"),
    ({"maximize": 1}, f"Invalid maximize: 1; {BOOL}"),
    ({"differentiable": "True"}, f"Invalid differentiable: 'True'; {BOOL}"),
]


def ids(wrong):
    return [" ".join(f"{key}={value!r}" for key, value in kwargs.items()) for kwargs, _ in wrong]


@pytest.mark.parametrize("kwargs, message", WRONG, ids=ids(WRONG))
def test_constructor(kwargs, message):
    """Guards against slips in a configuration file that train something else, or fail much later."""
    with pytest.raises(ValueError, match=f"^{message}"):
        Frankenstein(parameters((2,)), **kwargs)


@pytest.mark.parametrize("kwargs, message", WRONG, ids=ids(WRONG))
def test_groups(kwargs, message):
    """Guards against options of a group that nobody checks, now or later; the optimizer goes on without it."""
    first, second = parameters((2,), (3,))
    with pytest.raises(ValueError, match=f"^{message}"):
        Frankenstein([{"params": [first]}, {"params": [second], **kwargs}])
    optimizer = Frankenstein([first])
    with pytest.raises(ValueError, match=f"^{message}"):
        optimizer.add_param_group({"params": [second], **kwargs})
    assert len(optimizer.param_groups) == 1
    train(optimizer, gradients([first], 1))


BOUNDARIES = [
    {"lr": 0},
    {"lr": 1},
    {"lr": torch.tensor(1)},
    {"eps": float(torch.finfo(torch.float32).tiny)},
    {"eps": 1.0},
    {"momentum": 0},
    {"momentum": math.nextafter(1.0, 0.0)},
    {"base_lr": 1e-300},
    {"base_lr": 1e300},
    {"weight_decay": 0},
    {"rule": Rule()},
    {"rule": '{"use_xi": false}'},
]


@pytest.mark.parametrize("kwargs", BOUNDARIES, ids=str)
def test_what_is_allowed_works(kwargs):
    """Guards against refusing the edges of a range, and against edges that give NaN."""
    params = parameters((3,))
    optimizer = train(Frankenstein(params, **kwargs), gradients(params, 3))
    assert all(torch.isfinite(tensor).all() for tensor in values(optimizer))


def test_learning_rate_without_a_value():
    """Guards against asking a tensor on the meta device, where models are built early, for its number."""
    with torch.device("meta"):
        optimizer = Frankenstein([torch.ones(3, requires_grad=True)], lr=torch.tensor(1e-3))
    assert train(optimizer, [[torch.ones(3, device="meta")]]).param_groups[0]["lr"].is_meta


def test_unknown_arguments():
    """Guards against a misspelt argument, or another optimizer's, being ignored; only `lr` is positional."""
    with pytest.raises(TypeError, match="betas"):
        make(parameters((2,)), betas=(0.9, 0.999))
    with pytest.raises(TypeError, match="positional"):
        Frankenstein(parameters((2,)), 1e-3, 1e-8)


NO_PARAMETERS = {
    "a tensor": (torch.ones(2), TypeError, "iterable of Tensors"),
    "numbers": ([1.0], TypeError, "only optimize Tensors"),
    "a set": ([{"params": {torch.ones(2)}}], TypeError, "ordered collections"),
    "not leaves": ([torch.ones(2, requires_grad=True) * 2], ValueError, "non-leaf"),
    "some without names": ([("a", torch.ones(2)), torch.ones(2)], ValueError, "names are missing"),
}


@pytest.mark.parametrize("params, error, message", NO_PARAMETERS.values(), ids=NO_PARAMETERS)
def test_params(params, error, message):
    """Guards against our own checks hiding what torch says about parameters."""
    with pytest.raises(error, match=message):
        Frankenstein(params)


def test_atoms_are_sent_to_the_class_for_atoms():
    class Atoms:
        def get_positions(self):
            raise AssertionError

    with pytest.raises(TypeError, match=r"^params are atoms; for these: from frankenstein\.ase import Frankenstein$"):
        Frankenstein(Atoms())
