"""Sharded parameters (`DTensor`): the optimizer steps, saves and loads them, here on a mesh of one process."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch_contract import (
    SETTINGS,
    STATE_KEYS,
    assert_bitwise,
    gradients,
    make,
    parameters,
    through_a_file,
    train,
    values,
)

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)


@pytest.fixture
def mesh(monkeypatch):
    if sys.platform == "linux":
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # no network need know this machine by a name
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("setting", SETTINGS)
def test_sharded_parameters(mesh, setting):
    """Guards against state that is not sharded like its parameter, and checkpoints that lose the sharding."""

    def shard(tensors):
        return [distribute_tensor(tensor.detach(), mesh, [Shard(0)]) for tensor in tensors]

    plain = parameters((4, 3), (5,))
    expected = make(plain, **SETTINGS[setting])
    sharded = [param.requires_grad_() for param in shard(plain)]
    grads = gradients(plain, 6)
    train(expected, grads)
    half = train(make(sharded, **SETTINGS[setting]), [shard(step) for step in grads[:3]])
    copies = [param.detach().clone().requires_grad_() for param in sharded]
    optimizer = make(copies)
    with torch.serialization.safe_globals([DTensor]):
        optimizer.load_state_dict(through_a_file(half.state_dict()))
    for state in optimizer.state.values():
        assert state.keys() == STATE_KEYS
        assert all(isinstance(tensor, DTensor) and tensor.placements == (Shard(0),) for tensor in state.values())
    train(optimizer, [shard(step) for step in grads[3:]])
    assert_bitwise([tensor.full_tensor() for tensor in values(optimizer)], values(expected))
