"""Ways to call the optimizer: closures, hooks, profiler, graphs, differentiation, mixed precision, subclasses."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch_contract import SETTINGS, assert_bitwise, assert_same, gradients, make, parameters, resumed, train, values

from frankenstein.torch import Frankenstein

# Closures, hooks, profiler --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", ["loss", "none"])
def test_closure(result):
    """Guards against a closure that runs twice or without autograd, or whose loss is lost or demanded."""
    params, others = parameters((3,)), parameters((3,))
    optimizer, calls = make(params), []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (params[0] ** 2).sum()
        loss.backward()
        return loss if result == "loss" else None

    with torch.no_grad():
        returned = optimizer.step(closure)
    assert calls == [True]
    assert (returned is None) if result == "none" else torch.equal(returned, (others[0] ** 2).sum())
    expected = train(make(others), [[2 * others[0].detach()]])
    assert_bitwise(values(optimizer), values(expected))
    assert optimizer.step() is None


def test_step_hooks():
    """Guards against a `step` that goes past torch's hooks, the global ones included."""
    params = parameters((3,))
    optimizer, calls = make(params), []

    def note(name):
        return lambda opt, args, kwargs: calls.append((name, torch.equal(params[0], start), opt is optimizer))

    start = params[0].detach().clone()
    handles = [register_optimizer_step_pre_hook(note("all, before")), register_optimizer_step_post_hook(note("all"))]
    optimizer.register_step_pre_hook(note("before"))
    optimizer.register_step_post_hook(note("after"))
    try:
        train(optimizer, gradients(params, 1))
    finally:
        for handle in handles:
            handle.remove()
    assert calls == [("all, before", True, True), ("before", True, True), ("after", False, True), ("all", False, True)]


def test_profiler_names():
    """Guards against a step that profilers cannot find."""
    params = parameters((3,))
    optimizer = train(make(params), gradients(params, 1))
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
        optimizer.zero_grad()
    names = {event.name for event in profile.function_events}
    assert {"Optimizer.step#Frankenstein.step", "Optimizer.zero_grad#Frankenstein.zero_grad"} <= names


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    """Guards against a gradient left behind, and against None being treated as zeros or zeros as None."""
    params = parameters((3,))
    optimizer = train(make(params), gradients(params, 2))
    optimizer.zero_grad(set_to_none=set_to_none)
    assert params[0].grad is None if set_to_none else torch.equal(params[0].grad, torch.zeros(3))
    before = params[0].detach().clone()
    optimizer.step()
    assert torch.equal(params[0], before) == set_to_none


def test_step_inside_backward():
    """Guards against `step` needing all gradients at once: the recipe that frees each one as soon as it is used."""
    params, others = parameters((3,), (2, 2)), parameters((3,), (2, 2))
    single = {param: make([param]) for param in params}

    def step(param):
        single[param].step()
        single[param].zero_grad()

    for param in params:
        param.register_post_accumulate_grad_hook(step)
    together = make(others)
    for _ in range(4):
        sum((param**3).sum() for param in params).backward()
        together.zero_grad()
        sum((param**3).sum() for param in others).backward()
        together.step()
    assert all(param.grad is None for param in params)
    assert_bitwise([param.detach() for param in params], [param.detach() for param in others])


# Graphs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
def test_gradients_with_a_graph_leave_none_behind(setting):
    """Guards against state that keeps autograd history: memory would grow with every step."""
    params, others = parameters((3,), ()), parameters((3,), ())
    optimizer, expected = make(params, **SETTINGS[setting]), make(others, **SETTINGS[setting])
    graphs = []
    for _ in range(4):
        loss = sum((param**4).sum() for param in params)
        for param, grad in zip(params, torch.autograd.grad(loss, params, create_graph=True), strict=True):
            assert grad.requires_grad
            param.grad = grad
        graphs.append(weakref.ref(loss))
        optimizer.step()
        train(expected, [[4 * param.detach() ** 3 for param in others]])
    for tensor in (*params, *(tensor for state in optimizer.state.values() for tensor in state.values())):
        assert tensor.grad_fn is None and tensor.requires_grad == any(tensor is param for param in params)
    optimizer.zero_grad()
    del loss, grad
    gc.collect()
    assert not any(graph() is not None for graph in graphs)
    assert_bitwise([param.detach() for param in params], [param.detach() for param in others])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_differentiable(dtype, nonfinite, weight_decay):
    """Guards against wrong derivatives of three steps, against finite differences: of start, gradients and lr."""
    start, *grads = (tensor.detach().requires_grad_() for tensor in parameters(*[(3,)] * 4, dtype=dtype))
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    options = {"nonfinite": nonfinite, "weight_decay": weight_decay, "differentiable": True}

    def run(start, lr, *grads):
        param = start.clone()
        optimizer = Frankenstein([param], lr=lr, **options)
        for grad in grads:
            param.grad = grad
            optimizer.step()
        return param, *optimizer.state[param].values()

    assert torch.autograd.gradcheck(run, (start, lr, *grads))
    plain = start.detach().clone().requires_grad_()
    expected = train(
        make([plain], lr=lr.detach(), nonfinite=nonfinite, weight_decay=weight_decay), [[g] for g in grads]
    )
    assert_bitwise(run(start, lr, *grads), [plain, *expected.state[plain].values()])


def test_differentiable_training():
    """Guards against in-place changes of what autograd still needs, in the inner loop of meta-learning."""
    start = torch.tensor([0.7, -1.2], dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)

    def loss_after_training(start, lr):
        param = start.clone()
        optimizer = Frankenstein([param], lr=lr, differentiable=True)
        for _ in range(3):
            loss = (torch.cos(3 * param.clone()) + param.clone() ** 2).sum()
            (param.grad,) = torch.autograd.grad(loss, param, create_graph=True)
            optimizer.step()
        return (param**2).sum()

    assert torch.autograd.gradcheck(loss_after_training, (start, lr))


# Mixed precision ------------------------------------------------------------------------------------------------------


def test_grad_scaler():
    """Guards against a step, or a change of state, at an overflow; scales of 2**n leave the other steps bitwise."""
    params, others = parameters((3,)), parameters((3,))
    optimizer, expected = make(params), make(others)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    for i in range(8):
        optimizer.zero_grad()
        scaler.scale((params[0] ** 2).sum() * (float("inf") if i in (0, 4) else 1.0)).backward()
        before, scale = values(optimizer), scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if i in (0, 4):
            assert_bitwise(values(optimizer), before)
            assert bool(optimizer.state) == (i > 0) and scaler.get_scale() < scale
        else:
            train(expected, [[2 * others[0].detach()]])
    assert_bitwise(values(optimizer), values(expected))


def test_unscale_once():
    """Guards against gradients that clipping has unscaled being unscaled again; a closure is refused by torch."""
    params, others = parameters((3,)), parameters((3,))
    optimizer, scaler = make(params), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    scaler.scale((params[0] ** 2).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert_bitwise(values(optimizer), values(train(make(others), [[2 * others[0].detach()]])))
    scaler.update()
    with pytest.raises(RuntimeError, match="Closure use is not"):
        scaler.step(optimizer, closure=lambda: None)


# Subclasses -----------------------------------------------------------------------------------------------------------


class Wrapper:
    """What a trainer does that wants to be in front of `step`: its object takes over the optimizer's attributes."""

    def __init__(self, optimizer):
        self.__dict__.update(optimizer.__dict__)
        self.optimizer, self.n_steps = optimizer, 0
        self.__class__ = type(f"Lightning{type(optimizer).__name__}", (Wrapper, type(optimizer)), {})

    def step(self, closure=None):
        self.n_steps += 1
        return self.optimizer.step(closure)


def test_wrapped_by_a_trainer():
    """Guards against slots, metaclasses and attributes that the trainer's subclass does not have."""
    params, others = parameters((3,), ()), parameters((3,), ())
    grads = gradients(params, 6)
    inner = make(params)
    wrapped = Wrapper(inner)
    assert isinstance(wrapped, Frankenstein) and isinstance(wrapped, Optimizer)
    assert type(wrapped).__name__ == "LightningFrankenstein"
    scheduler = torch.optim.lr_scheduler.ExponentialLR(wrapped, 0.1)
    train(wrapped, grads[:3])
    scheduler.step()
    loaded = resumed(wrapped)
    expected = train(make(others), grads[:3])
    assert wrapped.n_steps == 3
    assert_bitwise(values(inner), values(expected))
    expected.param_groups[0]["lr"] = 1e-4
    train(expected, grads[3:])
    assert_bitwise(values(train(loaded, grads[3:])), values(expected))
    assert_bitwise(values(train(wrapped, grads[3:])), values(expected))


class Logged(Frankenstein):
    def step(self, closure=None):
        self.param_groups[0]["n_steps"] = self.param_groups[0].get("n_steps", 0) + 1
        return super().step(closure)


def test_subclass():
    """Guards against a subclass that cannot be copied, pickled or resumed."""
    params = parameters((3,))
    grads = gradients(params, 6)
    optimizer = train(Logged(params), grads[:3])
    twins = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    train(optimizer, grads[3:])
    for twin in twins:
        assert type(twin) is Logged
        assert_same(train(twin, grads[3:]), optimizer)
    assert optimizer.param_groups[0]["n_steps"] == 6
