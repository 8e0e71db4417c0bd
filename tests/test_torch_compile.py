"""`torch.compile(optimizer.step)`: compiled twice at most, whatever the learning rate does, and the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR
from torch_contract import SETTINGS, assert_bitwise, gradients, make, parameters, train, values

N_STEPS = 10
SCHEDULERS = {
    "ExponentialLR": lambda optimizer: ExponentialLR(optimizer, 0.9),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, 1e-2, total_steps=N_STEPS + 1),  # momentum moves too
}
COMPILED = {name: SETTINGS[name] for name in ("paper", "ablation", "skip", "tensor lr")}

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pair(dtype=torch.float32, **options):
    """An optimizer to compile, and a twin that takes the operations which the compiler is given."""
    shapes = (4, 3), (), (5,)
    return [make(parameters(*shapes, dtype=dtype), **options, fused=fused) for fused in (None, False)]


def train_compiled(optimizer, step, grads):
    for numbers in grads:
        for param, grad in zip(optimizer.param_groups[0]["params"], numbers, strict=True):
            param.grad = None if grad is None else grad.clone()
        step()


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("setting", COMPILED)
def test_two_graphs_at_most(setting, scheduler):
    """Guards against a graph per parameter or per learning rate: one at first, one where lr has moved."""
    compiled, eager = pair(**COMPILED[setting])
    counter = CompileCounter()
    schedules = scheduler(compiled), scheduler(eager)  # first: they wrap `step`
    step = torch.compile(compiled.step, backend=counter)
    for grads in gradients(compiled.param_groups[0]["params"], N_STEPS):
        train_compiled(compiled, step, [grads])
        train(eager, [grads])
        for schedule in schedules:
            schedule.step()
    assert counter.frame_count <= 2
    assert_bitwise(values(compiled), values(eager))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_dtypes(dtype):
    """Guards against dtypes found by functions that the compiler does not know."""
    compiled, eager = pair(dtype)
    counter = CompileCounter()
    grads = gradients(compiled.param_groups[0]["params"], 4)
    train_compiled(compiled, torch.compile(compiled.step, backend=counter), grads)
    assert counter.frame_count == 1
    assert_bitwise(values(compiled), values(train(eager, grads)))


def test_state_that_is_loaded_or_joins_late():
    """Guards against compiled steps that go on with tensors which the optimizer no longer has."""
    compiled, eager = pair()
    step = torch.compile(compiled.step, backend=CompileCounter())
    grads = gradients(compiled.param_groups[0]["params"], 9)
    for numbers in grads[:3]:
        numbers[1] = None
    train_compiled(compiled, step, grads[:6])
    train(eager, grads[:6])
    for optimizer in (compiled, eager):
        saved = optimizer.state_dict()
        saved["state"][2] = {key: 2.0 * value for key, value in saved["state"][2].items()}
        optimizer.load_state_dict(saved)
    train_compiled(compiled, step, grads[6:])
    assert_bitwise(values(compiled), values(train(eager, grads[6:])))
