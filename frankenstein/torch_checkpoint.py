"""Checkpoints of other origin: the authors' released code is translated, another optimizer's state is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from frankenstein.kernels.state import is_dtensor, storage_of
from frankenstein.rule import PRESETS, STATE_KEYS, rule_config

RELEASED_STATE_KEYS = dict(zip(("m", "vmax", "s"), STATE_KEYS, strict=True))  # the released code's names


def translated(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state dict in this package's terms; the argument is not changed.

    Raises:
        ValueError: The state is another optimizer's.
    """
    result = dict(
        state_dict,
        state={key: _translate_state(entry) for key, entry in state_dict["state"].items()},
        param_groups=[_translate_group(group) for group in state_dict["param_groups"]],
    )
    _check_origin(result)
    return result


def check_shapes(group: Mapping[str, Any], params: Sequence[Any], states: Mapping[Any, Any]) -> None:
    """Raise `ValueError` if a parameter's state is of another shape than the parameter."""
    for key, param in zip(group["params"], params, strict=False):
        for name in STATE_KEYS:
            value = states.get(key, {}).get(name)
            if value is not None and value.shape != param.shape:
                raise ValueError(
                    f"Invalid checkpoint: {name} of parameter {key} has the shape {tuple(value.shape)}, the parameter "
                    f"{tuple(param.shape)}"
                )


def check_codes(group: Mapping[str, Any], params: Sequence[Any], states: Mapping[Any, Any]) -> None:
    """Raise `ValueError` if 8-bit codes stand where numbers should.

    A distributed checkpoint is copied into the tensors of the optimizer that loads it, whatever their dtype. Whole
    numbers from 0 to 255, all of them: that is no momentum.
    """
    if group.get("state_dtype") != "8bit":
        return
    for key, param in zip(group["params"], params, strict=False):
        value = states.get(key, {}).get(STATE_KEYS[0])
        if value is None or value.dtype in (torch.uint8, storage_of(param, "8bit")):
            continue
        value = value.to_local() if is_dtensor(value) else value
        if value.any() and ((value >= 0) & (value <= 255) & (value == value.round())).all():
            raise ValueError(
                f"Invalid checkpoint: the state of parameter {key} is 8-bit, but was loaded into {value.dtype}; make "
                "the optimizer that loads with state_dtype='8bit'"
            )


def _translate_state(entry: Any) -> Any:
    """Return a parameter's entry with the authors' released code's names replaced by ours."""
    if isinstance(entry, Mapping) and RELEASED_STATE_KEYS.keys() <= entry.keys():
        return {RELEASED_STATE_KEYS.get(key, key): value for key, value in entry.items()}
    return entry


def _translate_group(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group of the authors' released code with the options that make it go on as that code does."""
    if "fixed_beta" not in group or "rule" in group:
        return group
    group = dict(group, rule="authors")
    fixed_beta = group.pop("fixed_beta")
    if fixed_beta:  # 0: beta1 follows the learning rate
        group["momentum"] = fixed_beta
        group["rule"] = rule_config(replace(PRESETS["authors"], beta1_follows_lr=False))
    return group


def _check_origin(state_dict: dict[str, Any]) -> None:
    """Raise `ValueError` if a parameter's entry has not all of our keys; a user's own keys may stand beside them."""
    is_ours = all("rule" in group for group in state_dict["param_groups"])  # then they may also stand alone
    for key, entry in state_dict["state"].items():
        if not isinstance(entry, Mapping) or not entry:
            continue
        n_ours = len(entry.keys() & set(STATE_KEYS))
        if n_ours < len(STATE_KEYS) and (n_ours or not is_ours):
            raise ValueError(
                f"Invalid checkpoint: the state of parameter {key} has {_listed(entry)}; expected are "
                f"{_listed(STATE_KEYS)}. Was it saved by another optimizer?"
            )


def _listed(keys: Iterable[Any]) -> str:
    return ", ".join(map(repr, keys))
