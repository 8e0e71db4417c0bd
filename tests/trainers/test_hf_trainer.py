"""Hugging Face's Trainer takes the class and its arguments, and trains as the loop that it stands for, bitwise."""

from __future__ import annotations

import by_hand
import pytest
import torch
from torch_contract import assert_bitwise, assert_same, values
from transformers import Trainer, TrainingArguments, get_cosine_schedule_with_warmup, set_seed

from frankenstein import Frankenstein

LR = 3e-3
N_STEPS = 12


class Recording:
    """Collates, and keeps what it collated: the Trainer shuffles as it likes."""

    def __init__(self):
        self.batches = []

    def __call__(self, rows):
        pixels, labels = zip(*rows, strict=True)
        self.batches.append({"pixels": torch.stack(pixels), "labels": torch.stack(labels)})
        return self.batches[-1]


def trainer(folder, model, *, options=None, optimizers=(None, None), **arguments):
    arguments = {"max_steps": N_STEPS, "per_device_train_batch_size": 16, "save_strategy": "no"} | arguments
    args = TrainingArguments(
        output_dir=str(folder),
        weight_decay=by_hand.WEIGHT_DECAY,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        **arguments,
    )
    return Trainer(
        model,
        args,
        train_dataset=torch.utils.data.TensorDataset(*by_hand.digits()),
        data_collator=Recording(),
        optimizer_cls_and_kwargs=None if options is None else (Frankenstein, options),
        optimizers=optimizers,
    )


@pytest.mark.parametrize("setting", by_hand.SETTINGS)
def test_equals_the_loop(tmp_path, setting):
    """Guards against options that do not arrive, and against a step that clipping, schedule or accumulation miss."""
    options, dtype = by_hand.SETTINGS[setting]
    options = {"lr": LR, **options}
    model, other = by_hand.Network(dtype), by_hand.Network(dtype)
    schedule = {"lr_scheduler_type": "cosine", "warmup_steps": 3}
    run = trainer(
        tmp_path, model, options=options, max_grad_norm=by_hand.CLIP, gradient_accumulation_steps=2, **schedule
    )
    run.train()
    expected = by_hand.optimizer(other, **options)
    scheduler = get_cosine_schedule_with_warmup(expected, 3, N_STEPS)
    batches = run.data_collator.batches[: 2 * N_STEPS]
    losses = by_hand.loop(other, expected, batches, scheduler=scheduler, clip=by_hand.CLIP, n_accumulate=2)
    assert len(losses) == 2 * N_STEPS
    assert by_hand.state_dtype(expected) == by_hand.STATE_DTYPES[setting]
    assert_same(run.optimizer.optimizer, expected)


def test_autocast_equals_the_loop(tmp_path):
    model, other = by_hand.Network(), by_hand.Network()
    run = trainer(tmp_path, model, options={"lr": LR}, bf16=True, lr_scheduler_type="constant", max_grad_norm=0.0)
    run.train()
    expected = by_hand.optimizer(other, lr=LR)
    by_hand.loop(other, expected, run.data_collator.batches[:N_STEPS], autocast=True)
    assert_bitwise(values(run.optimizer.optimizer), values(expected))


def test_optimizer_and_scheduler_of_your_own(tmp_path):
    """Guards against a momentum that OneCycleLR writes and a wrapped optimizer does not read."""
    model, other = by_hand.Network(), by_hand.Network()
    mine, expected = by_hand.optimizer(model), by_hand.optimizer(other)

    def one_cycle(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=N_STEPS + 1)

    run = trainer(tmp_path, model, optimizers=(mine, one_cycle(mine)), max_grad_norm=0.0)
    run.train()
    by_hand.loop(other, expected, run.data_collator.batches[:N_STEPS], scheduler=one_cycle(expected))
    assert mine.param_groups[0]["momentum"] != 0.9
    assert_same(mine, expected)


class WithoutBias(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10, bias=False)

    def forward(self, pixels, labels):
        return (torch.nn.functional.cross_entropy(self.layer(pixels), labels),)


def test_group_without_members(tmp_path):
    """Guards against refusing what the Trainer makes of a model in which everything decays."""
    model, other = WithoutBias(), WithoutBias()
    other.load_state_dict(model.state_dict())
    run = trainer(tmp_path, model, options={"lr": LR}, lr_scheduler_type="constant", max_grad_norm=0.0)
    run.train()
    expected = by_hand.optimizer(other, lr=LR)
    assert [len(group["params"]) for group in run.optimizer.param_groups] == [1, 0]
    by_hand.loop(other, expected, run.data_collator.batches[:N_STEPS])
    assert_bitwise(values(run.optimizer.optimizer), values(expected))


@pytest.mark.parametrize("setting", by_hand.SETTINGS)
def test_resume_from_checkpoint(tmp_path, setting):
    """Guards against state that the Trainer's checkpoint rounds, drops or gives to another parameter."""
    options, dtype = by_hand.SETTINGS[setting]
    common = {
        "options": {"lr": LR, **options},
        "save_strategy": "steps",
        "save_steps": 7,
        "lr_scheduler_type": "linear",
    }
    whole = trainer(tmp_path / "whole", by_hand.Network(dtype), **common)
    whole.train()
    set_seed(1)  # the one who goes on has another random state, another network and an empty optimizer
    rest = trainer(tmp_path / "rest", by_hand.Network(dtype, seed=1), **common)
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    assert len(rest.data_collator.batches) > 0
    assert_same(rest.optimizer.optimizer, whole.optimizer.optimizer)


def test_learns(tmp_path):
    """Guards against agreement of two loops that both learn nothing."""
    model = by_hand.Network()
    trainer(tmp_path, model, options={"lr": LR}, max_steps=300, lr_scheduler_type="cosine").train()
    assert by_hand.mean_loss(model) < 0.1
