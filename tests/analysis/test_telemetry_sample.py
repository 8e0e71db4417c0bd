"""The numbers of telemetry are those of the rule.

References are computed here with `numpy` from `rule.factors` on a replay of the same steps, and by the oracle.
"""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from torch_contract import gradients, make, parameters, train

from frankenstein import rule as R
from frankenstein.analysis.telemetry import QUANTILES, Telemetry
from frankenstein.analysis.telemetry_sample import MAX_SAMPLE
from frankenstein.kernels import state as formats

REPLAY_TOLERANCE = 1e-12  # the same formulas in float64 by another library: some units in the last place
FLOAT32_TOLERANCE = 1e-5  # a few dozen operations in float32, here with another exp and log
DIFFERENCE_TOLERANCE = 1e-9  # the difference of two float64 weights loses digits: the step is a hundredth of them
# After a few steps the kernels' float32 momentum differs in its last digits, and its product with the gradient with it.
WAYS_TOLERANCE = {"rel": 1e-3, "abs": 1e-6}
WAYS = {"fused": {"fused": None}, "foreach": {"foreach": True}, "plain": {"fused": False, "foreach": False}}


def quantiles_of(values):
    return np.quantile(np.asarray(values, "float64"), QUANTILES)


def expected_quantiles(found, lr, use_v=True):
    """Quantiles of the factors of a step, by hand."""
    effective = lr * found.xi / np.sqrt(found.v_hat) if use_v else lr * found.xi
    values = {"P": found.P, "alignment": found.alignment, "rho": found.rho, "xi": found.xi}
    values |= {"beta2": found.beta2, "w": found.w, "effective_step": effective}
    return {name: quantiles_of(value) for name, value in values.items()}


def assert_quantiles(report, expected, tolerance=REPLAY_TOLERANCE):
    assert report.quantiles.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(report.quantiles[name], values, rtol=tolerance, atol=tolerance, err_msg=name)


def one_group(size=8, dtype=torch.float64, **options):
    (weight,) = parameters((size,), dtype=dtype)
    weight.grad = gradients([weight], 1)[0][0]
    return weight, make([weight], **options)


def replayed(optimizer):
    """Factors of the step ahead of a group of one parameter, from all of its state, by numpy."""
    group = optimizer.param_groups[0]
    param = group["params"][0]
    state = R.State(*(optimizer.state[param][key].double().numpy().ravel() for key in R.STATE_KEYS))
    constants = {name: group[name] for name in ("eps", "momentum", "base_lr")}
    grad = param.grad.double().numpy().ravel()
    return R.factors(np, grad, state, lr=group["lr"], rule=R.as_rule(group["rule"]), **constants)


@pytest.mark.parametrize("rule", ["paper", "authors"])
def test_numbers_are_those_of_the_rule(rule):
    """Two groups, several tensors, a schedule: each report is that of `rule.factors` at this very step."""
    shapes = (3, 4), (), (5,), (2, 2)
    params = parameters(*shapes, dtype=torch.float64)
    groups = [{"params": params[:2], "lr": 1e-3}, {"params": params[2:], "lr": 2e-2, "momentum": 0.8, "base_lr": 1e-2}]
    optimizer = make(groups, rule=rule, weight_decay=0.1)
    telemetry = Telemetry(optimizer, every=1)
    steps = gradients(params, 12)
    thetas = [np.concatenate([p.detach().numpy().ravel() for p in ps]) for ps in (params[:2], params[2:])]
    states = [R.init(np, theta) for theta in thetas]
    for number, step in enumerate(steps, start=1):
        train(optimizer, [step])
        for i, part in enumerate((slice(0, 2), slice(2, 4))):
            options = {name: optimizer.param_groups[i][name] for name in ("lr", "eps", "momentum", "base_lr")}
            options["rule"] = R.as_rule(rule)
            grad = np.concatenate([g.numpy().ravel() for g in step[part]])
            found = R.factors(np, grad, states[i], **options)
            delta, states[i] = R.update(np, grad, states[i], **options)
            moved = delta - options["lr"] * 0.1 * thetas[i]
            report = telemetry.history[2 * (number - 1) + i]
            assert (report.step, report.group, report.n_elements, report.n_sampled) == (
                number,
                str(i),
                *[grad.size] * 2,
            )
            assert_quantiles(report, expected_quantiles(found, options["lr"]))
            assert report.beta1 == pytest.approx(found.beta1, rel=REPLAY_TOLERANCE)
            assert report.lr == options["lr"]
            ratio = np.linalg.norm(moved) / np.linalg.norm(thetas[i])
            assert report.update_to_weight == pytest.approx(ratio, rel=REPLAY_TOLERANCE)
            thetas[i] = thetas[i] + moved
        optimizer.param_groups[0]["lr"] *= 0.8


def test_numbers_are_those_of_the_oracle():
    """One scalar parameter: every quantile is the number that fifty digits give."""
    grads, lrs = [0.3, -0.02, 0.5, 1e-5, 0.04, 0.03, -2.0], [1e-3] * 7
    weight = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    with Telemetry(make([weight]), every=1) as telemetry:
        train(telemetry.optimizer, [[torch.tensor(g, dtype=torch.float64)] for g in grads])
    for report, exact in zip(telemetry.history, oracle.trajectory(1.5, grads, lrs), strict=True):
        for name in ("P", "rho", "xi", "beta2"):
            assert report.quantiles[name] == pytest.approx([float(exact[name])] * 5, rel=REPLAY_TOLERANCE)
        assert report.beta1 == pytest.approx(float(exact["beta1"]), rel=REPLAY_TOLERANCE)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_update_to_weight_is_what_the_step_does(weight_decay):
    weight, optimizer = one_group(weight_decay=weight_decay, lr=1e-2)
    train(optimizer, gradients([weight], 3))
    before = weight.detach().clone()
    with Telemetry(optimizer, every=1) as telemetry:
        optimizer.step()
    moved = (weight.detach() - before).norm() / before.norm()
    assert telemetry.history[0].update_to_weight == pytest.approx(moved.item(), rel=DIFFERENCE_TOLERANCE)


def test_the_switches_of_the_ablation():
    """A clip that the rule does not have is not reported; without v the gradient is multiplied by lr * xi."""
    rule = R.Rule(use_rho=False, use_v=False, beta2_adapts=False, beta1_follows_lr=False, ratio_limit=1.0)
    weight, optimizer = one_group(rule=rule, lr=1e-2)
    train(optimizer, gradients([weight], 3))
    (report,) = Telemetry(optimizer).measure()
    assert report.at_clip == {}
    assert_quantiles(report, expected_quantiles(replayed(optimizer), 1e-2, use_v=False))


def test_a_large_group_is_sampled_evenly():
    """The sample is every n-th element of the group's tensors in a row, also of one that lies in memory otherwise."""
    shapes = (64, 16, 3, 3), (7,), (128, 64), (5, 5)
    params = parameters(*shapes, dtype=torch.float64)
    strided = params[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    params = [strided, *params[1:]]
    optimizer = make(params, lr=1e-3)
    train(optimizer, gradients(params, 3))
    assert not optimizer.state[strided]["momentum_buffer"].is_contiguous()
    (report,) = Telemetry(optimizer).measure()
    n_elements = sum(param.numel() for param in params)
    places = np.arange(MAX_SAMPLE) * n_elements // MAX_SAMPLE

    def row(of):
        return np.concatenate([of(param).detach().numpy().ravel() for param in params])[places]

    state = R.State(*(row(lambda param, key=key: optimizer.state[param][key]) for key in R.STATE_KEYS))
    found = R.factors(np, row(lambda param: param.grad), state, lr=1e-3)
    assert (report.n_elements, report.n_sampled) == (n_elements, MAX_SAMPLE)
    assert_quantiles(report, expected_quantiles(found, 1e-3))


def test_the_sample_of_a_square_matrix_is_not_a_few_columns():
    """Guards against a sample in step with the rows: one column here is large, and its share must come out."""
    weight = torch.nn.Parameter(torch.ones(256, 256))
    weight.grad = torch.full((256, 256), 1e-3)
    weight.grad[:, 0] = 1.0
    (report,) = Telemetry(make([weight])).measure()
    assert report.at_clip["rho_high"] == pytest.approx(1 / 256, abs=1 / 1024)


@pytest.mark.parametrize("state_dtype", ["float32", "8bit"])
def test_a_report_waits_for_the_device_once(monkeypatch, state_dtype):
    """Guards against numbers read one by one: of two groups and a tensor lr, all comes to the host together."""
    params = parameters((64, 80), (7,), (64, 64))
    lr = torch.tensor(1e-3)
    optimizer = make([{"params": params[:2]}, {"params": params[2:]}], lr=lr, state_dtype=state_dtype)
    train(optimizer, gradients(params, 2))
    telemetry = Telemetry(optimizer)
    n_transfers = []
    to_the_host = torch.Tensor.cpu
    for name in ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"{name} waits for the device"))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: n_transfers.append(1) or to_the_host(tensor))
    assert len(telemetry.measure()) == 2
    assert len(n_transfers) == 1


@pytest.mark.parametrize("size", [(70, 300), (64, 64), (16, 600)])
def test_8_bit_state_is_decoded_as_the_step_does(size):
    (weight,) = parameters(size)
    optimizer = make([weight], state_dtype="8bit")
    train(optimizer, gradients([weight], 4))
    stored = optimizer.state[weight]
    assert stored["momentum_buffer"].dtype == torch.uint8
    (report,) = Telemetry(optimizer).measure()
    state = formats.read(*(stored[key] for key in R.STATE_KEYS), exponents=stored[formats.EXPONENTS])
    places = torch.arange(report.n_sampled) * weight.numel() // report.n_sampled
    state = R.State(*(part.reshape(-1)[places].double().numpy() for part in state))
    found = R.factors(np, weight.grad.reshape(-1)[places].double().numpy(), state, lr=1e-3)
    assert_quantiles(report, expected_quantiles(found, 1e-3), FLOAT32_TOLERANCE)


def test_state_in_another_format_is_read_as_the_step_will():
    """A new `state_dtype` holds from the next step on: this step's numbers are those of the converted state."""
    (weight,) = parameters((64, 64))
    optimizer = make([weight])
    train(optimizer, gradients([weight], 3))
    before = optimizer.state[weight]["momentum_buffer"].clone()
    optimizer.param_groups[0]["state_dtype"] = "bfloat16"
    (report,) = Telemetry(optimizer).measure()
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], before)
    places = torch.arange(MAX_SAMPLE) * weight.numel() // MAX_SAMPLE
    rounded = (optimizer.state[weight][key].bfloat16().double().reshape(-1)[places] for key in R.STATE_KEYS)
    state = R.State(*(part.numpy() for part in rounded))
    found = R.factors(np, weight.grad.double().reshape(-1)[places].numpy(), state, lr=1e-3)
    assert_quantiles(report, expected_quantiles(found, 1e-3), FLOAT32_TOLERANCE)


def test_all_ways_of_a_step_give_the_same_numbers():
    found = {}
    for way, options in WAYS.items():
        params = parameters((30, 20), (7,))
        with Telemetry(make(params, weight_decay=0.1, **options), every=1) as telemetry:
            train(telemetry.optimizer, gradients(params, 5))
        found[way] = [report.numbers() for report in telemetry.history]
    for way in ("foreach", "plain"):
        for numbers, expected in zip(found[way], found["fused"], strict=True):
            assert numbers == pytest.approx(expected, **WAYS_TOLERANCE), way
    assert found["fused"][0] != found["fused"][-1]


def test_bfloat16_parameters_are_computed_in_float32_with_what_was_rounded_off():
    weight, optimizer = one_group(dtype=torch.bfloat16)
    train(optimizer, gradients([weight], 5))
    entry = optimizer.state[weight]
    assert entry[formats.COMPENSATION].abs().max() > 0
    (report,) = Telemetry(optimizer).measure()
    assert_quantiles(report, expected_quantiles(replayed(optimizer), 1e-3), FLOAT32_TOLERANCE)
    whole = weight.detach().float() + entry[formats.COMPENSATION].float()
    state = R.State(*(entry[key] for key in R.STATE_KEYS))
    delta, _ = R.update(torch, weight.grad.float(), state, lr=1e-3)
    assert report.update_to_weight == pytest.approx((delta.norm() / whole.norm()).item(), rel=FLOAT32_TOLERANCE)


def test_a_complex_parameter_is_two_real_ones():
    (weight,) = parameters((5,), dtype=torch.complex128)
    pairs = torch.view_as_real(weight.detach()).clone().requires_grad_()
    steps = gradients([weight], 4)
    reports = []
    for param, grads in ((weight, steps), (pairs, [[torch.view_as_real(step[0])] for step in steps])):
        with Telemetry(make([param]), every=4) as telemetry:
            train(telemetry.optimizer, grads)
        reports += telemetry.history
    assert reports[0] == reports[1]
    assert reports[0].n_elements == 10


def test_dtypes_in_one_group_are_pooled():
    """A float32 and a float64 parameter: the quantiles are those of both together."""
    params = [parameters((6,))[0], parameters((3,), dtype=torch.float64, seed=5)[0]]
    optimizer = make(params)
    steps = gradients(params, 2)
    train(optimizer, steps)
    (report,) = Telemetry(optimizer).measure()
    alone = [replayed(optimizer)]
    optimizer.param_groups[0]["params"].reverse()
    alone.append(replayed(optimizer))
    together = [np.concatenate([np.atleast_1d(part) for part in parts]) for parts in zip(*alone, strict=True)]
    assert_quantiles(report, expected_quantiles(R.Factors(*together), 1e-3), FLOAT32_TOLERANCE)


def test_maximize_turns_the_gradient():
    weight, optimizer = one_group(maximize=True)
    other, downhill = one_group()
    other.grad = -weight.grad
    for _ in range(3):
        optimizer.step()
        downhill.step()
    assert Telemetry(optimizer).measure()[0].quantiles == Telemetry(downhill).measure()[0].quantiles


def by_hand(momentum, grad, squared_grad=1e-6, **options):
    """An optimizer whose state is given."""
    weight = torch.nn.Parameter(torch.ones(len(grad), dtype=torch.float64))
    optimizer = make([weight], **options)
    weight.grad = torch.tensor(grad, dtype=torch.float64)
    optimizer.step()
    weight.grad = torch.tensor(grad, dtype=torch.float64)
    entry = optimizer.state[weight]
    entry["momentum_buffer"].copy_(torch.tensor(momentum))
    entry["second_moment"].fill_(0.0)
    entry["squared_grad"].fill_(squared_grad)
    return optimizer


def test_shares_at_the_clips_of_the_paper():
    """`e + |g| + 0.5 - P`: above exp(1.05) where |g| > 0.14, below exp(0.8) where momentum opposes a small gradient."""
    large, opposed, neither = (0.0, 1.0), (-1e6, 1e-4), (0.0, 1e-3)
    momentum, grad = zip(large, large, large, opposed, neither, neither, neither, neither, strict=True)
    (report,) = Telemetry(by_hand(momentum, grad)).measure()
    assert report.at_clip == {"rho_low": 1 / 8, "rho_high": 3 / 8, "beta1": 0.0}
    assert min(report.quantiles["P"]) == pytest.approx(0.5) and max(report.quantiles["P"]) > 0.9


def test_share_at_the_limit_of_the_ratio():
    """g * g beyond the one before, where the momentum has an opinion; without one the ratio has no effect."""
    momentum, grad = zip((-0.1, 1e-2), (0.1, 1e-2), (-0.1, 1e-5), (0.0, 1e-2), strict=True)
    (report,) = Telemetry(by_hand(momentum, grad, rule="authors")).measure()
    assert report.at_clip["ratio"] == 2 / 4


@pytest.mark.parametrize(("lr", "share"), [(1e-3, 0.0), (1e-5, 1.0), (10.0, 1.0)])
def test_beta1_at_its_clip(lr, share):
    """The gap `0.1 sqrt(lr / base_lr)` is clipped to [0.05, 0.99]."""
    _, optimizer = one_group(lr=lr)
    assert Telemetry(optimizer).measure()[0].at_clip["beta1"] == share


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
def test_elements_that_are_not_finite_are_counted_and_left_out(bad):
    """Whatever the policy, what is known of the others is that of the others alone."""
    weight, optimizer = one_group(8, nonfinite="skip")
    train(optimizer, gradients([weight], 3))
    weight.grad[2] = bad
    weight.grad[5] = -bad
    (report,) = Telemetry(optimizer).measure()
    assert report.nonfinite == 2 / 8
    keep = [0, 1, 3, 4, 6, 7]
    state = R.State(*(optimizer.state[weight][key][keep].numpy() for key in R.STATE_KEYS))
    found = R.factors(np, weight.grad[keep].numpy(), state, lr=1e-3)
    assert_quantiles(report, expected_quantiles(found, 1e-3))
    assert math.isfinite(report.update_to_weight)


def test_elements_whose_state_is_not_finite_are_left_out():
    weight, optimizer = one_group(8)
    train(optimizer, gradients([weight], 3))
    optimizer.state[weight]["second_moment"][3] = math.nan
    (report,) = Telemetry(optimizer).measure()
    assert report.nonfinite == 1 / 8
    assert all(math.isfinite(value) for value in report.numbers().values())


def test_the_range_of_gradients_is_that_of_each_parameters_arithmetic():
    """1e16 is beyond `gradient_limit` in float32, though every factor is finite at the first step; not in float64."""
    params = [parameters((6,))[0], parameters((2,), dtype=torch.float64)[0]]
    for param in params:
        param.grad = torch.ones_like(param)
        param.grad[0] = 1e16
    (report,) = Telemetry(make(params)).measure()
    assert report.nonfinite == 1 / 8


def test_weights_of_zero():
    weight, optimizer = one_group()
    with torch.no_grad():
        weight.zero_()
    assert math.isnan(Telemetry(optimizer).measure()[0].update_to_weight)
