"""Telemetry's presence changes nothing, and it reports what and when it says."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections import defaultdict

import pytest
import torch
from sharded import Bag, assert_same_as_whole, like
from torch._dynamo.testing import CompileCounter
from torch_contract import SETTINGS, assert_same, gradients, make, parameters, train

from frankenstein.analysis import telemetry as module
from frankenstein.analysis.telemetry import Telemetry

FLOAT32_TOLERANCE = 1e-6  # relative; one rounding to float32
WAYS = {"fused": {"fused": None}, "foreach": {"foreach": True}, "plain": {"fused": False, "foreach": False}}


def one_group(size=8, dtype=torch.float64, **options):
    (weight,) = parameters((size,), dtype=dtype)
    weight.grad = gradients([weight], 1)[0][0]
    return weight, make([weight], **options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_training_is_the_same_bit_for_bit(setting, way):
    shapes = (4, 3), (), (5,)
    alone, watched = (make(parameters(*shapes), **SETTINGS[setting], **WAYS[way]) for _ in range(2))
    steps = gradients(parameters(*shapes), 6)
    steps[3][1] = None
    with Telemetry(watched, every=1) as telemetry:
        train(watched, steps)
    assert len(telemetry.history) == 6
    assert_same(watched, train(alone, steps))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_training_with_small_state_is_the_same_bit_for_bit(dtype, state_dtype, way):
    shapes = (64, 80), (7,)
    alone, watched = (make(parameters(*shapes, dtype=dtype), state_dtype=state_dtype, **WAYS[way]) for _ in range(2))
    steps = gradients(parameters(*shapes, dtype=dtype), 3)
    with Telemetry(watched, every=1):
        train(watched, steps)
    assert_same(watched, train(alone, steps))


def test_nothing_finite_at_all():
    weight, optimizer = one_group(4)
    weight.grad.fill_(math.nan)
    telemetry = Telemetry(optimizer, every=1)
    optimizer.step()
    (report,) = telemetry.history
    assert report.nonfinite == 1.0
    assert all(math.isnan(value) for values in report.quantiles.values() for value in values)
    curves = json.loads(json.dumps(telemetry.curves(), allow_nan=False))
    assert curves["telemetry/0/xi_q50"] == [None] and curves["telemetry/0/nonfinite"] == [1.0]


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_a_pause(lr):
    _, optimizer = one_group(lr=lr, weight_decay=0.1)
    with Telemetry(optimizer, every=1) as telemetry:
        optimizer.step()
    (report,) = telemetry.history
    assert (report.lr, report.update_to_weight, report.nonfinite) == (0.0, 0.0, 0.0)
    assert report.quantiles["effective_step"] == (0.0,) * 5


def test_a_tensor_lr_is_read_at_its_step():
    _, optimizer = one_group(lr=torch.tensor(1e-3))
    with Telemetry(optimizer, every=1) as telemetry:
        optimizer.step()
        optimizer.param_groups[0]["lr"].fill_(4e-3)
        optimizer.step()
    assert [report.lr for report in telemetry.history] == pytest.approx([1e-3, 4e-3], rel=FLOAT32_TOLERANCE)
    assert [report.beta1 for report in telemetry.history] == pytest.approx([0.9, 0.8], rel=FLOAT32_TOLERANCE)


def test_the_first_step_and_groups_that_come_and_go():
    """No state yet; a group without gradients; a group added later, with its own name."""
    first, second, third = parameters((3,), (2,), (4,))
    optimizer = make([{"params": [first]}, {"params": [second]}])
    telemetry = Telemetry(optimizer, every=1)
    first.grad = torch.ones(3)
    optimizer.step()
    optimizer.add_param_group({"params": [third], "name": "head"})
    third.grad = torch.ones(4)
    optimizer.step()
    assert [(report.step, report.group) for report in telemetry.history] == [(1, "0"), (2, "0"), (2, "head")]
    curves = telemetry.curves()
    assert curves["step"] == [1, 2]
    assert curves["telemetry/head/beta1"][0] is None and curves["telemetry/head/beta1"][1] is not None
    assert {len(column) for column in curves.values()} == {2}
    assert telemetry.numbers() == telemetry.history[1].tagged() | telemetry.history[2].tagged()
    first.grad = None
    optimizer.step()
    assert telemetry.numbers() == telemetry.history[3].tagged()
    assert telemetry.history[3].group == "head"


def test_columns_for_the_curve_of_a_run():
    """Each evaluation gets the newest report up to it; before the first there is none."""
    _, optimizer = one_group()
    with Telemetry(optimizer, every=3) as telemetry:
        for _ in range(8):
            optimizer.step()
    curve = {"step": [0, 2, 3, 5, 8], "score": [0.1, 0.2, 0.3, 0.4, 0.5]}
    third, sixth = (report.update_to_weight for report in telemetry.history)
    curve |= telemetry.curves(curve["step"])
    assert curve["step"] == [0, 2, 3, 5, 8]
    assert curve["telemetry/0/update_to_weight"] == [None, None, third, third, sixth]


def test_without_a_report_there_are_no_columns():
    _, optimizer = one_group()
    telemetry = Telemetry(optimizer)
    assert telemetry.curves() == {"step": []} and telemetry.curves([0, 5]) == {"step": [0, 5]}
    assert telemetry.numbers() == {}


def test_no_state_is_made_before_the_step():
    _, optimizer = one_group()
    Telemetry(optimizer).measure()
    assert not optimizer.state


def test_groups_of_one_name_are_told_apart():
    first, second = parameters((3,), (2,))
    optimizer = make([{"params": [first], "name": "same"}, {"params": [second], "name": "same"}])
    first.grad, second.grad = torch.ones(3), torch.ones(2)
    assert [report.group for report in Telemetry(optimizer).measure()] == ["0", "1"]


def test_a_sparse_gradient_is_the_steps_to_refuse():
    weight, optimizer = one_group(4)
    weight.grad = weight.detach().to_sparse()
    with Telemetry(optimizer, every=1) as telemetry, pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert not telemetry.history and not telemetry.numbers()


def with_closure(step_of):
    """Reports and losses of a training in which `step_of(optimizer)` is called with a closure."""
    weight, optimizer = one_group(4, fused=False)
    weight.grad = None

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    with Telemetry(optimizer, every=2) as telemetry:
        step = step_of(optimizer)
        losses = [step(closure).item() for _ in range(8)]
    return telemetry.history, losses


@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_closures_gradients_are_seen(by_keyword):
    def given(optimizer):
        return lambda closure: optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)

    def by_the_loop(optimizer):
        def step(closure):
            loss = closure()
            optimizer.step()
            return loss

        return step

    (reports, losses), (expected, losses_expected) = with_closure(given), with_closure(by_the_loop)
    assert [report.step for report in reports] == [2, 4, 6, 8]
    assert list(reports) == list(expected) and losses == losses_expected


def test_scaled_gradients_are_unscaled_and_a_skipped_step_is_none():
    weight, optimizer = one_group(4, dtype=torch.float32)
    (expected,) = Telemetry(optimizer).measure()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plain = weight.grad.clone()
    with Telemetry(optimizer, every=1) as telemetry:
        for factor in (math.inf, 1024.0):
            scaler.scale(torch.ones(()))  # which starts the scaler
            weight.grad = plain * factor
            scaler.step(optimizer)
            scaler.update(1024.0)
    (report,) = telemetry.history
    assert report == expected


def test_between_reports_steps_are_only_counted(monkeypatch):
    _, optimizer = one_group()
    looked = []
    monkeypatch.setattr(module, "take", lambda _: looked.append(1) or [])
    telemetry = Telemetry(optimizer, every=3)
    counts = []
    for _ in range(7):
        optimizer.step()
        counts.append(len(looked))
    assert counts == [0, 0, 1, 1, 1, 2, 2]
    assert telemetry.step == 7


def test_detached_for_good():
    _, optimizer = one_group()
    _, fresh = one_group()
    with Telemetry(optimizer, every=1) as telemetry:
        optimizer.step()
    telemetry.detach()
    optimizer.step()
    assert len(telemetry.history) == 1 and telemetry.step == 1
    assert optimizer._optimizer_step_pre_hooks == fresh._optimizer_step_pre_hooks
    assert optimizer._optimizer_step_post_hooks == fresh._optimizer_step_post_hooks


def test_two_at_once():
    _, optimizer = one_group()
    often, seldom = Telemetry(optimizer, every=1), Telemetry(optimizer, every=2)
    optimizer.step()
    often.detach()
    optimizer.step()
    assert [report.step for report in often.history] == [1]
    assert [report.step for report in seldom.history] == [2]


def test_checkpoints_and_copies_know_nothing_of_it():
    _, optimizer = one_group()
    _, alone = one_group()
    telemetry = Telemetry(optimizer, every=1)
    optimizer.step()
    alone.step()
    saved, expected = optimizer.state_dict(), alone.state_dict()
    assert saved["param_groups"] == expected["param_groups"]
    assert saved["state"][0].keys() == expected["state"][0].keys()
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        copied.step()
        assert not copied._optimizer_step_pre_hooks
    assert len(telemetry.history) == 1
    optimizer.load_state_dict(saved)
    telemetry.step = 500
    optimizer.step()
    assert telemetry.history[-1].step == 501


def test_the_history_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_REPORTS", 3)
    _, optimizer = one_group()
    with Telemetry(optimizer, every=1) as telemetry:
        for _ in range(5):
            optimizer.step()
    assert [report.step for report in telemetry.history] == [3, 4, 5]


def test_tensorboard_shows_what_is_reported(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    _, optimizer = one_group()
    for name in ("live", "later"):
        with SummaryWriter(str(tmp_path / name)) as writer:
            with Telemetry(optimizer, every=2, writer=writer if name == "live" else None) as telemetry:
                for _ in range(4):
                    optimizer.step()
            if name == "later":
                telemetry.to_tensorboard(writer)
        found = EventAccumulator(str(tmp_path / name)).Reload()
        shown = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
        expected = defaultdict(list)
        for report in telemetry.history:
            for tag, value in report.tagged().items():
                expected[tag].append((report.step, pytest.approx(value, rel=FLOAT32_TOLERANCE)))
        assert [report.step for report in telemetry.history] == [2, 4]
        assert shown == expected


def test_flat_names():
    _, optimizer = one_group()
    (report,) = Telemetry(optimizer).measure()
    numbers = report.numbers()
    assert numbers["P_q01"] == report.quantiles["P"][0] and numbers["rho_q99"] == report.quantiles["rho"][-1]
    assert {name for name in numbers if "_q" not in name} == {
        *("lr", "beta1", "update_to_weight", "nonfinite"),
        *("at_clip_rho_low", "at_clip_rho_high", "at_clip_beta1"),
    }
    assert all(type(value) is float for value in numbers.values())


def test_another_optimizer_is_refused():
    (weight,) = parameters((2,))
    with pytest.raises(TypeError, match=r"^telemetry is of a frankenstein.Frankenstein optimizer, not of AdamW$"):
        Telemetry(torch.optim.AdamW([weight]))


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "100", None])
def test_every_is_a_number_of_steps(every):
    _, optimizer = one_group()
    with pytest.raises(ValueError, match="Invalid every"):
        Telemetry(optimizer, every=every)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_recorded_graph_is_left_alone(monkeypatch):
    """While a CUDA graph is recorded nothing may wait for the device."""
    monkeypatch.setattr(module, "_is_captured", lambda: True)
    _, optimizer = one_group()
    telemetry = Telemetry(optimizer, every=1)
    optimizer.step()
    assert not telemetry.history
    assert telemetry.measure()


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


COMPILED = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's


@COMPILED
@pytest.mark.parametrize(("every", "n_reports"), [(2, 5), (100, 0)])
def test_a_compiled_step_is_one_graph_still(compiler, every, n_reports):
    """Guards against the count being compiled in, which would compile anew at every step."""
    found = []
    for is_compiled in (True, False):
        params = parameters((4, 3), (5,))
        optimizer = make(params, fused=None if is_compiled else False)
        with Telemetry(optimizer, every=every) as telemetry:
            step = torch.compile(optimizer.step, backend=compiler) if is_compiled else optimizer.step
            for grads in gradients(params, 10):
                for param, grad in zip(params, grads, strict=True):
                    param.grad = grad
                step()
        found.append(list(telemetry.history))
    assert compiler.frame_count == 1
    assert len(found[0]) == n_reports
    assert found[0] == found[1]


@COMPILED
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's
def test_a_compiled_step_with_a_closure(compiler):
    """Guards against the compiler tracing what looks at the closure's gradients."""
    reports, losses = with_closure(lambda optimizer: torch.compile(optimizer.step, backend=compiler))
    n_graphs = compiler.frame_count
    expected, losses_expected = with_closure(lambda optimizer: optimizer.step)
    assert n_graphs <= 2  # with the closure, and with the one that looks too; of eight steps
    assert list(reports) == list(expected) and losses == losses_expected


def watch_sharded():
    model, reference = Bag(), Bag(is_sharded=False)
    optimizer, expected = make(model.parameters(), state_dtype="8bit"), make(reference.parameters(), state_dtype="8bit")
    grads = gradients(list(reference.parameters()), 3)
    train(expected, grads)
    with Telemetry(optimizer, every=1) as telemetry:
        train(optimizer, like(list(model.parameters()), grads))
    assert_same_as_whole(optimizer, expected)
    sizes = [[param.numel() for param in net.parameters()] for net in (model, reference)]
    kept = sizes[1][0] + sizes[1][-1]  # not sharded
    return [report.n_elements for report in telemetry.history], sum(sizes[1]), kept


def test_a_process_reports_on_its_part(ranks):
    (here, n_elements, n_kept), (there, *_) = ranks.run(watch_sharded)
    assert len(here) == 3
    for one, other in zip(here, there, strict=True):
        assert one + other == n_elements + n_kept
        assert one > 0 and other > 0
