"""The Triton kernel: its arithmetic in Triton's interpreter, that it compiles for GPUs, and, where there is one, steps.

Triton decides when it is imported whether its functions are interpreted. So the first class runs in a process of its
own, which `test_in_the_interpreter` starts. Without a GPU, what is not run is the copy of the table and the launch.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from test_torch_numerics import Waits

from frankenstein import rule as R
from frankenstein.kernels import Item, Options, cpu, cuda, plain
from frankenstein.kernels import state as formats

triton = pytest.importorskip("triton", reason="needs triton")
tl = triton.language

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Units in the last place of float32, of the larger of the two terms of the step (they may cancel), as for the C kernel;
# and of the larger of v_hat and w v_hat, for the second moment.
ULPS = {"step": 4.0, "x": 0.51, "v": 4.0}
# A learning rate on the device gives beta1 in float32: a few roundings of what is of order one or of the rate.
LR_TOLERANCE = 3e-7
# Where beta1 is given, the rest is as exact as on the host: few last places differ.
N_DIFFERENT = 0.02

FORMATS = [  # parameter, state, compensation
    ("float32", "float32", False),
    ("float32", "bfloat16", False),
    ("float32", "8bit", False),
    ("bfloat16", "float32", True),
    ("bfloat16", "bfloat16", True),
    ("bfloat16", "bfloat16", False),
    ("bfloat16", "8bit", True),
]
# Rows that end inside of a block, and pieces that reach over them; whole pieces; a rest of one; nothing; a scalar.
SHAPES = [(6, 700), (2, 16, 128), (1025,), (7,), (0,), (0, 3), ()]
SKIPPED = [float("nan"), float("inf"), -float("inf"), 1e30, -3e15]


def options(rule="paper", lr=1e-3, **changes):
    given = {"momentum": 0.9, "base_lr": 1e-3, "weight_decay": 0.0, "skip_nonfinite": False, "maximize": False}
    eps = float(np.float32(1e-8))
    return Options(lr=lr, eps=eps, rule=R.as_rule(rule), differentiable=False, **{**given, **changes})


def made(shape, dtype="float32", state_dtype="float32", is_compensated=False, generator=None):
    param = torch.randn(shape, generator=generator).to(getattr(torch, dtype))
    entry = formats.new(param, state_dtype)
    state = (entry[key] for key in R.STATE_KEYS)
    compensation = torch.zeros_like(param) if is_compensated else None
    return Item(param, torch.zeros_like(param), *state, entry.get(formats.EXPONENTS), compensation)


def copied(items):
    return [Item(*(part if part is None else part.clone() for part in item)) for item in items]


def draw_gradients(items, generator):
    """Fill in gradients over several decades, some of them 0."""
    for item in items:
        values = torch.randn(item.grad.shape, generator=generator)
        scale = 10.0 ** torch.randn(item.grad.shape, generator=generator)
        item.grad.copy_(values * scale * (torch.rand(item.grad.shape, generator=generator) < 0.9))


def step(items, given):
    job, rest = cuda.batched(items, given)
    assert not rest
    job()


def assert_bitwise(items, others):
    for item, other in zip(items, others, strict=True):
        for name, part, expected in zip(Item._fields, item, other, strict=True):
            if part is not None:
                assert torch.equal(bits(part), bits(expected)), (name, tuple(item.param.shape))


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def ulps(actual, expected, scale=None):
    spacing = np.spacing(np.abs(expected if scale is None else scale).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(actual.numpy().astype(np.float64) - expected) / spacing))


def numbers(name, n, generator):
    """Gradient, momentum, second moment and last squared gradient in one part of the valid range."""
    sign = lambda: generator.choice([-1.0, 1.0], n)  # noqa: E731
    if name == "any scale":
        grad, m = 10.0 ** generator.uniform(-12, 6, n) * sign(), 10.0 ** generator.uniform(-12, 2, n) * sign()
    elif name == "largest gradients":
        grad, m = 10.0 ** generator.uniform(6, 15, n) * sign(), 10.0 ** generator.uniform(-20, 2, n) * sign()
    else:  # P anywhere
        grad, m = generator.normal(size=n), 3.0 * generator.normal(size=n)
    v = grad * grad * generator.uniform(0.1, 10.0, n)
    x = np.minimum(grad * grad * 10.0 ** generator.uniform(-2, 2, n) + 1e-8, 1e30)
    x[::50] = 0.0  # never stepped
    return [np.asarray(array, np.float32) for array in (grad, m, v, x)]


def has_exact_fma():
    """Whether C and Triton both round a product and a sum once: then their bits are the same."""
    is_fused_in_triton = not INTERPRETED or hasattr(triton.runtime.interpreter._interpreter, "fma_fp32")
    return cpu.why_not() is None and cpu.best_set() > 0 and is_fused_in_triton


needs_exact_fma = pytest.mark.skipif(
    not has_exact_fma(), reason="the C kernel, or the interpreter, has no fused multiply-add here"
)


def test_in_the_interpreter():
    """Run the first class below."""
    if INTERPRETED:
        pytest.skip("this is it")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::TestInterpreted"]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


class TestInterpreted:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("rule", ["paper", "authors"])
    @pytest.mark.parametrize("name", ["any scale", "largest gradients", "P anywhere"])
    def test_one_step_is_the_rule(self, name, rule):
        arrays, given = numbers(name, 5_000, np.random.default_rng(1)), options(rule)
        theta, grad, m, v, x = torch.zeros(5_000), *map(torch.from_numpy, (array.copy() for array in arrays))
        step([Item(theta, grad, m, v, x, None, None)], given)
        g, *before = (array.astype(np.float64) for array in arrays)
        before = R.State(*before)
        terms = {"lr": given.lr, "eps": given.eps, "momentum": 0.9, "base_lr": 1e-3, "rule": given.rule}
        delta, after = R.update(np, g, before, **terms)
        f = R.factors(np, g, before, **terms)
        d = given.lr * f.xi * g / np.sqrt(f.v_hat)
        scale = np.maximum(np.abs(f.rho * f.beta1**2 * before.m), (1.0 + f.beta1) * np.abs(d))
        assert ulps(theta, delta, scale) <= ULPS["step"]
        assert ulps(m, after.m, np.maximum(np.abs(f.rho * f.beta1 * before.m), np.abs(d))) <= ULPS["step"]
        assert ulps(x, after.x) <= ULPS["x"]
        if name != "largest gradients":  # there the second moment leaves float32, which the next maximum repairs
            assert ulps(v, after.v, np.maximum(1.0, f.w) * f.v_hat) <= ULPS["v"]

    @needs_exact_fma
    @pytest.mark.parametrize("rule, changes", [("paper", {}), ("authors", {"maximize": True, "weight_decay": 0.1})])
    @pytest.mark.parametrize("dtype, state_dtype, is_compensated", FORMATS)
    def test_steps_are_those_of_the_c_kernel(self, dtype, state_dtype, is_compensated, rule, changes):
        """Guards against any slip: many tensors in one batch, the same bits of parameters and state."""
        generator = torch.Generator().manual_seed(0)
        items = [made(shape, dtype, state_dtype, is_compensated, generator) for shape in SHAPES]
        others, given = copied(items), options(rule, **changes)
        for _ in range(2):
            draw_gradients(items, generator)
            for item, other in zip(items, others, strict=True):
                other.grad.copy_(item.grad)
            step(items, given)
            job, rest = cpu.prepared(others, given)
            job()
            assert not rest
            assert_bitwise(items, others)

    @needs_exact_fma
    def test_rough_inverse_roots_do_not_show(self, monkeypatch):
        """Guards against bits that depend on the GPU, whose inverse roots are off by up to 2 units."""
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

        draw = np.random.default_rng(0)

        def rough(self, handle):
            near = (1 / np.sqrt(handle.data.astype(np.float64))).astype(np.float32).view(np.int32)
            off = near + draw.integers(-2, 3, near.shape).astype(np.int32)
            return TensorHandle(off.view(np.float32), handle.dtype.scalar)

        generator = torch.Generator().manual_seed(1)
        items = [made((16, 1024), generator=generator)]
        draw_gradients(items, generator)
        others = copied(items)
        step(others, options())
        monkeypatch.setattr(InterpreterBuilder, "create_rsqrt", rough)
        step(items, options())
        assert_bitwise(items, others)

    @pytest.mark.parametrize("dtype, state_dtype, is_compensated", FORMATS[:3] + FORMATS[-1:])
    def test_skipped_elements_stay(self, dtype, state_dtype, is_compensated):
        """Guards against a skipped element that moves, decays or stops its neighbours."""
        generator = torch.Generator().manual_seed(2)
        items, given = [made((6, 700), dtype, state_dtype, is_compensated, generator)], options(skip_nonfinite=True)
        draw_gradients(items, generator)
        step(items, given)
        draw_gradients(items, generator)
        others, (before,) = copied(items), copied(items)
        bad = [0, 699, 700, 1000, 4199]
        items[0].grad.view(-1)[bad] = torch.tensor(SKIPPED, dtype=items[0].grad.dtype)
        for some in (items, others):
            step(some, options(skip_nonfinite=True, weight_decay=0.5))
        is_bad = torch.zeros(6 * 700, dtype=torch.bool)
        is_bad[bad] = True
        after, old = (formats.read(*item[2:5], exponents=item.exponents) for item in (items[0], before))
        for part, expected in zip((items[0].param, *after), (before.param, *old), strict=True):
            assert torch.equal(part.reshape(-1)[is_bad], expected.reshape(-1)[is_bad])
        for part, expected in ((items[0].param, others[0].param), (items[0].param, before.param)):
            assert torch.equal(part.view(-1)[~is_bad], expected.view(-1)[~is_bad]) is (expected is others[0].param)

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy sees the NaN
    def test_propagated_nan_stays_with_its_element(self):
        generator = torch.Generator().manual_seed(3)
        items = [made((1100,), generator=generator)]
        draw_gradients(items, generator)
        others = copied(items)
        items[0].grad[[5, 1050]] = torch.tensor([float("nan"), float("inf")])
        step(items, options())
        step(others, options())
        good = torch.ones(1100, dtype=torch.bool)
        good[[5, 1050]] = False
        for part, other in zip(items[0][:5], others[0][:5], strict=True):
            assert torch.equal(part[good], other[good])
        assert items[0].param[5].isnan() and items[0].m[[5, 1050]].isnan().all()

    @pytest.mark.parametrize(
        "rule", ["paper", "authors", R.Rule(beta1_follows_lr=False)], ids=["paper", "authors", "fixed"]
    )
    @pytest.mark.parametrize("rate", [1e-5, 1e-3, 3e-2, 2.0])
    def test_learning_rate_on_the_device(self, rate, rule):
        """Guards against a wait for the device, and against another step than with the same number on the host."""
        rate = float(torch.tensor(rate))
        generator = torch.Generator().manual_seed(4)
        items = [made((1500,), generator=generator)]
        others = copied(items)
        lr = torch.tensor(rate)
        for _ in range(3):
            draw_gradients(items, generator)
            others[0].grad.copy_(items[0].grad)
            with Waits() as waits:
                step(items, options(rule, lr, weight_decay=0.1))
            assert waits.n == 0
            step(others, options(rule, rate, weight_decay=0.1))
        for name in ("param", "m", "x"):  # v after a jump of the gradient is what two large numbers differ by
            part, other = getattr(items[0], name), getattr(others[0], name)
            torch.testing.assert_close(part, other, rtol=LR_TOLERANCE, atol=LR_TOLERANCE * max(1.0, rate))
        if isinstance(rule, R.Rule):
            assert (items[0].m != others[0].m).float().mean() < N_DIFFERENT

    @pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0), torch.zeros(1, dtype=torch.float64)], ids=str)
    @pytest.mark.parametrize("dtype, state_dtype, is_compensated", FORMATS)
    def test_learning_rate_zero_is_a_pause(self, dtype, state_dtype, is_compensated, lr):
        generator = torch.Generator().manual_seed(5)
        items = [made((6, 700), dtype, state_dtype, is_compensated, generator)]
        draw_gradients(items, generator)
        step(items, options())
        before = copied(items)
        step(items, options(lr=lr, weight_decay=0.1))
        assert_bitwise(items, before)

    def test_learning_rate_in_a_tensor_on_the_host_is_a_number(self):
        """Guards against a pause that is none: the kernel is told of a rate, or reads it, but never both."""
        rate = cuda._rate(torch.tensor(0.0), torch.device("cuda", 0))
        assert isinstance(rate, float) and rate == 0.0

    def test_noise_and_codes_are_those_of_state(self):
        """Guards against formats that drift apart: the same float32 numbers, the same codes and bits."""
        draw = np.random.default_rng(6)
        theta, grad = (torch.from_numpy(draw.normal(size=(4, 256)).astype(np.float32)) for _ in range(2))
        scale = 10.0 ** draw.uniform(-45, 38, (4, 256))
        values = torch.from_numpy((draw.normal(size=(4, 256)) * scale).astype(np.float32))
        values[0, :9] = torch.tensor([0.0, 1e-40, 3.4e38, -3.4e38, 1e-38, 2e-38, float("inf"), float("nan"), -1.5])
        values[1, :200], values[1, 200:] = 0.0, 1e30
        values += 0.0  # so that no zero has a sign: its codes are alike in value only
        values[2] = torch.from_numpy(draw.normal(size=256).astype(np.float32))
        values[3] = float("nan")
        expected_noise = formats.noise(theta, grad)
        for has_sign, n in product((True, False), (256, 200)):  # the rest of a block is not there
            codes, exponents = torch.zeros(4, 256, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)
            noise, decoded = torch.zeros(4, 256, dtype=torch.int32), torch.zeros(4, 256)
            coded[(1,)](theta, grad, values, n, noise, codes, exponents, decoded, has_sign)
            assert torch.equal(noise.to(torch.int64) & 0xFFFFFFFF, expected_noise)
            expected, blocks = formats._encode(values[:, :n], expected_noise[:, :n], has_sign)
            assert torch.equal(codes[:, :n], expected) and torch.equal(exponents, blocks[:, 0])
            expected = formats._decode(codes, exponents[:, None], has_sign)
            torch.testing.assert_close(decoded, expected, rtol=0.0, atol=0.0, equal_nan=True)

    def test_bfloat16_is_torchs(self):
        """Guards against a rounding that is not to the nearest even, and against a NaN that becomes a number."""
        draw = np.random.default_rng(7)
        pattern = draw.integers(0, 2**32, 4096, dtype=np.uint32)
        pattern[:4] = [0x3F808000, 0x3F818000, 0x7FFFFFFF, 0xFFFFFFFF]  # two ties, two NaN
        values = torch.from_numpy(pattern.view(np.float32))
        rounded = torch.zeros(4096, dtype=torch.int16)
        as_bfloat16[(1,)](values, rounded)
        torch.testing.assert_close(
            rounded.view(torch.bfloat16), values.to(torch.bfloat16), rtol=0.0, atol=0.0, equal_nan=True
        )

    def test_offsets_beyond_32_bits(self):
        """Guards against an overflow in tensors of more than 2^31 elements."""
        rows, length = 5, 3 * 2**30 + 8
        table = torch.from_numpy(cuda.table_of([cuda.Row(*[16] * 7, rows * length, length)]))
        in_row, n_blocks = int(table[0, 8]), int(table[0, 9])
        assert in_row == -(-length // 256) and n_blocks == rows * in_row and n_blocks < 2**31
        starts, counts = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)
        first = 3 * in_row - 2  # the last two blocks of a row, the first two of the next
        placed[(1,)](table, torch.tensor([first], dtype=torch.int32), starts, counts)
        left = length - (in_row - 1) * 256
        expected = [3 * length - left - 256, 3 * length - left, 3 * length, 3 * length + 256]
        assert starts.tolist() == expected and counts.tolist() == [256, left, 256, 256]
        placed[(1,)](table, torch.tensor([n_blocks - 1], dtype=torch.int32), starts, counts)
        assert counts.tolist() == [left, 0, 0, 0]
        placed_whole[(1,)](torch.tensor([2**24 + 4], dtype=torch.int32), starts)
        assert starts.tolist() == [2**32 + 1024 + 256 * i for i in range(4)]

    @pytest.mark.parametrize("state_dtype", ["float32", "8bit"])
    def test_addresses_that_are_not_aligned(self, state_dtype):
        """Guards against reads of 16 bytes at once from where they are not allowed."""
        generator = torch.Generator().manual_seed(8)
        items = [made((8, 1024), "float32", state_dtype, generator=generator)]
        draw_gradients(items, generator)
        others = copied(items)
        base = torch.zeros(8 * 1024 + 1)
        base[1:] = items[0].param.view(-1)
        shifted = items[0]._replace(param=base[1:].view(8, 1024))
        assert not cuda.table_of([cuda._row(shifted)[1]])[0, -1]
        assert cuda.table_of([cuda._row(others[0])[1]])[0, -1] == 32
        step([shifted], options())
        step(others, options())
        assert_bitwise([shifted], others)

    def test_tensors_that_do_not_lie_alike(self):
        """Guards against elements that are paired with others', in views and other orders of dimensions."""
        generator = torch.Generator().manual_seed(9)
        item = made((3, 8, 5, 7), generator=generator)
        draw_gradients([item], generator)
        expected = copied([item])
        step(expected, options())
        last = Item(*(p if p is None else p.clone().to(memory_format=torch.channels_last) for p in item))
        mixed = copied([item])[0]._replace(grad=last.grad.clone(), m=last.m.clone())
        sparse = torch.zeros(3, 8, 5, 14)[..., ::2]
        sparse.copy_(item.param)
        holes = copied([item])[0]._replace(param=sparse)
        version = sparse._version
        step([last, mixed, holes], options())
        for stepped in (last, mixed, holes):
            assert_bitwise([stepped], expected)
        assert sparse._version > version and mixed.m.is_contiguous(memory_format=torch.channels_last)

    def test_complex_parameters_are_pairs(self):
        generator = torch.Generator().manual_seed(10)
        pairs = made((40, 2), generator=generator)
        draw_gradients([pairs], generator)
        item = Item(*(p if p is None else torch.view_as_complex(p.clone()) for p in pairs))
        conjugate = copied([item])[0]
        conjugate = conjugate._replace(param=conjugate.param.conj().clone().conj(), grad=item.grad.clone())
        step([pairs], options())
        step([item, conjugate], options())
        for stepped in (item, conjugate):
            for part, expected in zip(stepped[:5], pairs[:5], strict=True):
                assert torch.equal(torch.view_as_real(part.resolve_conj()), expected)

    def test_a_table_is_made_once(self, monkeypatch):
        """Guards against a copy to the device at every step, and against a table of tensors that have moved."""
        made_tables, made_maps = [], []
        table_of, pieces_of = cuda.table_of, cuda.pieces_of
        monkeypatch.setattr(cuda, "table_of", lambda rows: made_tables.append(rows) or table_of(rows))
        monkeypatch.setattr(cuda, "pieces_of", lambda *sizes: made_maps.append(sizes) or pieces_of(*sizes))
        monkeypatch.setattr(cuda, "_made", type(cuda._made)())
        generator = torch.Generator().manual_seed(11)
        items = [made((1030,), generator=generator), made((4, 256), generator=generator)]
        versions = [item.param._version for item in items]
        draw_gradients(items, generator)
        step(items, options())
        assert (len(made_tables), len(made_maps)) == (1, 2)  # whole and ragged pieces
        step(items, options(lr=2e-3))
        assert (len(made_tables), len(made_maps)) == (1, 2)
        assert all(item.param._version > version for item, version in zip(items, versions, strict=True))
        moved = [item._replace(grad=item.grad.clone()) for item in items]
        others = copied(items)
        step(moved, options())
        step(others, options())
        assert_bitwise(moved, others)
        assert (len(made_tables), len(made_maps)) == (3, 2)

    def test_tables_that_are_kept_are_few(self, monkeypatch):
        monkeypatch.setattr(cuda, "_made", type(cuda._made)())
        monkeypatch.setattr(cuda, "MAX_MADE", 3)
        alive = [made((3,)) for _ in range(6)]
        for item in alive:
            step([item], options())
        assert len(cuda._made) == 3

    def test_what_is_not_taken(self):
        """Guards against a kernel that reads numbers of another size."""
        double, half = made((3,), "float64"), made((3,), "float16")
        mixed = made((3,), "bfloat16")._replace(grad=torch.ones(3))
        taken = made((3,))
        taken.grad.fill_(1.0)
        job, rest = cuda.batched([double, taken, half, mixed], options())
        assert [item.param.dtype for item in rest] == [torch.float64, torch.float16, torch.bfloat16]
        assert rest[0] is double and rest[1] is half and rest[2] is mixed
        before = taken.param.clone()
        job()
        assert (taken.param != before).all()
        assert cuda.prepared([taken], options())[1] == [taken]  # it is on the CPU

    def test_steps_of_plain_and_kernel_agree_in_small_formats(self):
        """Guards against the C kernel and this one being wrong alike: the parameters, within float32 roundings."""
        generator = torch.Generator().manual_seed(12)
        items = [made((16, 300), "float32", "8bit", generator=generator)]
        others = copied(items)
        draw_gradients(items, generator)
        others[0].grad.copy_(items[0].grad)
        step(items, options())
        plain.step(others, options())
        torch.testing.assert_close(items[0].param, others[0].param, rtol=1e-6, atol=1e-6)
        assert (items[0].x != others[0].x).float().mean() < 1e-3 and torch.equal(
            items[0].exponents, others[0].exponents
        )


class TestCompiled:
    __test__ = not INTERPRETED

    @pytest.fixture
    def compiled(self, monkeypatch, tmp_path):
        """Compile what would be launched, for a GPU that is not here; the list of what came of it."""
        from triton.backends.compiler import GPUTarget
        from triton.runtime.jit import JITFunction

        class Driver:
            def get_current_device(self):
                return self.capability

            def get_current_stream(self, device):
                return 0

            def get_current_target(self):
                return GPUTarget("cuda", self.capability, 32)

        driver, kernels = Driver(), []
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(triton.runtime.driver, "_active", driver)

        def compiling(self, grid):
            return lambda *args, **kwargs: kernels.append(self.run(*args, grid=grid, warmup=True, **kwargs))

        monkeypatch.setattr(JITFunction, "__getitem__", compiling)

        def compile_for(capability, *args, **kwargs):
            driver.capability = capability
            kernels.clear()
            step(*args, **kwargs)
            return [(kernel.asm["ptx"], kernel.asm["cubin"]) for kernel in kernels]

        return compile_for

    @pytest.mark.parametrize(
        "capability, dtype, state_dtype, is_compensated",
        [(90, *one) for one in FORMATS] + [(80, *FORMATS[0]), (80, *FORMATS[-1])],
    )
    def test_compiles(self, compiled, capability, dtype, state_dtype, is_compensated):
        """Guards against arithmetic that rounds otherwise than tested, and against reads of single numbers."""
        items = [
            made((8, 1024), dtype, state_dtype, is_compensated),
            made((60, 70), dtype, state_dtype, is_compensated),
        ]
        given = options("authors" if is_compensated else "paper", skip_nonfinite=state_dtype == "bfloat16")
        whole, ragged = compiled(capability, items, given)
        for ptx, cubin in (whole, ragged):
            assert cubin and f"sm_{capability}" in ptx
            arithmetic = set(re.findall(r"\b((?:add|sub|mul|fma|div|sqrt|rsqrt|rcp|ex2|lg2)\.[a-z0-9.]*f32)", ptx))
            assert arithmetic <= {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "fma.rn.f32", "rsqrt.approx.ftz.f32"}
            assert ".local" not in ptx and "atom." not in ptx and ".f64" not in ptx
        numbers_read = re.findall(r"ld\.global(?:\.L1\S*?)?\.v(\d)\.b(\d+)", whole[0])
        assert any(int(count) * int(width) == 128 for count, width in numbers_read), numbers_read
        assert not re.search(r"ld\.global\S*\.(b8|u8|b16|u16) ", whole[0]) or state_dtype == "8bit"

    def test_compiles_with_the_learning_rate_on_the_device(self, compiled):
        for lr in (torch.tensor(1e-3), torch.tensor(1e-3, dtype=torch.float64)):
            ((ptx, cubin),) = compiled(90, [made((2048,))], options(lr=lr))
            assert cubin and "sqrt.rn" not in ptx

    def test_a_new_learning_rate_compiles_nothing(self, compiled):
        """Guards against numbers that the compiler takes for constants: a schedule would compile at every step."""
        cuda_rule.step.device_caches.clear()
        for rate in (1e-3, 1.0, 2.0):
            compiled(90, [made((2048,))], options(lr=rate, weight_decay=rate, maximize=rate > 1.0))
        assert len(cuda_rule.step.device_caches[90][0]) == 1


def fail():
    raise RuntimeError("no C compiler\nand much more")


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"torch.cuda.is_available": lambda: False}, "CUDA: no GPU is here"),
        ({"torch.version.hip": "6.4"}, "CUDA: the GPU is AMD's, on which the kernel was never run"),
        ({"importlib.util.find_spec": lambda name: None}, "CUDA: triton is not installed"),
        (
            {"torch.cuda.get_device_capability": lambda device_idx: (6, 1)},
            "CUDA: the GPU is older than compute capability 7.0",
        ),
        ({"frankenstein.kernels.cuda._try_out": lambda device: fail()}, "triton fails here (RuntimeError: no C compil"),
        ({}, None),
    ],
)
def test_why_there_is_no_kernel(changes, reason, monkeypatch):
    """Guards against a step that fails where the plain operations would do."""
    here = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_capability": lambda device_idx: (9, 0),
        "torch.version.hip": None,
        "frankenstein.kernels.cuda._try_out": lambda device: None,
    }
    for name, value in {**here, **changes}.items():
        monkeypatch.setattr(name, value)
    caches = (cuda._missing, cuda._why_not_on)
    try:
        for cache in caches:
            cache.cache_clear()
        assert cuda.why_not() == reason or reason in cuda.why_not()
        assert cuda._is_here(torch.device("cuda", 0)) is (reason is None)
    finally:
        for cache in caches:
            cache.cache_clear()


@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU")
class TestOnGpu:
    @needs_exact_fma
    @pytest.mark.parametrize("rule, changes", [("paper", {}), ("authors", {"maximize": True, "weight_decay": 0.1})])
    @pytest.mark.parametrize("dtype, state_dtype, is_compensated", FORMATS)
    def test_steps_are_those_of_the_c_kernel(self, dtype, state_dtype, is_compensated, rule, changes):
        generator = torch.Generator().manual_seed(0)
        others = [made(shape, dtype, state_dtype, is_compensated, generator) for shape in [*SHAPES, (300, 5000)]]
        items, given = moved_to("cuda", others), options(rule, **changes)
        for _ in range(5):
            draw_gradients(others, generator)
            items = [item._replace(grad=other.grad.cuda()) for item, other in zip(items, others, strict=True)]
            torch.cuda.set_sync_debug_mode("error")
            try:
                job, rest = cuda.prepared(items, given)
                job()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            job, _ = cpu.prepared(others, given)
            job()
            assert not rest
        assert_bitwise(moved_to("cpu", items), others)

    def test_a_graph_follows_gradients_and_learning_rate(self):
        """Guards against a table that is gone, or another one, when the graph runs."""
        generator = torch.Generator().manual_seed(1)
        on_host = [made(shape, generator=generator) for shape in SHAPES]
        items, others = moved_to("cuda", on_host), moved_to("cuda", on_host)
        given = options(lr=torch.tensor(0.0, device="cuda"), weight_decay=0.1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step(items, given)
        torch.cuda.current_stream().wait_stream(stream)
        items = [item._replace(grad=item.grad.clone()) for item in items]  # as after zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(items, given)
        cuda._made.clear()
        for rate in (1e-3, 0.0, 3e-2):
            given.lr.fill_(rate)
            draw_gradients(on_host, generator)
            for item, other, drawn in zip(items, others, on_host, strict=True):
                item.grad.copy_(drawn.grad)
                other.grad.copy_(drawn.grad)
            graph.replay()
            step(others, given)
            assert_bitwise(moved_to("cpu", items), moved_to("cpu", others))


def moved_to(device, items):
    return [Item(*(part if part is None else part.to(device, copy=True) for part in item)) for item in items]


# Kernels that show what the functions of cuda_rule.py return ----------------------------------------------------------

from frankenstein.kernels import cuda_rule  # noqa: E402


@triton.jit
def coded(theta, grad, values, n, noise_to, codes_to, exponents_to, decoded_to, has_sign: tl.constexpr):
    blocks = tl.arange(0, 4)
    at = blocks[:, None] * 256 + tl.arange(0, 256)[None, :]
    mask = (at & 255) < n
    noise = cuda_rule.noise_of(tl.load(theta + at), tl.load(grad + at))
    codes, exponents = cuda_rule.encode(tl.load(values + at), noise, mask, has_sign)
    tl.store(noise_to + at, noise.to(tl.int32, bitcast=True))
    tl.store(codes_to + at, codes)
    tl.store(exponents_to + blocks, exponents)
    tl.store(decoded_to + at, cuda_rule.decode(codes, exponents, has_sign))


@triton.jit
def as_bfloat16(values, rounded_to):
    at = tl.arange(0, 4096)
    rounded = cuda_rule.to_bfloat16(tl.load(values + at))
    tl.store(rounded_to + at, rounded.to(tl.int16, bitcast=True))


@triton.jit
def placed(table, first, starts_to, counts_to):
    starts, mask, _ = cuda_rule.places(table, tl.load(first))
    at = tl.arange(0, 4)
    tl.store(starts_to + at[:, None], starts)
    tl.store(counts_to + at, tl.sum(mask.to(tl.int32), axis=1))


@triton.jit
def placed_whole(first, starts_to):
    tl.store(starts_to + tl.arange(0, 4)[:, None], cuda_rule.whole_places(tl.load(first)))
