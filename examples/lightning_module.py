"""Lightning: a module with `configure_optimizers`, decay on matrices only, OneCycleLR and an average of the weights.

python examples/lightning_module.py
"""

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from frankenstein import Frankenstein


class Digits(lightning.LightningModule):
    """A network with one hidden layer."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

    def training_step(self, batch):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.layers(images), labels)

    def configure_optimizers(self):
        params = list(self.parameters())
        groups = [
            {"params": [param for param in params if param.dim() > 1], "weight_decay": 1e-2},
            {"params": [param for param in params if param.dim() < 2]},
        ]
        optimizer = Frankenstein(groups, lr=1e-3)
        n_steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=n_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


lightning.seed_everything(0, verbose=False)
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
order = torch.randperm(len(images))
train, test = order[:1400], order[1400:]

module = Digits()
trainer = lightning.Trainer(
    max_epochs=20,
    accelerator="cpu",
    precision="bf16-mixed",
    gradient_clip_val=1.0,
    callbacks=[EMAWeightAveraging(decay=0.9)],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, DataLoader(TensorDataset(images[train], labels[train]), batch_size=50, shuffle=True))

accuracy = (module.layers(images[test]).argmax(1) == labels[test]).float().mean().item()
print(f"test accuracy of the averaged weights: {accuracy:.3f}")
