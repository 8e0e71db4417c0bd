"""The memory of the rule as JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from frankenstein.relaxation import RelaxationRule, State, Systems, init, update
from frankenstein.relaxation.restart import (
    AXES,
    VERSION,
    array_from_json,
    array_to_json,
    from_json,
    read,
    to_json,
    write,
)


def state_of(xp=np, n_steps=4):
    """Two systems of 3 and 2 atoms, `n_steps` steps down a valley with a different slope in each direction."""
    systems = Systems(xp.asarray([0, 0, 0, 1, 1]))
    x = xp.asarray(np.random.default_rng(0).normal(size=(5, 3)))
    state = init(x, systems, RelaxationRule(memory=3), 0.2)
    for _ in range(n_steps):
        step, state = update(state, x * xp.asarray([1.0, 2.0, 5.0]), systems, RelaxationRule(memory=3), 0.2)
        x = x + step
    return state


def edited(**fields):
    data = json.loads(json.dumps(to_json(state_of())))
    for name, value in fields.items():
        data[name] = value
    return data


def test_every_field_has_its_axes():
    assert tuple(AXES) == State._fields


@pytest.mark.parametrize("xp", [np, torch])
def test_a_state_comes_back_to_the_last_bit(xp, tmp_path):
    state = state_of(xp)
    write(tmp_path / "state.json", to_json(state))
    again = from_json(read(tmp_path / "state.json"))
    for old, new in zip(state, again, strict=True):
        np.testing.assert_array_equal(np.asarray(old), new)
        assert new.dtype == np.asarray(old).dtype and new.flags.writeable
    assert not np.array_equal(again.changes, np.zeros_like(again.changes))


def test_extreme_numbers_come_back_to_the_last_bit():
    numbers = np.array([[5e-324, -0.0], [np.nextafter(1.0, 2.0), -1.7976931348623157e308]])
    again = array_from_json(json.loads(json.dumps(array_to_json(numbers))), "numbers")
    assert again.tobytes() == numbers.tobytes()
    turned = array_from_json(array_to_json(numbers.T), "numbers")  # not contiguous
    np.testing.assert_array_equal(turned, numbers.T)


def test_a_field_costs_its_bytes():
    data = array_to_json(np.zeros((100, 60, 3)))
    assert len(data["base64"]) == 8 * 100 * 60 * 3 * 4 // 3


@pytest.mark.parametrize("data", [None, [], {}, "state", 3])
def test_something_else_is_refused(data):
    with pytest.raises(ValueError, match=r"^Invalid state: no version; wanted is what to_json returns$"):
        from_json(data)


def test_another_version_is_refused():
    with pytest.raises(ValueError, match=rf"^Invalid state: version 7; this Frankenstein reads version {VERSION}$"):
        from_json(edited(version=7))


@pytest.mark.parametrize("name", State._fields)
def test_each_missing_field_is_named(name):
    data = edited()
    del data[name]
    with pytest.raises(ValueError, match=rf"^Invalid state: {name} is missing$"):
        from_json(data)


@pytest.mark.parametrize("name", State._fields)
def test_each_field_of_another_shape_is_named(name):
    field = np.asarray(getattr(state_of(), name))
    longer = array_to_json(np.concatenate([field, field]))
    flat = array_to_json(field[None])
    for other in (longer, flat):
        with pytest.raises(ValueError, match=r"^Invalid .*(shape is|two axes)"):
            from_json(edited(**{name: other}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match=r"^Invalid secant: it has numbers that are not finite$"):
        from_json(edited(secant=array_to_json(np.array([1.0, value]))))


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match=r"^Invalid n_pairs: it is negative$"):
        from_json(edited(n_pairs=array_to_json(np.array([1, -1]))))


GOOD = array_to_json(np.array([1.0, 2.0]))


@pytest.mark.parametrize(
    "field",
    [
        None, 3, [], {}, GOOD | {"base64": "%%%%"}, GOOD | {"base64": GOOD["base64"][4:]}, GOOD | {"base64": 3},
        GOOD | {"shape": [3]}, GOOD | {"shape": [-2]}, GOOD | {"shape": [2.0]}, GOOD | {"shape": "2"},
        GOOD | {"dtype": "<i8"}, GOOD | {"dtype": "<f4"}, GOOD | {"dtype": None},
    ],
)  # fmt: skip
def test_a_damaged_array_is_one_clear_line(field):
    with pytest.raises(ValueError, match=r"^Invalid secant: wanted are dtype '<f8', the shape, and as many numbers"):
        from_json(edited(secant=field))


def test_a_file_that_is_no_json_is_one_clear_line(tmp_path):
    file = tmp_path / "state.json"
    file.write_text("{")
    with pytest.raises(ValueError, match=r"^Could not decode .*state\.json as JSON$"):
        read(file)
