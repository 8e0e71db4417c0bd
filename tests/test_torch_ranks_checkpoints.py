"""Checkpoints that move between one process and two: the run goes on as if it had not been stopped, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sharded import (
    FORMATS,
    SHAPES,
    Bag,
    assert_same_as_whole,
    like,
)
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch_contract import gradients, make, parameters, train

from frankenstein.torch import Frankenstein

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)


@dataclass(frozen=True)
class Case:
    """A run that is saved after three of six steps.

    Attributes:
        options: The optimizer's.
        n_before: Steps before it is saved.
        is_flat: With a flat state dict.
        late: Parameters that have no gradient before it is saved.
        frozen: Parameters that need none.
        has_empty_group: With a group without parameters.
    """

    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    n_before: int = 3
    is_flat: bool = False
    late: tuple[int, ...] = ()
    frozen: tuple[int, ...] = ()
    has_empty_group: bool = False

    def start(self, is_sharded: bool, **options: Any) -> tuple[Bag, Frankenstein]:
        model = Bag(self.dtype, is_sharded)
        params = list(model.parameters())
        for i in self.frozen:
            params[i].requires_grad_(False)
        groups = [{"params": params[:6]}, {"params": params[6:], "weight_decay": 0.1}]
        groups += [{"params": [], "weight_decay": 0.3}] if self.has_empty_group else []
        return model, make(groups, **{**self.options, **options})

    def train(self, model: Bag, optimizer: Frankenstein, steps: range) -> None:
        params = list(model.parameters())
        for step, grads in enumerate(gradients(parameters(*SHAPES, dtype=self.dtype), 6)):
            missing = {*self.frozen, *(self.late if step < self.n_before else ())}
            if step in steps:
                train(optimizer, like(params, [[None if i in missing else grad for i, grad in enumerate(grads)]]))


PARTS = ("model", "optim")


def save(case, folder, is_sharded):
    model, optimizer = case.start(is_sharded)
    case.train(model, optimizer, range(case.n_before))
    kept = get_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=case.is_flat))
    dcp.save(dict(zip(PARTS, kept, strict=True)), checkpoint_id=folder, no_dist=not is_sharded)


def load_and_go_on(case, folder, is_sharded, **options):
    """Load into other parameters and an optimizer with other options, and compare with a run that never stopped."""
    model, optimizer = case.start(is_sharded, eps=1e-3, momentum=0.5, **options)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    flat = StateDictOptions(flatten_optimizer_state_dict=case.is_flat)
    kept = dict(zip(PARTS, get_state_dict(model, optimizer, options=flat), strict=True))
    planner = DefaultLoadPlanner(allow_partial_load=bool(case.late))
    dcp.load(kept, checkpoint_id=folder, no_dist=not is_sharded, planner=planner)
    set_state_dict(model, optimizer, **{f"{part}_state_dict": kept[part] for part in PARTS}, options=flat)
    case.train(model, optimizer, range(case.n_before, 6))
    reference, expected = case.start(is_sharded=False)
    case.train(reference, expected, range(6))
    assert_same_as_whole(optimizer, expected)


CASES = {
    f"{state_dtype} state, {str(dtype)[6:]}": Case({"state_dtype": state_dtype}, dtype)
    for state_dtype in FORMATS
    for dtype in (torch.float32, torch.bfloat16)
} | {
    "flat": Case({"state_dtype": "8bit"}, torch.bfloat16, is_flat=True),
    "no step yet": Case({"state_dtype": "8bit"}, torch.bfloat16, n_before=0),
    "no gradient yet": Case(late=(1, 7)),
    "no gradient yet, 8bit": Case({"state_dtype": "8bit"}, late=(1, 7)),
    "frozen": Case({"state_dtype": "8bit"}, frozen=(1, 7)),
    "empty group": Case(has_empty_group=True),
    "tensor lr": Case({"lr": torch.tensor(1e-2), "nonfinite": "raise"}),
}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # one process is what is meant
@pytest.mark.parametrize("case", CASES)
def test_checkpoints_move_between_one_process_and_two(ranks, case, tmp_path):
    """Guards against state that is lost, rounded or cut elsewhere on the way, and against missing first state."""
    case = CASES[case]
    ranks.run(save, case, tmp_path / "of two", True)
    load_and_go_on(case, tmp_path / "of two", False)
    ranks.run(load_and_go_on, case, tmp_path / "of two", True)
    save(case, tmp_path / "of one", False)
    ranks.run(load_and_go_on, case, tmp_path / "of one", True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_codes_are_not_taken_for_numbers(tmp_path, state_dtype):
    """Guards against 8-bit codes that a distributed checkpoint copies, as numbers, into state of another format."""
    case = Case({"state_dtype": "8bit"})
    save(case, tmp_path, False)
    with pytest.raises(ValueError, match="make the optimizer that loads with state_dtype='8bit'"):
        load_and_go_on(case, tmp_path, False, state_dtype=state_dtype)


def gather_and_spread(state_dtype, dtype):
    """Rank 0 holds the whole, on its way to one file, and hands it out again."""
    case = Case({"state_dtype": state_dtype}, dtype)
    model, optimizer = case.start(is_sharded=True)
    case.train(model, optimizer, range(3))
    kept = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    model, optimizer = case.start(is_sharded=True)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, kept[0], options=options)  # set_state_dict takes rank 1's empty one for none at all
    set_optimizer_state_dict(model, optimizer, kept[1], options=options)
    case.train(model, optimizer, range(3, 6))
    reference, expected = case.start(is_sharded=False)
    case.train(reference, expected, range(6))
    assert_same_as_whole(optimizer, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", FORMATS)
def test_state_is_gathered_and_spread(ranks, state_dtype, dtype):
    ranks.run(gather_and_spread, state_dtype, dtype)
