"""All ways to take a step agree, on any shapes, and every one of them resumes exactly."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_contract import SETTINGS, assert_bitwise, assert_same, gradients, make, parameters, resumed, train, values

from frankenstein import library
from frankenstein import rule as R
from frankenstein.kernels import cpu, foreach
from frankenstein.torch import Frankenstein

needs_kernel = pytest.mark.skipif(cpu.why_not() is not None, reason=f"there is no kernel for {cpu.why_not()}")

# Float32 roundings of at most 4 units in the last place, on parameters and steps of order one. The second moment is
# left out: after a jump of the gradient it is what two large numbers differ by.
PATH_TOLERANCE = {"param": 5e-6, "momentum_buffer": 5e-6, "squared_grad": 1e-6}
WAYS = {"plain": {"fused": False}, "foreach": {"foreach": True}, "fused": {}}
N_STEPS = 6


@needs_kernel
def test_what_is_tested_as_fused_is():
    optimizer = train(make(parameters((4, 3)), fused=True), gradients(parameters((4, 3)), 1))
    assert optimizer.param_groups[0]["fused"] is True


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=5),
    st.sampled_from(sorted(SETTINGS)),
    st.integers(0, 2**31),
)
def test_all_ways_agree_on_any_shapes(shapes, setting, seed):
    """Lists are the plain operations, bit for bit; a step of the kernel is as near as float32 allows."""
    plain, lists, fused = (
        make(parameters(*map(tuple, shapes), seed=seed), **{"fused": None, **SETTINGS[setting], **way})
        for way in WAYS.values()
    )
    for grads in gradients(parameters(*map(tuple, shapes)), N_STEPS, seed=seed + 1):
        copy_to(fused, plain)  # a jump of the gradient magnifies what was rounded before it: each step on its own
        for optimizer in (plain, lists, fused):
            train(optimizer, [grads])
        for param, other in zip(*(o.param_groups[0]["params"] for o in (plain, fused)), strict=True):
            entries = plain.state[param], fused.state[other]
            pairs = {"param": (other, param)} | {key: (entries[1][key], entries[0][key]) for key in entries[0]}
            for key, tolerance in PATH_TOLERANCE.items():
                if key in pairs:
                    torch.testing.assert_close(*pairs[key], rtol=tolerance, atol=tolerance)
    assert_bitwise(values(lists), values(plain))


def copy_to(optimizer, source):
    """Give an optimizer the parameters and the state of another."""
    for param, other in zip(*(o.param_groups[0]["params"] for o in (optimizer, source)), strict=True):
        param.data.copy_(other)
        if source.state[other]:
            optimizer.state[param] = {key: value.clone() for key, value in source.state[other].items()}


def test_short_lists_are_the_same_numbers(monkeypatch):
    """Guards against a parameter that falls between two lists."""
    shapes = (3,), (50,), (), (4, 4), (0,), (7,)
    monkeypatch.setattr(foreach, "MAX_ELEMENTS", 20)
    lists = train(make(parameters(*shapes), foreach=True), gradients(parameters(*shapes), N_STEPS))
    assert_bitwise(
        values(lists), values(train(make(parameters(*shapes), fused=False), gradients(parameters(*shapes), N_STEPS)))
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resumes_exactly(way, state_dtype, dtype):
    """Guards against state that a file does not hold, rounding by chance among it."""
    shapes = (40, 130), (3,), (5000,)
    options = {"state_dtype": state_dtype, "lr": 1e-2, "weight_decay": 0.1, **WAYS[way]}
    grads = gradients(parameters(*shapes, dtype=dtype), 8)
    whole = train(make(parameters(*shapes, dtype=dtype), **options), grads)
    half = train(make(parameters(*shapes, dtype=dtype), **options), grads[:4])
    assert_same(train(resumed(half, **WAYS[way]), grads[4:]), whole)


@needs_kernel
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_how_elements_are_divided_changes_no_bit(state_dtype):
    """Guards against results that depend on vector lengths, on threads, or on where a tensor lies."""
    whole = parameters((70_001,))
    grads = gradients(whole, 5)
    cuts = [1, 15, 17, 256, 33_000, 70_001 - 33_289]
    parts = [part.clone().requires_grad_() for part in whole[0].detach().split(cuts)]
    expected = train(make(whole, state_dtype=state_dtype), grads)
    actual = train(make(parts, state_dtype=state_dtype), [step[0].split(cuts) for step in grads])
    for key in ("momentum_buffer", "second_moment", "squared_grad"):
        joined = torch.cat([actual.state[part][key] for part in parts])
        assert_bitwise([joined], [expected.state[whole[0]][key]])
    assert_bitwise([torch.cat([part.detach() for part in parts])], whole)


@needs_kernel
def test_threads_change_no_bit():
    results = []
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            params = parameters((300, 401), (7,), (64, 64, 3, 3))
            results.append(values(train(make(params, state_dtype="8bit"), gradients(params, 4))))
    finally:
        torch.set_num_threads(before)
    assert_bitwise(results[1], results[0])
    assert_bitwise(results[2], results[0])


@needs_kernel
def test_autograd_knows_that_a_parameter_was_written():
    """Guards against a backward pass through a graph whose tensors the kernel has changed behind autograd's back."""
    (param,) = parameters((4,))
    loss = (param * param).sum()
    param.grad = torch.ones(4)
    make([param], fused=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Asking for a kernel --------------------------------------------------------------------------------------------------


def test_without_a_library_the_plain_operations_do_the_work(monkeypatch):
    reason = "a CPU: it was not compiled (install again where there is a C compiler)"
    monkeypatch.setattr(library, "library", lambda: reason)
    params = parameters((4, 3))
    grads = gradients(params, 3)
    optimizer = train(make(params), grads)
    assert_bitwise(values(optimizer), values(train(make(parameters((4, 3)), fused=False), grads)))
    with pytest.raises(
        RuntimeError, match=r"^fused=True: there is no kernel for a CPU: it was not compiled .*; fused="
    ):
        train(make(params, fused=True), grads)


@needs_kernel
def test_insisting_where_there_is_no_kernel():
    """Guards against a silent fall back, and against half a step: nothing has moved."""
    params = [*parameters((3,)), *parameters((2,), dtype=torch.float64)]
    start = [param.detach().clone() for param in params]
    with pytest.raises(
        RuntimeError, match=r"a parameter of dtype torch.float64 with a gradient of dtype torch.float64"
    ):
        train(make(params, fused=True), gradients(params, 1))
    assert_bitwise(params, start)
    with pytest.raises(RuntimeError, match="there is no kernel for a rule with use_xi and use_v off; fused=None"):
        make(parameters((3,)), fused=True, rule=R.Rule(use_xi=False, use_v=False))
    with pytest.raises(RuntimeError, match=r"there is no kernel for a rule with rho up to 1\.5"):
        make(parameters((3,)), fused=True, rule=R.Rule(rho_log_range=(0.5, 1.5)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fused": True, "foreach": True}, "`fused` and `foreach` cannot be True together"),
        ({"fused": True, "differentiable": True}, "`fused` and `differentiable` cannot be True together"),
        ({"foreach": True, "differentiable": True}, "`foreach` and `differentiable` cannot be True together"),
        ({"differentiable": True, "state_dtype": "8bit"}, "`differentiable` needs state_dtype='float32', not '8bit'"),
        ({"capturable": True, "nonfinite": "raise"}, "`capturable` excludes nonfinite='raise'"),
    ],
)
def test_arguments_that_exclude_each_other(options, message):
    with pytest.raises(RuntimeError, match=message):
        make(parameters((3,)), **options)


@pytest.mark.parametrize("name", ["fused", "foreach", "kahan_sum"])
@pytest.mark.parametrize("value", [1, 0, "True"])
def test_flags_are_flags(name, value):
    with pytest.raises(ValueError, match=f"Invalid {name}: .*; allowed are True, False and None"):
        make(parameters((3,)), **{name: value})


def test_how_to_step_is_not_in_a_checkpoint():
    """Guards against a checkpoint of a machine with a kernel that cannot go on where there is none."""
    saved = make(parameters((3,)), foreach=True).state_dict()
    fresh = Frankenstein(parameters((3,)), fused=False)
    fresh.load_state_dict(saved)
    assert fresh.param_groups[0]["fused"] is False and fresh.param_groups[0]["foreach"] is None


def test_capturable_keeps_the_learning_rate_in_a_tensor():
    """Guards against graphs that go on with the learning rate they were captured with: schedulers fill the tensor."""
    params = parameters((3,))
    optimizer = make(params, lr=0.5, capturable=True)
    lr = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    plain = make(parameters((3,)), lr=0.5)
    other = torch.optim.lr_scheduler.StepLR(plain, 1, gamma=0.5)
    for grads in gradients(params, 3):
        for one, scheduler in ((optimizer, schedule), (plain, other)):
            train(one, [grads])
            scheduler.step()
    assert optimizer.param_groups[0]["lr"] is lr and lr.item() == 0.0625
    assert_bitwise(values(optimizer), values(plain))  # powers of two: the tensor holds them exactly
    optimizer.param_groups[0]["lr"] = 0.25  # a scheduler of another kind
    train(optimizer, gradients(params, 1))
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)


# Installing -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_installs_and_works_without_a_compiler(tmp_path, pytestconfig):
    """Guards against a package that needs a C compiler: it is slower without, and the doctor says so."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        tmp_path,
        "--no-build-isolation",
    ]
    copy = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", pytestconfig.rootpath, copy], check=True)
    subprocess.run([*map(str, command), str(copy)], check=True, env={"CC": "/bin/false", "PATH": "/usr/bin:/bin"})
    program = (
        "from frankenstein import cli; from frankenstein.kernels import cpu; print(cpu.why_not()); cli.main(['doctor'])"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert "it was not compiled" in said.stdout.splitlines()[0], said.stderr
    assert "fused kernel (CPU)  missing" in said.stdout
