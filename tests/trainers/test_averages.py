"""Averages of weights by `torch.optim.swa_utils`: they see each step's result, and leave the training as it was."""

from __future__ import annotations

import by_hand
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn
from torch_contract import assert_bitwise, assert_same, values

LR = 3e-3
N_STEPS = 10
DECAY = 0.75
# torch averages in the weights' precision: a rounding of 2^-24 or 2^-8 of a weight at each of ten steps, and as much
# of 0.1, the size of most weights, where one is near 0.
TOLERANCE = {
    torch.float32: {"rtol": 10 * 2.0**-24, "atol": 2.0**-24},
    torch.bfloat16: {"rtol": 10 * 2.0**-8, "atol": 0.1 * 2.0**-8},
}


def snapshot(model):
    return [param.detach().double() for param in model.parameters()]


def assert_close(model, expected, dtype):
    for param, numbers in zip(model.parameters(), expected, strict=True):
        assert param.dtype == dtype
        torch.testing.assert_close(param.double(), numbers, **TOLERANCE[dtype])


@pytest.mark.parametrize("setting", by_hand.SETTINGS)
def test_exponential_moving_average(setting):
    options, dtype = by_hand.SETTINGS[setting]
    model, other = by_hand.Network(dtype), by_hand.Network(dtype)
    optimizer, expected = by_hand.optimizer(model, lr=LR, **options), by_hand.optimizer(other, lr=LR, **options)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    by_formula = None
    for batch in by_hand.batches(N_STEPS):
        by_hand.loop(model, optimizer, [batch])
        average.update_parameters(model)
        now = snapshot(model)
        first = by_formula is None
        by_formula = now if first else [DECAY * a + (1 - DECAY) * b for a, b in zip(by_formula, now, strict=True)]
    by_hand.loop(other, expected, by_hand.batches(N_STEPS))
    assert_same(optimizer, expected)
    assert_close(average.module, by_formula, dtype)
    assert (snapshot(model)[0] - by_formula[0]).abs().max() > 0.01  # else the last weights would do for an average


@pytest.mark.parametrize("setting", by_hand.SETTINGS)
def test_stochastic_weight_averaging(setting):
    """Guards against the second schedule of SWA, which takes over from the first, not being followed."""
    options, dtype = by_hand.SETTINGS[setting]
    model, other = by_hand.Network(dtype), by_hand.Network(dtype)
    optimizer, expected = by_hand.optimizer(model, lr=LR, **options), by_hand.optimizer(other, **options)
    cosine, swa = CosineAnnealingLR(optimizer, N_STEPS), SWALR(optimizer, swa_lr=5e-3, anneal_epochs=3)
    average = AveragedModel(model)
    snapshots, rates = [], []
    for i, batch in enumerate(by_hand.batches(2 * N_STEPS)):
        rates.append(optimizer.param_groups[0]["lr"])
        by_hand.loop(model, optimizer, [batch])
        if i < N_STEPS:
            cosine.step()
        else:
            average.update_parameters(model)
            snapshots.append(snapshot(model))
            swa.step()
    assert rates[0] > rates[N_STEPS - 1] and rates[-1] == pytest.approx(5e-3)
    for rate, batch in zip(rates, by_hand.batches(2 * N_STEPS), strict=True):
        for group in expected.param_groups:
            group["lr"] = rate
        by_hand.loop(other, expected, [batch])
    assert_bitwise(values(optimizer), values(expected))
    assert_close(average.module, [torch.stack(each).mean(0) for each in zip(*snapshots, strict=True)], dtype)
