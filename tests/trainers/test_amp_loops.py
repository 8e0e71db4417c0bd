"""The loop written by hand: autocast, a scaled loss, clipping, accumulated gradients."""

from __future__ import annotations

import by_hand
import pytest
import torch
from torch_contract import assert_bitwise, assert_same, values

LR = 3e-3
# Four means of sixteen are not added in the order of one mean of sixty-four: some units in the last place of float64,
# after twelve steps.
ACCUMULATION_TOLERANCE = 1e-10


@pytest.mark.parametrize("clip", [None, by_hand.CLIP], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("setting", by_hand.SETTINGS)
def test_overflow_is_as_if_it_had_not_been(setting, clip):
    """Guards against an infinite gradient that moves a weight or any part of the state; powers of 2 leave no trace."""
    options, dtype = by_hand.SETTINGS[setting]
    model, other = by_hand.Network(dtype), by_hand.Network(dtype)
    optimizer, expected = by_hand.optimizer(model, lr=LR, **options), by_hand.optimizer(other, lr=LR, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    overflows, batches = (0, 5), by_hand.batches(12)
    for i, batch in enumerate(batches):
        optimizer.zero_grad()
        scaler.scale(model(**batch)[0] * (float("inf") if i in overflows else 1.0)).backward()
        if clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        before = values(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if i in overflows:
            assert_bitwise(values(optimizer), before)
    by_hand.loop(other, expected, [batch for i, batch in enumerate(batches) if i not in overflows], clip=clip)
    assert by_hand.state_dtype(optimizer) == by_hand.STATE_DTYPES[setting]
    assert_same(optimizer, expected)


@pytest.mark.parametrize("setting", by_hand.SETTINGS)
def test_float16_autocast_learns(setting):
    """Guards against a training that the first, skipped steps of a scale that is too large have spoilt."""
    options, dtype = by_hand.SETTINGS[setting]
    model = by_hand.Network(dtype)
    optimizer = by_hand.optimizer(model, lr=LR, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    scales = [scaler.get_scale()]
    for batch in 2 * by_hand.batches(100):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=dtype == torch.float32):
            loss = model(**batch)[0]
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    if dtype == torch.float32:  # bfloat16 has the range for that scale
        assert scales[-1] < scales[0]
    assert by_hand.mean_loss(model) < 0.2


def test_accumulated_gradients_are_those_of_one_batch():
    """Guards against a step that changes gradients or counts calls of `backward`."""
    model, other = by_hand.Network(torch.float64), by_hand.Network(torch.float64)
    optimizer, expected = by_hand.optimizer(model, lr=LR), by_hand.optimizer(other, lr=LR)
    by_hand.loop(model, optimizer, by_hand.batches(48, size=16), n_accumulate=4)
    by_hand.loop(other, expected, by_hand.batches(12, size=64))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0.0, atol=ACCUMULATION_TOLERANCE)


def test_weights_swapped_out_and_in_again():
    """Guards against a kernel that remembers where a weight was: evaluating averages puts others in its place."""
    model, other = by_hand.Network(), by_hand.Network()
    optimizer, expected = by_hand.optimizer(model, lr=LR), by_hand.optimizer(other, lr=LR)
    for batch in by_hand.batches(6):
        by_hand.loop(model, optimizer, [batch])
        kept = [param.data for param in model.parameters()]
        for param in model.parameters():
            param.data = torch.zeros_like(param)
        assert by_hand.mean_loss(model) == pytest.approx(2.302585, abs=1e-5)  # ln 10: all guesses are equal
        for param, data in zip(model.parameters(), kept, strict=True):
            param.data = data.clone()
    by_hand.loop(other, expected, by_hand.batches(6))
    assert_same(optimizer, expected)
