"""Networks and parameters that several processes share, for the tests of what is distributed."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch_contract import assert_bitwise, make, parameters

ODD = ((5, 3), (1, 7), (1,), (33,), (0, 3))  # the second rank has less, or nothing
BLOCKS = ((5, 1030), (1, 4096), (65, 64), (3, 2, 700))  # these can have 8-bit state
SHAPES = ((), *ODD, *BLOCKS, (5000,), (4, 3))  # the first and the last are not sharded
FORMATS = ("float32", "bfloat16", "8bit")
NORM_TOLERANCE = 1e-5  # relative; a norm is summed in another order, in float32


class Bag(nn.Module):
    """Parameters of all `SHAPES`, the same on every rank."""

    def __init__(self, dtype=torch.float32, is_sharded=True):
        super().__init__()
        self.tensors = nn.ParameterList(parameters(*SHAPES, dtype=dtype))
        if is_sharded:
            fully_shard(self, ignored_params={self.tensors[0], self.tensors[-1]})


def whole(tensor):
    """The tensor that the ranks hold together; torch cannot put together one that has no elements."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) and tensor.numel() else tensor


def like(params, steps):
    """Gradients, of which every rank has the whole, sharded as the parameters are."""

    def one(param, grad):
        if grad is None or not isinstance(param, DTensor):
            return grad
        return distribute_tensor(grad, param.device_mesh, param.placements, src_data_rank=None)

    return [[one(param, grad) for param, grad in zip(params, step, strict=True)] for step in steps]


def assert_same_as_whole(optimizer, expected):
    """Parameters, state and options of a sharded optimizer are those of one on whole tensors."""
    for group, other in zip(optimizer.param_groups, expected.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in other.items() if k != "params"}
        for param, reference in zip(group["params"], other["params"], strict=True):
            state, after = optimizer.state.get(param, {}), expected.state.get(reference, {})
            assert state.keys() == after.keys()
            if reference.numel():
                assert_bitwise([whole(param)], [reference])
                assert_bitwise([whole(state[key]) for key in state], [after[key] for key in state])


@contextmanager
def torchs_own_imports():
    """Some of torch's modules call at their import what torch itself warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        yield


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 65), nn.Tanh(), nn.Linear(65, 64), nn.Tanh(), nn.Linear(64, 1))


def sharded_network(**options):
    model = network()
    for layer in (model[0], model[2], model[4], model):
        fully_shard(layer, **options)
    return model


def inputs(step, rank=None):
    """A batch, or a rank's half of it."""
    batch = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
    return batch if rank is None else batch.chunk(2)[rank]


def loss_of(model, batch):
    return model(batch).square().mean()


def train_network(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, inputs(step)).backward()
        optimizer.step()


def step_with_one_inf(wrap):
    """Scale the loss by a power of two, which changes no bit of the gradients; the second step has an inf on rank 1."""
    model, scaler = wrap()
    reference = network()
    optimizer, expected = make(model.parameters()), make(reference.parameters())
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, inputs(step))).backward()
        if step != 1:
            train_network(reference, expected, [step])
        elif dist.get_rank() == 1:
            grad = next(param.grad for param in model.parameters() if param.grad is not None and param.grad.numel())
            (grad.to_local() if isinstance(grad, DTensor) else grad).view(-1)[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0
    return model, optimizer, expected
