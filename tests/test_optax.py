"""The optax transformation within everything that JAX and optax put around one."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from frankenstein import rule as R
from frankenstein import xla
from frankenstein.optax import frankenstein

jax.config.update("jax_enable_x64", True)

SINGLE = 1e-6  # a few float32 roundings of numbers near 1
PARAMS = {"w": np.linspace(-1.0, 2.0, 6).reshape(2, 3), "b": np.array([0.5, -1.5])}


def params(dtype="float32"):
    return {name: jnp.asarray(value, dtype) for name, value in PARAMS.items()}


def grads(step, dtype="float32"):
    rng = np.random.default_rng(step)
    return {name: jnp.asarray(rng.normal(size=value.shape), dtype) for name, value in PARAMS.items()}


def train(optimizer, n_steps=10, dtype="float32", start=None, compiled=True):
    update = jax.jit(optimizer.update) if compiled else optimizer.update
    now = params(dtype) if start is None else start
    state = optimizer.init(now)
    for i in range(n_steps):
        updates, state = update(grads(i, dtype), state, now)
        now = optax.apply_updates(now, updates)
    return now, state


def equal(one, other, tolerance=0.0):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


# Transformations of JAX ---------------------------------------------------------------------------------------------


def test_the_second_call_does_not_compile_again():
    for optimizer in (frankenstein(1e-3), frankenstein(optax.cosine_decay_schedule(1e-2, 10), weight_decay=0.1)):
        update = jax.jit(optimizer.update)
        now = params()
        state = optimizer.init(now)
        for i in range(4):
            updates, state = update(grads(i), state, now)
            now = optax.apply_updates(now, updates)
        assert update._cache_size() == 1


def test_scan_is_the_loop():
    optimizer = frankenstein(1e-2, weight_decay=0.1)
    every = jax.tree.map(lambda *steps: jnp.stack(steps), *(grads(i) for i in range(10)))

    def step(carry, grad):
        now, state = carry
        updates, state = optimizer.update(grad, state, now)
        return (optax.apply_updates(now, updates), state), None

    start = params()
    (found, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), every)
    equal(found, train(optimizer)[0], SINGLE)


def test_vmap_over_seeds_and_learning_rates_is_each_alone():
    rates = jnp.array([1e-3, 1e-2, 0.0])

    def trained(rate):
        now = params()
        optimizer = frankenstein(rate)
        state = optimizer.init(now)
        for i in range(5):
            updates, state = optimizer.update(grads(i), state, now)
            now = optax.apply_updates(now, updates)
        return now

    together = jax.vmap(trained)(rates)
    for i, rate in enumerate(rates):
        alone = train(frankenstein(float(rate)), 5)[0]
        equal(jax.tree.map(lambda one, i=i: one[i], together), alone, SINGLE)
    equal(jax.tree.map(lambda one: one[2], together), params())  # a learning rate of 0 is a pause


def test_donated_buffers():
    optimizer = frankenstein(1e-2)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(now, state, grad):
        updates, state = optimizer.update(grad, state, now)
        return optax.apply_updates(now, updates), state

    now = params()
    state = optimizer.init(now)
    for i in range(10):
        now, state = step(now, state, grads(i))
    equal(now, train(optimizer)[0], SINGLE)


def test_it_can_be_differentiated():
    """Through five steps, against a difference of two runs."""

    def after(scale):
        now = {"w": jnp.array([1.0, -2.0])}
        optimizer = frankenstein(0.05)
        state = optimizer.init(now)
        for _ in range(5):
            updates, state = optimizer.update(jax.tree.map(lambda one: scale * one, now), state, now)
            now = optax.apply_updates(now, updates)
        return now["w"].sum()

    step = 1e-6
    difference = float(after(1.3 + step) - after(1.3 - step)) / (2 * step)
    assert float(jax.grad(after)(1.3)) == pytest.approx(difference, rel=1e-6)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from frankenstein.optax import frankenstein

assert jax.device_count() == 4
optimizer = frankenstein(1e-2, weight_decay=0.1)
mesh = Mesh(np.array(jax.devices()), ("x",))
split = NamedSharding(mesh, P("x"))
start, every = np.linspace(-1, 1, 32, dtype="float32").reshape(8, 4), np.random.default_rng(0).normal(size=(6, 8, 4))

def train(place, update, init):
    now = place(jnp.asarray(start))
    state = init(now)
    for grad in every:
        updates, state = update(place(jnp.asarray(grad, "float32")), state, now)
        now = optax.apply_updates(now, updates)
    return now, state

alone, _ = train(lambda x: x, jax.jit(optimizer.update), optimizer.init)
sharded, state = train(lambda x: jax.device_put(x, split), jax.jit(optimizer.update), optimizer.init)
assert sharded.sharding.is_equivalent_to(split, 2)
for buffer in state[1:]:
    assert buffer.sharding.is_equivalent_to(split, 2), buffer.sharding
np.testing.assert_array_equal(sharded, alone)

spec = (P(), P("x"), P("x"), P("x"))
mapped = jax.jit(jax.shard_map(
    lambda grad, state, now: optimizer.update(grad, type(state)(*state), now),
    mesh=mesh, in_specs=(P("x"), type(state)(*spec), P("x")), out_specs=(P("x"), type(state)(*spec))))
found, _ = train(lambda x: jax.device_put(x, split), mapped, optimizer.init)
np.testing.assert_allclose(found, alone, rtol=1e-6)

cut = lambda x: x.reshape(4, 2, 4)
found, _ = train(cut, jax.pmap(optimizer.update), jax.pmap(optimizer.init))
np.testing.assert_allclose(found.reshape(8, 4), alone, rtol=1e-6)
"""


def test_sharded_state_on_four_devices():
    """State is sharded as the parameters are, and the numbers are those of one device: jit, shard_map and pmap."""
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_X64": "0"}
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


# The C library as a custom call -------------------------------------------------------------------------------------

ROUNDING = 2e-6  # the library's arithmetic is its own; both are within some float32 roundings of the exact step


def has_library():
    return xla.why_not(R.PRESETS["paper"]) is None


needs_library = pytest.mark.skipif(not has_library(), reason="the C library was not compiled")


def text(optimizer, start=None):
    start = params() if start is None else start
    return jax.jit(optimizer.update).lower(grads(0), optimizer.init(start), start).as_text()


@needs_library
def test_the_library_is_taken_where_it_can_be():
    assert xla.TARGET in text(frankenstein(1e-3)) and xla.TARGET in text(frankenstein(1e-3, fused=True))
    assert xla.TARGET not in text(frankenstein(1e-3, fused=False))
    assert xla.TARGET not in text(frankenstein(1e-3, rule=replace(R.Rule(), use_xi=False)))
    assert xla.TARGET not in text(frankenstein(1e-3), params("float64"))


@needs_library
@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"rule": "authors", "skip_nonfinite": True}, {"eps": 1e-4, "momentum": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("rate", [1e-2, optax.linear_schedule(1e-2, 1e-3, 8)], ids=["number", "schedule"])
def test_the_library_gives_the_numbers_of_the_rule(options, rate):
    for compiled in (True, False):
        found, state = train(frankenstein(rate, fused=True, **options), compiled=compiled)
        expected, other = train(frankenstein(rate, fused=False, **options))
        equal(found, expected, ROUNDING)
        equal(state, other, 1e-5)  # the second moment follows a difference of two numbers


@needs_library
def test_large_arrays_are_stepped_by_all_threads_and_in_place():
    """More than one thread's piece, a length that no block divides, beside small ones; donated and not."""
    rng = np.random.default_rng(0)
    start = [jnp.asarray(rng.normal(size=shape), "float32") for shape in ((1_000_003,), (3,), (257, 1001), ())]
    every = [[jnp.asarray(rng.normal(size=one.shape), "float32") for one in start] for _ in range(3)]
    found = {}
    for name, fused, donated in (("library", True, ()), ("in place", True, (1, 2)), ("rule", False, ())):
        optimizer, now = frankenstein(1e-2, fused=fused), jax.tree.map(jnp.copy, start)
        update = jax.jit(optimizer.update, donate_argnums=donated)
        state = optimizer.init(now)
        for grad in every:
            kept = jax.tree.map(np.asarray, grad)
            updates, state = update(grad, state, jax.tree.map(jnp.copy, now))
            now = optax.apply_updates(now, updates)
            equal(grad, kept)  # gradients are never written
        found[name] = now
    equal(found["library"], found["in place"])
    equal(found["library"], found["rule"], ROUNDING)


@needs_library
def test_steps_in_several_threads_at_once():
    optimizer = frankenstein(1e-2, fused=True)
    start = jnp.linspace(-1.0, 1.0, 300_001, dtype="float32")

    @jax.jit
    def run(now):
        def step(carry, _):
            updates, state = optimizer.update(carry[0], carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (now, optimizer.init(now)), length=20)[0][0]

    expected = run(start)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: jax.block_until_ready(run(start)), range(32)):
            np.testing.assert_array_equal(found, expected)


@needs_library
@pytest.mark.parametrize("over", ["seeds", "seeds, twice", "rates"])
def test_vmap_of_the_library(over):
    batch = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), "float32")

    def trained(grad, rate, fused):
        optimizer, now = frankenstein(rate, fused=fused), jnp.ones(5)
        state = optimizer.init(now.astype("float32"))
        now = now.astype("float32")
        for _ in range(4):
            updates, state = optimizer.update(grad, state, now)
            now = optax.apply_updates(now, updates)
        return now

    def mapped(fused):
        if over == "rates":
            return jax.vmap(lambda rate: trained(batch[0, 0], rate, fused))(jnp.array([1e-3, 0.0, 1e-2], "float32"))
        single = jax.vmap(lambda grad: trained(grad, 1e-2, fused))
        return jax.vmap(single)(batch) if over == "seeds, twice" else single(batch[0])

    equal(jax.jit(mapped, static_argnums=0)(True), mapped(False), ROUNDING)


@needs_library
def test_a_pause_and_a_skipped_gradient_change_nothing():
    optimizer = frankenstein(optax.join_schedules([lambda _: 1e-2, lambda _: 0.0], [3]), fused=True)
    now, state = train(optimizer, 3)
    updates, after = jax.jit(optimizer.update)(grads(3), state, now)
    assert all((one == 0).all() for one in jax.tree.leaves(updates))
    equal(after[1:], state[1:])
    optimizer = frankenstein(1e-2, skip_nonfinite=True, fused=True)
    now, state = train(optimizer, 3)
    bad = jax.tree.map(lambda one: one.at[0].set(jnp.nan), grads(3))
    updates, after = jax.jit(optimizer.update)(bad, state, now)
    for name in now:
        assert (updates[name][0] == 0).all() and (updates[name][1] != 0).all()
        for one, other in zip(after[1:], state[1:], strict=True):
            np.testing.assert_array_equal(one[name][0], other[name][0])


@needs_library
def test_the_library_is_differentiated_as_the_rule_is():
    def after(scale, fused):
        now = {"w": jnp.array([1.0, -2.0], "float32")}
        optimizer = frankenstein(0.05, fused=fused)
        state = optimizer.init(now)
        for _ in range(5):
            updates, state = optimizer.update(jax.tree.map(lambda one: scale * one, now), state, now)
            now = optax.apply_updates(now, updates)
        return now["w"].sum()

    scale = jnp.asarray(1.3, "float32")
    found, expected = (jax.jit(jax.grad(after), static_argnums=1)(scale, fused) for fused in (True, False))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_what_the_library_cannot_do_is_said():
    with pytest.raises(RuntimeError, match="fused=True: there is no kernel for a rule with use_xi off; fused=None"):
        frankenstein(1e-3, rule=replace(R.Rule(), use_xi=False), fused=True)


def test_a_step_without_the_library_can_be_exported():
    def exported(fused):
        optimizer = frankenstein(1e-3, fused=fused)
        state = optimizer.init(params())
        step = jax.jit(lambda grad, *rest: optimizer.update(grad, type(state)(*rest))[0])
        return jax.export.export(step)(grads(0), *state).call(grads(0), *state), step(grads(0), *state)

    found, expected = exported(False)
    equal(found, expected, SINGLE)
    if has_library():  # another process might not have it
        with pytest.raises(ValueError, match=xla.TARGET):
            exported(True)


# What optax puts around it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"skip_nonfinite": True, "rule": "authors"}])
def test_inject_hyperparams_gives_the_same_numbers(options):
    injected = optax.inject_hyperparams(frankenstein)(1e-2, **options)
    found, state = train(injected)
    equal(found, train(frankenstein(1e-2, **options))[0], SINGLE)
    assert state.hyperparams["learning_rate"] == pytest.approx(1e-2)


def test_injected_hyperparameters_can_be_changed_and_scheduled():
    schedule = optax.linear_schedule(0.0, 1e-2, 5)
    equal(train(optax.inject_hyperparams(frankenstein)(schedule))[0], train(frankenstein(schedule))[0], SINGLE)
    optimizer = optax.inject_hyperparams(frankenstein)(1e-2)
    start = params()
    state = optimizer.init(start)
    state.hyperparams["learning_rate"] = jnp.zeros(())
    updates, _ = optimizer.update(grads(0), state, start)
    assert all((one == 0).all() for one in jax.tree.leaves(updates))


def test_injected_in_bfloat16_stays_finite_and_close():
    """The constants are rounded to 8 bits, once; nothing is computed with in that precision."""
    optimizer = optax.inject_hyperparams(frankenstein, hyperparam_dtype=jnp.bfloat16)(1e-2, weight_decay=0.1)
    found, _ = train(optimizer)
    rounded = {
        name: float(jnp.bfloat16(value)) for name, value in (("momentum", 0.9), ("base_lr", 1e-3), ("eps", 1e-8))
    }
    expected, _ = train(frankenstein(float(jnp.bfloat16(1e-2)), weight_decay=float(jnp.bfloat16(0.1)), **rounded))
    equal(found, expected, SINGLE)


@pytest.mark.parametrize(
    "mask",
    [{"w": True, "b": False}, lambda tree: jax.tree.map(lambda one: one.ndim > 1, tree)],
    ids=["tree", "function"],
)
def test_what_is_masked_does_not_decay(mask):
    found, _ = train(frankenstein(1e-2, weight_decay=0.5, mask=mask))
    decayed, plain = (train(frankenstein(1e-2, weight_decay=decay))[0] for decay in (0.5, 0.0))
    equal(found["w"], decayed["w"])
    equal(found["b"], plain["b"])


def test_masked_and_partitioned():
    ours = frankenstein(1e-2, weight_decay=0.1)
    expected, _ = train(ours)
    found, _ = train(optax.masked(ours, {"w": True, "b": False}))
    equal(found["w"], expected["w"])
    two = optax.multi_transform({"ours": ours, "theirs": optax.sgd(1e-2)}, {"w": "ours", "b": "theirs"})
    found, _ = train(two)
    equal(found["w"], expected["w"])
    equal(found["b"], train(optax.sgd(1e-2))[0]["b"])


def test_multi_steps_is_a_step_on_the_mean():
    optimizer = optax.MultiSteps(frankenstein(1e-2, weight_decay=0.1), every_k_schedule=2)
    found, _ = train(optimizer, 4)
    inner = frankenstein(1e-2, weight_decay=0.1)
    now = params()
    state = inner.init(now)
    for i in (0, 2):
        mean = jax.tree.map(lambda a, b: (a + b) / 2, grads(i), grads(i + 1))
        updates, state = inner.update(mean, state, now)
        now = optax.apply_updates(now, updates)
    equal(found, now, SINGLE)


def test_apply_if_finite_leaves_a_step_out():
    optimizer = optax.apply_if_finite(frankenstein(1e-2), 3)
    now = params()
    state = optimizer.init(now)
    bad = jax.tree.map(lambda one: one.at[0].set(jnp.nan), grads(0))
    updates, state = jax.jit(optimizer.update)(bad, state, now)
    assert all((one == 0).all() for one in jax.tree.leaves(updates)) and state.inner_state.count == 0


def test_chained_with_clipping():
    found, _ = train(optax.chain(optax.clip_by_global_norm(0.1), frankenstein(1e-2)))
    assert all(np.isfinite(one).all() for one in jax.tree.leaves(found))
    half = train(optax.chain(optax.scale(0.5), frankenstein(1e-2)))[0]
    assert not np.allclose(half["w"], train(frankenstein(1e-2))[0]["w"])


# Leaves -------------------------------------------------------------------------------------------------------------


def test_none_leaves_stay_none():
    optimizer = frankenstein(1e-2, weight_decay=0.1)
    start = params() | {"frozen": None}
    state = optimizer.init(start)
    assert state.momentum_buffer["frozen"] is None
    updates, state = jax.jit(optimizer.update)(grads(0) | {"frozen": None}, state, start)
    assert updates["frozen"] is None and state.second_moment["frozen"] is None
    expected, _ = optimizer.update(grads(0), optimizer.init(params()), params())
    equal({name: updates[name] for name in expected}, expected, SINGLE)


@pytest.mark.parametrize("dtype, kept", [("bfloat16", "float32"), ("float16", "float32"), ("float64", "float64")])
def test_state_is_at_least_float32_and_updates_are_like_gradients(dtype, kept):
    optimizer = frankenstein(1e-2, weight_decay=0.1)
    now, state = train(optimizer, 5, dtype)
    assert all(one.dtype == dtype for one in jax.tree.leaves(now))
    assert all(one.dtype == kept for one in jax.tree.leaves(state[1:])) and state.count.dtype == jnp.int32
    start = params(dtype)
    exact = train(optimizer, 1, "float64", {name: one.astype("float64") for name, one in start.items()})[0]
    low = {name: one.astype("float64") for name, one in train(optimizer, 1, dtype, start)[0].items()}
    resolution = {"bfloat16": 2**-7, "float16": 2**-10, "float64": 1e-15}[dtype]
    for name in exact:  # the parameter and its update are rounded once each; so are the gradients
        np.testing.assert_allclose(low[name], exact[name], atol=2 * resolution, rtol=resolution)


def test_complex_is_two_real_numbers():
    optimizer = frankenstein(1e-2, weight_decay=0.1)
    rng = np.random.default_rng(0)
    real, imag = rng.normal(size=(2, 4)), rng.normal(size=(5, 2, 4))
    start = jnp.asarray(real[0] + 1j * real[1])
    apart = {"real": start.real, "imag": start.imag}
    state, parts = optimizer.init(start), optimizer.init(apart)
    for one in imag:
        updates, state = optimizer.update(jnp.asarray(one[0] + 1j * one[1]), state, start)
        start = optax.apply_updates(start, updates)
        updates, parts = optimizer.update({"real": jnp.asarray(one[0]), "imag": jnp.asarray(one[1])}, parts, apart)
        apart = optax.apply_updates(apart, updates)
    assert start.dtype == jnp.complex128 and state.second_moment.dtype == jnp.complex128
    np.testing.assert_array_equal(start, apart["real"] + 1j * apart["imag"])


def test_empty_and_scalar_leaves():
    optimizer = frankenstein(1e-2)
    start = {"empty": jnp.zeros((0, 3)), "scalar": jnp.asarray(2.0)}
    updates, _ = optimizer.update(
        {"empty": jnp.zeros((0, 3)), "scalar": jnp.asarray(1.0)}, optimizer.init(start), start
    )
    delta, _ = R.update(np, np.asarray(1.0), R.init(np, np.asarray(2.0)), lr=1e-2)
    assert updates["empty"].shape == (0, 3) and float(updates["scalar"]) == pytest.approx(float(delta), rel=1e-14)


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["1e-3", None, True, [1e-3], jnp.ones(2)])
def test_a_wrong_learning_rate_is_a_type_error_of_one_line(wrong):
    with pytest.raises(TypeError, match="it must be a number, a 0-d array or a schedule") as caught:
        frankenstein(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rate": -1.0}, "Invalid learning_rate: -1.0; allowed is a finite number >= 0"),
        ({"eps": 0.0}, "Invalid eps: 0.0"),
        ({"momentum": 1.0}, r"Invalid momentum: 1.0; allowed is a number in \[0, 1\)"),
        ({"base_lr": "x"}, "Invalid base_lr: 'x'"),
        ({"weight_decay": -0.1}, "Invalid weight_decay: -0.1"),
        ({"rule": "papers"}, "Invalid rule: 'papers'"),
    ],
)
def test_wrong_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        frankenstein(**options)


def test_weight_decay_needs_the_parameters():
    optimizer = frankenstein(1e-3, weight_decay=0.1)
    with pytest.raises(
        ValueError, match=r"weight decay needs the parameters: optimizer.update\(grads, state, params\)"
    ):
        optimizer.update(grads(0), optimizer.init(params()))
    plain = frankenstein(1e-3)
    plain.update(grads(0), plain.init(params()))


def test_unknown_extra_arguments_are_welcome():
    optimizer = frankenstein(1e-3)
    optimizer.update(grads(0), optimizer.init(params()), params(), value=1.0)
