"""MAML: the meta-gradient, through gradient descent and through Frankenstein itself, against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from frankenstein.experiments.maml import ConvNet, Maml, labels_of
from frankenstein.rule import Rule, init, update
from frankenstein.torch import Frankenstein

N_TASKS, N_WAYS, N_SHOTS, N_QUERIES, SIZE = 2, 3, 2, 3, 12
STEP = 1e-8  # of central differences, far below sqrt(eps) = 1e-4, the gradients at which the rule bends
RELATIVE = 1e-5  # of derivatives: differences leave up to 2e-6, which falls with the square of the step
SAME = 1e-10  # relative, of two ways to compute the same in float64


@pytest.fixture(autouse=True)
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def tasks(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand((N_TASKS, N_WAYS, n, SIZE, SIZE), generator=generator) * 255 for n in (N_SHOTS, N_QUERIES)]


def network(seed=0):
    torch.manual_seed(seed)
    made = ConvNet(4, N_WAYS)
    for layer in made.layers:
        if hasattr(layer, "weight") and layer.weight.shape[1:] == (1, 1):  # normalisation, away from where it starts
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return made


def outer_loss(maml, support, query):
    logits = maml(support, query)
    return cross_entropy(logits.flatten(0, 1), labels_of(logits).repeat(N_TASKS))


def as_images(pixels):
    return pixels.flatten(0, 1).unsqueeze(1) / 255


def normalised(x, weight, bias):
    """torch's own: exact where no `vmap` is."""
    return nn.functional.batch_norm(x, None, None, weight.flatten(), bias.flatten(), training=True)


def by_hand(weights, images):
    """The network, written once more with torch's functions alone."""
    x = images
    for i in range(4):
        x = nn.functional.conv2d(x, weights[f"layers.{3 * i}.weight"], stride=2, padding=1)
        x = normalised(x, *(weights[f"layers.{3 * i + 1}.{name}"] for name in ("weight", "bias"))).relu()
    return nn.functional.linear(x.mean((2, 3)), weights["last.weight"], weights["last.bias"])


def task_by_task(weights, support, query, inner_lr, n_inner, is_first_order):
    """The outer loss by torch.autograd, one task after the other."""
    losses = []
    for shown, asked in zip(map(as_images, support), map(as_images, query), strict=True):
        adapted = weights
        for _ in range(n_inner):
            loss = cross_entropy(by_hand(adapted, shown), torch.arange(N_WAYS).repeat_interleave(N_SHOTS))
            gradients = torch.autograd.grad(loss, list(adapted.values()), create_graph=not is_first_order)
            adapted = {name: value - inner_lr * g for (name, value), g in zip(adapted.items(), gradients, strict=True)}
        losses.append(cross_entropy(by_hand(adapted, asked), torch.arange(N_WAYS).repeat_interleave(N_QUERIES)))
    return torch.stack(losses).mean()


def directional(function, values, direction):
    """Return the derivative along a direction, by autograd and by central differences."""
    values = [value.detach().requires_grad_() for value in values]
    exact = sum((g * d).sum() for g, d in zip(torch.autograd.grad(function(*values), values), direction, strict=True))
    ahead, behind = (
        function(*((v.detach() + sign * STEP * d).requires_grad_() for v, d in zip(values, direction, strict=True)))
        for sign in (1, -1)
    )
    return exact.item(), ((ahead - behind) / (2 * STEP)).item()


def directions(values, n=3):
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(value.shape, generator=generator) for value in values] for _ in range(n)]


@pytest.mark.parametrize("n_inner", [1, 3])
def test_the_meta_gradient_is_exact(n_inner):
    """Guards against an inner loop that is cut from the graph, and against operations whose second derivative is off.

    It goes through the module's own parameters, as an optimizer sees them.
    """
    support, query = tasks()
    maml = Maml(network(), 0.4, (n_inner, 1))
    params = list(maml.parameters())
    gradient = torch.autograd.grad(outer_loss(maml, support, query), params)
    for direction in directions(params):
        exact = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)).item()
        losses = []
        for step in (STEP, -2 * STEP, STEP):  # ahead, behind, and back
            with torch.no_grad():
                for param, d in zip(params, direction, strict=True):
                    param += step * d
                losses.append(outer_loss(maml, support, query).item())
        assert exact == pytest.approx((losses[0] - losses[1]) / (2 * STEP), rel=RELATIVE, abs=RELATIVE)


@pytest.mark.parametrize("is_first_order", [False, True])
@pytest.mark.parametrize("n_inner", [1, 2])
def test_equals_task_by_task(n_inner, is_first_order):
    """Guards against tasks that see each other under `vmap`, and first-order MAML that is something else."""
    support, query = tasks()
    maml = Maml(network(), 0.3, (n_inner, 3), is_first_order)
    loss = outer_loss(maml, support, query)
    loss.backward()
    weights = {name: p.detach().clone().requires_grad_() for name, p in maml.network.named_parameters()}
    expected = task_by_task(weights, support, query, 0.3, n_inner, is_first_order)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=SAME)
    for name, param in maml.network.named_parameters():
        torch.testing.assert_close(param.grad, weights[name].grad, rtol=SAME, atol=SAME)
    scored = task_by_task(weights, support, query, 0.3, 3, is_first_order).item()
    with torch.no_grad():  # as it is scored: the inner loop still takes its steps
        assert outer_loss(maml.eval(), support, query).item() == pytest.approx(scored, rel=SAME)


def test_first_order_is_cheaper_and_different():
    support, query = tasks()
    gradients = []
    for is_first_order in (False, True):
        maml = Maml(network(), 0.4, is_first_order=is_first_order)
        gradients.append(torch.autograd.grad(outer_loss(maml, support, query), list(maml.parameters())))
    gap = max((one - other).abs().max().item() for one, other in zip(*gradients, strict=True))
    assert gap > 1e-3


# Frankenstein as the inner optimizer ----------------------------------------------------------------------------------

N_INNER = 4
SETTINGS = {"momentum": 0.8, "base_lr": 0.01, "eps": 1e-8}
INNER_LR = torch.tensor(0.02, dtype=torch.float64)


def with_the_class(names, support, query, lr, *start):
    """The outer loss after `N_INNER` steps of `Frankenstein(differentiable=True)` on clones, task by task."""
    model, losses = network(), []
    for shown, asked in zip(map(as_images, support), map(as_images, query), strict=True):
        params = [value.clone() for value in start]
        optimizer = Frankenstein(params, lr=lr, differentiable=True, **SETTINGS)
        for _ in range(N_INNER):
            # what the loss keeps for its derivative is a copy: the step changes the parameters themselves
            logits = functional_call(model, dict(zip(names, [p.clone() for p in params], strict=True)), (shown,))
            gradients = torch.autograd.grad(cross_entropy(logits, labels_of(logits)), params, create_graph=True)
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient
            optimizer.step()
        logits = functional_call(model, dict(zip(names, params, strict=True)), (asked,))
        losses.append(cross_entropy(logits, labels_of(logits)))
    return torch.stack(losses).mean()


def with_the_rule(names, support, query, lr, *start):
    """The same with `frankenstein.rule.update` in `torch.func`, all tasks at once."""
    model = network()

    def loss(weights, images):
        logits = functional_call(model, weights, (images,))
        return cross_entropy(logits, labels_of(logits))

    def answer(weights, shown, asked):
        states = {name: init(torch, value) for name, value in weights.items()}
        for _ in range(N_INNER):
            gradients = grad(loss)(weights, shown)
            weights = dict(weights)
            for name in names:
                delta, states[name] = update(torch, gradients[name], states[name], lr=lr, rule=Rule(), **SETTINGS)
                weights[name] = weights[name] + delta
        return loss(weights, asked)

    shown, asked = (torch.stack([as_images(task) for task in pixels]) for pixels in (support, query))
    return vmap(answer, (None, 0, 0))(dict(zip(names, start, strict=True)), shown, asked).mean()


@pytest.mark.parametrize("inner_loop", [with_the_class, with_the_rule])
def test_meta_gradient_through_frankenstein(inner_loop):
    """Guards against wrong derivatives of several steps: with respect to all first weights, and to the learning rate.

    `tests/test_torch_modes.py` has the same for two numbers; here the gradients are those of a network on tasks.
    """
    support, query = tasks()
    names, start = zip(*network().named_parameters(), strict=True)

    def loss(lr, *start):
        return inner_loop(names, support, query, lr, *start)

    values = [INNER_LR, *start]
    only_lr = [torch.ones(()), *(torch.zeros_like(value) for value in start)]
    only_start = [[torch.zeros(()), *direction] for direction in directions(start)]
    for direction in (only_lr, *only_start):
        exact, numeric = directional(loss, values, direction)
        assert exact == pytest.approx(numeric, rel=RELATIVE, abs=RELATIVE)
        assert abs(exact) > 1e-3  # else anything would do


def test_the_class_and_the_rule_agree():
    """Guards against a meta-gradient of another update than the one that is taken."""
    support, query = tasks()
    names, start = zip(*network().named_parameters(), strict=True)
    found = []
    for inner_loop in (with_the_class, with_the_rule):
        values = [value.detach().clone().requires_grad_() for value in (INNER_LR, *start)]
        loss = inner_loop(names, support, query, *values)
        found.append([loss.detach(), *torch.autograd.grad(loss, values)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=SAME, atol=SAME)
