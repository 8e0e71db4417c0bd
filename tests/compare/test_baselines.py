"""The table of optimizers: each entry builds what it says, and its update is the one that its class computes."""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import pytorch_optimizer
import torch
from latex2mathml.converter import convert

from frankenstein.compare.baselines import ADAMW_SHARE, OPTIMIZERS

ROOT = Path(__file__).parents[2]
BY_NAME = {spec.name: spec for spec in OPTIMIZERS}
EVERY = pytest.mark.parametrize("spec", OPTIMIZERS, ids=lambda spec: spec.name)

# Float64 on both sides, the same formula in another order; AdaBound and AdaBelief add 1e-15 and 1e-16 under the root.
LAW_RTOL = 1e-9
# Muon's class computes its matrices in bfloat16, which has eight bits.
BFLOAT16_ATOL = 0.05

# torch recommends autograd.grad instead; Sophia's class needs the graph on `grad`, and zero_grad breaks the cycle.
pytestmark = pytest.mark.filterwarnings(r"ignore:Using backward\(\) with create_graph=True:UserWarning")


def target(spec):
    module, _, name = spec.target.partition(":")
    return getattr(import_module(module), name)


def argument(holder, key):
    """Return the item that a key of settings names: `betas[0]` is the first of `betas`."""
    name, _, item = key.partition("[")
    return holder[name][int(item[:-1])] if item else holder[name]


def class_defaults(spec):
    return {name: parameter.default for name, parameter in inspect.signature(target(spec)).parameters.items()}


# The entries ----------------------------------------------------------------------------------------------------------


def test_names_are_unique_and_plain():
    assert len(BY_NAME) == len(OPTIMIZERS)
    assert len({spec.title for spec in OPTIMIZERS}) == len(OPTIMIZERS)
    assert [name for name in BY_NAME if not re.fullmatch(r"[a-z]+(-[a-z]+)*", name)] == []


@EVERY
def test_two_arguments_are_tuned(spec):
    space = spec.space(1.0)
    assert len(space) == 2
    assert space.keys() == spec.default.keys()
    for key, interval in space.items():
        assert interval.low < spec.default[key] < interval.high
        assert key.partition("[")[0] in class_defaults(spec)
    assert set(spec.tied) <= class_defaults(spec).keys()


def test_defaults_are_the_classes_own_unless_said():
    different = {}
    for spec in OPTIMIZERS:
        for key, value in spec.default.items():
            if (own := argument(class_defaults(spec), key)) != value:
                different[spec.name, key] = own
    assert different == {("sgd", "momentum"): 0, ("rmsprop", "alpha"): 0.99}  # docs/optimizers.md says why


@EVERY
def test_options_change_something(spec):
    own = class_defaults(spec)
    takes_more = "kwargs" in own
    assert [key for key, value in spec.options.items() if own.get(key, not takes_more) == value] == []


@EVERY
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_the_class_receives_the_settings(spec, factor):
    changed = spec.default | {"lr": spec.default["lr"] * factor}
    if factor != 1.0:
        changed[spec.second[0]] = spec.second[1].at(0.4)
    optimizer = spec.make([torch.nn.Parameter(torch.ones(2, 2))], changed)
    assert isinstance(optimizer, torch.optim.Optimizer)
    (group,) = optimizer.param_groups
    for key, value in changed.items():
        assert argument(group, key) == value
    if "betas" in group:
        assert group["betas"][1:] == class_defaults(spec)["betas"][1:]
    for key in spec.tied:
        assert group[key] == changed["lr"]
    for key, value in spec.options.items():
        assert group.get(key, getattr(optimizer, key, None)) == value


def test_muon_moves_both_learning_rates():
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((3,), (2, 3), (), (4, 2, 3, 3))]
    matrices, others = BY_NAME["muon"].make(iter(params), {"lr": 0.2, "momentum": 0.8}).param_groups
    assert [p.ndim for p in matrices["params"]] == [2, 4]
    assert [p.ndim for p in others["params"]] == [1, 0]
    assert (matrices["lr"], matrices["momentum"], matrices["use_muon"]) == (0.2, 0.8, True)
    assert (others["lr"], others["use_muon"]) == (pytest.approx(3e-3), False)
    (only,) = BY_NAME["muon"].make(params[:1], BY_NAME["muon"].default).param_groups
    assert only["lr"] == pytest.approx(3e-4)


@EVERY
def test_rule_is_latex(spec):
    """It becomes MathML whole, and nothing in it ends a table's cell or is eaten by Markdown."""
    assert spec.rule.count("{") == spec.rule.count("}") > 0
    assert re.findall(r"[|$*`]|\\[^A-Za-z ]", spec.rule) == []
    for equation in spec.rule.split(r" \quad "):
        assert "\\" not in re.sub(r"<[^>]*>", "", convert(equation))  # a command it does not know is left as it is
    assert spec.source


# Every class trains ---------------------------------------------------------------------------------------------------


def quadratic():
    param = torch.nn.Parameter(torch.tensor([1.0, -0.5, 2.0]))
    return [param], lambda: (torch.tensor([3.0, 1.0, 0.1]) * param.square()).sum()


def network():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    inputs, labels = torch.randn(32, 4), torch.randint(3, (32,))
    return list(model.parameters()), lambda: torch.nn.functional.cross_entropy(model(inputs), labels)


@EVERY
@pytest.mark.parametrize("start", [quadratic, network])
def test_loss_falls_at_the_published_defaults(spec, start):
    params, loss = start()
    torch.manual_seed(1)  # Sophia draws noise
    optimizer = spec.make(params, spec.default)
    steps = []
    optimizer.register_step_pre_hook(lambda *_: steps.append(0))
    before, losses = loss().item(), []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss()
        value.backward(**spec.backward)
        optimizer.step()
        losses.append(value.item())
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    assert loss().item() < before
    assert max(losses[1:]) <= before, "some step went uphill"
    assert len(steps) == 40  # the training loop times steps with hooks


# The update of each row is what its class computes --------------------------------------------------------------------
# A law takes parameters, gradient, step (from 1), state (0 at first) and learning rate; its constants are the published
# ones, written out. It returns the new parameters.


def moments(g, s, beta1=0.9, beta2=0.999):
    s["m"] = beta1 * s["m"] + (1 - beta1) * g
    s["v"] = beta2 * s["v"] + (1 - beta2) * g**2
    return s["m"], s["v"]


def sgd(theta, g, t, s, lr):
    s["b"] = 0.9 * s["b"] + g
    return theta - lr * (g + 0.9 * s["b"])


def rmsprop(theta, g, t, s, lr):
    s["v"] = 0.9 * s["v"] + 0.1 * g**2
    return theta - lr * g / (np.sqrt(s["v"]) + 1e-8)


def adam(theta, g, t, s, lr):
    m, v = moments(g, s)
    return theta - lr * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def amsgrad(theta, g, t, s, lr):
    m, v = moments(g, s)
    s["max"] = np.maximum(s["max"], v)
    return theta - lr * m / (1 - 0.9**t) / (np.sqrt(s["max"] / (1 - 0.999**t)) + 1e-8)


def adamw(theta, g, t, s, lr):
    return adam(theta, g, t, s, lr) - lr * 0.01 * theta


def pulled_back(theta, start, t, s, k):
    """Return the slow parameters at every k-th step, else the fast ones."""
    slow = s.setdefault("slow", start)
    if t % k == 0:
        theta = s["slow"] = slow + 0.5 * (theta - slow)
    return theta


def lookahead(theta, g, t, s, lr):
    return pulled_back(adam(theta, g, t, s, lr), theta, t, s, k=5)


def adabound(theta, g, t, s, lr):
    m, v = moments(g, s)
    step = lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) / (np.sqrt(v) + 1e-8)
    return theta - np.clip(step, 0.1 * (1 - 1 / (1e-3 * t + 1)), 0.1 * (1 + 1 / (1e-3 * t))) * m


def rectified(theta, g, t, s, lr, beta1, eps):
    m, v = moments(g, s, beta1)
    end = 2 / (1 - 0.999) - 1
    now = end - 2 * t * 0.999**t / (1 - 0.999**t)
    if now <= 5:
        return theta - lr * m / (1 - beta1**t)
    r = math.sqrt((now - 4) * (now - 2) * end / ((end - 4) * (end - 2) * now))
    return theta - lr * r * math.sqrt(1 - 0.999**t) * m / (1 - beta1**t) / (np.sqrt(v) + eps)


def radam(theta, g, t, s, lr):
    return rectified(theta, g, t, s, lr, 0.9, 1e-8)


def ranger(theta, g, t, s, lr):
    fast = rectified(theta, g - g.mean(axis=1, keepdims=True), t, s, lr, 0.95, 1e-5)
    return pulled_back(fast, theta, t, s, k=6)


def padam(theta, g, t, s, lr):
    m, v = moments(g, s)
    return theta - lr * math.sqrt(1 - 0.999**t) * m / (1 - 0.9**t) / (np.sqrt(v) + 1e-8) ** (2 / 8)


def adabelief(theta, g, t, s, lr):
    s["m"] = 0.9 * s["m"] + 0.1 * g
    s["v"] = 0.999 * s["v"] + 0.001 * (g - s["m"]) ** 2 + 1e-16
    return theta - lr * s["m"] / (1 - 0.9**t) / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-16)


def lamb(theta, g, t, s, lr):
    m, v = moments(g, s)
    u = m / (np.sqrt(v) + 1e-6)
    return theta - lr * min(np.linalg.norm(theta), 10) / (np.linalg.norm(u) + 1e-6) * u


def adan(theta, g, t, s, lr):
    change = g - s["g"] if t > 1 else 0.0 * g
    s["m"] = 0.98 * s["m"] + 0.02 * g
    s["n"] = 0.92 * s["n"] + 0.08 * change
    s["v"] = 0.99 * s["v"] + 0.01 * (g + 0.92 * change) ** 2
    s["g"] = g
    up = s["m"] / (1 - 0.98**t) + 0.92 * s["n"] / (1 - 0.92**t)
    return theta - lr * up / (np.sqrt(s["v"] / (1 - 0.99**t)) + 1e-8)


def lion(theta, g, t, s, lr):
    step = np.sign(0.9 * s["m"] + 0.1 * g)
    s["m"] = 0.99 * s["m"] + 0.01 * g
    return theta - lr * step


def tiger(theta, g, t, s, lr):
    s["m"] = 0.965 * s["m"] + 0.035 * g
    return (1 - lr * 0.01) * theta - lr * np.sign(s["m"])


def soap(theta, g, t, s, lr):
    if t == 1:  # nothing moves; the eigenvectors stay until step 10
        s["left"], s["right"] = np.linalg.eigh(g @ g.T)[1], np.linalg.eigh(g.T @ g)[1]
        return theta
    m, v = s["left"].T, s["right"]
    s["m"] = 0.95 * s["m"] + 0.05 * g
    s["v"] = 0.95 * s["v"] + 0.05 * (m @ g @ v) ** 2
    n = m.T @ (m @ s["m"] @ v / (np.sqrt(s["v"]) + 1e-8)) @ v.T
    return (1 - lr * 0.01) * (theta - lr * math.sqrt(1 - 0.95 ** (t - 1)) / (1 - 0.95 ** (t - 1)) * n)


def schedule_free(theta, g, t, s, lr):
    s["v"] = 0.999 * s["v"] + 0.001 * g**2
    s["z"] = s.setdefault("z", theta) - lr * g / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8)
    return (1 - 1 / t) * theta + s["z"] / t


LAWS = (sgd, rmsprop, adam, amsgrad, adamw, lookahead, adabound, ranger, radam, padam, adabelief, lamb, adan)
LAWS += (lion, tiger, soap, schedule_free)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_class_follows_the_law(law):
    """Eight steps: beyond the first five of RAdam, and past a pull-back of Lookahead (5) and of Ranger (6)."""
    rng = np.random.default_rng(0)
    theta, grads, lr = rng.normal(size=(4, 3)), rng.normal(size=(8, 4, 3)), 0.01
    param = torch.nn.Parameter(torch.tensor(theta))
    spec = BY_NAME[law.__name__.replace("_", "-")]
    optimizer = spec.make([param], spec.default | {"lr": lr})
    state = defaultdict(float)
    for t, g in enumerate(grads, 1):
        before, theta = theta, law(theta, g, t, state, lr)
        param.grad = torch.tensor(g)
        optimizer.step()
        if hasattr(optimizer, "eval"):
            optimizer.eval()
        np.testing.assert_allclose(param.detach(), theta, rtol=LAW_RTOL)
        if hasattr(optimizer, "train"):
            optimizer.train()
        assert (law is soap and t == 1) or np.abs(theta - before).min() > 1e-9


def test_sophia_follows_the_law():
    """Twelve steps: noise is drawn at the first and at the eleventh. Some elements are clipped, some are not."""
    curvature, lr = torch.tensor([1.0, 2.0, 5.0, 0.1, 3.0, -1.0], dtype=torch.float64), 0.06
    param = torch.nn.Parameter(torch.tensor([2e-3, -1e-3, 1.0, 1e-3, 4e-3, 1.0], dtype=torch.float64))
    theta, m, h = param.detach().clone(), 0.0, 0.0
    torch.manual_seed(3)
    noise = [torch.randn_like(theta) for _ in range(2)]
    spec = BY_NAME["sophia"]
    optimizer = spec.make([param], spec.default)
    torch.manual_seed(3)
    n_clipped = 0
    for t in range(12):
        g = curvature * theta
        m = 0.96 * m + 0.04 * g
        if t % 10 == 0:
            h = 0.99 * h + 0.01 * noise[t // 10] ** 2 * curvature
        ratio = m / torch.clamp(h, min=1e-12)
        n_clipped += int((ratio.abs() > 0.01).sum())
        theta = theta - lr * torch.clamp(ratio, -0.01, 0.01)
        optimizer.zero_grad()
        (0.5 * curvature * param.square()).sum().backward(create_graph=True)
        optimizer.step()
        torch.testing.assert_close(param.detach(), theta, rtol=LAW_RTOL, atol=0.0)
    assert 0 < n_clipped < 12 * 6


@pytest.mark.parametrize("shape", [(4, 3), (3, 5)])
def test_muon_follows_the_law(shape):
    rng = np.random.default_rng(1)
    theta, buffer = np.zeros(shape), 0.0
    matrix = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    vector = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = BY_NAME["muon"].make([matrix, vector], {"lr": 1.0, "momentum": 0.95})
    for _ in range(2):
        g = rng.normal(size=shape)
        buffer = 0.95 * buffer + 0.05 * g
        u, singular, v = np.linalg.svd(0.05 * g + 0.95 * buffer, full_matrices=False)
        singular = singular / np.linalg.norm(singular)
        for _ in range(5):  # the published Newton-Schulz steps, which leave singular values between 0.7 and 1.2
            singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
        assert singular.min() > 0.65 and singular.max() < 1.25
        theta = theta - math.sqrt(max(1.0, shape[0] / shape[1])) * u @ np.diag(singular) @ v
        matrix.grad, vector.grad = torch.tensor(g), torch.tensor([1.0, -2.0], dtype=torch.float64)
        optimizer.step()
        np.testing.assert_allclose(matrix.detach(), theta, atol=BFLOAT16_ATOL)
    # Adam's step under a constant gradient is lr * sign(g), whatever the betas
    np.testing.assert_allclose(vector.detach(), [-2 * ADAMW_SHARE, 2 * ADAMW_SHARE], rtol=LAW_RTOL)


# Why some options are set ---------------------------------------------------------------------------------------------


def test_ranger_would_start_uphill():
    """If this fails, the package has mended it: the option, and its note on the page, can go."""
    ends = {}
    for option in (False, True):
        param = torch.nn.Parameter(torch.ones(1))
        optimizer = pytorch_optimizer.Ranger([param], lr=0.01, degenerated_to_sgd=option)
        for _ in range(5):
            optimizer.zero_grad()
            param.square().sum().backward()
            optimizer.step()
        ends[option] = round(param.item(), 2)
    assert ends == {False: 1.10, True: 0.90}


def test_lamb_would_start_ten_times_too_large():
    moves = []
    for options in ({}, {"adam_debias": True}):
        param = torch.nn.Parameter(torch.ones(2, 2))
        param.grad = torch.ones(2, 2)
        pytorch_optimizer.Lamb([param], **options).step()
        moves.append(1.0 - param[0, 0].item())
    assert moves[0] / moves[1] == pytest.approx(10.0, rel=1e-3)  # float32


# The page -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("optimizer_table", ROOT / "docs" / "optimizer_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@EVERY
def test_page_explains_the_options(spec):
    notes = (ROOT / "docs" / "optimizers.md").read_text().partition("## Where a class departs")[2]
    silent = {"nesterov", "amsgrad", "rule"}  # the optimizer's title says it
    for key in spec.options.keys() - silent:
        assert f"`{key} = " in notes


N_BUFFERS = {  # float32 tensors of the parameter's shape
    **dict.fromkeys(("sgd", "rmsprop", "lion", "tiger", "muon"), 1),
    **dict.fromkeys(("adam", "adamw", "adabound", "radam", "padam", "adabelief", "lamb", "schedule-free"), 2),
    **dict.fromkeys(("amsgrad", "lookahead", "ranger", "sophia"), 3),
    **dict.fromkeys(("frankenstein", "frankenstein-tied", "frankenstein-authors"), 3),
    "adan": 4,
    "soap": 6,  # two moments, L, R and their eigenvectors, on a square matrix
}


@EVERY
def test_state_is_counted_whole(spec, table):
    """A wrapped optimizer's state counts too; a scalar per tensor (a step count, a norm) is nothing."""
    assert table.state_bytes(spec) == pytest.approx(4 * N_BUFFERS[spec.name], rel=1e-3)
