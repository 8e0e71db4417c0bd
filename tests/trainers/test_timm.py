"""timm makes the optimizer by name, with the groups, the schedules and the options of its own training script."""

from __future__ import annotations

import argparse
import math

import by_hand
import pytest
import timm.optim
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, NativeScaler
from torch.nn.functional import cross_entropy
from torch_contract import assert_bitwise, assert_same, values

import frankenstein.timm  # noqa: F401  registers the name
from frankenstein import Frankenstein

LR = 3e-3
N_STEPS = 10


class Classifier(torch.nn.Module):
    """A vision transformer of timm, small enough for 8 x 8 pixels, with its loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.vit = VisionTransformer(
            img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, depth=2, num_heads=2, mlp_ratio=1.0
        )

    def forward(self, pixels, labels):
        logits = self.vit(pixels.view(-1, 1, 8, 8))
        return cross_entropy(logits, labels), logits


def in_timms_groups(vit, **options):
    """Return an optimizer made without timm's registry, on the two groups that timm makes."""
    still = vit.no_weight_decay()
    decays = {True: [], False: []}
    for name, param in vit.named_parameters():
        decays[param.ndim > 1 and name not in still].append(param)
    groups = [{"params": decays[False], "weight_decay": 0.0}, {"params": decays[True], "weight_decay": 0.1}]
    return Frankenstein(groups, **options)


def test_the_name():
    """Guards against a name that timm cannot look up: it takes what follows the last underscore."""
    assert "frankenstein" in timm.optim.list_optimizers()
    assert timm.optim.get_optimizer_class("frankenstein") is Frankenstein


@pytest.mark.parametrize("options", [{}, {"fused": False}, {"state_dtype": "8bit", "nonfinite": "skip"}], ids=str)
def test_by_name(options):
    """Guards against options that timm drops or renames, and against its groups being taken apart."""
    model, other = Classifier(), Classifier()
    optimizer = timm.optim.create_optimizer_v2(model.vit, opt="frankenstein", lr=LR, weight_decay=0.1, **options)
    assert type(optimizer) is Frankenstein
    expected = in_timms_groups(other.vit, lr=LR, **options)
    assert all(group["params"] for group in optimizer.param_groups)
    for each, one in ((model, optimizer), (other, expected)):
        by_hand.loop(each, one, by_hand.batches(N_STEPS), clip=by_hand.CLIP)
    assert_same(optimizer, expected)


def test_as_in_the_training_script():
    """Guards against what timm's script passes unasked: its momentum, and betas, which we have not."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--opt-kwargs", nargs="*", default={}, action=timm.utils.ParseKwargs, dest="opt_args")
    args = parser.parse_args(["--opt-kwargs", "base_lr=2e-3", "state_dtype=8bit", "kahan_sum=False"])
    vars(args).update(opt="frankenstein", lr=LR, weight_decay=0.1, momentum=0.8, opt_eps=1e-6, opt_betas=[0.9, 0.95])
    optimizer = timm.optim.create_optimizer_v2(Classifier().vit, **timm.optim.optimizer_kwargs(args))
    expected = {"lr": LR, "momentum": 0.8, "eps": 1e-6, "base_lr": 2e-3, "state_dtype": "8bit", "kahan_sum": False}
    for group in optimizer.param_groups:
        assert {key: group[key] for key in expected} == expected
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1]
    assert timm.optim.create_optimizer_v2(Classifier().vit, opt="frankenstein").param_groups[0]["lr"] == 1e-3


def test_layer_decay_with_a_schedule():
    """Guards against learning rates that timm scales group by group, at every update, and that are not followed."""
    model, other = Classifier(), Classifier()
    optimizer = timm.optim.create_optimizer_v2(
        model.vit, opt="frankenstein", lr=LR, weight_decay=0.1, layer_decay=0.5, state_dtype="bfloat16"
    )
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert len(set(scales)) == 4  # embedding, two blocks, head
    scheduler = CosineLRScheduler(optimizer, t_initial=N_STEPS, t_in_epochs=False)
    twin = dict(zip(model.parameters(), other.parameters(), strict=True))
    expected = Frankenstein(
        [
            {"params": [twin[param] for param in group["params"]], "weight_decay": group["weight_decay"]}
            for group in optimizer.param_groups
        ],
        state_dtype="bfloat16",
    )
    for i, batch in enumerate(by_hand.batches(N_STEPS)):
        rate = 0.5 * LR * (1.0 + math.cos(math.pi * i / N_STEPS))
        for mine, group, scale in zip(optimizer.param_groups, expected.param_groups, scales, strict=True):
            assert mine["lr"] == pytest.approx(rate * scale, rel=1e-12)
            group["lr"] = mine["lr"]
        by_hand.loop(model, optimizer, [batch])
        by_hand.loop(other, expected, [batch])
        scheduler.step_update(i + 1)
    assert_bitwise(values(optimizer), values(expected))


def test_lookahead():
    """Guards against timm's wrapper, which keeps tensors of its own in our state, losing them or ours on the way."""

    def made():
        model = Classifier()
        return model, timm.optim.create_optimizer_v2(
            model.vit, opt="lookahead_frankenstein", lr=LR, state_dtype="bfloat16"
        )

    batches = by_hand.batches(N_STEPS)
    model, optimizer = made()
    by_hand.loop(model, optimizer, batches)
    other, plain = made()
    by_hand.loop(other, plain, batches[:7])  # one synchronisation, at step 6
    fresh, resumed = made()
    fresh.load_state_dict(other.state_dict())
    resumed.load_state_dict(plain.state_dict())
    by_hand.loop(fresh, resumed, batches[7:])
    assert_same(resumed._base_optimizer, optimizer._base_optimizer)
    assert "lookahead_slow_buff" in optimizer._base_optimizer.state[model.vit.head.weight]


def test_scaler_and_moving_average():
    """Guards against timm's loss scaler and its moving average seeing other weights than a loop's."""
    model, other = Classifier(), Classifier()
    optimizer = timm.optim.create_optimizer_v2(model.vit, opt="frankenstein", lr=LR, weight_decay=0.1)
    expected = in_timms_groups(other.vit, lr=LR)
    scaler, average = NativeScaler(device="cpu"), ModelEmaV3(model, decay=0.5, foreach=False)
    by_loop = [param.detach().clone() for param in other.parameters()]
    for batch in by_hand.batches(N_STEPS):
        optimizer.zero_grad()
        scaler(model(**batch)[0], optimizer, clip_grad=by_hand.CLIP, parameters=model.parameters())
        average.update(model)
        by_hand.loop(other, expected, [batch], clip=by_hand.CLIP)
        by_loop = [torch.lerp(a, b, 0.5) for a, b in zip(by_loop, other.parameters(), strict=True)]
    assert_same(optimizer, expected)
    assert_bitwise([param.detach() for param in average.module.parameters()], [p.detach() for p in by_loop])
