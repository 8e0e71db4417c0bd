"""`torch.compile(optimizer.step)`: compiled twice at most, whatever the learning rate does, and the same numbers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from test_torch_schedulers import SCHEDULERS
from torch._dynamo.testing import CompileCounter
from torch.optim.lr_scheduler import OneCycleLR
from torch_contract import SETTINGS, assert_bitwise, gradients, make, parameters, train, values

N_STEPS = 50
SCHEDULERS = SCHEDULERS | {"OneCycleLR": lambda optimizer: OneCycleLR(optimizer, 1e-2, total_steps=N_STEPS + 1)}
REACH_ZERO = ("PolynomialLR", "CosineAnnealingLR")  # a pause is a branch of the rule
# Compiled arithmetic fuses products and sums, and has its own exp, log and atan: some units in the last place a step.
COMPILED_TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
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


def follow(name, optimizer):
    """Return what moves the schedule on."""
    scheduler = SCHEDULERS[name](optimizer)
    return partial(scheduler.step, 1.0) if name == "ReduceLROnPlateau" else scheduler.step


@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, "paper") for name in SCHEDULERS]
    # lr moves alone, and with the momentum
    + [(name, setting) for name in ("ExponentialLR", "OneCycleLR") for setting in COMPILED if setting != "paper"],
)
def test_compiled_again_at_most_twice(name, setting):
    """Guards against a graph per parameter or per learning rate: once more where lr has moved, once where it is 0."""
    compiled, eager = pair(**COMPILED[setting])
    counter = CompileCounter()
    schedules = follow(name, compiled), follow(name, eager)  # first: they wrap `step`
    step = torch.compile(compiled.step, backend=counter)
    for grads in gradients(compiled.param_groups[0]["params"], N_STEPS):
        train_compiled(compiled, step, [grads])
        train(eager, [grads])
        for schedule in schedules:
            schedule()
    assert counter.frame_count <= (3 if name in REACH_ZERO else 2)
    assert_bitwise(values(compiled), values(eager))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CosineAnnealingLR", "OneCycleLR"])
def test_compiled_by_the_real_compiler(name):
    """Guards against code that dynamo takes and inductor does not."""
    compiled, eager = pair(lr=torch.tensor(1e-3), weight_decay=0.1)
    schedules = follow(name, compiled), follow(name, eager)
    step = torch.compile(compiled.step)
    for grads in gradients(compiled.param_groups[0]["params"], N_STEPS):
        train_compiled(compiled, step, [grads])
        train(eager, [grads])
        for schedule in schedules:
            schedule()
    for one, other in zip(values(compiled), values(eager), strict=True):
        torch.testing.assert_close(one, other, **COMPILED_TOLERANCE)


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
