"""Sharded parameters (FSDP2) on two processes: the result is that of one process, bit for bit.

The programs, which stand before their tests, run on every rank, and compare there with an optimizer on whole tensors.
FSDP2 takes no 0-dim parameters; here one stays outside, and with it a matrix: plain tensors in the same group.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks
from sharded import (
    BLOCKS,
    FORMATS,
    NORM_TOLERANCE,
    SHAPES,
    Bag,
    assert_same_as_whole,
    inputs,
    like,
    loss_of,
    network,
    sharded_network,
    step_with_one_inf,
    torchs_own_imports,
    whole,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch_contract import assert_bitwise, gradients, make, parameters, train, values

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)

EXTRAS = {
    "plain": {},
    "decay": {"weight_decay": 0.1, "maximize": True},
    "skip": {"weight_decay": 0.1, "nonfinite": "skip"},
    "raise": {"nonfinite": "raise"},
}
HOW = {"default": {}, "one by one": {"fused": False}, "foreach": {"foreach": True}}


def step_sharded(dtype, options):
    model, reference = Bag(dtype), Bag(dtype, is_sharded=False)
    optimizer, expected = make(model.parameters(), **options), make(reference.parameters(), **options)
    grads = gradients(list(reference.parameters()), 5)
    if options.get("nonfinite") == "skip":
        for grad in (grad for step in grads[1:] for grad in step if grad.dim() and grad.numel()):
            grad[0] = float("nan")
            grad.view(-1)[-1] = float("inf")
    train(expected, grads)
    grads = like(list(model.parameters()), grads)
    with CommDebugMode() as communication:
        train(optimizer, grads)
    n_calls = len(grads) if options.get("nonfinite") == "raise" else 0
    assert communication.get_total_counts() == n_calls
    assert_same_as_whole(optimizer, expected)
    stored = {"float32": torch.float32, "bfloat16": torch.bfloat16, "8bit": torch.uint8}[options["state_dtype"]]
    for param in model.parameters():
        state = optimizer.state[param]
        assert ("compensation" in state) == (dtype == torch.bfloat16)
        if param.shape in BLOCKS:
            assert state["momentum_buffer"].dtype == stored
        if isinstance(param, DTensor):
            assert all(tensor.placements == param.placements for tensor in state.values())


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", FORMATS)
@pytest.mark.parametrize("how", HOW)
def test_sharded_is_whole(ranks, how, state_dtype, dtype, extra):
    """Guards against a step that depends on where a parameter is cut, on an empty part, and against communication."""
    ranks.run(step_sharded, dtype, {"state_dtype": state_dtype, **HOW[how], **EXTRAS[extra]})


def step_compiled(options):
    model, other = Bag(), Bag()
    optimizer, expected = make(model.parameters(), **options), make(other.parameters(), **options)
    grads = like(list(model.parameters()), gradients(parameters(*SHAPES), 3))
    train(expected, grads)
    optimizer.step = torch.compile(optimizer.step, backend="aot_eager")
    with torchs_own_imports():
        train(optimizer, grads)
    torch._dynamo.reset()
    assert_bitwise(*([whole(t) for t in values(each) if t.numel()] for each in (optimizer, expected)))


@pytest.mark.parametrize(
    "options", [{}, {"foreach": True}, {"state_dtype": "8bit"}], ids=["float32", "foreach", "8bit"]
)
def test_compiled_step(ranks, options):
    """Guards against a compiler that follows the sharding of each operation, and stumbles over parts of odd sizes."""
    ranks.run(step_compiled, options)


def train_sharded(policy, state_dtype, n_accumulated):
    options = {} if policy is None else {"mp_policy": policy}
    model, reference = sharded_network(**options), network()
    optimizer, expected = (make(each.parameters(), state_dtype=state_dtype) for each in (model, reference))
    for step in range(3):
        optimizer.zero_grad()
        expected.zero_grad()
        for part in range(n_accumulated):
            model.set_requires_gradient_sync(part == n_accumulated - 1)
            loss_of(model, inputs(n_accumulated * step + part)).backward()
            accumulate(reference, inputs(n_accumulated * step + part), policy)
        optimizer.step()
        expected.step()
    assert_same_as_whole(optimizer, expected)


def accumulate(model, batch, policy):
    """Add gradients, which are those of a copy in low precision where the policy says so."""
    low = copy.deepcopy(model).to(torch.float32 if policy is None else policy.param_dtype)
    low.zero_grad()
    loss_of(low, batch.to(low[0].weight.dtype)).backward()
    for param, other in zip(model.parameters(), low.parameters(), strict=True):
        param.grad = other.grad.float() if param.grad is None else param.grad + other.grad.float()


@pytest.mark.parametrize(
    "policy, state_dtype, n_accumulated",
    [
        (None, "float32", 1),
        (None, "8bit", 2),
        (MixedPrecisionPolicy(param_dtype=torch.bfloat16), "float32", 1),
        (MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32), "bfloat16", 1),
    ],
    ids=["float32", "accumulated", "bfloat16", "bfloat16 reduced in float32"],
)
def test_sharded_training_is_whole(ranks, policy, state_dtype, n_accumulated):
    """Guards against gradients as FSDP2 hands them over, accumulated or of mixed precision, being taken for others."""
    ranks.run(train_sharded, policy, state_dtype, n_accumulated)


def clip_sharded():
    model, reference = sharded_network(), network()
    optimizer, expected = make(model.parameters()), make(reference.parameters())
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, inputs(step)).backward()
        whole_grads = [whole(param.grad) for param in model.parameters()]
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3).full_tensor()
        torch.testing.assert_close(norm, nn.utils.get_total_norm(whole_grads), rtol=NORM_TOLERANCE, atol=0.0)
        clipped = [whole(param.grad) for param in model.parameters()]
        assert nn.utils.get_total_norm(clipped) < 2e-3 < norm
        optimizer.step()
        train(expected, [clipped])
    assert_same_as_whole(optimizer, expected)


def test_clipped_gradients(ranks):
    ranks.run(clip_sharded)


def fsdp2_scaled():
    _, optimizer, expected = step_with_one_inf(lambda: (sharded_network(), torch.amp.GradScaler("cpu", init_scale=4.0)))
    assert_same_as_whole(optimizer, expected)


def test_scaled_gradients(ranks):
    """Guards against a step that one rank takes and the other does not, for its part of the gradients overflowed."""
    ranks.run(fsdp2_scaled)


def raise_on_all(is_sharded):
    model, reference = Bag(), Bag(is_sharded=False)
    optimizer = make(model.named_parameters(), nonfinite="raise")
    expected = make(reference.parameters(), nonfinite="raise")
    first, bad, last = gradients(list(reference.parameters()), 3)
    params = list(model.parameters())
    train(optimizer, like(params, [first]))
    train(expected, [first])
    before = values(optimizer)
    (step,) = like(params, [bad])
    if not is_sharded:
        step[-1][0, 0] = float("nan")
    elif dist.get_rank() == 1:
        step[1].to_local()[-1, 0] = float("nan")
    name = f"tensors.{1 if is_sharded else len(SHAPES) - 1}"
    with pytest.raises(RuntimeError, match=f"'{name}' has 1 gradient elements.*nothing was changed"):
        train(optimizer, [step])
    assert_bitwise(*([getattr(t, "_local_tensor", t) for t in each] for each in (values(optimizer), before)))
    train(optimizer, like(params, [last]))
    train(expected, [last])
    assert_bitwise(*([whole(t) for t in values(each) if t.numel()] for each in (optimizer, expected)))


@pytest.mark.parametrize("is_sharded", [True, False], ids=["on one rank", "on both"])
def test_all_ranks_raise(ranks, is_sharded):
    """Guards against one rank that raises while the other moves its part, and then waits for it."""
    ranks.run(raise_on_all, is_sharded)


def step_columns(state_dtype):
    """Columns are sharded, as tensor parallelism does it."""
    mesh = init_device_mesh("cpu", (2,))
    plain = parameters((70, 131))
    params = [distribute_tensor(plain[0].detach(), mesh, [Shard(1)], src_data_rank=None).requires_grad_()]
    optimizer = make(params, state_dtype=state_dtype)
    expected = make(plain, state_dtype="float32" if state_dtype == "8bit" else state_dtype)
    grads = gradients(plain, 4)
    train(expected, grads)
    train(optimizer, like(params, grads))
    assert_bitwise(map(whole, values(optimizer)), values(expected))


@pytest.mark.parametrize("state_dtype", FORMATS)
def test_sharded_columns(ranks, state_dtype):
    """Guards against 8-bit blocks that reach over two ranks: where rows are cut, the state stays float32."""
    ranks.run(step_columns, state_dtype)


# The processes --------------------------------------------------------------------------------------------------------


def fail_on_rank_1():
    if dist.get_rank() == 1:
        raise ValueError("on rank 1")
    dist.barrier()


def leave_rank_0_alone():
    if dist.get_rank() == 0:
        dist.barrier()


def test_a_rank_that_fails_or_hangs_ends_the_call(tmp_path):
    """Guards against tests that wait for ever, and against a group that is used after a failure."""
    with Ranks(tmp_path) as ranks:
        with pytest.raises(AssertionError, match=r"(?s)rank 0: did not come to an end.*rank 1: .*on rank 1"):
            ranks.run(fail_on_rank_1)
        ranks.run(dist.get_rank)  # others are started, which takes its time; then it is the call that is limited
        with pytest.raises(AssertionError, match=r"^rank 0: did not come to an end in time$"):
            ranks.run(leave_rank_0_alone, limit_seconds=10)
        assert ranks.run(dist.get_rank) == [0, 1]
