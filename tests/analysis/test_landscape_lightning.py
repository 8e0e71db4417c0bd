"""The Lightning callback records what the loop had."""

from __future__ import annotations

import sys

import pytest
import torch

import frankenstein.experiments.torchvision_anywhere  # noqa: F401  before Lightning, which imports torchvision
from frankenstein.analysis.landscape import LandscapeError, Snapshots

lightning = pytest.importorskip("lightning", reason="needs Lightning: pip install lightning")

from frankenstein.analysis.landscape.lightning import SnapshotCallback  # noqa: E402

N_BATCHES = 3

pytestmark = [
    # Lightning's advice, which depends on the machine.
    pytest.mark.filterwarnings("ignore:The `srun` command is available on your system:UserWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used:UserWarning"),
    # Lightning's own use of torch.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning:lightning.pytorch.utilities._pytree"),
]


class Fit(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 2)
        self.seen = []

    def training_step(self, batch):
        return self.layer(batch).square().mean()

    def on_train_batch_start(self, batch, batch_idx):
        self.seen.append(torch.cat([one.detach().flatten() for one in self.parameters()]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, n_epochs, **options):
    module = Fit()
    trainer = lightning.Trainer(
        max_epochs=n_epochs,
        accelerator="cpu",
        callbacks=[SnapshotCallback(Snapshots(folder), **options)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = torch.randn(N_BATCHES, 4, 3, generator=torch.Generator().manual_seed(1))
    trainer.fit(module, torch.utils.data.DataLoader(list(batches), batch_size=None))
    return module


def test_epochs_are_recorded(tmp_path):
    module = fit(tmp_path, 3)
    snapshots = Snapshots(tmp_path)
    assert snapshots.steps() == [0, 3, 6, 9]
    assert snapshots.layout().names == ("layer.weight", "layer.bias")
    final = torch.cat([one.detach().flatten() for one in module.parameters()])
    for step, expected in zip([0, 3, 6, 9], [*module.seen[::N_BATCHES], final], strict=True):
        assert torch.equal(torch.from_numpy(snapshots.at(step).weights()), expected), step


def test_some_epochs_are_recorded(tmp_path):
    fit(tmp_path, 4, every_n_epochs=2)
    assert Snapshots(tmp_path).steps() == [0, 6, 12]
    with pytest.raises(LandscapeError, match="every_n_epochs is 0: it must be 1 or more"):
        SnapshotCallback(Snapshots(tmp_path), every_n_epochs=0)


def test_lightning_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "frankenstein.analysis.landscape.lightning")
    with pytest.raises(ImportError, match="this callback needs Lightning; pip install lightning"):
        import frankenstein.analysis.landscape.lightning  # noqa: F401
