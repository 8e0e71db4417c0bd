"""Small state: what is stored, what rounding costs, and that the C kernel and torch store the same bits."""

from __future__ import annotations

import math

import pytest
import torch
from torch_contract import assert_bitwise, assert_same, gradients, make, parameters, resumed, train

from frankenstein import rule as R
from frankenstein.kernels import Item, Options, cpu, plain
from frankenstein.kernels import state as S

needs_kernel = pytest.mark.skipif(cpu.why_not() is not None, reason=f"there is no kernel for {cpu.why_not()}")

# Three bits of mantissa: neighbours are at most an eighth apart. Eight: a 128th.
SPACING = {"8bit": 1 / 8, "bfloat16": 1 / 128}
# The mean of 4,000 roundings by chance is off by less than five standard errors of at most half a spacing.
MEAN_SHARE = 5 * 0.5 / math.sqrt(4000)
SHAPE = (20, 300)  # blocks of 256 and 44: none reaches over a row


def options(**changes):
    given = {"lr": 1e-2, "eps": 1e-8, "momentum": 0.9, "base_lr": 1e-3, "weight_decay": 0.0, "rule": R.Rule()}
    flags = {"skip_nonfinite": False, "maximize": False, "differentiable": False}
    return Options(**{**given, **flags, **changes})


def stored(values, state_dtype, noise=None, shape=SHAPE):
    """State of the given numbers as it comes back."""
    entry = S.new(torch.empty(shape), state_dtype)
    targets = R.State(*(entry[key] for key in R.STATE_KEYS))
    S.write(targets, R.State(*values), exponents=entry.get(S.EXPONENTS), noise=noise)
    return entry, S.read(*targets, exponents=entry.get(S.EXPONENTS))


def spread(decades, seed=0, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.rand(shape, generator=generator)  # noqa: E731
    return [(draw() - 0.5).sign() * (1 + draw()) * 10.0 ** (decades * draw()) for _ in range(3)]


@pytest.mark.parametrize("state_dtype, n_bytes", [("float32", 12), ("bfloat16", 6), ("8bit", 3)])
def test_bytes_per_parameter(state_dtype, n_bytes):
    """Guards against state that is smaller in name only: half of Adam's is 4."""
    param = torch.ones(64, 4096, requires_grad=True)
    optimizer = train(make([param], state_dtype=state_dtype), [[torch.ones(64, 4096)]])
    total = sum(tensor.untyped_storage().nbytes() for tensor in optimizer.state[param].values())
    assert n_bytes <= total / param.numel() < n_bytes + 0.02


@pytest.mark.parametrize("shape", [(), (7,), (4095,), (100, 63), (4096,), (64, 64), (2, 3, 700)])
def test_small_tensors_and_short_rows_stay_float32(shape):
    entry = S.new(torch.empty(shape), "8bit")
    is_small = math.prod(shape) < 4096 or len(shape) < 2 or math.prod(shape[1:]) < 64
    assert (S.EXPONENTS not in entry) == is_small
    assert entry["momentum_buffer"].dtype == (torch.float32 if is_small else torch.uint8)


@pytest.mark.parametrize("state_dtype", ["8bit", "bfloat16"])
def test_rounding_is_at_most_a_spacing_and_right_in_the_mean(state_dtype):
    m, v, x = spread(3)
    v, x = v.abs(), x.abs()
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(3, *SHAPE)
    n_draws = 4000
    for _ in range(n_draws):
        noise = torch.randint(0, 1 << 32, SHAPE, generator=generator)
        back = torch.stack(stored((m, v, x), state_dtype, noise)[1])
        total += back - torch.stack((m, v, x))
    for kind, true in enumerate((m, v, x)):
        error = (total[kind] / n_draws / true).abs()
        assert (back[kind] / true - 1).abs().max() <= SPACING[state_dtype]
        assert error.max() < 1.5 * MEAN_SHARE * SPACING[state_dtype]  # 1.5: the largest of 6,000


@pytest.mark.parametrize("state_dtype", ["8bit", "bfloat16"])
def test_what_was_stored_is_stored_exactly(state_dtype):
    """Guards against numbers that wander while nothing changes them, or while a neighbour grows."""
    m, v, x = spread(2)
    once = stored((m, v.abs(), x.abs()), state_dtype, torch.full(SHAPE, 0x87654321))[1]
    for noise in (None, torch.zeros(SHAPE, dtype=torch.int64), torch.full(SHAPE, 0xFFFFFFFF)):
        assert_bitwise(stored(once, state_dtype, noise)[1], once)
    grown = [part.clone() for part in once]
    for part in grown:
        part[:, 5] = 2.0**9
    again = stored(grown, state_dtype, torch.full(SHAPE, 0xFFFFFFFF))[1]
    assert_bitwise(again, grown)


def test_range_of_8_bits():
    """Far below the block's largest a momentum is zero; the others stay above zero, which means "no step yet"."""
    m = torch.zeros(SHAPE)
    m[0, 0], m[0, 1], m[0, 2], m[0, 3] = -1.0, 1.25 * 2.0**-15, 2.0**-17, 2.0**-17
    m[0, 256] = 2.0**-17  # another block
    v = m.abs()
    _, (m_back, v_back, x_back) = stored((m, v, v), "8bit")
    assert m_back[0, :4].tolist() == [-1.0, 1.25 * 2.0**-15, 0.0, 0.0] and m_back[0, 256] == 2.0**-17
    assert_bitwise([v_back, x_back], [v, v])
    v = torch.where(v == 0, 0.0, torch.full(SHAPE, 1e-30))
    v[0, 0] = 1.0
    back = stored((m, v, v), "8bit")[1]
    assert (back.x[0, 1:4] == 1.25 * 2.0**-31).all() and back.x[0, 4] == 0.0
    assert (
        stored((m, torch.full(SHAPE, -3.0), v), "8bit")[1].v.abs().max() == 0.0
    )  # as good as zero: the rule floors it


def test_numbers_that_are_not_finite_stay_alone():
    m, v, x = (part.abs() for part in spread(1))
    m[3, 7], v[3, 7], x[3, 7] = torch.nan, torch.inf, torch.nan
    back = stored((m, v, x), "8bit")[1]
    for part, true in zip(back, (m, v, x), strict=True):
        assert part[3, 7].isnan() and part.isnan().sum() == 1
        good = ~part.isnan()
        assert (part[good] / true[good] - 1).abs().max() <= SPACING["8bit"]


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("state_dtype", ["8bit", "bfloat16"])
def test_kernel_and_torch_store_the_same_bits(state_dtype, dtype):
    """From the same numbers after a step: the kernel's float32 state, rounded by torch, is the kernel's small state."""
    generator = torch.Generator().manual_seed(3)
    theta = torch.randn(SHAPE, generator=generator).to(dtype)
    grad = (torch.randn(SHAPE, generator=generator) * 10.0 ** torch.randn(SHAPE, generator=generator)).to(dtype)
    m, v, x = spread(2, seed=4)
    small, before = stored((1e-3 * m, v.abs(), x.abs()), state_dtype)
    wide = [part.clone() for part in before]
    twin = theta.clone()
    for param, parts, exponents in (
        (theta, [small[key] for key in R.STATE_KEYS], small.get(S.EXPONENTS)),
        (twin, wide, None),
    ):
        noise = S.noise(param.float(), grad.float())
        job, rest = cpu.prepared([Item(param, grad, *parts, exponents, None)], options())
        job()
        assert not rest
    assert_bitwise([theta], [twin])
    expected = stored(wide, state_dtype, noise)[0]
    assert expected.keys() == small.keys()
    for key in small:
        assert_bitwise([small[key]], [expected[key]])


# Parameters in bfloat16 and float16 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_small_updates_are_not_lost(dtype, fused):
    """Guards against trainings that stand still: each update is below the spacing of the weights."""
    lr, n_steps = 2e-6, 60
    results = {}
    for kind in (torch.float32, dtype):
        for kahan_sum in (None, False):
            params = [torch.ones(64, dtype=kind, requires_grad=True)]
            optimizer = make(params, lr=lr, kahan_sum=kahan_sum, fused=fused)
            results[kind, kahan_sum] = train(optimizer, [[torch.ones(64, dtype=kind)]] * n_steps)
    wide = results[torch.float32, None].param_groups[0]["params"][0]
    lost = results[dtype, False].param_groups[0]["params"][0]
    kept = results[dtype, None].param_groups[0]["params"][0]
    assert (lost == 1).all() and (wide < 0.9985).all()
    entry = results[dtype, None].state[kept]
    whole = kept.float() + entry["compensation"].float()
    # Two numbers of 8 bits each hold 16: one rounding of 2^-17 a step, and a walk of 60 of them.
    torch.testing.assert_close(whole, wide.detach(), rtol=0, atol=60 * 2.0**-17 * wide.max().item())
    assert torch.equal(kept, whole.to(dtype))


def test_float32_parameters_have_no_compensation():
    assert train(make(parameters((3,)), kahan_sum=True), gradients(parameters((3,)), 1)).state_dict()["state"][
        0
    ].keys() == set(R.STATE_KEYS)


# Changing the format --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", S.FORMATS)
@pytest.mark.parametrize("new", S.FORMATS)
def test_the_format_may_change_in_the_middle(old, new):
    """Guards against a format that is fixed by the checkpoint one starts from."""
    entry, before = stored([part if i == 0 else part.abs() for i, part in enumerate(spread(2))], old)
    after = S.converted(torch.empty(SHAPE), entry, new)
    back = S.read(*(after[key] for key in R.STATE_KEYS), exponents=after.get(S.EXPONENTS))
    for one, other in zip(back, before, strict=True):
        assert (one / other - 1).abs().max() <= SPACING.get(new, 0.0) / 2

    params = parameters(SHAPE, (3,))
    grads = gradients(params, 6)
    optimizer = train(make(params, state_dtype=old), grads[:3])
    optimizer.param_groups[0]["state_dtype"] = new
    assert_same(train(resumed(optimizer), grads[3:]), train(optimizer, grads[3:]))
    assert optimizer.state[params[0]]["momentum_buffer"].dtype == S.STORAGE[new]
    assert (S.EXPONENTS in optimizer.state[params[0]]) == (new == "8bit")


def test_state_of_another_shape_is_refused():
    saved = train(make(parameters(SHAPE), state_dtype="8bit"), gradients(parameters(SHAPE), 1)).state_dict()
    fresh = make(parameters((SHAPE[1], SHAPE[0])))
    with pytest.raises(
        ValueError, match=r"momentum_buffer of parameter 0 has the shape \(20, 300\), the parameter \(300, 20\)"
    ):
        fresh.load_state_dict(saved)
    assert not fresh.state


def test_plain_arithmetic_does_not_see_the_format():
    """One step from stored numbers is the step from these numbers in float32, bit for bit."""
    m, v, x = spread(2, seed=6)
    small, before = stored((1e-3 * m, v.abs(), x.abs()), "8bit")
    grad = spread(1, seed=7)[0]
    thetas = [torch.zeros(SHAPE), torch.zeros(SHAPE)]
    plain.step([Item(thetas[0], grad, *(small[key] for key in R.STATE_KEYS), small[S.EXPONENTS], None)], options())
    plain.step([Item(thetas[1], grad, *before, None, None)], options())
    assert_bitwise(thetas[:1], thetas[1:])
