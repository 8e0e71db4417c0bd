"""Accelerate: a prepared loop equals the loop without it, bitwise; so does one that is saved and loaded on the way."""

from __future__ import annotations

import by_hand
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from torch.optim.lr_scheduler import OneCycleLR
from torch_contract import assert_same

LR = 3e-3
N_STEPS = 12


@pytest.fixture(autouse=True)
def _no_state_left():
    """Accelerate keeps the precision it was first asked for in the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def prepared(accelerator, model, options):
    """Return what `Accelerator.prepare` makes of model, optimizer and schedule."""
    optimizer = by_hand.optimizer(model, **options)
    return accelerator.prepare(model, optimizer, OneCycleLR(optimizer, max_lr=LR, total_steps=N_STEPS + 1))


def loop(accelerator, model, optimizer, scheduler, batches):
    """The loop of Accelerate's guides; its wrapped `step`, `zero_grad` and schedule count micro-batches themselves."""
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)[0])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), by_hand.CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def expectation(setting, batches, n_accumulate, **arguments):
    options, dtype = by_hand.SETTINGS[setting]
    model = by_hand.Network(dtype)
    optimizer = by_hand.optimizer(model, **options)
    scheduler = OneCycleLR(optimizer, max_lr=LR, total_steps=N_STEPS + 1)
    arguments = {"scheduler": scheduler, "clip": by_hand.CLIP, "n_accumulate": n_accumulate} | arguments
    by_hand.loop(model, optimizer, batches, **arguments)
    return optimizer


@pytest.mark.parametrize("setting", by_hand.SETTINGS)
@pytest.mark.parametrize("n_accumulate", [1, 3])
def test_equals_the_loop(setting, n_accumulate):
    """Guards against a step on a part of the gradient, and a schedule or momentum that the wrapper keeps away."""
    options, dtype = by_hand.SETTINGS[setting]
    batches = by_hand.batches(n_accumulate * N_STEPS)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=n_accumulate)
    model, optimizer, scheduler = prepared(accelerator, by_hand.Network(dtype), options)
    assert isinstance(optimizer, AcceleratedOptimizer)
    loop(accelerator, model, optimizer, scheduler, batches)
    assert by_hand.state_dtype(optimizer) == by_hand.STATE_DTYPES[setting]
    assert_same(optimizer.optimizer, expectation(setting, batches, n_accumulate))


def test_autocast_equals_the_loop():
    batches = by_hand.batches(N_STEPS)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    loop(accelerator, *(things := prepared(accelerator, by_hand.Network(), {})), batches)
    assert_same(things[1].optimizer, expectation("defaults", batches, 1, autocast=True))


@pytest.mark.parametrize("setting", by_hand.SETTINGS)
def test_save_and_load_state(tmp_path, setting):
    """Guards against state that Accelerate's checkpoint, or its move to the device, rounds or drops."""
    options, dtype = by_hand.SETTINGS[setting]
    batches = by_hand.batches(N_STEPS)
    accelerator = Accelerator(cpu=True)
    things = prepared(accelerator, by_hand.Network(dtype), options)
    loop(accelerator, *things, batches[:7])
    accelerator.save_state(tmp_path)
    fresh = Accelerator(cpu=True)
    others = prepared(fresh, by_hand.Network(dtype, seed=1), options)
    fresh.load_state(tmp_path)
    loop(fresh, *others, batches[7:])
    assert_same(others[1].optimizer, expectation(setting, batches, 1))


def test_prepare_keeps_the_state_of_a_running_optimizer():
    """Guards against `prepare`, which takes the state out and puts it back, changing it."""
    batches = by_hand.batches(N_STEPS)
    model = by_hand.Network()
    optimizer = by_hand.optimizer(model)
    scheduler = OneCycleLR(optimizer, max_lr=LR, total_steps=N_STEPS + 1)
    by_hand.loop(model, optimizer, batches[:5], scheduler=scheduler, clip=by_hand.CLIP)
    accelerator = Accelerator(cpu=True)
    loop(accelerator, *accelerator.prepare(model, optimizer, scheduler), batches[5:])
    assert_same(optimizer, expectation("defaults", batches, 1))


def test_overflow_is_noticed():
    """Guards against a skipped step that Accelerate takes for a real one: it replaces `step` to know."""
    model, batches = by_hand.Network(), by_hand.batches(4)
    inner, scaler = by_hand.optimizer(model), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    Accelerator(cpu=True)
    optimizer = AcceleratedOptimizer(inner, scaler=scaler)
    was_skipped = []
    for i, batch in enumerate(batches):
        loss = model(**batch)[0] * (float("inf") if i == 2 else 1.0)
        scaler.scale(loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        was_skipped.append(optimizer.step_was_skipped)
    assert was_skipped == [False, False, True, False]
    other = by_hand.Network()
    expected = by_hand.optimizer(other)
    by_hand.loop(other, expected, [batch for i, batch in enumerate(batches) if i != 2])
    assert_same(inner, expected)
