"""DDP, ZeroRedundancyOptimizer and FSDP1 on two processes: the result is that of one process, bit for bit."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from sharded import (
    FORMATS,
    assert_same_as_whole,
    inputs,
    loss_of,
    network,
    step_with_one_inf,
    torchs_own_imports,
    train_network,
)
from torch.nn.parallel import DistributedDataParallel
from torch_contract import assert_bitwise, make, train

from frankenstein.torch import Frankenstein

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)


def train_ddp(state_dtype):
    model, reference = network(seed=dist.get_rank()), network(seed=0)  # DDP starts with what rank 0 has
    parallel = DistributedDataParallel(model)
    optimizer = make(model.parameters(), state_dtype=state_dtype, weight_decay=0.1)
    expected = make(reference.parameters(), state_dtype=state_dtype, weight_decay=0.1)
    for step in range(4):
        optimizer.zero_grad()
        loss_of(parallel, inputs(step, dist.get_rank())).backward()
        optimizer.step()
        halves = [
            torch.autograd.grad(loss_of(reference, inputs(step, rank)), reference.parameters()) for rank in (0, 1)
        ]
        train(expected, [[a / 2 + b / 2 for a, b in zip(*halves, strict=True)]])  # two terms have one sum
    assert_same_as_whole(optimizer, expected)


@pytest.mark.parametrize("state_dtype", FORMATS)
def test_ddp(ranks, state_dtype):
    """Guards against ranks that drift apart: both are, bit for bit, one process with the mean of the gradients."""
    ranks.run(train_ddp, state_dtype)


def train_zero(state_dtype):
    with torchs_own_imports():
        from torch.distributed.optim import ZeroRedundancyOptimizer

    def start(lr):
        model = network()
        options = {"optimizer_class": Frankenstein, "state_dtype": state_dtype, "weight_decay": 0.1}
        return model, DistributedDataParallel(model), ZeroRedundancyOptimizer(model.parameters(), lr=lr, **options)

    reference = network()
    expected = make(reference.parameters(), lr=1e-2, state_dtype=state_dtype, weight_decay=0.1)
    train_network(reference, expected, range(3))
    model, parallel, optimizer = start(1e-2)
    train_network(parallel, optimizer, range(3))
    assert 0 < len(optimizer.optim.state) < len(list(model.parameters()))  # the rest is on the other rank
    assert_bitwise(model.parameters(), reference.parameters())
    optimizer.consolidate_state_dict(to=0)
    box = [optimizer.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box)
    for i, entry in expected.state_dict()["state"].items():
        assert box[0]["state"][i].keys() == entry.keys()
        assert_bitwise(box[0]["state"][i].values(), entry.values())
    saved = model.state_dict()
    model, parallel, optimizer = start(1.0)
    model.load_state_dict(saved)
    optimizer.load_state_dict(box[0])
    train_network(parallel, optimizer, range(3, 6))
    train_network(reference, expected, range(3, 6))
    assert_bitwise(model.parameters(), reference.parameters())


@pytest.mark.parametrize("state_dtype", FORMATS)
def test_zero_redundancy_optimizer(ranks, state_dtype):
    ranks.run(train_zero, state_dtype)


def fsdp1_network():
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))


def train_fsdp1(state_dtype):
    model, reference = fsdp1_network(), network()
    optimizer = make(model.parameters(), state_dtype=state_dtype)
    expected = make(reference.parameters(), state_dtype="float32" if state_dtype == "8bit" else state_dtype)
    train_network(model, optimizer, range(4))
    train_network(reference, expected, range(4))
    with model.summon_full_params(model):
        assert_bitwise(model.parameters(), reference.parameters())


@pytest.mark.parametrize("state_dtype", FORMATS)
def test_fsdp1(ranks, state_dtype):
    """Guards against 8-bit blocks in FSDP1's pieces of flat parameters, which end anywhere: the state stays float32."""
    ranks.run(train_fsdp1, state_dtype)


def fsdp1_scaled():
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    model, _, expected = step_with_one_inf(lambda: (fsdp1_network(), ShardedGradScaler("cpu", init_scale=4.0)))
    with model.summon_full_params(model):
        assert_bitwise(model.parameters(), expected.param_groups[0]["params"])


def test_sharded_scaler(ranks):
    ranks.run(fsdp1_scaled)
