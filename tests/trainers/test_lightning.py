"""Lightning: `fit` equals the loop that it stands for, bitwise; so does one that goes on from its checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import by_hand
import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.cli import LightningCLI
from torch.optim.lr_scheduler import OneCycleLR
from torch_contract import assert_bitwise, assert_same

from frankenstein import Frankenstein

LR = 3e-3
N_STEPS = 12
CLIPPED = {"clip": by_hand.CLIP, "clip_in_groups": True}

pytestmark = [
    # Lightning's advice, which depends on the machine.
    pytest.mark.filterwarnings("ignore:The `srun` command is available on your system:UserWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used:UserWarning"),
    # Lightning's own use of torch.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning:lightning.pytorch.utilities._pytree"),
]


class Digits(lightning.LightningModule):
    def __init__(self, dtype=torch.float32, seed=0, **options):
        super().__init__()
        self.network = by_hand.Network(dtype, seed)
        self.options = options

    def training_step(self, batch):
        return self.network(**batch)[0]

    def configure_optimizers(self):
        optimizer = by_hand.optimizer(self.network, **self.options)
        scheduler = OneCycleLR(optimizer, max_lr=LR, total_steps=N_STEPS + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def loader(batches):
    """Lightning takes a plain list for several loaders."""
    return torch.utils.data.DataLoader(batches, batch_size=None)


def fit(module, batches, *, ckpt_path=None, **arguments):
    """Train on each batch once, unless told otherwise; return the trainer."""
    arguments = {"max_epochs": 1, "gradient_clip_val": by_hand.CLIP} | arguments
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **arguments)
    trainer.fit(module, loader(batches), ckpt_path=ckpt_path)
    return trainer


def expectation(setting, batches, **arguments):
    options, dtype = by_hand.SETTINGS[setting]
    model = by_hand.Network(dtype)
    optimizer = by_hand.optimizer(model, **options)
    scheduler = OneCycleLR(optimizer, max_lr=LR, total_steps=N_STEPS + 1)
    by_hand.loop(model, optimizer, batches, scheduler=scheduler, **CLIPPED, **arguments)
    return optimizer


@pytest.mark.parametrize("setting", by_hand.SETTINGS)
def test_equals_the_loop(setting):
    """Guards against a closure that is not called, or called twice, and against clipping after the step."""
    options, dtype = by_hand.SETTINGS[setting]
    batches = by_hand.batches(2 * N_STEPS)
    (optimizer,) = fit(Digits(dtype, **options), batches, accumulate_grad_batches=2).optimizers
    expected = expectation(setting, batches, n_accumulate=2)
    assert by_hand.state_dtype(optimizer) == by_hand.STATE_DTYPES[setting]
    assert_same(optimizer, expected)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precision_equals_the_loop(precision):
    batches = by_hand.batches(N_STEPS)
    (optimizer,) = fit(Digits(), batches, precision=precision).optimizers
    if precision == "bf16-mixed":
        expected = expectation("defaults", batches, autocast=True)
    else:
        for batch in batches:
            batch["pixels"] = batch["pixels"].bfloat16()
        expected = expectation("bfloat16 weights", batches)
    assert_same(optimizer, expected)


@pytest.mark.parametrize("setting", by_hand.SETTINGS)
def test_resume_from_checkpoint(tmp_path, setting):
    """Guards against state that Lightning's checkpoint, or its move to the device, rounds or drops."""
    options, dtype = by_hand.SETTINGS[setting]
    batches = by_hand.batches(N_STEPS // 2)  # an epoch: Lightning's place in the data is exact at its end only
    part = fit(Digits(dtype, **options), batches, max_epochs=1)
    part.save_checkpoint(tmp_path / "half.ckpt")
    module = Digits(dtype, seed=1, **options)  # another network, and an empty optimizer
    whole = fit(module, batches, ckpt_path=tmp_path / "half.ckpt", max_epochs=2)
    assert (part.global_step, whole.global_step) == (N_STEPS // 2, N_STEPS)
    assert_same(whole.optimizers[0], expectation(setting, 2 * batches))


def test_manual_optimization():
    """Guards against the object that Lightning hands to its user: a class made of ours, around ours."""

    class Manual(Digits):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch):
            optimizer = self.optimizers()
            assert isinstance(optimizer, Frankenstein)
            optimizer.zero_grad()
            self.manual_backward(self.network(**batch)[0])
            self.clip_gradients(optimizer, by_hand.CLIP)
            optimizer.step()
            self.lr_schedulers().step()

    batches = by_hand.batches(N_STEPS)
    (optimizer,) = fit(Manual(), batches, gradient_clip_val=None).optimizers
    assert_same(optimizer, expectation("defaults", batches))


def test_average_of_weights():
    """Guards against averages taken before the step, or of something else than its result."""
    batches, module = by_hand.batches(N_STEPS), Digits()
    fit(module, batches, callbacks=[EMAWeightAveraging(decay=0.5)])
    model = by_hand.Network()
    optimizer = by_hand.optimizer(model)
    scheduler = OneCycleLR(optimizer, max_lr=LR, total_steps=N_STEPS + 1)
    average = None
    for batch in batches:
        by_hand.loop(model, optimizer, [batch], scheduler=scheduler, **CLIPPED)
        now = [param.detach().clone() for param in model.parameters()]
        average = now if average is None else [0.5 * a + 0.5 * b for a, b in zip(average, now, strict=True)]
    assert_bitwise([param.detach() for param in module.network.parameters()], average)


class Plain(lightning.LightningModule):
    """No `configure_optimizers`: LightningCLI makes it from the file."""

    def __init__(self):
        super().__init__()
        self.network = by_hand.Network()

    def training_step(self, batch):
        return self.network(**batch)[0]

    def train_dataloader(self):
        return loader(by_hand.batches(N_STEPS))


TRAINER = """
seed_everything: 0
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""


def test_class_path_in_yaml(tmp_path, monkeypatch):
    """Guards against a signature that LightningCLI cannot read: the file of docs/trainers.md, as it stands there."""
    page = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "config.yaml"
    path.write_text(TRAINER + block)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own use of it
    monkeypatch.setattr("sys.argv", ["train.py", "fit", "--config", str(path)])
    (optimizer,) = LightningCLI(Plain, save_config_callback=None).trainer.optimizers
    model = by_hand.Network()
    expected = Frankenstein(model.parameters(), lr=3e-3, weight_decay=0.1, state_dtype="8bit")
    by_hand.loop(model, expected, by_hand.batches(N_STEPS))
    for group in expected.param_groups:  # the schedule has made its step at the end of the only epoch
        group["initial_lr"], group["lr"] = 3e-3, 3e-3 * 0.9
    assert_same(optimizer, expected)
